// The race at equal time: bars that run as long as the methods took, a finish line at the time of the schedule on the strip.

const RACE_SECONDS = 6; // of the slowest on the page

function raceSection(model, bin) {
  const go = button("Race", "fd-race", () => ask(model, { action: "race" }), { title: "Run other methods that take the time of these key steps" });
  const again = button("Again", "fd-race-again", () => draw(), { title: "Show the race again" });
  const lanes = h("div", { class: "fd-lanes" });
  const note = h("p", { class: "fd-note", role: "status" });
  const draw = () => {
    const { lanes: rows = [], finish = 0, note: words = "" } = model.get("race");
    const longest = Math.max(finish, ...rows.map(({ seconds }) => seconds), 1e-9);
    again.hidden = !rows.length;
    const last = Math.max(0, ...rows.map(({ seconds }) => (seconds / longest) * RACE_SECONDS)); // who is nearest is told at the end
    note.replaceChildren(h("span", rows.length ? { class: "fd-arrives", style: `animation-delay:${last.toFixed(2)}s`, text: words } : { text: words }));
    lanes.replaceChildren(...rows.map((row) => lane(row, row.seconds / longest, finish / longest)));
  };
  watch(model, bin, ["race"], draw);
  watch(model, bin, ["run_state"], () => setOff(go, model.get("run_state").state === "running"));
  const head = h("div", { class: "fd-actions" }, h("h3", { text: "Race at equal time" }), go, again);
  return h("section", { class: "fd-race-section", "aria-label": "Race at equal time" }, head, problem(model, bin, "race"), lanes, note);
}

function lane({ name, time, psnr, address }, share, finish) {
  const end = `animation-delay:${(share * RACE_SECONDS).toFixed(2)}s`;
  const bar = h("i", { class: "fd-lane-bar", style: `width:${share * 100}%;animation-duration:${(share * RACE_SECONDS).toFixed(2)}s` });
  const line = h("b", { class: "fd-finish", style: `left:${finish * 100}%`, title: "the time of the key steps on the strip" });
  const image = h("img", { class: "fd-thumb fd-arrives", src: address, alt: `image of ${name}`, style: end });
  return h(
    "div",
    { class: "fd-lane" },
    h("span", { class: "fd-lane-name", text: name }),
    h("div", { class: "fd-track-of-lane", role: "img", "aria-label": `${name}: ${time}` }, bar, line),
    h("span", { class: "fd-lane-time", text: time }),
    image,
    h("strong", { class: "fd-arrives", style: end, text: psnr }),
  );
}
