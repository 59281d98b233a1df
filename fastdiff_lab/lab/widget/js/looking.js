// The step that is looked at, by mouse or keyboard: everything that belongs to it is shown together, also in an explorer that follows the lab.

/** The step of one lab; `set(null)` ends looking. Explorers hear of it by a name that they share with the lab. */
function lookedAt(model) {
  const draws = [];
  const looking = { step: null, whenChanged: (draw) => draws.push(draw) };
  looking.set = (step) => {
    if (looking.step === step) return;
    looking.step = step;
    draws.forEach((draw) => draw(step));
    window.dispatchEvent(new CustomEvent("fd-looked-at", { detail: { lab: model.get("name"), step } }));
  };
  return looking;
}

/** Calls `draw(step)` as the lab of that name is looked at. */
function hearLooking(model, bin, draw) {
  const hear = ({ detail: { lab, step } }) => lab && lab === model.get("follows") && draw(step);
  window.addEventListener("fd-looked-at", hear);
  bin.push(() => window.removeEventListener("fd-looked-at", hear));
}

/** What is known of the step that is looked at, in words. */
function readout(model, bin, looking) {
  const words = h("p", { class: "fd-readout", role: "status" });
  const draw = () => (words.textContent = looking.step === null ? "" : stepInWords(model, looking.step));
  looking.whenChanged(draw);
  watch(model, bin, ["profiles", "key_steps"], draw);
  return words;
}

function stepInWords(model, step) {
  const key = model.get("key_steps").findLast((one) => one <= step) ?? 0;
  const spans = model.get("profiles").cost?.spans ?? [];
  const [from, to, error] = spans.find(([first, after]) => first <= step && step < after) ?? [];
  const all = spans.reduce((sum, [, , value]) => sum + (value ?? 0) ** 2, 0);
  const part = error > 0 && all > 0 ? ` Its group, steps ${from} to ${to - 1}, makes ${Math.round((100 * error ** 2) / all)} % of the predicted squared error.` : "";
  const time = model.get("time_steps")[step];
  const at = time === undefined ? "" : ` (time-step ${Math.round(time)})`;
  return `Step ${step}${at} ${key === step ? "is a key step." : `reuses the features of step ${key}.`}${part}`;
}
