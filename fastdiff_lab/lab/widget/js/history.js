// The runs so far: sorted by any column, compared side by side, exported.

/** The runs that are shown, the oldest first. Each is a model of its own that knows the one before it. */
async function runsOf(model) {
  const rows = [];
  for (let address = model.get("last_run"); address; ) {
    const run = await model.widget_manager.get_model(address.slice("IPY_MODEL_".length));
    rows.unshift(run.get("row"));
    address = run.get("before");
  }
  return rows.filter(({ run }) => run > model.get("cleared"));
}

function history(model, bin) {
  const place = h("div", { class: "fd-history-table" });
  const compared = h("div", { class: "fd-compared" });
  let latest = 0;
  watch(model, bin, ["last_run", "cleared", "columns", "sort", "chosen"], async () => {
    const drawing = ++latest;
    const rows = await runsOf(model);
    if (drawing !== latest) return;
    const active = document.activeElement?.dataset?.focus;
    place.replaceChildren(historyTable(model, rows));
    if (active && place.isConnected) place.querySelector(`[data-focus="${CSS.escape(active)}"]`)?.focus();
    compared.replaceChildren(...comparedRows(model, rows));
    setOff(clear, !rows.length);
  });
  const about = { action: "export", label: "Export CSV", value: "runs.csv", describe: "CSV file to write", className: "export" };
  const clear = button("Clear", "fd-clear", () => ask(model, { action: "clear" }), { title: "Show these runs no more; Undo brings them back" });
  const head = h("div", { class: "fd-actions" }, h("h3", { text: "Runs" }), h("span", { class: "fd-space" }), ...fileWriter(model, bin, "runs", about), clear, saying(model, bin, "runs"));
  return h("section", { class: "fd-history", "aria-label": "Runs" }, head, problem(model, bin, "runs"), place, compared);
}

function historyTable(model, rows) {
  const columns = model.get("columns");
  if (!rows.length) return h("p", { class: "fd-empty", text: "No run yet. Each run becomes a row: sort by a column, tick rows to compare them." });
  const { by, ascending } = model.get("sort");
  const chosen = new Set(model.get("chosen"));
  const order = sortedRows(rows, by, ascending);
  const heads = columns.map(({ name, label, help }) => {
    const sorted = name === by ? (ascending ? "ascending" : "descending") : "none";
    const arrow = { ascending: " ▲", descending: " ▼", none: "" }[sorted];
    const click = () => put(model, { sort: { by: name, ascending: name === by ? !ascending : true } });
    const press = h("button", { type: "button", class: "fd-sort", dataset: { focus: `sort-${name}` }, on: { click } }, label + arrow);
    return h("th", { scope: "col", "aria-sort": sorted }, press, tipFor(press, help));
  });
  const first = ["compare", "image", "settings"].map((text) => h("th", { scope: "col", text }));
  const head = h("tr", {}, ...first, ...heads);
  const body = order.map((row) => {
    const change = () => put(model, { chosen: chosen.has(row.run) ? [...chosen].filter((run) => run !== row.run) : [...chosen, row.run] });
    const tick = { type: "checkbox", checked: chosen.has(row.run), "aria-label": `compare run ${row.run}`, dataset: { focus: `row-${row.run}` }, on: { change } };
    const image = h("img", { class: "fd-thumb", src: row.accelerated, alt: `image of run ${row.run}` });
    const again = button("Restore", "fd-restore", () => ask(model, { action: "restore", run: row.run }), {
      title: "Take over this run's settings and key steps", "aria-label": `restore run ${row.run}`,
    });
    const values = columns.map(({ name, kind }) => h("td", { class: `fd-${kind}`, title: row.shown[name], text: row.shown[name] }));
    const first = [h("td", {}, h("input", tick)), h("td", {}, image), h("td", {}, again)];
    return h("tr", { class: chosen.has(row.run) ? "fd-chosen" : "" }, ...first, ...values);
  });
  return h("table", {}, h("thead", {}, head), h("tbody", {}, ...body));
}

function sortedRows(rows, by, ascending) {
  const missing = (value) => value === null || value === undefined;
  const compare = (one, other) => {
    const [a, b] = [one.values[by], other.values[by]];
    if (missing(a) || missing(b)) return missing(a) - missing(b); // unknown values last, whichever way
    const order = typeof a === "string" ? a.localeCompare(b) : a - b;
    return ascending ? order : -order;
  };
  return [...rows].sort(compare);
}

function comparedRows(model, all) {
  const rows = model.get("chosen").map((run) => all.find((row) => row.run === run)).filter(Boolean);
  if (rows.length < 2) return rows.length ? [h("p", { class: "fd-note", text: "Tick another run to compare it with this one." })] : [];
  const images = ["baseline", "accelerated", "difference"];
  return rows.map((row) =>
    h(
      "figure",
      { class: "fd-compared-run" },
      h("figcaption", {}, h("strong", { text: `Run ${row.run}` }), h("span", { text: row.title })),
      h("div", {}, ...images.map((name) => h("img", { src: row[name], alt: `run ${row.run}, ${name}`, title: name }))),
      h("pre", { class: "fd-text", text: row.shown.schedule }),
    ),
  );
}
