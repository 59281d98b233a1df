// The recording explorer: a form, and figures that Python draws.

function renderExplorer({ model, el }) {
  const bin = [];
  const figures = h("div", { class: "fd-figures" });
  const note = h("p", { class: "fd-note", role: "status" });
  watch(model, bin, ["figures"], () => {
    figures.replaceChildren(
      ...model.get("figures").map(({ name, title, address, alt, words }) =>
        h("figure", { class: `fd-figure fd-figure-${name}` }, h("figcaption", { text: title }), address ? h("img", { src: address, alt }) : h("p", { class: "fd-empty", text: words })),
      ),
    );
  });
  watch(model, bin, ["note"], () => (note.textContent = model.get("note")));
  el.replaceChildren(h("div", { class: "fd-lab fd-explorer" }, lost(model, bin), form(model, bin), note, problem(model, bin), figures));
  return () => bin.forEach((undo) => undo());
}

export default { render: renderExplorer };
