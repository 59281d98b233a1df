// Fields from a description: native controls with real labels, values in one trait.

function fieldControl(field, value, commit) {
  const id = freshId(field.name);
  const label = h("label", { for: id, text: field.label });
  const help = field.help ? h("small", { id: `${id}-help`, class: "fd-field-help", text: field.help }) : null;
  const described = help ? { "aria-describedby": help.id } : {};
  if (field.kind === "choice") {
    const options = field.options.map(([key, text]) => h("option", { value: String(key), selected: key === value }, text));
    const parse = (text) => field.options.find(([key]) => String(key) === text)[0];
    const attributes = { id, class: `fd-input fd-${field.name}`, on: { change: () => commit(parse(control.value)) } };
    const control = h("select", attributes, ...options);
    return { label, control, help, set: (now) => (control.value = String(now)) };
  }
  const isNumber = field.kind !== "text";
  const attributes = isNumber ? { type: "number", min: field.min, max: field.max, step: field.step ?? 1 } : { type: "text", spellcheck: "false" };
  const read = ({ value: text }) => (isNumber ? (text === "" ? null : Number(text)) : text);
  const control = committed({ id, class: `fd-input fd-${field.name}`, ...attributes, ...described }, (input) => commit(read(input)));
  control.value = value;
  return { label, control, help, set: (now) => (control.value = now) };
}

function form(model, bin, trait = "form", description = "fields") {
  const root = h("div", { class: "fd-form" });
  const fields = {};
  watch(model, bin, [description], () => {
    const values = model.get(trait);
    root.replaceChildren(
      ...model.get(description).map((field) => {
        const commit = (value) => put(model, { [trait]: { ...model.get(trait), [field.name]: value } });
        fields[field.name] = fieldControl(field, values[field.name], commit);
        const { label, control, help } = fields[field.name];
        return h("div", { class: `fd-field fd-field-${field.width ?? "small"}` }, label, control, help, promptBuilder(field, control, commit));
      }),
    );
  });
  watch(model, bin, [trait], () => {
    for (const [name, value] of Object.entries(model.get(trait))) fields[name]?.set(value);
  });
  return { root, fields };
}

/** The lab's form, with what is wrong in it, and what is known of the prompt. */
function settingsForm(model, bin) {
  const { root, fields } = form(model, bin);
  const wrong = h("p", { id: freshId("wrong"), class: "fd-form-error", role: "alert" });
  const note = h("p", { class: "fd-note fd-form-note" });
  watch(model, bin, ["form_error"], () => {
    const { field = "", message = "" } = model.get("form_error");
    wrong.textContent = message;
    wrong.hidden = !message;
    for (const [name, { control }] of Object.entries(fields)) {
      control.toggleAttribute("aria-invalid", false);
      if (name !== field) continue;
      control.setAttribute("aria-invalid", "true");
      control.setAttribute("aria-errormessage", wrong.id);
    }
  });
  watch(model, bin, ["form_note"], () => (note.textContent = model.get("form_note")));
  return [root, wrong, note];
}
