// The run: buttons, both images with their progress, their difference, and what came out.

function runPanel(model, bin, answers, looking) {
  let asked = 0;
  const run = button("Run", "fd-run fd-primary", () => {
    asked = ask(model, { action: "run", seeds: Math.min(16, Math.max(1, Math.round(Number(seeds.value)) || 1)) });
    setOff(run, true); // a second click would ask again
  });
  const id = freshId("seeds");
  const seeds = h("input", { id, type: "number", class: "fd-input fd-seeds", min: 1, max: 16, value: 1 });
  const several = h("div", { class: "fd-along" }, h("label", { for: id, text: "Seeds" }), seeds);
  const cancel = button("Cancel", "fd-cancel", () => ask(model, { action: "cancel" }));
  const said = h("span", { class: "fd-run-state", role: "status" });
  const old = h("span", { class: "fd-old", role: "status" });
  const pictures = h("div", { class: "fd-pictures" });
  const metrics = h("div", { class: "fd-metrics" });

  const draw = () => {
    const { state, text } = model.get("run_state");
    const isRunning = state === "running";
    setOff(run, isRunning || !isDone(model, asked));
    setOff(cancel, !isRunning);
    said.textContent = isRunning && answers.isSilent() ? "No word from the run: the kernel does not answer." : text;
    said.dataset.state = isRunning && answers.isSilent() ? "silent" : state;
  };
  answers.whenChanged(draw);
  watch(model, bin, ["run_state", "heard"], draw);
  watch(model, bin, ["out_of_date"], () => {
    old.textContent = model.get("out_of_date") ? "Images and numbers below are of other keys or settings." : "";
    pictures.classList.toggle("fd-is-old", model.get("out_of_date"));
  });
  const parts = Object.fromEntries(Object.keys(SIDE_TITLES).map((name) => [name, side(model, bin, name)]));
  pictures.append(...Object.values(parts).map(({ root }) => root), scrubber(model, bin, parts, looking));
  watch(model, bin, ["result"], () => metrics.replaceChildren(resultTable(model.get("result"))));
  const actions = h("div", { class: "fd-actions" }, run, cancel, several, guessField(model, bin), said, old);
  return h("section", { class: "fd-run-panel", "aria-label": "Run" }, actions, problem(model, bin, "run"), h("div", { class: "fd-sides" }, pictures, metrics), compareImages(model, bin));
}

const SIDE_TITLES = { baseline: "Baseline", accelerated: "Accelerated", difference: "Difference × 4" };

function side(model, bin, name) {
  const image = h("img", { class: "fd-image", alt: "" });
  const blank = h("div", { class: "fd-blank", text: "not run yet" });
  const bar = h("progress", { max: 1, value: 0, "aria-label": `${SIDE_TITLES[name]}: progress` });
  const words = h("span", { class: "fd-progress-text" });
  const tile = h("div", { class: "fd-image fd-over", hidden: true, role: "img", "aria-label": `${SIDE_TITLES[name]}: clean image predicted at the step of the slider` });
  const track = name === "difference" ? null : h("div", { class: "fd-track" }, bar, words);
  watch(model, bin, [`image_${name}`], () => {
    const { address = "", alt = "" } = model.get(`image_${name}`);
    if (address) image.src = address;
    image.alt = alt;
    image.hidden = !address;
    blank.hidden = Boolean(address);
  });
  if (track) {
    watch(model, bin, [`progress_${name}`], () => {
      const { step = 0, steps = 1, text = "" } = model.get(`progress_${name}`);
      bar.max = Math.max(1, steps);
      bar.value = step;
      words.textContent = text;
    });
  }
  const shown = h("div", { class: "fd-frame" }, image, blank, tile);
  const overlay = (given) => {
    tile.hidden = !given;
    if (given) showTile(tile, given);
  };
  const root = h("figure", { class: `fd-side fd-side-${name}` }, h("figcaption", { text: SIDE_TITLES[name] }), shown, track);
  return { root, overlay };
}

function resultTable({ rows = [], note = "" }) {
  if (!rows.length) return h("p", { class: "fd-empty", text: "Run shows seconds, PSNR, SSIM and the judge's verdict here." });
  const head = h("tr", {}, h("td"), h("th", { scope: "col", text: "baseline" }), h("th", { scope: "col", text: "accelerated" }));
  const body = rows.map(([label, baseline, accelerated, help]) =>
    h("tr", {}, h("th", { scope: "row" }, ...term(label, help)), h("td", { text: baseline }), h("td", { text: accelerated })),
  );
  return h("div", {}, h("table", { class: "fd-result" }, head, ...body), h("p", { class: "fd-note", text: note }));
}

/** An error of a part of the page, at that part: a sentence, the traceback folded away. */
function problem(model, bin, where) {
  const box = h("div", { class: "fd-problem", role: "alert" });
  watch(model, bin, ["problem"], () => {
    const { message = "", details = "", where: at } = model.get("problem");
    box.hidden = !message || at !== where;
    const folded = details ? h("details", {}, h("summary", { text: "Traceback" }), h("pre", { text: details })) : null;
    box.replaceChildren(...(box.hidden ? [] : [h("p", { text: message }), folded].filter(Boolean)));
  });
  return box;
}
