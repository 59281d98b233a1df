// The run: buttons, both images with their progress, their difference, and what came out.

function runPanel(model, bin) {
  const run = button("Run", "fd-run fd-primary", () => model.send({ action: "run" }));
  const cancel = button("Cancel", "fd-cancel", () => model.send({ action: "cancel" }));
  const said = h("span", { class: "fd-run-state", role: "status" });
  const sides = h("div", { class: "fd-sides" });
  const metrics = h("div", { class: "fd-metrics" });
  const parts = { baseline: side("baseline"), accelerated: side("accelerated"), difference: side("difference") };
  sides.append(...Object.values(parts).map((part) => part.root), metrics);

  watch(model, bin, ["run_state"], () => {
    const { state, text } = model.get("run_state");
    run.disabled = state === "running";
    cancel.disabled = state !== "running";
    said.textContent = text;
    said.dataset.state = state;
  });
  watch(model, bin, ["images"], () => {
    for (const [name, part] of Object.entries(parts)) part.show(model.get("images")[name] ?? {});
  });
  watch(model, bin, ["progress"], () => {
    for (const [name, part] of Object.entries(parts)) part.advance(model.get("progress")[name] ?? {});
  });
  watch(model, bin, ["result"], () => metrics.replaceChildren(resultTable(model.get("result"))));
  return h("section", { class: "fd-run-panel", "aria-label": "Run" }, h("div", { class: "fd-actions" }, run, cancel, said), problem(model, bin), sides);
}

const SIDE_TITLES = { baseline: "Baseline", accelerated: "Accelerated", difference: "Difference × 4" };

function side(name) {
  const image = h("img", { class: "fd-image", alt: "" });
  const blank = h("div", { class: "fd-blank", text: "not run yet" });
  const bar = h("progress", { max: 1, value: 0, "aria-label": `${SIDE_TITLES[name]}: progress` });
  const words = h("span", { class: "fd-progress-text" });
  const track = name === "difference" ? null : h("div", { class: "fd-track" }, bar, words);
  const root = h("figure", { class: `fd-side fd-side-${name}` }, h("figcaption", { text: SIDE_TITLES[name] }), image, blank, track);
  const show = ({ address = "", alt = "" }) => {
    if (address) image.src = address;
    image.alt = alt;
    image.hidden = !address;
    blank.hidden = Boolean(address);
  };
  const advance = ({ step = 0, steps = 1, text = "" }) => {
    bar.max = Math.max(1, steps);
    bar.value = step;
    words.textContent = text;
  };
  return { root, show, advance };
}

function resultTable({ rows = [], note = "" }) {
  if (!rows.length) return h("p", { class: "fd-empty", text: "Run shows seconds, PSNR, SSIM and the judge's verdict here." });
  const head = h("tr", {}, h("td"), h("th", { scope: "col", text: "baseline" }), h("th", { scope: "col", text: "accelerated" }));
  const body = rows.map(([label, baseline, accelerated, help]) =>
    h("tr", { title: help }, h("th", { scope: "row", text: label }), h("td", { text: baseline }), h("td", { text: accelerated })),
  );
  return h("div", {}, h("table", { class: "fd-result" }, head, ...body), h("p", { class: "fd-note", text: note }));
}

/** An error as a sentence, the traceback folded away. */
function problem(model, bin) {
  const box = h("div", { class: "fd-problem", role: "alert" });
  watch(model, bin, ["problem"], () => {
    const { message = "", details = "" } = model.get("problem");
    box.hidden = !message;
    const folded = details ? h("details", {}, h("summary", { text: "Traceback" }), h("pre", { text: details })) : null;
    box.replaceChildren(h("p", { text: message }), ...(folded ? [folded] : []));
  });
  return box;
}
