// A tour: a few stops, each a part of the page that is marked, with words beside it.

/** The button that begins the tour, and the box that leads through it. A stop has a title, words, a part, and what it does first. */
function tour(stops, label) {
  let at = -1;
  const title = h("strong", { class: "fd-tour-title", tabindex: -1 });
  const words = h("p");
  const back = button("Back", "fd-tour-back", () => show(at - 1));
  const next = button("Next", "fd-tour-next fd-primary", () => show(at + 1));
  const end = button("End the tour", "fd-tour-end", () => show(-1));
  const box = h("section", { class: "fd-tour", "aria-label": "Tour", hidden: true }, title, words, h("div", { class: "fd-actions" }, back, next, end));
  const begin = button(label, "fd-tour-begin", () => show(0));
  const mark = (place, isOn) => stops[place]?.part().classList.toggle("fd-toured", isOn);

  function show(place) {
    mark(at, false);
    const isOver = place < 0 || place >= stops.length;
    at = isOver ? -1 : place;
    box.hidden = isOver;
    if (isOver) return begin.focus();
    const { title: name, words: said, part, act } = stops[at];
    act?.();
    mark(at, true);
    title.textContent = `${at + 1} of ${stops.length}: ${name}`;
    words.textContent = said;
    setOff(back, at === 0);
    next.textContent = at + 1 < stops.length ? "Next" : "Done";
    part().scrollIntoView({ block: "start", behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
    title.focus({ preventScroll: true });
  }
  box.addEventListener("keydown", (event) => event.key === "Escape" && show(-1));
  return { begin, box };
}
