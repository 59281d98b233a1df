// The page: the lab's parts in the order of a story.

function section(id, title, lead, ...children) {
  return h("section", { id, "aria-label": title }, h("h2", { text: title }), h("p", { class: "fd-lead", text: lead }), ...children);
}

function stripOf(model, looking) {
  const { cells, scale, help } = keyStrip(model, [], looking);
  const { bars, axis } = profileChart(model, [], looking);
  const strip = h("div", { class: "fd-strip", style: `--fd-steps:${model.get("num_steps")}` }, bars, cells, scale);
  const gutter = h("div", { class: "fd-gutter" }, axis, h("span", { text: "key steps" }), h("span", { text: "step" }));
  const timeline = h("div", { class: "fd-timeline" }, gutter, h("div", { class: "fd-scroller" }, strip));
  const { list, note, spoken } = cards(model, []);
  const above = h("div", { class: "fd-actions" }, presets(model, []));
  return [above, timeline, readout(model, [], looking), help, list, h("div", { class: "fd-predicted" }, frontChart(model, []), note), spoken];
}

/** The schematic of a whole run, folded away: it is wide. */
function wholeRun({ timeline: { address, alt } }) {
  const image = h("img", { class: "fd-schematic", src: address, alt });
  const place = h("div", { class: "fd-wide", tabindex: 0, role: "region", "aria-label": "An example of a whole run" }, image);
  return h("details", {}, h("summary", { text: "An example with nine derived keys: without reuse, one step after the other, and in parallel" }), place);
}

function aboutPage({ machine, steps }) {
  const lines = [
    "The features are what the encoder hands to the decoder: the bottleneck's output, and skips, which are outputs of earlier layers.",
    "A group is a key step with the steps up to the next key. Derived keys are those with the smallest predicted error.",
    `All images are of the project's small network (64 × 64 pixels), drawn with DDIM, ${steps} steps and guidance 5.`,
    `Seconds are of one image on ${machine}, up to the latents.`,
    "The decibels are PSNR.",
    "The predicted error is the root mean square of a value of the final latents, which the image is decoded from. Their spread is about 1.",
    "DDIM is the scheduler: it makes the next, less noisy image from a prediction.",
    "The paper is Li et al., Faster Diffusion, NeurIPS 2024.",
  ];
  return h("ul", {}, ...lines.map((text) => h("li", { text })));
}

/** The answer, from the averages. */
function paying({ methods, machine, operations, on_gpu }) {
  const [reused, fitted, control, better] = ["features-9", "fitted-9", "fittedprediction-9", "fittedprediction-13"].map((name) => methods[name]);
  if (![reused, fitted, control, better].every((one) => one?.average)) return h("p", { text: "Not enough was measured for an answer." });
  const ofCalls = (encoded) => encoded * operations.encoder + methods.baseline.count * operations.decoder;
  const byOperations = ofCalls(methods.baseline.count) / ofCalls(reused.count);
  const dB = ({ average }) => `${average.toFixed(1)} dB`;
  const lines = [
    `A fit decides. With nine calls, reused features come to ${dB(reused)}, and to ${dB(fitted)} with a fit.`,
    `At the same nine calls, a fitted prediction comes to ${dB(control)} on this network. With other weights no lead is proven.`,
    `But it is faster. In about the same time it gets 13 calls and ${dB(better)} (${better.seconds.toFixed(2)} s against ${fitted.seconds.toFixed(2)} s, ${machine}). There, reusing features does not pay.`,
    `On a large GPU features lose less time: ${on_gpu.toFixed(1)} times as long as predictions at the same calls, here ${(fitted.seconds / control.seconds).toFixed(1)} times. Who leads in the same time there is not measured.`,
    `Most of the speed comes from batches: ${(methods.baseline.seconds / reused.seconds).toFixed(1)} times faster in seconds, where operations alone would give ${byOperations.toFixed(1)}.`,
  ];
  return h("ul", {}, ...lines.map((text) => h("li", { text })));
}

async function renderPage(data, el) {
  const address = await readSheets(data.prompts);
  fdOperations = data.operations;
  const model = explainerModel(data);
  for (const [name, value] of Object.entries({ chosen: { prompt: 0, seed: 0 }, guessed: {}, beside: "features" })) model.set(name, value);
  model.answers.race = () => model.set("race", raceOf(model, data, address));
  watch(model, [], ["chosen", "key_steps"], () => model.set("race", {}));
  const looking = lookedAt(model);
  const parts = {
    step: section("step", "One step", "Move through the steps: what runs, and where do the features come from?", architecture(model, [], looking), stepPlayer(model, [], looking), wholeRun(data)),
    keys: section("keys", "Choose the key steps", "Each bar is the error that its group makes. Set and clear keys, and see what it costs and saves.", ...stripOf(model, looking)),
    pictures: section("pictures", "What comes out", "The same noise, the same prompt, the same number of calls. Decibels (dB) say how near an image is to the one of 50 steps: at 20 it is another image, at 30 alike, above 40 nobody sees a difference.", ...pictures(model, data, address)),
    film: section("film", "When is the image decided?", "After each step a run already predicts the final image. Seed 0 of the chosen prompt:", ...filmSection(model, data, address)),
    race: section("race", "The same time for all", "Calls are not time. Here each method gets as many calls as fit into the same seconds.", raceSection(model, [])),
    verdict: section("verdict", "Does it pay?", "One image is no proof. These are averages of 128 images.", paying(data)),
  };
  const { begin, box } = tour(tourStops(model, looking, parts), "Tour of six steps");
  begin.classList.add("fd-primary");
  const lead = "A diffusion model runs a large network 50 times for one image. Its encoder can rest at most steps. Which steps, and what is lost?";
  const head = h("header", {}, h("h1", { text: "Which steps need the encoder?" }), h("p", { class: "fd-lead", text: lead }), begin);
  const about = section("about", "Words, and what was measured", "Everything here was measured beforehand. The errors are computed in this page.", aboutPage(data));
  const root = h("div", { class: "fd-lab fd-page" }, head, ...Object.values(parts), about, box);
  followTheme(root, []);
  el.replaceChildren(root);
}

renderPage(JSON.parse(document.querySelector("#data").textContent), document.querySelector("#page"));
