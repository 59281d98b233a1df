"""Which run of the pipeline a call belongs to, and which step of it.

- `Run`: the planned time-steps of one run
- `time_step_value(timestep)`: a call's time-step as a number
- `RunTracker(pipe)`: recognises where one run ends and the next begins
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Run:
    """One run: the scheduler's time-steps that it visits, as far as they are known beforehand.

    `timesteps`: the scheduler's own tensor; holding it keeps its identity unique while the run is the current one.
    `planned`: the part of it that the run visits, shape (calls,), or None where that cannot be told beforehand.
    `step`: how many steps have begun.
    `start`: where the run begins among the scheduler's time-steps if it is one of several loops over them, else None.
    """

    timesteps: Tensor
    planned: Tensor | None
    step: int = 0
    start: int | None = None

    @property
    def num_steps(self) -> int | None:
        return None if self.planned is None else len(self.planned)

    def is_at(self, timestep: Any, step: int) -> bool:
        """Is `timestep` the one planned for `step`? Time-steps taken from the scheduler's tensor compare without a device sync."""
        if self.planned is None or step >= len(self.planned):
            return False
        expected = self.planned[step]
        if isinstance(timestep, Tensor) and timestep.data_ptr() == expected.data_ptr() and _is_one_value(timestep):
            return True
        return (
            bool((torch.as_tensor(timestep).flatten() == expected.cpu()).all())
            if _on_cpu(timestep)
            else bool((timestep.flatten() == expected.to(timestep.device)).all())
        )


def time_step_value(timestep: Any) -> float | int:
    """A call's time-step as a number, for messages."""
    return torch.as_tensor(timestep).flatten()[0].item()


def _is_one_value(timestep: Tensor) -> bool:
    """Also one that is repeated for each row without copies, as DiT's pipeline does."""
    return timestep.numel() == 1 or not any(timestep.stride())


def _on_cpu(timestep: Any) -> bool:
    return not isinstance(timestep, Tensor) or timestep.device.type == "cpu"


def planned_timesteps(pipe: Any, timestep: Any) -> Tensor | None:
    """The time-steps of the run whose first denoiser call comes with `timestep`, or None if that cannot be told.

    A pipeline may visit a part of the scheduler's time-steps only: the last ones (image-to-image sets `begin_index`, or its
    scheduler has none and only the count is known) or the first ones (SDXL's `denoising_end`).
    """
    timesteps = pipe.scheduler.timesteps
    begin = getattr(pipe.scheduler, "begin_index", None)
    count = getattr(pipe, "_num_timesteps", None)
    if not isinstance(count, int) or not 1 <= count <= len(timesteps):
        count = None
    value = time_step_value(timestep)
    values = timesteps.tolist()
    if begin is None:
        starts = [start for start, found in enumerate(values) if found == value]
        ends_right = [start for start in starts if count is not None and start + count == len(values)]
        starts = ends_right or [start for start in starts if start == 0] or starts
        if len(starts) != 1:
            return None
        begin = starts[0]
    count = len(values) - begin if count is None else count
    if begin + count > len(values) or values[begin] != value:
        return None
    return timesteps[begin : begin + count]


class RunTracker:
    """Recognises runs: one begins at a new `timesteps` tensor of the scheduler, or after the last planned step.

    >>> tracker = RunTracker(pipe)  # doctest: +SKIP
    >>> run, step, is_new = tracker.advance(timestep)  # doctest: +SKIP
    """

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self.run: Run | None = None

    def current(self, timestep: Any) -> tuple[Run, bool]:
        """The run that the coming call belongs to, and whether it begins with it."""
        timesteps = getattr(self.pipe.scheduler, "timesteps", None)
        if not isinstance(timesteps, Tensor):
            raise ValueError(
                f"{type(self.pipe.scheduler).__name__} has no time-steps yet; call the pipeline, or set_timesteps, first"
            )
        run = self.run
        if run is None or run.timesteps is not timesteps or run.step == (run.num_steps or -1):
            self.run = Run(timesteps, planned_timesteps(self.pipe, timestep))
            return self.run, True
        return run, run.step == 0

    def begin_loop(self, planned: Tensor) -> None:
        """The pipeline says that it will go through these of the scheduler's time-steps: a run of their own."""
        timesteps = self.pipe.scheduler.timesteps
        places = range(len(timesteps) - len(planned) + 1)
        start = next((place for place in places if torch.equal(timesteps[place : place + len(planned)], planned)), None)
        self.run = Run(timesteps, planned, start=start)

    def advance(self, timestep: Any) -> tuple[Run, int, bool]:
        """The run, the step that begins with this call, and whether it is the run's first."""
        run, is_new = self.current(timestep)
        step, run.step = run.step, run.step + 1
        return run, step, is_new
