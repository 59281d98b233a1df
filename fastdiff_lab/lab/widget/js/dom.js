// Small helpers that every part uses. The files of this folder are joined in Python into one module; see assets.py.

/** An element: attributes (`on` for listeners, `text` for its text, `dataset`), then children. Text is never read as HTML. */
function h(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "circle", "line", "text", "g", "rect", "title"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [event, listener] of Object.entries(value)) node.addEventListener(event, listener);
    else if (name === "text") node.textContent = value;
    else if (name === "dataset") Object.assign(node.dataset, value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value != null) node.setAttribute(name, value);
  }
  // JupyterLab's shortcuts (arrows, Space, letters) would act on the notebook; it looks for this mark on the focused element itself first.
  if (["button", "input", "select", "summary"].includes(tag)) node.dataset.lmSuppressShortcuts = "true";
  node.append(...children.filter((child) => child != null));
  return node;
}

let fdCount = 0;
/** An id that no other element of the page has. */
function freshId(stem) {
  fdCount += 1;
  return `fd-${stem}-${fdCount}`;
}

/** Calls `draw` now and whenever one of the traits changes; `bin` collects what undoes that. */
function watch(model, bin, names, draw) {
  const events = names.map((name) => `change:${name}`).join(" ");
  model.on(events, draw);
  bin.push(() => model.off(events, draw));
  draw();
}

/** Sets a trait from the page. */
function put(model, name, value) {
  model.set(name, value);
  model.save_changes();
}

/** An input whose value counts when it is left, and on Enter, which JupyterLab keeps from inputs inside cells. */
function committed(attributes, commit) {
  const control = h("input", attributes);
  control.addEventListener("change", () => commit(control));
  control.addEventListener("keydown", (event) => {
    if (event.key === "Enter") commit(control);
  });
  return control;
}

function button(label, className, click, attributes = {}) {
  return h("button", { type: "button", class: `fd-button ${className}`, on: { click }, ...attributes }, label);
}

/** Where a value lies between the ends of a logarithmic axis, from 0 to 1. */
function onLog(value, low, high) {
  const share = (Math.log(value) - Math.log(low)) / (Math.log(high) - Math.log(low));
  return Math.min(1, Math.max(0, share));
}

/** The powers of ten from low to high. */
function decades(low, high) {
  const found = [];
  for (let power = Math.ceil(Math.log10(low) - 1e-9); power <= Math.log10(high) + 1e-9; power += 1) found.push(10 ** power);
  return found;
}

/** Says that the kernel knows nothing of this widget any more, once that is so; what stands on the page would answer to nothing. */
function lost(model, bin) {
  const box = h("p", { class: "fd-lost", role: "alert", hidden: true, text: "The kernel was restarted or stopped, so nothing here answers any more: run the notebook's cells again." });
  const told = () => (box.hidden = false);
  model.on("comm_live_update", told);
  bin.push(() => model.off("comm_live_update", told));
  return box;
}

function groupsOf(keys, steps) {
  return keys.map((key, place) => [key, place + 1 < keys.length ? keys[place + 1] : steps]);
}
