// The images of each method at so many calls: first a guess, then the images and their numbers.

/** Which image is chosen, with the rows of its methods. */
function choice(model, data) {
  const chosen = () => {
    const { prompt, seed } = model.get("chosen");
    const count = nearestCount(data.counts, model.get("key_steps").length);
    const runs = data.prompts[prompt].seeds[seed];
    const names = Object.keys(data.kinds).map((kind) => `${kind}-${count}`).filter((name) => runs[name]);
    const rows = names.map((name) => ({ name, title: data.kinds[data.methods[name].kind], ...runs[name], ...data.methods[name] }));
    return { prompt, seed, count, rows, baseline: { ...runs.baseline, ...data.methods.baseline }, id: `${prompt}-${seed}-${count}` };
  };
  return chosen;
}

function nearestCount(counts, keys) {
  return counts.reduce((one, other) => (Math.abs(other - keys) < Math.abs(one - keys) ? other : one));
}

const distance = ({ psnr }) => psnr ?? Infinity;
const inSeconds = ({ seconds }) => (seconds === null ? "not timed" : `${seconds.toFixed(2)} s`);
const inDecibels = ({ psnr }) => (psnr === null ? "the same image" : `${psnr.toFixed(1)} dB`);

function pictureChoices(model, data) {
  const pick = (name) => (value) => put(model, { chosen: { ...model.get("chosen"), [name]: value } });
  const prompts = choiceField("Prompt", data.prompts.map(({ text }, place) => [place, text]), pick("prompt"));
  const seeds = choiceField("Start noise", data.prompts[0].seeds.map((_, seed) => [seed, `seed ${seed}`]), pick("seed"));
  const counts = choiceField("Key steps", data.counts.map((count) => [count, inKeys(count)]), (count) => model.use(model.best(count)));
  watch(model, [], ["key_steps"], () => counts.set(nearestCount(data.counts, model.get("key_steps").length)));
  return h("div", { class: "fd-form" }, prompts.root, seeds.root, counts.root);
}

function choiceField(label, options, pick) {
  const field = { name: "choice", label, kind: "choice", options };
  const { label: above, control, set } = fieldControl(field, options[0][0], pick);
  return { root: h("div", { class: "fd-field" }, above, control), set };
}

/** The section: choices, a guess, then the images. */
function pictures(model, data, address) {
  const chosen = choice(model, data);
  const guess = h("div", { class: "fd-guess" });
  const shown = h("div", { class: "fd-gallery" });
  const said = h("p", { class: "fd-verdict", role: "status" });
  const note = h("p", { class: "fd-note" });
  const score = { right: 0, of: 0 };

  const draw = () => {
    const now = chosen();
    const isOpen = Boolean(model.get("guessed")[now.id]);
    const keys = data.methods[now.rows[0].name].keys;
    const isDrawn = JSON.stringify(keys) === JSON.stringify(model.get("key_steps"));
    note.textContent = isDrawn ? "" : `Drawn beforehand are derived keys. These images are of the ${inKeys(now.count)} ${keys.join(", ")}.`;
    said.textContent = isOpen ? verdict(now, model.get("guessed")[now.id], score) : "";
    guess.replaceChildren(...(isOpen ? [] : question(now, open)));
    const tiles = [now.baseline, ...(isOpen ? now.rows : [])];
    shown.replaceChildren(...tiles.map((row, place) => picture(row, address(now.prompt, row.place), place === 0, isOpen && isNearest(now, row))));
  };
  const open = (name) => {
    const now = chosen();
    if (name) score.of += 1;
    if (name && isNearest(now, now.rows.find((row) => row.name === name))) score.right += 1;
    model.set("guessed", { ...model.get("guessed"), [now.id]: name || "none" });
    said.tabIndex = -1;
    said.focus(); // the button is gone
  };
  watch(model, [], ["chosen", "guessed", "key_steps"], draw);
  return [pictureChoices(model, data), methodList(data), note, guess, said, shown];
}

/** What each method does between two keys, in a line each. */
function methodList({ kinds }) {
  const told = {
    features: "the decoder runs at every step, with the features that the key step kept.",
    fitted: "the same, and known tensors are added. A few scalars, found on sixteen other images, say how much of each.",
    prediction: "nothing runs between keys. The key step's whole output is used again.",
    fittedprediction: "the same, with scalars of its own.",
    plain: "an ordinary run with as many steps as calls.",
  };
  const lines = Object.entries(kinds).map(([kind, title]) => h("li", {}, h("strong", { text: title }), `: ${told[kind]}`));
  return h("ul", { class: "fd-methods", "aria-label": "The methods" }, ...lines);
}

function isNearest({ rows }, row) {
  return distance(row) === Math.max(...rows.map(distance));
}

function question({ rows, count }, open) {
  const ask = h("p", { class: "fd-question", text: `All of them get ${count} calls of the network, not 50. Calls that decode more steps take longer. Which comes nearest to the image of 50 steps? Guess:` });
  const options = rows.map(({ name, title }) => button(title, "fd-option", () => open(name)));
  return [ask, h("div", { class: "fd-actions" }, ...options, button("Just show them", "fd-skip-guess", () => open("")))];
}

function verdict(now, guessed, { right, of }) {
  const best = now.rows.find((row) => isNearest(now, row));
  const judged = guessed === "none" ? "" : isNearest(now, now.rows.find(({ name }) => name === guessed)) ? "Right. " : "Not this time. ";
  const tally = of ? ` You were right ${right} of ${of} times.` : "";
  return `${judged}Nearest is “${best.title}”: ${inDecibels(best)}.${tally}`;
}

function picture(row, address, isBaseline, isBest) {
  const title = isBaseline ? "50 steps, nothing reused" : row.title;
  const near = isBaseline ? "the baseline" : `${inDecibels(row)}${isBest ? ", nearest" : ""}`;
  const calls = `${row.forward_calls} calls`;
  const spent = `${gigas(row).toFixed(1)} G operations, ${inSeconds(row)}`;
  const usual = row.average ? `average of 128 images: ${row.average.toFixed(1)} dB` : "";
  return h(
    "figure",
    { class: `fd-picture${isBest ? " fd-best-picture" : ""}` },
    h("img", { class: "fd-image", src: address, alt: `Image of the method: ${title}. ${near}`, width: 64, height: 64 }),
    h("figcaption", {}, h("strong", { text: title }), h("span", { class: "fd-near", text: near }), h("small", { text: `${calls}: ${spent}` }), h("small", { text: usual })),
  );
}

let fdOperations = { encoder: 0, decoder: 0 };
function gigas({ encoder_calls, decoder_calls }) {
  return (encoder_calls * fdOperations.encoder + decoder_calls * fdOperations.decoder) / 1e9;
}
