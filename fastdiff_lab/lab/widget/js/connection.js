// Whether a kernel answers. What stands on the page while none does is old, and must not look as if it were new.

const NO_ANSWER = 3000; // milliseconds
const SILENT = "The kernel does not answer: it is running a cell, or it is not connected. What you change here shows when it answers.";
const LOST = "The kernel was restarted or stopped, so nothing here answers any more: run the notebook's cells again.";

/** A sign that no kernel answers; `isSilent()` says so, and `whenChanged(draw)` tells of changes. */
function connection(model, bin) {
  const sign = h("p", { class: "fd-lost", role: "alert", hidden: true });
  const draws = [];
  let [timer, isLost] = [null, false];
  const show = (text) => {
    if (sign.textContent === text) return;
    sign.textContent = text;
    sign.hidden = !text;
    draws.forEach((draw) => draw());
  };
  const look = () => {
    if (isLost) return;
    if (isDone(model, model.get("beat"))) {
      clearTimeout(timer);
      timer = null;
      show("");
    } else timer ??= setTimeout(() => show(SILENT), NO_ANSWER);
  };
  const lose = () => {
    isLost = true;
    clearTimeout(timer);
    show(LOST);
  };
  watch(model, bin, ["beat", "heard"], look);
  model.on("comm_live_update", lose);
  bin.push(() => model.off("comm_live_update", lose), () => clearTimeout(timer));
  put(model); // of a saved page nobody may answer
  return { sign, isSilent: () => !sign.hidden, whenChanged: (draw) => draws.push(draw) };
}
