// Baseline and accelerated image in one frame: a wipe between them, a blink, and a zoom to their pixels.

const BLINK = 700; // milliseconds of each image: fewer than three changes a second

function compareImages(model, bin) {
  const over = h("img", { class: "fd-image fd-wiped", alt: "" });
  const under = h("img", { class: "fd-image", alt: "" });
  const line = h("i", { class: "fd-wipe-line" });
  const zoomed = h("div", { class: "fd-zoomed" }, under, over, line);
  const stage = h("div", { class: "fd-stage", tabindex: 0, role: "img" }, zoomed);
  stage.dataset.lmSuppressShortcuts = "true";
  const state = { wipe: 50, zoom: 1, x: 50, y: 50 };
  const draw = () => {
    over.style.clipPath = `inset(0 ${100 - state.wipe}% 0 0)`;
    line.style.left = `${state.wipe}%`;
    zoomed.style.transform = `scale(${state.zoom})`;
    zoomed.style.transformOrigin = `${state.x}% ${state.y}%`;
    const zoom = state.zoom > 1 ? `, ${state.zoom} times as large; arrow keys move it` : "";
    stage.setAttribute("aria-label", `Left ${state.wipe} % the baseline, the rest the accelerated run${zoom}`);
  };
  const set = (changes) => {
    Object.assign(state, changes);
    draw();
  };
  const controls = [wipeSlider(state, set), blinkButton(bin, state, set), zoomField(set)];
  lookAround(stage, state, set);
  const root = h("div", { class: "fd-compare" }, stage, h("div", { class: "fd-compare-controls" }, ...controls));
  watch(model, bin, ["image_baseline", "image_accelerated", "result"], () => {
    const both = [model.get("image_baseline"), model.get("image_accelerated")];
    root.hidden = !both.every(({ address }) => address);
    if (!root.hidden) [over.src, under.src] = both.map(({ address }) => address);
  });
  draw();
  return root;
}

function wipeSlider(state, set) {
  const id = freshId("wipe");
  const slider = h("input", { id, type: "range", class: "fd-wipe", min: 0, max: 100, value: state.wipe });
  slider.addEventListener("input", () => set({ wipe: Number(slider.value) }));
  return h("div", { class: "fd-along" }, h("label", { for: id, text: "Wipe" }), slider);
}

/** Shows one image whole, then the other, until it is pressed again. */
function blinkButton(bin, state, set) {
  let [timer, before] = [null, 50];
  const stop = () => {
    clearInterval(timer);
    timer = null;
  };
  const blink = button("Blink", "fd-blink", () => {
    if (timer) {
      stop();
      set({ wipe: before });
    } else {
      before = state.wipe;
      set({ wipe: 0 });
      timer = setInterval(() => set({ wipe: state.wipe ? 0 : 100 }), BLINK);
    }
    blink.setAttribute("aria-pressed", String(Boolean(timer)));
  }, { "aria-pressed": "false" });
  bin.push(stop);
  return blink;
}

function zoomField(set) {
  const options = [1, 2, 4, 8].map((times) => [times, `${times}×`]);
  const { label, control } = fieldControl({ name: "zoom", label: "Zoom", kind: "choice", options }, 1, (zoom) => set({ zoom }));
  return h("div", { class: "fd-along" }, label, control);
}

/** The pointer, or the arrow keys, choose what is zoomed. */
function lookAround(stage, state, set) {
  const within = (value) => Math.min(100, Math.max(0, value));
  stage.addEventListener("pointermove", (event) => {
    const box = stage.getBoundingClientRect();
    set({ x: within((100 * (event.clientX - box.left)) / box.width), y: within((100 * (event.clientY - box.top)) / box.height) });
  });
  stage.addEventListener("keydown", (event) => {
    const [across, down] = { ArrowLeft: [-10, 0], ArrowRight: [10, 0], ArrowUp: [0, -10], ArrowDown: [0, 10] }[event.key] ?? [];
    if (across === undefined || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    set({ x: within(state.x + across), y: within(state.y + down) });
  });
}
