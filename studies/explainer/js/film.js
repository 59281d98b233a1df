// The images that two runs predict on their way, at any step: when is the image decided?

function filmSection(model, data, address) {
  const parts = Object.fromEntries(["baseline", "accelerated"].map((name) => [name, filmSide(name)]));
  parts.difference = { root: h("i") };
  const kinds = Object.entries(data.kinds).filter(([kind]) => kind !== "plain");
  const field = choiceField("Beside it", kinds.map(([kind, title]) => [kind, title]), (kind) => put(model, { beside: kind }));
  watch(model, [], ["chosen", "key_steps", "beside"], () => {
    const { prompt } = model.get("chosen");
    const count = nearestCount(data.counts, model.get("key_steps").length);
    const runs = data.prompts[prompt].seeds[0];
    const name = [`${model.get("beside")}-${count}`, `features-${count}`].find((one) => runs[one]?.film);
    const told = runs[name]?.film ?? [];
    parts.baseline.use(runs.baseline, (...at) => address(prompt, ...at), data.prompts[prompt].text);
    parts.accelerated.use(runs[name], (...at) => address(prompt, ...at), data.prompts[prompt].text);
    const said = told.map((psnr) => (psnr === null ? "both predict the same image" : `PSNR to each other ${psnr} dB`));
    model.set("film", { steps: told.length ? data.film : [], said, keys: data.methods[name]?.keys ?? [], baseline: "", accelerated: "", of: [prompt, name] });
  });
  const slider = scrubber(model, [], parts, lookedAt(model));
  return [h("div", { class: "fd-form" }, field.root), h("div", { class: "fd-films" }, parts.baseline.root, parts.accelerated.root), slider];
}

/** An image that shows a tile of its run when the scrubber lays one over it, and the run's end when it does not. */
function filmSide(name) {
  const title = name === "baseline" ? "Nothing reused" : "With reuse";
  const image = h("img", { class: "fd-image", width: 64, height: 64, alt: "" });
  let [run, find] = [null, null];
  const overlay = (given) => run && (image.src = given ? find(run.first + given.place, "film") : find(run.place));
  const use = (given, address, prompt) => {
    [run, find] = [given, address];
    image.alt = `Clean image that the run predicts for: ${prompt}. ${title}`;
  };
  return { root: h("figure", { class: "fd-picture" }, h("figcaption", {}, h("strong", { text: title })), image), overlay, use };
}
