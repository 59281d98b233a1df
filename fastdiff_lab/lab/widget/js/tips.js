// Definitions that mouse, touch, keyboard and screen readers reach: they show on focus and hover, and Escape hides them.

/** Describes a control in words; the tip that is returned stands right after it. */
function tipFor(node, words) {
  const tip = h("span", { id: freshId("tip"), class: "fd-tip", role: "tooltip", popover: "manual", text: words });
  const isOpen = () => tip.matches(":popover-open");
  const hide = () => isOpen() && tip.hidePopover();
  const show = () => {
    if (isOpen() || !tip.textContent || !tip.isConnected) return;
    tip.showPopover();
    const [at, box] = [node.getBoundingClientRect(), tip.getBoundingClientRect()];
    tip.style.left = `${Math.max(4, Math.min(at.left, innerWidth - box.width - 4))}px`;
    tip.style.top = `${at.bottom + box.height + 4 < innerHeight ? at.bottom + 4 : at.top - box.height - 4}px`;
  };
  node.setAttribute("aria-describedby", tip.id);
  const heard = { focus: show, pointerenter: show, blur: hide, pointerleave: hide, pointercancel: hide };
  for (const [event, act] of Object.entries(heard)) node.addEventListener(event, act);
  node.addEventListener("keydown", (event) => {
    if (event.key !== "Escape" || !isOpen()) return;
    event.stopPropagation();
    hide();
  });
  return tip;
}

/** A word with its definition: a button, so that fingers and keys reach it. */
function term(word, definition) {
  const node = h("button", { type: "button", class: "fd-term" }, word);
  return definition ? [node, tipFor(node, definition)] : [word];
}
