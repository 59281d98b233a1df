// What stands behind the lab's parts on this page instead of a kernel: it answers at once, from the measured data.

class PageModel {
  constructor(state) {
    Object.assign(this, { state: { beat: 0, heard: 0, ...state }, listeners: {}, answers: {} });
  }
  get(name) {
    return this.state[name];
  }
  set(name, value) {
    if (JSON.stringify(this.state[name]) === JSON.stringify(value)) return;
    this.state[name] = value;
    for (const act of [...(this.listeners[`change:${name}`] ?? [])]) act();
  }
  on(events, act) {
    for (const event of events.split(" ")) (this.listeners[event] ??= []).push(act);
  }
  off(events, act) {
    for (const event of events.split(" ")) this.listeners[event] = (this.listeners[event] ?? []).filter((one) => one !== act);
  }
  save_changes() {
    this.set("heard", this.get("beat"));
  }
  send(message) {
    this.answers[message.action]?.(message);
    this.save_changes();
  }
}

const [LOWEST, HIGHEST] = [1e-3, 3]; // errors outside are not drawn
const inDigits = (value, digits = 3) => (Number.isFinite(value) ? String(Number(value.toPrecision(digits))) : "–");
const inKeys = (count) => (count === 1 ? "1 key" : `${count} keys`);

/** The model of the page: key steps in, predictions out. */
function explainerModel(data) {
  const best = bestKeys(data.errors);
  const fewest = Math.min(...best.keys());
  const model = new PageModel({
    name: "explainer", key_steps: best.get(9) ?? best.get(fewest), num_steps: data.errors.length, time_steps: data.times, profile: "cost",
    presets: [], run_state: { state: "ready", text: "" }, last_run: "", cleared: 0, problem: {}, race: {}, film: {},
  });
  model.best = (count) => best.get(Math.max(fewest, Math.min(count, data.errors.length)));
  model.use = (keys) => put(model, { key_steps: keys });
  model.answers.num_keys = ({ value }) => model.set("key_steps", model.best(value));
  model.answers.preset = ({ name }) => model.set("key_steps", presetKeys(model, data)[name]);
  const front = frontOf(data, best);
  watch(model, [], ["key_steps"], () => predict(model, data, front));
  return model;
}

function presetKeys(model, data) {
  const count = model.get("key_steps").length;
  return { paper: data.paper, uniform: uniformKeys(data.errors.length, count), derived: model.best(count) };
}

/** The errors of the best and of uniform keys for every number of keys, once. */
function frontOf(data, best) {
  const steps = data.errors.length;
  const points = [...best].map(([count, keys]) => [count, predictedError(data.errors, keys)]);
  const evenly = Array.from({ length: steps }, (_, place) => [place + 1, predictedError(data.errors, uniformKeys(steps, place + 1))]);
  const drawn = (all) => all.filter(([, error]) => error > 0 && Number.isFinite(error));
  const shown = drawn(points).map(([, error]) => error);
  const paper = [data.paper.length, predictedError(data.errors, data.paper)];
  return { best: drawn(points), uniform: drawn(evenly), paper, steps, low: Math.max(LOWEST, Math.min(...shown)), high: Math.max(...shown) };
}

function predict(model, data, front) {
  const keys = model.get("key_steps");
  const error = predictedError(data.errors, keys);
  model.set("prediction", predictionOf(data, keys, error));
  model.set("profiles", { cost: profileOf(data, keys) });
  model.set("front", { ...front, ...frontRows(front, keys.length, error) });
  model.set("presets", [
    { name: "paper", label: "Paper", title: "The key steps that the paper uses", enabled: true },
    { name: "uniform", label: "Uniform", title: `${inKeys(keys.length)}, evenly spread`, enabled: true },
    { name: "derived", label: "Derived", title: `The ${inKeys(keys.length)} with the smallest predicted error`, enabled: true },
  ]);
}

/** Why seconds say more than operations. */
function inTime(methods, count) {
  const seconds = methods[`features-${count}`]?.seconds;
  return seconds ? `derived keys in seconds ${(methods.baseline.seconds / seconds).toFixed(1)}×: a group is one batch` : "seconds are not operations";
}

function predictionOf({ errors, operations, methods }, keys, error) {
  const steps = errors.length;
  const ofRun = (encoded) => (encoded * operations.encoder + steps * operations.decoder) / 1e9;
  const [all, some] = [ofRun(steps), ofRun(keys.length)];
  const cards = [
    ["error", "Predicted error", inDigits(error), "0 is the same image, 1 quite another"],
    ["calls", "Calls of the network", String(keys.length), `of ${steps} without reuse`],
    ["gflops", "Operations", `${some.toFixed(1)} G`, `of ${all.toFixed(1)} G without reuse`],
    ["flop-ceiling", "Speed-up by operations", `${(all / some).toFixed(2)}×`, inTime(methods, keys.length)],
  ].map(([name, label, value, detail]) => ({ name, label, value, detail, action: "" }));
  const note = "The error adds up what each group makes alone, averaged over 16 images: it ranks key steps. A single image may differ a lot.";
  return { cards, note, summary: `${inKeys(keys.length)}, predicted error ${inDigits(error)}, ${some.toFixed(1)} billion operations` };
}

function profileOf({ errors }, keys) {
  const made = groupErrors(errors, keys);
  const spans = groupsOf(keys, errors.length).map(([from, to], place) => [from, to, Number.isFinite(made[place]) ? made[place] : null]);
  const [from, to, worst] = spans.reduce((one, other) => ((other[2] ?? 0) > (one[2] ?? 0) ? other : one));
  const summary = worst ? `Largest: steps ${from} to ${to - 1}, ${inDigits(worst, 2)}` : "All are 0";
  return { title: "error of each group", axis: "error", unit: "predicted error", spans, low: LOWEST, high: HIGHEST, summary };
}

function frontRows({ best, uniform, paper }, count, error) {
  const at = (points) => inDigits(points.find(([keys]) => keys === count)?.[1]);
  const rows = [
    ["here", `yours, ${inKeys(count)}`, inDigits(error)],
    ["best", `derived, ${inKeys(count)}`, at(best)],
    ["uniform", `uniform, ${inKeys(count)}`, at(uniform)],
    ["paper", `paper's ${inKeys(paper[0])}`, inDigits(paper[1])],
  ];
  return { here: error > 0 && Number.isFinite(error) ? [count, error] : null, rows, summary: rows.map(([, label, value]) => `${label}: ${value}`).join("; ") };
}
