// Small helpers that every part uses. The files of this folder are joined in Python into one module; see assets.py.

/** An element: attributes (`on` for listeners, `text` for its text, `dataset`), then children. Text is never read as HTML. */
function h(tag, attributes = {}, ...children) {
  const svg = ["svg", "path", "circle", "line", "text", "g", "rect", "image", "title"].includes(tag);
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

// Every widget has this module for itself, so a count alone would give the same ids to all of them.
const fdStem = Math.random().toString(36).slice(2, 10);
let fdCount = 0;
/** An id that no other element of the page has. */
function freshId(stem) {
  fdCount += 1;
  return `fd-${stem}-${fdStem}-${fdCount}`;
}

/** Calls `draw` now and whenever one of the traits changes; `bin` collects what undoes that. */
function watch(model, bin, names, draw) {
  const events = names.map((name) => `change:${name}`).join(" ");
  model.on(events, draw);
  bin.push(() => model.off(events, draw));
  draw();
}

/** Sets traits from the page; the kernel tells in `heard` that it has done what belongs to this `beat`. */
function put(model, changes = {}) {
  for (const [name, value] of Object.entries(changes)) model.set(name, value);
  model.set("beat", nextBeat(model));
  model.save_changes();
}

/** Asks the kernel to do something; returns the number that `heard` reaches when it was done. */
function ask(model, message) {
  const beat = nextBeat(model);
  model.set("beat", beat);
  model.send({ ...message, beat });
  return beat;
}

function nextBeat(model) {
  return Math.max(model.get("beat"), model.get("heard")) + 1;
}

function isDone(model, beat) {
  return model.get("heard") >= beat;
}

/** An input whose value counts when it is left, and on Enter, which JupyterLab keeps from inputs inside cells; once for each. */
function committed(attributes, commit) {
  const control = h("input", attributes);
  let last = null;
  const take = () => {
    commit(control);
    last = control.value;
  };
  control.addEventListener("focus", () => (last = control.value));
  control.addEventListener("change", () => control.value !== last && take());
  control.addEventListener("blur", () => last !== null && control.value !== last && take());
  control.addEventListener("keydown", (event) => event.key === "Enter" && take());
  return control;
}

/** Switches a control off without taking the focus from it. */
function setOff(control, isOff) {
  control.setAttribute("aria-disabled", String(isOff));
}

function button(label, className, click, attributes = {}) {
  const act = (event) => event.currentTarget.getAttribute("aria-disabled") !== "true" && click(event);
  return h("button", { type: "button", class: `fd-button ${className}`, on: { click: act }, ...attributes }, label);
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

function groupsOf(keys, steps) {
  return keys.map((key, place) => [key, place + 1 < keys.length ? keys[place + 1] : steps]);
}
