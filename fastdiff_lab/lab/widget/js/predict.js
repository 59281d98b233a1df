// What is predicted: cards with numbers, and the front of the best schedules for each number of keys.

function cards(model, bin) {
  const list = h("div", { class: "fd-cards" });
  const note = h("p", { class: "fd-note" });
  const spoken = h("p", { class: "fd-spoken", role: "status", "aria-live": "polite" });
  const made = {};
  watch(model, bin, ["prediction"], () => {
    const { cards: shown = [], note: words = "", summary = "" } = model.get("prediction");
    for (const { name, label, value, detail, action } of shown) {
      made[name] ??= card(model, list, name, label);
      made[name].show(value, detail, action);
    }
    note.textContent = words;
    if (spoken.textContent !== summary) spoken.textContent = summary;
  });
  watch(model, bin, ["run_state"], () => {
    const isRunning = model.get("run_state").state === "running";
    Object.values(made).forEach(({ measure }) => setOff(measure, isRunning));
  });
  return { list, note, spoken };
}

function card(model, list, name, label) {
  const measure = button("Measure", "fd-measure", () => ask(model, { action: "measure" }));
  const number = h("strong", { tabindex: -1 });
  const about = h("small");
  list.append(h("div", { class: `fd-card fd-card-${name}` }, h("span", { text: label }), number, about));
  const show = (value, detail, action) => {
    const had = document.activeElement === measure;
    if (action && !measure.parentElement) number.before(measure);
    number.textContent = value;
    number.hidden = Boolean(action);
    measure.hidden = !action;
    about.textContent = detail;
    if (had && !action) number.focus(); // the button is gone
  };
  return { measure, show };
}

const FRONT = { width: 300, height: 168, left: 44, right: 10, top: 10, bottom: 32 };

function frontChart(model, bin) {
  const figure = h("figure", { class: "fd-front" });
  let latest = 0;
  watch(model, bin, ["front", "last_run", "cleared"], async () => {
    const drawing = ++latest;
    const front = model.get("front");
    if (!front.best?.length) {
      figure.replaceChildren(h("p", { class: "fd-empty", text: "No front: nothing was measured with these settings." }));
      return;
    }
    const svg = frontDrawing(front);
    figure.replaceChildren(svg, frontLegend(front));
    const runs = (await runsOf(model)).filter(({ steps }) => steps === front.steps);
    if (drawing === latest) svg.append(...runs.map((run) => measuredPoint(model, front, run)));
  });
  return figure;
}

/** Where so many keys with such an error stand in the chart. */
function frontPlace({ low, high, steps }, keys, error) {
  const { width, height, left, right, top, bottom } = FRONT;
  const x = left + ((keys - 1) / Math.max(1, steps - 1)) * (width - left - right);
  return [x, height - bottom - onLog(error, low, high) * (height - top - bottom)];
}

/** A run beside what was predicted; a click restores its settings and keys, as does its button in the table. */
function measuredPoint(model, front, { run, title, values }) {
  const error = Math.max(values.latent_error, front.low);
  const [x, y] = frontPlace(front, values.keys, error);
  const point = h("path", { class: "fd-measured", d: `M${x - 4} ${y - 4}l8 8m0 -8l-8 8`, on: { click: () => ask(model, { action: "restore", run }) } });
  point.append(h("title", { text: `run ${run}: ${title}, measured error ${values.latent_error.toPrecision(2)}` }));
  return point;
}

function frontDrawing({ best, uniform, paper, here, low, high, steps, summary }) {
  const { width, height, left, right, top, bottom } = FRONT;
  const x = (keys) => frontPlace({ low, high, steps }, keys, high)[0];
  const y = (error) => frontPlace({ low, high, steps }, 1, error)[1];
  const line = (points) => points.map(([keys, error], place) => `${place ? "L" : "M"}${x(keys).toFixed(1)} ${y(error).toFixed(1)}`).join("");
  const ticks = decades(low, high).flatMap((value) => [
    h("line", { class: "fd-grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }),
    h("text", { x: left - 5, y: y(value) + 3.5, "text-anchor": "end" }, String(value)),
  ]);
  const counts = [1, 0.25, 0.5, 0.75].map((share) => Math.max(1, Math.round(share * steps)));
  const below = [1, ...counts].map((keys) => h("text", { x: x(keys), y: height - bottom + 13, "text-anchor": "middle" }, String(keys)));
  const middle = (height - bottom) / 2;
  return h(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": `Predicted error against the number of keys. ${summary}` },
    ...ticks,
    ...below,
    h("text", { x: (left + width - right) / 2, y: height - 4, "text-anchor": "middle" }, "number of key steps"),
    h("text", { x: 9, y: middle, "text-anchor": "middle", transform: `rotate(-90 9 ${middle})` }, "predicted error"),
    h("path", { class: "fd-uniform", d: line(uniform) }),
    h("path", { class: "fd-best", d: line(best) }),
    paper ? h("rect", { class: "fd-paper-mark", x: x(paper[0]) - 4, y: y(paper[1]) - 4, width: 8, height: 8 }) : null,
    here ? h("circle", { class: "fd-here", cx: x(here[0]), cy: y(here[1]), r: 5.5 }) : null,
  );
}

function frontLegend({ rows }) {
  return h(
    "table",
    { class: "fd-legend" },
    ...[...rows, ["measured", "× measured runs", ""]].map(([kind, label, value]) =>
      h("tr", {}, h("th", { scope: "row" }, h("i", { class: `fd-swatch fd-swatch-${kind}` }), label), h("td", { text: value })),
    ),
  );
}

/** Presets, and the slider that chooses how many keys are derived. */
function presets(model, bin) {
  const row = h("div", { class: "fd-presets", role: "group", "aria-label": "Presets" });
  const made = {};
  watch(model, bin, ["presets"], () => {
    for (const { name, label, title, enabled } of model.get("presets")) {
      made[name] ??= preset(model, row, name, label);
      made[name].tip.textContent = title;
      setOff(made[name].press, !enabled);
    }
  });
  return h("div", { class: "fd-bar-presets" }, row, keysSlider(model, bin));
}

function preset(model, row, name, label) {
  const press = button(label, `fd-preset-${name}`, () => (fdKeysAsked = ask(model, { action: "preset", name })));
  const tip = tipFor(press, "");
  row.append(press, tip);
  return { press, tip };
}

function keysSlider(model, bin) {
  const [sliderId, numberId] = [freshId("keys"), freshId("keys")];
  let gesture = 1;
  const count = () => model.get("key_steps").length;
  const send = (value) => (fdKeysAsked = ask(model, { action: "num_keys", value, gesture }));
  const on = { input: () => send(Number(slider.value)), change: () => (gesture += 1) };
  const slider = h("input", { id: sliderId, type: "range", class: "fd-keys-slider", min: 1, on });
  const described = { id: numberId, type: "number", class: "fd-input fd-keys-number", min: 1, "aria-label": "Number of key steps" };
  const number = committed(described, (control) => {
    const asked = Math.round(Number(control.value)) || count();
    control.value = Math.min(model.get("num_steps"), Math.max(1, asked)); // what is not accepted does not stay
    gesture += 1;
    send(Number(control.value));
  });
  const along = h("label", { for: sliderId });
  watch(model, bin, ["front"], () => {
    along.textContent = model.get("front").best?.length ? "Number of derived keys" : "Number of uniform keys";
  });
  watch(model, bin, ["key_steps", "num_steps", "heard"], () => {
    slider.max = number.max = model.get("num_steps");
    if (document.activeElement !== number) number.value = count();
    // While it is being moved, answers to what it asked before must not move it back.
    if (document.activeElement !== slider) slider.value = count();
    slider.setAttribute("aria-valuetext", count() === 1 ? "1 key step" : `${count()} key steps`);
  });
  slider.addEventListener("blur", () => (slider.value = count()));
  number.addEventListener("blur", () => isDone(model, fdKeysAsked) && (number.value = count()));
  return h("div", { class: "fd-along" }, along, slider, number);
}
