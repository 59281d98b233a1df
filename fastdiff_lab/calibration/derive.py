"""From reuse costs to the best key steps: an exact dynamic programme.

- `derive_schedule(costs, num_keys)`: the best schedule with so many keys
- `schedule_front(costs)`: the best schedules with any number of keys, to pick from a curve
- `group_costs(costs, schedule)`: what each group of any schedule costs
- `accumulated_change(recording, num_keys)`: a simpler rule, from recorded features
- `optimal_keys(spans, most)`: the programme itself, on plain arrays
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import pandas as pd

from ..inputs.plain_values import plain
from ..key_schedule import KeySchedule, check_num_keys
from ..recording.analysis import feature_change
from ..recording.recording import Recording
from .reuse_costs import ReuseCosts


def derive_schedule(costs: ReuseCosts, num_keys: int, *, over: str = "mean", power: int = 2) -> KeySchedule:
    """The schedule with `num_keys` keys whose groups cost least, exactly, by dynamic programming.

    >>> costs = fl.calibrate(pipe, prompts, order=1)  # doctest: +SKIP
    >>> schedule = fl.derive_schedule(costs, num_keys=9)  # doctest: +SKIP
    >>> schedule.save("schedule.json")  # doctest: +SKIP

    `costs`: from `calibrate`; use the schedule with the same `order`. `num_keys`: from 1 to the number of steps; too few cannot span
    the run if `calibrate` looked at short spans only. `over`: "mean", "median" or "worst" of the pictures that were measured; a few
    pictures that flip to something else dominate the mean. `power`: how the errors of groups add up: 2 as independent ones do, which is
    nearer to real runs of held features; 1 as if all went the same way, nearer where they are extrapolated (docs/results.md).

    Raises ValueError, saying which numbers of keys there are.
    """
    best, num_keys = optimal_keys(costs.spans(over, power), most=costs.num_steps), plain(num_keys)
    if isinstance(num_keys, bool) or num_keys not in best:
        raise ValueError(
            f"num_keys={num_keys!r} asked; accepted: {min(best)} to {costs.num_steps} (groups of up to {costs.longest} steps were measured)"
        )
    return _schedule(costs, best[num_keys][0], over, power)


def schedule_front(costs: ReuseCosts, *, over: str = "mean", power: int = 2) -> pd.DataFrame:
    """The best schedule for every number of keys: the curve to pick from.

    >>> schedule_front(costs)[["num_keys", "predicted_error"]].plot(x="num_keys", logy=True)  # doctest: +SKIP

    `over`, `power`: as for `derive_schedule`. Returns columns num_keys, schedule (KeySchedule), cost (sum over the groups), predicted_error
    (the distance of the final latents to the untouched run's: with power 2 the root of the cost, with power 1 the cost).
    """
    best = optimal_keys(costs.spans(over, power), most=costs.num_steps)
    rows = [
        {"num_keys": count, "schedule": _schedule(costs, keys, over, power), "cost": cost, "predicted_error": cost ** (1 / power)}
        for count, (keys, cost) in best.items()
    ]
    return pd.DataFrame(rows)


def group_costs(costs: ReuseCosts, schedule: KeySchedule, *, over: str = "mean") -> tuple[float, ...]:
    """The squared error in the final latents that each group of a schedule costs: what `derive_schedule` adds up.

    >>> sum(group_costs(costs, fl.KeySchedule.paper(50))) ** 0.5  # the predicted error  # doctest: +SKIP

    With order 1 it also depends on how far back the key before lies. Infinite where a group is longer than was measured.
    Raises ValueError for a schedule of another number of steps.
    """
    if schedule.num_steps != costs.num_steps:
        raise ValueError(f"a schedule for {schedule.num_steps} steps given; accepted: {costs.num_steps} steps, as were measured")
    spans, gap, found = costs.spans(over), 0, []
    for group in schedule.groups():
        measured = len(group) <= costs.longest
        found.append(float(spans[gap if costs.order else 0, group.start, len(group)]) if measured else math.inf)
        gap = min(len(group), costs.longest)
    return tuple(found)


def _schedule(costs: ReuseCosts, keys: tuple[int, ...], over: str, power: int) -> KeySchedule:
    source = f"derived, {len(keys)} keys, {over} of {costs.num_pictures} pictures" + ", errors added unsquared" * (power == 1)
    return KeySchedule(costs.num_steps, keys, source, costs.measured_on)


def optimal_keys(spans: np.ndarray, most: int) -> Mapping[int, tuple[tuple[int, ...], float]]:
    """For each number of keys up to `most`: the keys whose groups cost least in all, and that cost. Exact.

    >>> spans = np.array([[[np.inf, 0, 1, 5], [np.inf, 0, 9, np.inf], [np.inf, 0, np.inf, np.inf]]])  # [gap, key, length]
    >>> optimal_keys(spans, 2)[2]
    ((0, 2), 1.0)

    `spans`: array (gaps, steps, longest + 1): the cost of a group of that length at that key step, when the key before it is `gap`
    steps back (0 at the first key); one gap only if the cost does not depend on it. Infinite where a group is not allowed.
    Takes O(most x steps x longest^2), or O(most x steps x longest) with one gap.
    """
    reach = _Reach(spans)
    found = {}
    for count in range(1, most + 1):
        keys = reach.keys(count)
        if keys is not None:
            found[count] = (keys, float(reach.totals[count]))
        reach.extend()
    return found


class _Reach:
    """The cheapest ways of reaching each step with a given number of groups behind it; a state is a key and the gap before it."""

    def __init__(self, spans: np.ndarray) -> None:
        self.spans, (_, self.steps, lengths) = spans, spans.shape
        self.lengths = np.arange(lengths)
        # cost[gap, step] with so many groups behind; step == `steps` is the end of the run.
        self.cost = np.full((lengths, self.steps + 1), np.inf)
        self.cost[0, 0] = 0.0
        self.totals: dict[int, float] = {}
        self.back: list[np.ndarray] = []
        self.extend()

    def extend(self) -> None:
        """Adds one group after each state, and remembers the gap before it."""
        before, cheapest = self._cheapest(self.cost[:, : self.steps])
        self.back.append(before)
        self.cost = np.full_like(self.cost, np.inf)
        for length in self.lengths[1:]:
            reached = np.arange(self.steps - length + 1) if length <= self.steps else np.arange(0)
            self.cost[length, reached + length] = cheapest[reached, length]

    def _cheapest(self, cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For each key and length of its group: the best gap before it, and the cost with it; arrays (steps, lengths)."""
        if len(self.spans) == 1:
            before = np.broadcast_to(cost.argmin(axis=0)[:, None], self.spans.shape[1:])
            return before, cost.min(axis=0)[:, None] + self.spans[0]
        ways = cost[:, :, None] + self.spans
        return ways.argmin(axis=0), ways.min(axis=0)

    def keys(self, count: int) -> tuple[int, ...] | None:
        """The keys of the cheapest way through the whole run in `count` groups; None if there is none."""
        length = int(self.cost[:, self.steps].argmin())
        self.totals[count] = float(self.cost[length, self.steps])
        if not np.isfinite(self.totals[count]):
            return None
        keys, end = [], self.steps
        for back in reversed(self.back):
            key = end - length
            keys.append(key)
            length, end = int(back[key, length]), key
        return tuple(reversed(keys))


def accumulated_change(recording: Recording, num_keys: int, *, part: str = "encoder", kind: str = "relative") -> KeySchedule:
    """Keys at equal shares of the change that a part's features have accumulated: the rule of thumb that the paper's curves suggest.

    >>> accumulated_change(recording, 9)  # doctest: +SKIP

    `part`, `kind`: whose change, and how it is measured, as in `feature_change`; the mean over layers and samples.
    Raises ValueError for a number of keys out of range.
    """
    steps = recording.num_steps
    check_num_keys(num_keys, steps)
    table = feature_change(recording, kind)
    change = table[table["part"] == part].groupby("step")["value"].mean().reindex(range(steps), fill_value=0.0)
    passed = change.cumsum().to_numpy()
    wanted = passed[-1] * np.arange(num_keys) / num_keys
    keys = np.searchsorted(passed, wanted, side="left")
    for place in range(1, num_keys):  # each key once, and room for those that follow
        keys[place] = min(max(keys[place], keys[place - 1] + 1), steps - num_keys + place)
    return KeySchedule(steps, tuple(map(int, keys)), f"equal shares of the {part}'s {kind} change, {num_keys} keys")
