// The architecture of the step that is looked at: what runs there, and where its features come from.

const UNET = { width: 500, height: 250, middle: 130, wide: 34, apart: 52, left: 56, heights: [112, 82, 54] };

/** What happens at a step: its key, the steps of its group, and whether its encoder runs. */
function stepOf(keys, steps, step) {
  const [from, to] = groupsOf(keys, steps).findLast(([key]) => key <= step) ?? [0, steps];
  return { step, from, to, isKey: step === from };
}

function architecture(model, bin, looking) {
  const figure = h("figure", { class: "fd-architecture" });
  const words = h("figcaption");
  let step = 0;
  const draw = () => {
    const steps = model.get("num_steps");
    step = Math.min(looking.step ?? step, steps - 1);
    const here = { ...stepOf(model.get("key_steps"), steps, step), isWhole: model.get("form")?.reuse === "prediction" };
    words.textContent = architectureWords(here);
    figure.replaceChildren(words, unetDrawing(here, words.textContent));
  };
  looking.whenChanged(draw);
  watch(model, bin, ["key_steps", "num_steps", "form"], draw);
  return figure;
}

function architectureWords({ step, from, to, isKey, isWhole }) {
  if (isWhole) return isKey ? `Step ${step} is a key step: the whole network runs.` : `Step ${step}: nothing runs. The prediction of step ${from} is used again.`;
  const size = to - from;
  const all = size === 1 ? "its decoder runs for this step alone" : `one call decodes the steps ${from} to ${to - 1} together`;
  if (isKey) return `Step ${step} is a key step: the encoder runs, and ${all}.`;
  return `Step ${step}: the encoder does not run. The decoder takes the features of step ${from}, with its own time-step, in the call of step ${from}.`;
}

function unetDrawing(here, words) {
  const { width, height } = UNET;
  const { isKey, from, step, isWhole } = here;
  const to = isWhole ? from + 1 : here.to;
  const place = (number) => UNET.left + number * UNET.apart;
  const kind = isKey ? "fd-runs" : "fd-rests";
  const parts = UNET.heights.flatMap((tall, number) => [
    block(place(number), tall, `fd-encoder ${kind}`),
    ...batch(place(6 - number), tall, Math.min(4, to - from), isWhole ? kind : "fd-runs"),
    skip(place(number), place(6 - number), UNET.middle - tall / 2, number, kind),
  ]);
  const arrows = [
    isKey ? flow(`M${place(0) - 38} ${UNET.middle}H${place(0) - 4}`) : null,
    flow(`M${place(3) + UNET.wide} ${UNET.middle}H${place(4) - 3}`, kind),
    flow(`M${place(6) + UNET.wide + 12} ${UNET.middle}h30`),
  ];
  const label = (x, y, text, anchor = "middle") => h("text", { x, y, "text-anchor": anchor }, text);
  const low = UNET.middle + UNET.heights[0] / 2;
  return h(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": words },
    ...parts,
    block(place(3), 30, `fd-encoder ${kind}`),
    ...arrows.filter(Boolean),
    label(place(1) + UNET.wide / 2, low + 18, isKey ? "encoder runs" : "encoder rests"),
    label(place(5) + UNET.wide / 2, low + 18, to - from > 1 ? `decoder, ${to - from} steps` : "decoder"),
    label(place(3) + UNET.wide / 2, 14, isKey || isWhole ? "skips" : `skips kept from step ${from}`),
    label(place(3) + UNET.wide / 2, height - 6, isWhole && !isKey ? `prediction kept from step ${from}` : isKey ? `time-step of step ${step}` : `the decoder's own time-step, of step ${step}`),
    isKey ? label(2, UNET.middle - 10, "noise", "start") : null,
    label(width - 2, UNET.middle - 10, "less noise", "end"),
  );
}

function block(x, tall, className) {
  return h("rect", { class: className, x, y: UNET.middle - tall / 2, width: UNET.wide, height: tall, rx: 4 });
}

/** The decoder's block, once for each step that its call decodes. */
function batch(x, tall, count, kind) {
  return Array.from({ length: count }, (_, back) => block(x + (count - 1 - back) * 4, tall, `fd-decoder ${kind}`));
}

function skip(from, to, top, number, kind) {
  const [start, end, over] = [from + UNET.wide / 2, to + UNET.wide / 2, 26 + number * 20];
  return flow(`M${start} ${top}V${over + 6}Q${start} ${over} ${start + 6} ${over}H${end - 6}Q${end} ${over} ${end} ${over + 6}V${top - 4}`, `fd-skip ${kind}`);
}

function flow(d, className = "fd-runs") {
  return h("path", { class: `fd-flow ${className}`, d });
}

/** A slider over the steps, and a button that plays them. */
function stepPlayer(model, bin, looking) {
  const id = freshId("player");
  let timer = null;
  const slider = h("input", { id, type: "range", class: "fd-player-slider", min: 0, step: 1, value: 0, on: { input: () => looking.set(Number(slider.value)) } });
  const stop = () => {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
  };
  const next = () => (Number(slider.value) + 1 < model.get("num_steps") ? looking.set(Number(slider.value) + 1) : stop());
  const play = button("Play", "fd-play", () => {
    if (timer) return stop();
    looking.set(0);
    timer = setInterval(next, 250);
    play.textContent = "Stop";
  });
  looking.whenChanged((step) => {
    if (step === null) return;
    slider.value = step;
    slider.setAttribute("aria-valuetext", architectureWords(stepOf(model.get("key_steps"), model.get("num_steps"), step)));
  });
  watch(model, bin, ["num_steps"], () => (slider.max = model.get("num_steps") - 1));
  bin.push(stop);
  return h("div", { class: "fd-player" }, h("label", { for: id, text: "Step" }), slider, play);
}
