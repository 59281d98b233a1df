// The scrubber: the clean image that both runs predicted after each step, over the images. When is the picture decided?

function scrubber(model, bin, parts, looking) {
  const id = freshId("scrubber");
  const label = h("label", { for: id, text: "Clean image predicted after step" });
  const slider = h("input", { id, type: "range", class: "fd-film-slider", min: 0, step: 1 });
  const words = h("output", { for: id, class: "fd-note" });
  const root = h("div", { class: "fd-film" }, label, slider, words);
  const draw = () => {
    const { steps = [], columns = 1, said = [], keys = [] } = model.get("film");
    const seen = looking.step === null ? -1 : steps.findIndex((done) => done > looking.step);
    const place = seen < 0 ? Number(slider.value) : seen; // the first image after the step that is looked at
    const isEnd = !steps.length || place === steps.length - 1;
    for (const name of ["baseline", "accelerated"]) parts[name].overlay(isEnd ? null : { address: model.get("film")[name], place, columns, count: steps.length });
    parts.difference.root.classList.toggle("fd-of-the-end", !isEnd);
    if (!steps.length) return;
    const used = keys.findLast((key) => key < steps[place]);
    const time = isEnd ? "the images themselves" : used === steps[place] - 1 ? "a key step" : `reuses key step ${used}`;
    words.textContent = `${steps[place] - 1} of ${steps.at(-1) - 1} (${time}): ${said[place]}`;
    slider.setAttribute("aria-valuetext", words.textContent);
  };
  slider.addEventListener("input", () => {
    looking.set(null); // the slider is asked now
    draw();
  });
  looking.whenChanged(draw);
  watch(model, bin, ["film"], () => {
    const { steps = [] } = model.get("film");
    root.hidden = steps.length < 2;
    slider.max = Math.max(0, steps.length - 1);
    slider.value = slider.max;
    draw();
  });
  return root;
}

/** Shows one tile of an image of tiles as the background of an element. */
function showTile(node, { address, place, columns, count }) {
  const share = (at, of) => (of > 1 ? (at / (of - 1)) * 100 : 0);
  const rows = Math.ceil(count / columns);
  node.style.backgroundImage = `url("${address}")`;
  node.style.backgroundSize = `${columns * 100}% ${rows * 100}%`;
  node.style.backgroundPosition = `${share(place % columns, columns)}% ${share(Math.floor(place / columns), rows)}%`;
}
