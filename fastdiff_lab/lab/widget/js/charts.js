// Charts over the steps of a run: drawn once, and marks that move over them.

const CHART = { width: 420, height: 190, left: 52, right: 10, top: 10, bottom: 34 };

function stepPlace(steps) {
  const { width, left, right } = CHART;
  return (step) => left + (steps > 1 ? step / (steps - 1) : 0.5) * (width - left - right);
}

/** Round numbers from low to high. */
function ticksBetween(low, high, most = 5) {
  const rough = (high - low || 1) / most;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const gap = [1, 2, 5, 10].map((times) => times * unit).find((size) => size >= rough);
  const first = Math.ceil(low / gap - 1e-9);
  return Array.from({ length: Math.floor(high / gap + 1e-9) - first + 1 }, (_, place) => Number(((first + place) * gap).toPrecision(12)));
}

/** A curve over the steps, with marks for keys and a step; `values` has null where there is none. */
function curveChart({ values, unit, title }) {
  const { width, height, left, right, top, bottom } = CHART;
  const known = values.filter((value) => value !== null);
  const [low, high] = [Math.min(0, ...known), Math.max(...known, 1e-12)];
  const x = stepPlace(values.length);
  const y = (value) => height - bottom - ((value - low) / (high - low)) * (height - top - bottom);
  const path = values.map((value, step) => (value === null ? "" : `${step && values[step - 1] !== null ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`)).join("");
  const lines = ticksBetween(low, high, 4).flatMap((value) => [
    h("line", { class: "fd-grid", x1: left, x2: width - right, y1: y(value), y2: y(value) }),
    h("text", { x: left - 5, y: y(value) + 3.5, "text-anchor": "end" }, String(value)),
  ]);
  const below = ticksBetween(0, values.length - 1, 6).filter(Number.isInteger);
  const marks = h("g", { class: "fd-marks" });
  const svg = h(
    "svg",
    { viewBox: `0 0 ${width} ${height}`, role: "img" },
    ...lines,
    ...below.map((step) => h("text", { x: x(step), y: height - bottom + 14, "text-anchor": "middle" }, String(step))),
    h("text", { x: (left + width - right) / 2, y: height - 3, "text-anchor": "middle" }, "step"),
    h("path", { class: "fd-curve", d: path }),
    marks,
  );
  const move = (keys, step) => {
    const points = keys.filter((key) => values[key] != null);
    marks.replaceChildren(
      ...keys.map((key) => h("line", { class: "fd-at-key", x1: x(key), x2: x(key), y1: top, y2: height - bottom })),
      h("line", { class: "fd-at-step", x1: x(step), x2: x(step), y1: top, y2: height - bottom }),
      ...points.map((key) => h("circle", { class: "fd-key-point", cx: x(key), cy: y(values[key]), r: 3.2 })),
    );
    const here = values[step] == null ? "no value" : values[step];
    svg.setAttribute("aria-label", `${title} over the steps, ${unit}. At step ${step}: ${here}. Key steps: ${keys.join(", ") || "none"}`);
  };
  return { svg, move };
}

/** Steps against steps, bright where features are alike; the groups of the keys are outlined. */
function similarityChart({ address, low, title }, steps) {
  const [size, left, bottom] = [230, 34, 30];
  const at = (step) => left + (step / steps) * (size - left - 6);
  const side = size - left - 6;
  const from = (step) => 6 + side - (step / steps) * side;
  const marks = h("g", { class: "fd-marks" });
  const ticks = ticksBetween(0, steps - 1, 4).filter(Number.isInteger);
  const svg = h(
    "svg",
    { viewBox: `0 0 ${size} ${side + 6 + bottom}`, role: "img" },
    h("image", { href: address, x: left, y: 6, width: side, height: side, preserveAspectRatio: "none", class: "fd-pixels" }),
    ...ticks.map((step) => h("text", { x: at(step + 0.5), y: side + 19, "text-anchor": "middle" }, String(step))),
    ...ticks.map((step) => h("text", { x: left - 5, y: from(step + 0.5) + 3.5, "text-anchor": "end" }, String(step))),
    h("text", { x: left + side / 2, y: side + 33, "text-anchor": "middle" }, `step; black ${low.toFixed(2)}, white 1`),
    marks,
  );
  const move = (keys, step) => {
    marks.replaceChildren(
      ...groupsOf(keys, steps).map(([first, after]) =>
        h("rect", { class: "fd-group", x: at(first), y: from(after), width: at(after) - at(first), height: from(first) - from(after) }),
      ),
      h("line", { class: "fd-at-step", x1: at(step + 0.5), x2: at(step + 0.5), y1: 6, y2: 6 + side }),
    );
    svg.setAttribute("aria-label", `${title}, cosine from ${low.toFixed(2)} (black) to 1 (white). Outlined: the groups of the key steps ${keys.join(", ") || "none"}`);
  };
  return { svg, move };
}

const MAPS_SHOWN = 8;

/** The maps of a few steps: the chosen one, the key that it reuses, and others between. */
function mapsChart({ address, columns, title }, steps) {
  const root = h("div", { class: "fd-maps", role: "img" });
  const move = (keys, step) => {
    const wanted = new Set([step, keys.findLast((key) => key <= step) ?? 0]);
    for (let place = 0; place < MAPS_SHOWN && wanted.size < Math.min(steps, MAPS_SHOWN); place += 1) {
      wanted.add(Math.round((place * (steps - 1)) / (MAPS_SHOWN - 1)));
    }
    root.replaceChildren(
      ...[...wanted].sort((a, b) => a - b).map((at) => {
        const tile = h("span", { class: "fd-tile" });
        showTile(tile, { address, place: at, columns, count: steps });
        const mark = keys.includes(at) ? " ◆" : "";
        return h("span", { class: at === step ? "fd-map fd-map-chosen" : "fd-map" }, tile, h("small", { text: `${at}${mark}` }));
      }),
    );
    root.setAttribute("aria-label", `${title} as colours at steps ${[...wanted].sort((a, b) => a - b).join(", ")}; key steps among them have a mark`);
  };
  return { svg: root, move };
}
