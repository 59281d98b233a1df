// Files beside the notebook: schedules saved and loaded, runs exported. A file that is there is replaced at the second asking only.

const MOST_BYTES = 1_000_000;

/** A path and a button that writes to it; the button asks again before it replaces a file. */
function fileWriter(model, bin, where, { action, label, value, describe, className }) {
  const path = h("input", { class: `fd-input fd-${className}-path`, "aria-label": describe, value });
  let refused = null;
  const save = button(label, `fd-${className}`, () => ask(model, { action, path: path.value, replace: refused === path.value }));
  const name = () => (save.textContent = refused === path.value ? "Replace" : label);
  path.addEventListener("input", name);
  watch(model, bin, ["problem"], () => {
    const { message = "", where: at } = model.get("problem");
    refused = at === where && message.startsWith("FileExistsError") ? path.value : null;
    name();
  });
  return [path, save];
}

/** What was done, said where it was asked for. */
function saying(model, bin, where) {
  const said = h("span", { class: "fd-said", role: "status" });
  watch(model, bin, ["said"], () => {
    const { text = "", where: at } = model.get("said");
    said.textContent = at === where ? text : "";
  });
  return said;
}

function files(model, bin) {
  const about = { action: "save", label: "Save schedule", value: "schedule.json", describe: "JSON file to write the schedule to", className: "save" };
  const upload = h("input", { type: "file", class: "fd-load", accept: ".json,application/json", "aria-label": "Load a schedule from a JSON file" });
  upload.addEventListener("change", async () => {
    const [file] = upload.files;
    if (!file) return;
    const text = file.size > MOST_BYTES ? "" : await file.text();
    ask(model, { action: "load", text, name: file.name, bytes: file.size });
    upload.value = "";
  });
  const words = h("code", { class: "fd-schedule-text" });
  watch(model, bin, ["schedule_text"], () => (words.textContent = model.get("schedule_text")));
  const load = h("label", { class: "fd-button fd-load-label" }, "Load schedule", upload);
  const row = h("div", { class: "fd-actions" }, words, ...fileWriter(model, bin, "files", about), load, saying(model, bin, "files"));
  return h("section", { class: "fd-files", "aria-label": "Files" }, row, problem(model, bin, "files"));
}
