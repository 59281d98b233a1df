// The predicted error of any key steps, and the best ones for each number, from the measured costs alone.

/** The error of each group; NaN for a length that was not measured. `errors[step][length]` is that of a single group. */
function groupErrors(errors, keys) {
  return groupsOf(keys, errors.length).map(([from, to]) => errors[from][to - from] ?? NaN);
}

function predictedError(errors, keys) {
  return Math.hypot(...groupErrors(errors, keys));
}

/** For each number of keys the keys with the smallest error, by dynamic programming over the ends of groups. */
function bestKeys(errors) {
  const steps = errors.length;
  const [found, ways] = [new Map(), []];
  let costs = [0, ...Array(steps).fill(Infinity)];
  for (let count = 1; count <= steps; count += 1) {
    const [next, from] = oneMoreGroup(errors, costs);
    ways.push(from);
    costs = next;
    if (costs[steps] < Infinity) found.set(count, keysBack(ways, steps));
  }
  return found;
}

/** The cheapest way to each step with one group more, and where its last group begins. */
function oneMoreGroup(errors, costs) {
  const next = Array(costs.length).fill(Infinity);
  const from = Array(costs.length).fill(0);
  errors.forEach((lengths, key) =>
    lengths.forEach((error, length) => {
      const [end, cost] = [key + length, costs[key] + error ** 2];
      if (error === null || length === 0 || end >= next.length || cost >= next[end]) return;
      next[end] = cost;
      from[end] = key;
    }),
  );
  return [next, from];
}

function keysBack(ways, steps) {
  const keys = [];
  let end = steps;
  for (const from of [...ways].reverse()) {
    end = from[end];
    keys.unshift(end);
  }
  return keys;
}

function uniformKeys(steps, count) {
  return Array.from({ length: count }, (_, place) => Math.floor((2 * place * steps + count) / (2 * count)));
}
