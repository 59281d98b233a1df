// Light or dark, as the page around the widget. JupyterLab says which; of other pages the background tells.

function followTheme(root, bin) {
  const draw = () => root.classList.toggle("fd-dark", isDark(root.parentElement));
  const marks = new MutationObserver(draw);
  for (const node of [document.documentElement, document.body]) marks.observe(node, { attributes: true });
  const shown = new ResizeObserver(draw); // also once it is on the page
  shown.observe(root);
  const system = matchMedia("(prefers-color-scheme: dark)");
  system.addEventListener("change", draw);
  bin.push(() => marks.disconnect(), () => shown.disconnect(), () => system.removeEventListener("change", draw));
}

function isDark(node) {
  for (; node; node = node.parentElement) {
    const [red, green, blue, alpha = 1] = getComputedStyle(node).backgroundColor.match(/[\d.]+/g)?.map(Number) ?? [];
    if (red !== undefined && alpha > 0.5) return 0.299 * red + 0.587 * green + 0.114 * blue < 128;
  }
  const scheme = getComputedStyle(document.documentElement).colorScheme;
  return scheme.includes("dark") && (!scheme.includes("light") || matchMedia("(prefers-color-scheme: dark)").matches);
}
