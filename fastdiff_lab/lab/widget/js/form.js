// Fields from a description: native controls with real labels, values in one trait.

function fieldControl(field, value, commit) {
  const id = freshId(field.name);
  const label = h("label", { for: id, text: field.label, title: field.help });
  if (field.kind === "choice") {
    const options = field.options.map(([key, text]) => h("option", { value: String(key), selected: key === value }, text));
    const parse = (text) => field.options.find(([key]) => String(key) === text)[0];
    const control = h("select", { id, class: `fd-input fd-${field.name}`, on: { change: () => commit(parse(control.value)) } }, ...options);
    return { label, control, set: (now) => (control.value = String(now)) };
  }
  const isNumber = field.kind !== "text";
  const attributes = isNumber ? { type: "number", min: field.min, max: field.max, step: field.step ?? 1 } : { type: "text", spellcheck: "false" };
  const read = ({ value: text }) => (isNumber ? (text === "" ? null : Number(text)) : text);
  const control = committed({ id, class: `fd-input fd-${field.name}`, ...attributes }, (input) => commit(read(input)));
  control.value = value;
  return { label, control, set: (now) => document.activeElement !== control && (control.value = now) };
}

function form(model, bin, trait = "form", description = "fields") {
  const root = h("div", { class: "fd-form" });
  const setters = {};
  watch(model, bin, [description], () => {
    const values = model.get(trait);
    root.replaceChildren(
      ...model.get(description).map((field) => {
        const commit = (value) => put(model, trait, { ...model.get(trait), [field.name]: value });
        const { label, control, set } = fieldControl(field, values[field.name], commit);
        setters[field.name] = set;
        return h("div", { class: `fd-field fd-field-${field.width ?? "small"}` }, label, control);
      }),
    );
  });
  watch(model, bin, [trait], () => {
    for (const [name, value] of Object.entries(model.get(trait))) setters[name]?.(value);
  });
  return root;
}
