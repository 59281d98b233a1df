// What is wrong with how a lab looks, as sentences. Texts are rectangles: cut where they leave what clips them or the widget.
() => {
  const faults = [];
  const texts = [];
  const visible = (node) =>
    node.checkVisibility({ opacityProperty: true, visibilityProperty: true }) && !node.closest(".fd-spoken, .fd-load");
  const scrolls = (node) => ["auto", "scroll"].includes(getComputedStyle(node).overflowX);
  const named = (node) => `${node.className?.baseVal ?? node.className ?? ""}`.split(" ")[0] || node.tagName.toLowerCase();
  const colour = (text) => {
    const [r, g, b, a = 1] = text.match(/[\d.]+/g).map(Number);
    return text.startsWith("color(") ? [r * 255, g * 255, b * 255, a] : [r, g, b, a];
  };
  const over = ([r, g, b, a = 1], ground) => [r, g, b].map((part, i) => part * a + ground[i] * (1 - a));
  const groundOf = (node) => {
    const layers = [];
    for (; node; node = node.parentElement) layers.push(colour(getComputedStyle(node).backgroundColor));
    return layers.reverse().reduce((ground, layer) => over(layer, ground), [255, 255, 255]);
  };
  const light = (rgb) => {
    const [r, g, b] = rgb.map((part) => (part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  for (const root of document.querySelectorAll(".fd-lab")) {
    const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
      const node = walker.currentNode.parentElement;
      if (!walker.currentNode.data.trim() || !visible(node)) continue;
      const range = document.createRange();
      range.selectNodeContents(walker.currentNode);
      const inScroller = [];
      let cut = null;
      const boxes = [...range.getClientRects()].filter((box) => box.width > 1 && box.height > 1);
      for (let above = node; above && above !== root.parentElement; above = above.parentElement) {
        if (scrolls(above)) { inScroller.push(above); break; }
        const clips = getComputedStyle(above).overflowX !== "visible" || above === root;
        const edge = above.getBoundingClientRect();
        if (clips && boxes.some((box) => box.left < edge.left - 1 || box.right > edge.right + 1)) cut = above;
      }
      const words = walker.currentNode.data.trim().slice(0, 40);
      if (cut) faults.push(`cut: ${named(node)} "${words}" by ${named(cut)}`);
      const style = getComputedStyle(node);
      const isSvg = node instanceof SVGElement;
      const ground = groundOf(node);
      const [one, other] = [light(over(colour(isSvg ? style.fill : style.color), ground)), light(ground)];
      const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
      const isOff = node.closest('[aria-disabled="true"]');
      if (contrast < 4.5 && !isOff && !node.closest("option")) faults.push(`contrast ${contrast.toFixed(1)}: ${named(node)} "${words}"`);
      if (!node.closest("option")) boxes.forEach((box) => texts.push({ node, box, words, scroller: inScroller[0] ?? null }));
    }
    for (const control of root.querySelectorAll("img:not(.fd-zoomed img), input:not([type=file]), select, svg, progress")) {
      const box = control.getBoundingClientRect();
      if (visible(control) && box.width > 1) texts.push({ node: control, box, words: named(control), scroller: control.closest(".fd-history-table, .fd-scroller, .fd-metrics") });
    }
    if (root.scrollWidth > root.clientWidth + 1) faults.push(`wider than its place by ${root.scrollWidth - root.clientWidth} px`);
  }
  const within = (one, other) => one.node.contains(other.node) || other.node.contains(one.node);
  texts.forEach((one, place) => {
    for (const other of texts.slice(place + 1)) {
      if (within(one, other) || one.scroller !== other.scroller) continue;
      const wide = Math.min(one.box.right, other.box.right) - Math.max(one.box.left, other.box.left);
      const high = Math.min(one.box.bottom, other.box.bottom) - Math.max(one.box.top, other.box.top);
      if (wide > 2 && high > 3 && one.node !== other.node) faults.push(`overlap: ${named(one.node)} "${one.words}" and ${named(other.node)} "${other.words}"`);
    }
  });
  return [...new Set(faults)];
}
