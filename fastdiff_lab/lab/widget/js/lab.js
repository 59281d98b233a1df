// The lab: its parts, put together.

function renderLab({ model, el }) {
  const bin = [];
  const { cells, scale, help } = keyStrip(model, bin);
  const { bars, axis, choices } = profileChart(model, bin);
  const timeline = h(
    "div",
    { class: "fd-timeline" },
    axis, bars,
    h("span", { class: "fd-gutter", text: "key steps" }), cells,
    h("span", { class: "fd-gutter", text: "step" }), scale,
  );
  const { list, note, spoken } = cards(model, bin);
  const wrong = h("p", { class: "fd-form-error", role: "alert" });
  watch(model, bin, ["form_error"], () => {
    wrong.textContent = model.get("form_error");
    wrong.hidden = !model.get("form_error");
  });
  const above = h("div", { class: "fd-actions" }, h("h3", { text: "Key steps" }), presets(model, bin));
  const root = h(
    "div",
    { class: "fd-lab" },
    lost(model, bin),
    h("section", { "aria-label": "Key steps" }, above, timeline, h("div", { class: "fd-actions fd-below" }, help, h("span", { class: "fd-space" }), choices)),
    h("section", { "aria-label": "Prediction" }, list, h("div", { class: "fd-predicted" }, frontChart(model, bin), note), spoken),
    files(model, bin),
    h("section", { "aria-label": "Settings" }, h("h3", { text: "Settings" }), form(model, bin), wrong),
    runPanel(model, bin),
    history(model, bin),
  );
  el.replaceChildren(root);
  return () => bin.forEach((undo) => undo());
}

export default { render: renderLab };
