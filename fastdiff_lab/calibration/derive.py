"""Find the best key steps for given reuse costs, by exact dynamic programming.

- `derive_schedule(costs, num_keys)`: the best schedule with so many keys
- `schedule_front(costs)`: the best schedule for every number of keys
- `group_costs(costs, schedule)`: the cost of each group of any schedule
- `accumulated_change(recording, num_keys)`: a simpler rule, from recorded features
- `optimal_keys(spans, most)`: the algorithm itself, on plain arrays
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


def derive_schedule(costs: ReuseCosts, num_keys: int, *, reduction: str = "mean", power: int = 2) -> KeySchedule:
    """Find the schedule whose groups cost least, exactly, by dynamic programming.

    >>> import fastdiff_lab as fl
    >>> str(derive_schedule(fl.embedded_costs(), num_keys=9))
    '0,3,6,9,16,24,33,41,47 of 50'

    Args:
        costs: From `calibrate`. Use the schedule with the same `order`.
        num_keys: 1 to the number of steps. Too few cannot cover the run if only short spans were measured.
        reduction: "mean", "median" or "worst" of the images. A few images that change entirely dominate the mean.
        power: 2 adds squared errors, which fits reused features; 1 adds errors, which fits extrapolated ones.

    Returns:
        The schedule. Its `measured_on` says what its costs were measured on.

    Raises:
        ValueError: There is no such schedule. The message has the numbers of keys that there are.
    """
    best, num_keys = optimal_keys(costs.spans(reduction, power), most=costs.num_steps), plain(num_keys)
    if isinstance(num_keys, bool) or num_keys not in best:
        raise ValueError(
            f"num_keys={num_keys!r} asked; accepted: {min(best)} to {costs.num_steps} (groups of up to {costs.max_span} steps "
            "were measured); "
            "for fewer keys calibrate with longer ones"
        )
    return _schedule(costs, best[num_keys][0], reduction, power)


def schedule_front(costs: ReuseCosts, *, reduction: str = "mean", power: int = 2) -> pd.DataFrame:
    """Find the best schedule for every number of keys.

    >>> import fastdiff_lab as fl
    >>> schedule_front(fl.embedded_costs())["predicted_error"].is_monotonic_decreasing
    True

    Args:
        costs: From `calibrate`.
        reduction: As for `derive_schedule`.
        power: As for `derive_schedule`.

    Returns:
        A row per number of keys: num_keys, schedule, cost (the sum over groups) and predicted_error.
        The predicted error is the distance of the final latents to the baseline's: cost ** (1 / power).
    """
    best = optimal_keys(costs.spans(reduction, power), most=costs.num_steps)
    rows = [
        {
            "num_keys": count,
            "schedule": _schedule(costs, keys, reduction, power),
            "cost": cost,
            "predicted_error": cost ** (1 / power),
        }
        for count, (keys, cost) in best.items()
    ]
    return pd.DataFrame(rows)


def group_costs(costs: ReuseCosts, schedule: KeySchedule, *, reduction: str = "mean") -> tuple[float, ...]:
    """List the squared error of the final latents that each group of a schedule costs.

    >>> import fastdiff_lab as fl
    >>> len(group_costs(fl.embedded_costs(), fl.KeySchedule.paper(50)))
    9

    `derive_schedule` adds these up. A group longer than was measured costs infinity. With order 1 the distance to the key before counts too.
    Raises ValueError for a schedule with another number of steps.
    """
    if schedule.num_steps != costs.num_steps:
        raise ValueError(
            f"a schedule for {schedule.num_steps} steps given; accepted: {costs.num_steps} steps, as were measured; "
            f"use schedule.rescaled({costs.num_steps})"
        )
    spans, gap, found = costs.spans(reduction), 0, []
    for group in schedule.groups():
        measured = len(group) <= costs.max_span
        found.append(float(spans[gap if costs.order else 0, group.start, len(group)]) if measured else math.inf)
        gap = min(len(group), costs.max_span)
    return tuple(found)


def _schedule(costs: ReuseCosts, keys: tuple[int, ...], reduction: str, power: int) -> KeySchedule:
    source = f"derived, {len(keys)} keys, {reduction} of {costs.num_images} images" + ", errors added unsquared" * (power == 1)
    return KeySchedule(costs.num_steps, keys, source, costs.measured_on)


def optimal_keys(spans: np.ndarray, most: int) -> Mapping[int, tuple[tuple[int, ...], float]]:
    """Find, for each number of keys up to `most`, the keys whose groups cost least, and that cost. Exact.

    >>> spans = np.array([[[np.inf, 0, 1, 5], [np.inf, 0, 9, np.inf], [np.inf, 0, np.inf, np.inf]]])  # [gap, key, length]
    >>> optimal_keys(spans, 2)[2]
    ((0, 2), 1.0)

    `spans` has shape (gaps, steps, max_span + 1): the cost of a group of that length at that key step, infinite if not allowed.
    The gap is the distance to the key before, 0 at the first key. One gap is enough if the cost does not depend on it.
    Takes O(most x steps x longest) operations with one gap, times `max_span` with several.
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
    """Cheapest ways to reach each step in a given number of groups. A state is a step and the length of the group before it."""

    def __init__(self, spans: np.ndarray) -> None:
        self.spans, (_, self.steps, lengths) = spans, spans.shape
        self.lengths = np.arange(lengths)
        # cost[gap, step] after so many groups; step == `steps` is the end of the run.
        self.cost = np.full((lengths, self.steps + 1), np.inf)
        self.cost[0, 0] = 0.0
        self.totals: dict[int, float] = {}
        self.back: list[np.ndarray] = []
        self.extend()

    def extend(self) -> None:
        """Add one group to every way, and remember the gap before it."""
        before, cheapest = self._cheapest(self.cost[:, : self.steps])
        self.back.append(before)
        self.cost = np.full_like(self.cost, np.inf)
        for length in self.lengths[1:]:
            reached = np.arange(self.steps - length + 1) if length <= self.steps else np.arange(0)
            self.cost[length, reached + length] = cheapest[reached, length]

    def _cheapest(self, cost: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Best gap before each key, and the cost with it, by length of the group; arrays (steps, lengths)."""
        if len(self.spans) == 1:
            before = np.broadcast_to(cost.argmin(axis=0)[:, None], self.spans.shape[1:])
            return before, cost.min(axis=0)[:, None] + self.spans[0]
        ways = cost[:, :, None] + self.spans
        return ways.argmin(axis=0), ways.min(axis=0)

    def keys(self, count: int) -> tuple[int, ...] | None:
        """Keys of the cheapest way through the run in `count` groups, or None."""
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
    """Place keys at equal shares of the accumulated change of features, as the paper's curves suggest (section 3.3).

    >>> accumulated_change(recording, 9)  # doctest: +SKIP

    Args:
        recording: From `record`, of one or more runs.
        num_keys: 1 to the number of steps.
        part: Whose change counts: "encoder", "bottleneck" or "decoder".
        kind: The measure of change, as in `feature_change`. Layers and samples are averaged.

    Raises:
        ValueError: The number of keys is out of range.
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
