// The lab: its parts, put together.

function renderLab({ model, el }) {
  const bin = [];
  const answers = connection(model, bin);
  const looking = lookedAt(model);
  const { cells, scale, help } = keyStrip(model, bin, looking);
  const { bars, axis, choices } = profileChart(model, bin, looking);
  const strip = h("div", { class: "fd-strip" }, bars, cells, scale);
  const gutter = h("div", { class: "fd-gutter" }, axis, h("span", { text: "key steps" }), h("span", { text: "step" }));
  const timeline = h("div", { class: "fd-timeline" }, gutter, h("div", { class: "fd-scroller" }, strip));
  watch(model, bin, ["num_steps"], () => strip.style.setProperty("--fd-steps", model.get("num_steps")));
  const { list, note, spoken } = cards(model, bin);
  const { begin, box } = tour(labStops({ querySelector: (name) => root.querySelector(name) }), "Tour");
  const projector = projectorButton(() => root);
  const above = h("div", { class: "fd-actions" }, h("h3", { text: "Key steps" }), ...undoButtons(model, bin), projector, begin, presets(model, bin));
  const below = h("div", { class: "fd-actions fd-below" }, readout(model, bin, looking), help, choices);
  const root = h(
    "div",
    { class: "fd-lab" },
    answers.sign,
    h("section", { "aria-label": "Key steps" }, above, problem(model, bin, "keys"), timeline, below),
    h("section", { "aria-label": "Prediction" }, list, problem(model, bin, "prediction"), h("div", { class: "fd-predicted" }, frontChart(model, bin), errorChart(model, bin), note), spoken),
    h("section", { class: "fd-architecture-section", "aria-label": "The step that is looked at" }, chosenStep(model, bin, looking)),
    files(model, bin),
    h("section", { "aria-label": "Settings" }, h("h3", { text: "Settings" }), ...settingsForm(model, bin)),
    runPanel(model, bin, answers, looking),
    raceSection(model, bin),
    history(model, bin),
    box,
  );
  followTheme(root, bin);
  undoByKeyboard(root, model);
  endWithFullScreen(root, bin);
  takeDropped(root, model);
  el.replaceChildren(root);
  return () => bin.forEach((undo) => undo());
}

/** The architecture of the step that is looked at, folded away until it is wanted. */
function chosenStep(model, bin, looking) {
  return h("details", {}, h("summary", { text: "What runs at a step" }), architecture(model, bin, looking), stepPlayer(model, bin, looking));
}

/** Undo and redo of keys, settings and Clear. */
function undoButtons(model, bin) {
  const [back, again] = ["undo", "redo"].map((action) => {
    const title = action === "undo" ? "Take back the last change (Ctrl+Z)" : "Make it again (Ctrl+Shift+Z)";
    return button(action === "undo" ? "Undo" : "Redo", `fd-${action}`, () => ask(model, { action }), { title });
  });
  watch(model, bin, ["can_undo", "can_redo"], () => {
    setOff(back, !model.get("can_undo"));
    setOff(again, !model.get("can_redo"));
  });
  return [back, again];
}

function undoByKeyboard(root, model) {
  root.addEventListener("keydown", (event) => {
    const isTyping = event.target.matches("input:not([type=range], [type=checkbox], [type=radio]), select");
    if (isTyping || !(event.ctrlKey || event.metaKey) || !["z", "y"].includes(event.key.toLowerCase())) return;
    event.preventDefault();
    event.stopPropagation();
    ask(model, { action: event.shiftKey || event.key.toLowerCase() === "y" ? "redo" : "undo" });
  });
}

export default { render: renderLab };
