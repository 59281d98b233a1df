"""Which steps the coming pass decodes: decided from the schedule, the limit of rows and the processes, before any tensor is touched.

- `Share(rank, size)`: the part of each pass that one of several processes decodes
- `PlannedPass`: the steps of one pass
- `BatchPlanner(schedule, share)`: plans the passes of a run
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..key_schedule import KeySchedule


@dataclass(frozen=True)
class Share:
    """The part of each pass that process `rank` of `size` decodes; a key step is decoded by all.

    >>> Share(rank=1, size=2).of(range(4, 9), is_key=True)
    [4, 7, 8]
    """

    rank: int = 0
    size: int = 1

    def reach(self, most: int, is_key: bool) -> int:
        """How many steps one pass covers when each process may decode `most` of them at once."""
        return 1 + self.size * (most - 1) if is_key else self.size * most

    def of(self, steps: range, is_key: bool) -> Sequence[int]:
        """The steps of a pass that this process decodes: never none, so that the host's forward always gives a result."""
        if self.size == 1:
            return steps
        own = self.alone(steps, is_key)
        return [steps.start, *own] if is_key else own or steps[:1]

    def alone(self, steps: range, is_key: bool) -> range:
        """The steps of a pass that only this process decodes."""
        shared = steps[1:] if is_key else steps
        cuts = [len(shared) * rank // self.size for rank in (self.rank, self.rank + 1)]
        return shared[cuts[0] : cuts[1]]


@dataclass(frozen=True)
class PlannedPass:
    """The steps of one pass: `steps` of all processes together, `own` those of this one.

    `is_key`: the first of them is a key step. `group`: the steps of its group.
    """

    steps: range
    own: Sequence[int]
    is_key: bool
    group: range

    @property
    def ends_group(self) -> bool:
        """No later step of the group is left."""
        return self.steps.stop == self.group.stop


class BatchPlanner:
    """Plans the passes of a run of `schedule`.

    >>> planner = BatchPlanner(KeySchedule(10, [0, 4]))
    >>> planner.coming(4, most=4, is_key=True).steps
    range(4, 8)
    """

    def __init__(self, schedule: KeySchedule, share: Share | None = None) -> None:
        self.num_steps, self.keys, self.share = schedule.num_steps, frozenset(schedule.keys), share or Share()
        self._group_of = {step: group for group in schedule.groups() for step in group}

    def coming(self, step: int, most: int | None, is_key: bool) -> PlannedPass:
        """The pass that begins at `step`; `most`: how many steps one process decodes at once, None for no limit.

        `is_key`: also for a step of which something made a key that is none in the schedule.
        """
        group = self._group_of[step]
        left = group.stop - step
        count = left if most is None else min(left, self.share.reach(most, is_key))
        steps = range(step, step + count)
        return PlannedPass(steps, self.share.of(steps, is_key), is_key, group)
