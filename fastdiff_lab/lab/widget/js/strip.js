// The strip of steps: key steps are set, cleared and moved; above it one profile of the run, aligned with the steps.

const STRIP_HELP =
  "Click or tap: set or clear a key. Drag a key with the mouse: move it; over empty steps: set them; with Shift: clear. " +
  "Keyboard: arrows, Space, Shift+arrow moves a key, Page Up and Down jump to the next.";

function keyStrip(model, bin, looking) {
  const cells = h("div", { class: "fd-cells", role: "group", "aria-label": "Key steps. " + STRIP_HELP });
  const scale = h("div", { class: "fd-scale", "aria-hidden": "true" });
  const help = h("p", { class: "fd-help", text: STRIP_HELP });
  const state = { keys: [], steps: 0, focus: 0, drag: null, gesture: 0 };

  const sorted = (keys) => [...new Set([0, ...keys])].sort((a, b) => a - b);
  const change = (keys) => {
    state.keys = sorted(keys);
    paint();
    put(model, { key_steps: state.keys, gesture: state.gesture });
  };
  const begin = () => (state.gesture = Math.floor(Math.random() * 1e9) + 1); // what is done until the next is undone as one
  const toggle = (step) => {
    if (step === 0) return; // the first step always is a key
    change(state.keys.includes(step) ? state.keys.filter((key) => key !== step) : [...state.keys, step]);
  };
  const move = (from, to) => {
    if (from === 0 || to < 1 || to >= state.steps || state.keys.includes(to)) return false;
    change([...state.keys.filter((key) => key !== from), to]);
    return true;
  };
  const focus = (step) => {
    state.focus = Math.min(state.steps - 1, Math.max(0, step));
    paint();
    cells.children[state.focus]?.focus();
  };

  function build() {
    state.steps = model.get("num_steps");
    state.focus = Math.min(state.focus, state.steps - 1);
    cells.replaceChildren(
      ...Array.from({ length: state.steps }, (_, step) =>
        h("button", { type: "button", class: "fd-cell", role: "checkbox", dataset: { step } }),
      ),
    );
    const every = [1, 2].find((gap) => state.steps / gap <= 12) ?? 5;
    const marks = Array.from({ length: Math.ceil(state.steps / every) }, (_, place) => place * every);
    scale.replaceChildren(
      ...marks.map((step) => h("span", { style: `left:${((step + 0.5) / state.steps) * 100}%`, text: String(step) })),
    );
  }

  function paint() {
    const times = model.get("time_steps");
    const keys = new Set(state.keys);
    let group = -1;
    let start = 0;
    [...cells.children].forEach((cell, step) => {
      const isKey = keys.has(step);
      if (isKey) [group, start] = [group + 1, step];
      const what = isKey ? "key step" : `reuses step ${start}`;
      const time = times[step] === undefined ? "" : `, time-step ${Math.round(times[step])}`;
      cell.className = `fd-cell fd-band-${group % 2}${isKey ? " fd-key" : ""}`;
      cell.tabIndex = step === state.focus ? 0 : -1;
      cell.setAttribute("aria-checked", String(isKey));
      cell.setAttribute("aria-label", `step ${step}, ${what}${time}`);
      cell.title = `step ${step}${time}: ${what}`;
      if (step === 0) cell.setAttribute("aria-disabled", "true");
    });
  }

  const stepAt = (event) => {
    const box = cells.getBoundingClientRect();
    const step = Math.floor(((event.clientX - box.left) / box.width) * state.steps);
    return Math.min(state.steps - 1, Math.max(0, step));
  };
  /** Begins at a step; returns whether its key is set or cleared later, after a field. */
  const waits = (step) => {
    begin();
    state.focus = step;
    return afterTyping(model, () => toggle(step));
  };
  cells.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    const step = stepAt(event);
    if (event.pointerType === "touch") return void (state.drag = { step, mode: "tap" }); // a finger that moves scrolls
    if (waits(step)) return;
    const isKey = state.keys.includes(step);
    state.drag = { step, moved: false, mode: !isKey ? "set" : event.shiftKey ? "clear" : "move" };
    cells.setPointerCapture(event.pointerId);
    if (state.drag.mode !== "move") toggle(step);
  });
  cells.addEventListener("pointermove", (event) => {
    const drag = state.drag;
    const step = drag ? stepAt(event) : -1;
    if (!drag || drag.mode === "tap" || step === drag.step) return;
    const passed = Array.from({ length: Math.abs(step - drag.step) }, (_, i) => drag.step + (i + 1) * Math.sign(step - drag.step));
    if (drag.mode === "move") {
      drag.moved = true;
      if (!move(drag.step, step)) return;
      state.focus = step;
    } else if (drag.mode === "set") change([...state.keys, ...passed]);
    else change(state.keys.filter((key) => !passed.includes(key)));
    drag.step = step;
  });
  const drop = (event) => {
    const drag = state.drag;
    state.drag = null;
    const isUp = drag && event.type === "pointerup";
    if (isUp && drag.mode === "move" && !drag.moved) toggle(drag.step);
    if (isUp && drag.mode === "tap" && stepAt(event) === drag.step && !waits(drag.step)) toggle(drag.step);
    if (drag) cells.children[state.focus]?.focus();
  };
  cells.addEventListener("pointerup", drop);
  cells.addEventListener("pointercancel", drop);
  // A click without a pointer comes from a screen reader.
  cells.addEventListener("click", (event) => event.detail === 0 && event.target.dataset.step && toggle(Number(event.target.dataset.step)));
  cells.addEventListener("focusin", (event) => {
    if (event.target.dataset.step === undefined) return;
    state.focus = Number(event.target.dataset.step);
    looking.set(state.focus);
  });
  cells.addEventListener("focusout", () => looking.set(null));
  cells.addEventListener("pointermove", (event) => looking.set(stepAt(event)));
  cells.addEventListener("pointerleave", () => looking.set(null));
  looking.whenChanged((step) => {
    const key = step === null ? null : state.keys.findLast((one) => one <= step);
    [...cells.children].forEach((cell, at) => cell.classList.toggle("fd-reused", at === key && at !== step));
  });
  cells.addEventListener("keydown", (event) => {
    const at = state.focus;
    const by = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    const next = state.keys.find((key) => key > at) ?? state.steps - 1;
    const before = state.keys.findLast((key) => key < at) ?? 0;
    const act = {
      " ": () => toggle(at),
      Enter: () => toggle(at),
      Delete: () => state.keys.includes(at) && toggle(at),
      Home: () => focus(0),
      End: () => focus(state.steps - 1),
      PageDown: () => focus(next),
      PageUp: () => focus(before),
      ...(by && { [event.key]: () => (event.shiftKey && state.keys.includes(at) ? move(at, at + by) && focus(at + by) : focus(at + by)) }),
    }[event.key];
    if (!act || event.ctrlKey || event.metaKey) return;
    begin();
    event.preventDefault();
    event.stopPropagation();
    act();
  });

  watch(model, bin, ["num_steps"], () => {
    build();
    state.keys = sorted(model.get("key_steps").filter((key) => key < state.steps));
    paint();
  });
  watch(model, bin, ["key_steps", "time_steps"], () => {
    if (!state.drag) state.keys = sorted(model.get("key_steps").filter((key) => key < state.steps));
    paint();
  });
  return { cells, scale, help };
}

let fdKeysAsked = 0; // the last request whose answer are other key steps
/** If a field was just left, or an answer with other keys is on its way, acts once it is there; returns whether it waits. */
function afterTyping(model, act) {
  if (document.activeElement?.matches(".fd-keys-number")) document.activeElement.blur();
  if (isDone(model, fdKeysAsked)) return false;
  const wait = () => {
    if (!isDone(model, fdKeysAsked)) return;
    model.off("change:heard", wait);
    act();
  };
  model.on("change:heard", wait);
  return true;
}

/** One profile above the strip: the error of each group, or the measured change at each step, on a logarithmic axis. */
function profileChart(model, bin, looking) {
  const bars = h("div", { class: "fd-bars", role: "img" });
  const axis = h("div", { class: "fd-axis", "aria-hidden": "true" });
  const choices = h("div", { class: "fd-segments", role: "radiogroup", "aria-label": "Above the strip" });
  const name = freshId("profile");

  watch(model, bin, ["profiles", "profile"], () => {
    const profiles = model.get("profiles");
    const chosen = model.get("profile");
    const had = choices.contains(document.activeElement);
    choices.replaceChildren(
      ...Object.entries(profiles).map(([key, { title }]) => {
        const input = { type: "radio", name, value: key, checked: key === chosen, on: { change: () => put(model, { profile: key }) } };
        return h("label", { class: "fd-segment" }, h("input", input), title);
      }),
    );
    if (had) choices.querySelector("input:checked")?.focus();
    drawBars(bars, axis, profiles[chosen], model.get("num_steps"));
  });
  looking.whenChanged((step) => {
    for (const bar of bars.querySelectorAll(".fd-bar")) {
      bar.classList.toggle("fd-bar-looked-at", step !== null && Number(bar.dataset.from) <= step && step < Number(bar.dataset.to));
    }
  });
  return { bars, axis, choices };
}

function drawBars(bars, axis, profile, steps) {
  const { spans = [], low, high, note, unit = "" } = profile ?? {};
  if (!spans.length) {
    bars.replaceChildren(h("p", { class: "fd-empty", text: note ?? "" }));
    bars.setAttribute("aria-label", note ?? "nothing measured");
    axis.replaceChildren();
    return;
  }
  const ticks = decades(low, high);
  const lines = ticks.map((value) => h("i", { class: "fd-grid", style: `bottom:${onLog(value, low, high) * 100}%` }));
  const drawn = spans.map(([from, to, value]) => {
    const height = value > 0 ? Math.max(1.5, onLog(value, low, high) * 100) : 0;
    const where = to - from > 1 ? `steps ${from} to ${to - 1}` : `step ${from}`;
    const place = `left:${(from / steps) * 100}%;width:${((to - from) / steps) * 100}%;height:${height}%`;
    return h("b", { class: "fd-bar", dataset: { from, to }, style: place, title: `${where}: ${value > 0 ? value.toPrecision(2) : "0"} ${unit}` });
  });
  bars.replaceChildren(...lines, ...drawn);
  bars.setAttribute("aria-label", `${profile.title}, ${unit}, logarithmic axis. ${profile.summary ?? ""}`);
  axis.replaceChildren(
    h("em", { text: profile.axis ?? unit }),
    ...ticks.map((value) => h("span", { style: `bottom:${onLog(value, low, high) * 100}%`, text: String(value) })),
  );
}
