// A guess before a run, revealed with its result; and how good the predictions of all runs were.

/** A field for the PSNR that one expects; it stays closed while the run goes, and tells how near it was. */
function guessField(model, bin) {
  const id = freshId("guess");
  const input = h("input", { id, type: "number", class: "fd-input fd-guess-field", min: 0, max: 100, step: 0.5, placeholder: "dB" });
  const words = h("span", { class: "fd-note fd-guessed", role: "status" });
  let asked = null;
  watch(model, bin, ["run_state"], () => {
    if (model.get("run_state").state !== "running") return;
    asked = input.value === "" ? null : Number(input.value);
    words.textContent = "";
  });
  watch(model, bin, ["last_run"], async () => {
    if (asked === null) return;
    const { values } = (await runsOf(model)).at(-1) ?? {};
    if (!values) return;
    const apart = Math.abs(values.psnr - asked);
    words.textContent = values.psnr >= 1000 ? `You guessed ${asked} dB; the images are identical.` : `You guessed ${asked} dB, measured were ${values.psnr.toFixed(1)}: ${apart.toFixed(1)} dB apart.`;
    [asked, input.value] = [null, ""];
  });
  return h("div", { class: "fd-along fd-guesses" }, h("label", { for: id, text: "Your guess, PSNR" }), input, words);
}

const ERRORS = { size: 200, left: 44, bottom: 34, top: 8, right: 8 };

/** Predicted against measured error of all runs; on the line they are the same. */
function errorChart(model, bin) {
  const figure = h("figure", { class: "fd-errors" });
  let latest = 0;
  watch(model, bin, ["last_run", "cleared"], async () => {
    const drawing = ++latest;
    const runs = (await runsOf(model)).filter(({ values }) => values.predicted_error > 0 && values.latent_error > 0);
    if (drawing !== latest) return;
    figure.hidden = runs.length < 2;
    figure.replaceChildren(...(figure.hidden ? [] : [h("figcaption", { text: "Predicted and measured error of the runs" }), errorDrawing(runs)]));
  });
  return figure;
}

function errorDrawing(runs) {
  const { size, left, bottom, top, right } = ERRORS;
  const all = runs.flatMap(({ values }) => [values.predicted_error, values.latent_error]);
  const [low, high] = [10 ** Math.floor(Math.log10(Math.min(...all))), 10 ** Math.ceil(Math.log10(Math.max(...all)) + 1e-9)];
  const x = (error) => left + onLog(error, low, high) * (size - left - right);
  const y = (error) => size - bottom - onLog(error, low, high) * (size - top - bottom);
  const ticks = decades(low, high).flatMap((value) => [
    h("text", { x: left - 5, y: y(value) + 3.5, "text-anchor": "end" }, String(value)),
    h("text", { x: x(value), y: size - bottom + 13, "text-anchor": "middle" }, String(value)),
  ]);
  const points = runs.map(({ run, title, values }) => {
    const point = h("circle", { class: "fd-here", cx: x(values.predicted_error), cy: y(values.latent_error), r: 4.5 });
    point.append(h("title", { text: `run ${run}: ${title}` }));
    return point;
  });
  const said = runs.map(({ run, values }) => `run ${run}: predicted ${values.predicted_error.toPrecision(2)}, measured ${values.latent_error.toPrecision(2)}`);
  const middle = (size - bottom) / 2;
  return h(
    "svg",
    { viewBox: `0 0 ${size} ${size}`, role: "img", "aria-label": `Predicted against measured error. ${said.join("; ")}` },
    ...ticks,
    h("line", { class: "fd-grid", x1: x(low), y1: y(low), x2: x(high), y2: y(high) }),
    h("text", { x: (left + size - right) / 2, y: size - 5, "text-anchor": "middle" }, "predicted error"),
    h("text", { x: 9, y: middle, "text-anchor": "middle", transform: `rotate(-90 9 ${middle})` }, "measured"),
    ...points,
  );
}
