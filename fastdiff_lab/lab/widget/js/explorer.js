// The recording explorer: curves and maps of a layer, drawn when the layer changes; keys and steps only move marks.

function renderExplorer({ model, el }) {
  const bin = [];
  const figures = h("div", { class: "fd-figures" });
  const note = h("p", { class: "fd-note", role: "status" });
  let [charts, looked] = [[], null];
  const steps = () => model.get("time_steps").length;
  const move = () => {
    const keys = model.get("key_steps").filter((key) => key < steps());
    const step = Math.min(steps() - 1, Math.max(0, looked ?? model.get("form").step ?? 0));
    charts.forEach((chart) => chart.move(keys, step));
    note.textContent = stepSentence(step, keys, model.get("time_steps"));
  };
  watch(model, bin, ["curves", "similarity", "maps"], () => {
    charts = [];
    const shown = [
      ...model.get("curves").map((curve) => ["curve", curve, curveChart]),
      ["similarity", model.get("similarity"), similarityChart],
      ["maps", model.get("maps"), mapsChart],
    ];
    figures.replaceChildren(
      ...shown.map(([kind, given, draw]) => {
        const caption = h("figcaption", { text: given.title });
        const where = h("figure", { class: `fd-figure fd-figure-${given.name ?? kind}` }, caption);
        if (given.words) where.append(h("p", { class: "fd-empty", text: given.words }));
        else if (given.title) {
          const chart = draw(given, steps());
          charts.push(chart);
          where.append(chart.svg, ...(given.unit ? [h("small", { text: given.unit })] : []));
        }
        return where;
      }),
    );
    move();
  });
  watch(model, bin, ["key_steps", "form"], move);
  hearLooking(model, bin, (step) => {
    looked = step;
    move();
  });
  const answers = connection(model, bin);
  const root = h("div", { class: "fd-lab fd-explorer" }, answers.sign, form(model, bin).root, note, problem(model, bin, "explorer"), figures);
  followTheme(root, bin);
  el.replaceChildren(root);
  return () => bin.forEach((undo) => undo());
}

function stepSentence(step, keys, times) {
  const time = Number(times[step]?.toPrecision(5) ?? 0);
  const used = keys.findLast((key) => key <= step);
  if (used === undefined) return `Step ${step}, time-step ${time}.`;
  return `Step ${step} (time-step ${time}) ${used === step ? "is a key step: its encoder runs" : `reuses the encoder's features of key step ${used}`}.`;
}

export default { render: renderExplorer };
