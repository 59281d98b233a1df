// The race and the six stops of the tour.

/** Each method with the number of calls that takes about as long as reused features at these keys. */
function raceOf(model, data, address) {
  const { prompt, seed, count } = choice(model, data)();
  const runs = data.prompts[prompt].seeds[seed];
  const finish = data.methods[`features-${count}`].seconds;
  if (finish === null) return { lanes: [], finish: 0, note: `Reused features with ${inKeys(count)} were not timed. Choose between 5 and 17 keys.` };
  const names = Object.keys(data.kinds).map((kind) => nearestInTime(data, runs, kind, finish)).filter(Boolean);
  const lanes = [...names, "baseline"].map((name) => {
    const { kind, count: calls, seconds } = data.methods[name];
    const title = name === "baseline" ? "the baseline" : `${data.kinds[kind]}, ${kind === "plain" ? `${calls} steps` : inKeys(calls)}`;
    const psnr = runs[name].psnr === null ? "itself" : inDecibels(runs[name]);
    return { name: title, seconds, time: `${seconds.toFixed(2)} s`, psnr, address: address(prompt, runs[name].place), near: distance(runs[name]) };
  });
  const best = lanes.slice(0, -1).reduce((one, other) => (other.near > one.near ? other : one));
  return { lanes, finish, note: `Nearest to the baseline: ${best.name} (${best.psnr}). One image is no proof.` };
}

function nearestInTime(data, runs, kind, finish) {
  const names = data.counts.map((count) => `${kind}-${count}`).filter((name) => runs[name] && data.methods[name].seconds);
  const apart = (name) => Math.abs(Math.log(data.methods[name].seconds / finish));
  return names.length ? names.reduce((one, other) => (apart(other) < apart(one) ? other : one)) : null;
}

function tourStops(model, looking, parts) {
  return [
    {
      title: "One step of the network", part: () => parts.step, act: () => looking.set(0),
      words: "A diffusion model makes an image in 50 steps. In each, an encoder reads the noisy image and a decoder says what noise to remove. At a key step both run.",
    },
    {
      title: "Between key steps the encoder rests", part: () => parts.step, act: () => looking.set(model.get("key_steps")[1] - 1),
      words: "The encoder's features change slowly. So between key steps the decoder gets the kept ones again, and its own time-step. It needs nothing of the image so far. So one call decodes all steps of a group at once, which saves time.",
    },
    {
      title: "Which steps are the key steps?", part: () => parts.keys, act: () => model.use(uniformKeys(model.get("num_steps"), 9)),
      words: "You see nine evenly spread keys. A tall bar is a group that costs much. Press Derived: the same number of keys, placed where they help most.",
    },
    {
      title: "Guess, then look", part: () => parts.pictures, act: () => model.use(model.best(9)),
      words: "Five ways to make an image with nine calls. Guess which one comes nearest to the image of 50 steps. Then try other prompts and numbers of keys.",
    },
    {
      title: "When is the image decided?", part: () => parts.film,
      words: "Move the slider back. The shape is there early, its colour and details come later. Two runs that differ on the way can still end alike.",
    },
    {
      title: "Does it pay?", part: () => parts.verdict,
      words: "Calls are not time, and one image is no proof. Here is the answer over 128 images. The race above shows single ones.",
    },
  ];
}
