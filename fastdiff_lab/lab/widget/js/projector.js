// For the last row: large type, the strip, the images and the numbers, nothing else.

function projectorButton(rootOf) {
  const turn = (isOn) => {
    rootOf().classList.toggle("fd-projector", isOn);
    projector.setAttribute("aria-pressed", String(isOn));
  };
  const projector = button("Projector", "fd-to-projector", () => {
    const isOn = !rootOf().classList.contains("fd-projector");
    turn(isOn);
    if (isOn) rootOf().requestFullscreen?.().catch(() => {}); // a page may not be allowed to; large it is all the same
    else if (document.fullscreenElement) document.exitFullscreen();
  }, { "aria-pressed": "false", title: "Large type, strip, images and numbers alone; again: as before" });
  return projector;
}

/** Leaving the full screen by Escape ends it, too. */
function endWithFullScreen(root, bin) {
  const hear = () => !document.fullscreenElement && root.classList.contains("fd-projector") && root.querySelector(".fd-to-projector").click();
  document.addEventListener("fullscreenchange", hear);
  bin.push(() => document.removeEventListener("fullscreenchange", hear));
}
