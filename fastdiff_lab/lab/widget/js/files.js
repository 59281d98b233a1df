// Schedules saved beside the notebook and loaded from a file.

const MOST_BYTES = 1_000_000;

function files(model, bin) {
  const path = h("input", { class: "fd-input fd-save-path", "aria-label": "JSON file to write the schedule to", value: "schedule.json" });
  const save = button("Save schedule", "fd-save", () => model.send({ action: "save", path: path.value }));
  const upload = h("input", { type: "file", class: "fd-load", accept: ".json,application/json", "aria-label": "Load a schedule from a JSON file" });
  upload.addEventListener("change", async () => {
    const [file] = upload.files;
    if (!file) return;
    const text = file.size > MOST_BYTES ? "" : await file.text();
    model.send({ action: "load", text, name: file.name, bytes: file.size });
    upload.value = "";
  });
  const said = h("span", { class: "fd-said", role: "status" });
  const words = h("code", { class: "fd-schedule-text" });
  watch(model, bin, ["said"], () => (said.textContent = model.get("said")));
  watch(model, bin, ["schedule_text"], () => (words.textContent = model.get("schedule_text")));
  const load = h("label", { class: "fd-button fd-load-label" }, "Load schedule", upload);
  return h("div", { class: "fd-actions fd-files" }, words, path, save, load, said);
}
