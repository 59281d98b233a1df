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
    await sendFile(model, upload.files[0]);
    upload.value = "";
  });
  const words = h("code", { class: "fd-schedule-text" });
  watch(model, bin, ["schedule_text"], () => (words.textContent = model.get("schedule_text")));
  const load = h("label", { class: "fd-button fd-load-label" }, "Load", upload);
  const row = h("div", { class: "fd-actions" }, words, ...fileWriter(model, bin, "files", about), load, saying(model, bin, "files"));
  return h("section", { class: "fd-files", "aria-label": "Files" }, row, sharing(model, bin), problem(model, bin, "files"));
}

async function sendFile(model, file) {
  if (!file) return;
  const text = file.size > MOST_BYTES ? "" : await file.text();
  ask(model, { action: "load", text, name: file.name, bytes: file.size });
}

/** A file that is dropped anywhere on the lab is loaded. */
function takeDropped(root, model) {
  const isFile = (event) => event.dataTransfer?.types.includes("Files");
  const mark = (isOver) => root.classList.toggle("fd-dropping", isOver);
  root.addEventListener("dragover", (event) => {
    if (!isFile(event)) return;
    event.preventDefault();
    mark(true);
  });
  root.addEventListener("dragleave", (event) => !root.contains(event.relatedTarget) && mark(false));
  root.addEventListener("drop", (event) => {
    mark(false);
    if (!isFile(event)) return;
    event.preventDefault();
    event.stopPropagation();
    sendFile(model, event.dataTransfer.files[0]);
  });
}

/** Share settings, keys and result; and a gallery of what others shared. */
function sharing(model, bin) {
  const about = { action: "share", label: "Share", value: "tuned.json", describe: "JSON file to share settings, keys and result in", className: "share" };
  const folder = h("input", { class: "fd-input fd-gallery-path", "aria-label": "Folder of the gallery", value: "gallery" });
  const open = button("Gallery", "fd-open-gallery", () => ask(model, { action: "gallery", path: folder.value }));
  const list = h("ul", { class: "fd-gallery-list" });
  watch(model, bin, ["gallery"], () => {
    list.replaceChildren(
      ...model.get("gallery").map(({ name, words, text }) =>
        h("li", {}, button(name, "fd-shared", () => ask(model, { action: "load", text, name, bytes: text.length })), ` ${words}`),
      ),
    );
  });
  const row = h("div", { class: "fd-actions" }, ...fileWriter(model, bin, "files", about), folder, open);
  return h("details", {}, h("summary", { text: "Share, or load what others shared (files can be dropped on the lab)" }), row, list);
}
