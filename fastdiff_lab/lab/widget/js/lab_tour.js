// The five stops of the lab's tour.

function labStops(root) {
  const part = (name) => () => root.querySelector(name);
  return [
    {
      title: "Key steps", part: part(".fd-strip"),
      words: "Each cell is a step of the run. At a dark one, a key, the encoder runs. Between keys its features are reused. Click a cell to set or clear a key.",
    },
    {
      title: "The error of each group", part: part(".fd-cards"),
      words: "The bars above the strip are the errors that groups make. The cards add them up and count what the run computes, before anything runs.",
    },
    {
      title: "The best keys", part: part(".fd-front"),
      words: "The line has the smallest error that any keys of that number can have. Derived takes them. Your own keys are the dot.",
    },
    {
      title: "Guess, then run", part: part(".fd-run-panel"),
      words: "Guess how near the accelerated image comes to the baseline, then press Run. The slider shows what both runs predicted on their way.",
    },
    {
      title: "Is it worth it?", part: part(".fd-race-section"),
      words: "The race gives other methods the same time. If fewer steps come nearer, reuse does not pay for this image.",
    },
  ];
}
