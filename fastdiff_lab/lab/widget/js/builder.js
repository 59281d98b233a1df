// A prompt of known words: picked from lists, and checked while it is typed.

/** Beside the prompt's field: which words are unknown as they are typed, and lists that make a prompt. Null without known words. */
function promptBuilder({ words, parts }, control, commit) {
  if (!words) return null;
  const known = new Set(words);
  const said = h("span", { class: "fd-note fd-typed", role: "status" });
  const check = () => {
    const unknown = control.value.toLowerCase().split(/[^a-z]+/).filter((word) => word && !known.has(word));
    said.textContent = unknown.length ? `Not known: ${[...new Set(unknown)].slice(0, 5).join(", ")}` : "";
  };
  control.addEventListener("input", check);
  const lists = parts.map(({ name, options }) => list(name, options));
  const use = button("Use this prompt", "fd-use-prompt", () => {
    const [size, colour, shape, place, ground] = lists.map(({ value }) => value());
    const thing = [size, colour, shape].filter(Boolean).join(" ");
    control.value = [withArticle(thing), place, `on ${withArticle(ground)} background`].filter(Boolean).join(" ");
    check();
    commit(control.value);
  });
  const rows = h("div", { class: "fd-form" }, ...lists.map(({ root }) => root), use);
  return h("div", { class: "fd-builder" }, said, h("details", {}, h("summary", { text: "Build a prompt" }), rows));
}

function withArticle(words) {
  return `${/^[aeiou]/.test(words) ? "an" : "a"} ${words}`;
}

function list(name, options) {
  const { label, control } = fieldControl({ name: `part-${name}`, label: name, kind: "choice", options: options.map((one) => [one, one || "–"]) }, options[0], () => {});
  return { root: h("div", { class: "fd-field" }, label, control), value: () => control.value };
}
