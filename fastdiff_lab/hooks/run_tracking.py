"""Which run of the pipeline a call belongs to, and which step of it.

- `Run`: the planned time-steps of one run
- `RunTracker(pipe)`: recognises where one run ends and the next begins, and refuses calls that fit none
- `time_step_value(timestep)`: a call's time-step as a number
- `announced(begin_loop, inner)`: wraps a pipeline's own loop, to be told when it begins
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from .callers import call_of, thread_that_calls
from .exclusive_use import ONE_AT_A_TIME
from .private_api import num_time_steps_of


@dataclass
class Run:
    """One run: the scheduler's time-steps that it visits.

    `timesteps`: the scheduler's own tensor; holding it keeps its identity unique while the run is the current one.
    `planned`: the part of it that the run visits, shape (calls,).
    `step`: how many steps have begun.
    `start`: where the run begins among the scheduler's time-steps if it is one of several loops over them, else None.
    `call`: the pipeline's call that makes the run; None in a loop written by hand. `was_disturbed`: another thread called it meanwhile.
    """

    timesteps: Tensor
    planned: Tensor
    step: int = 0
    start: int | None = None
    call: FrameType | None = None
    was_disturbed: bool = False

    @property
    def num_steps(self) -> int:
        return len(self.planned)

    def is_at(self, timestep: Any, step: int) -> bool:
        """Is `timestep` the one planned for `step`? Time-steps taken from the scheduler's tensor compare without a device sync."""
        if step >= len(self.planned):
            return False
        expected = self.planned[step]
        if isinstance(timestep, Tensor) and timestep.data_ptr() == expected.data_ptr() and _is_one_value(timestep):
            return True
        on_cpu = not isinstance(timestep, Tensor) or timestep.device.type == "cpu"
        given, expected = torch.as_tensor(timestep).flatten(), expected.cpu() if on_cpu else expected.to(timestep.device)
        return bool((given == _as_rounded(expected, given)).all())


def time_step_value(timestep: Any) -> float | int:
    """A call's time-step as a number, for messages."""
    return torch.as_tensor(timestep).flatten()[0].item()


def _is_one_value(timestep: Tensor) -> bool:
    """Also one that is repeated for each row without copies, as DiT's pipeline does."""
    return timestep.numel() == 1 or not any(timestep.stride())


def _as_rounded(listed: Tensor, given: Tensor) -> Tensor:
    """The scheduler's time-steps in the precision of the call: some pipelines give them in that of the latents."""
    return listed.to(given.dtype) if given.is_floating_point() else listed


def planned_timesteps(pipe: DiffusionPipeline, timestep: Any, by_hand: bool = True) -> Tensor:
    """The time-steps of the run whose first denoiser call comes with `timestep`.

    A pipeline may visit only a part of the scheduler's time-steps. Image-to-image visits the last ones, by `begin_index` or by their
    count. SDXL's `denoising_end` visits the first ones. A loop written by hand goes to the end.

    Raises ValueError where the run is no part of them, or where nothing tells which part.
    """
    timesteps = _timesteps_of(pipe)
    given = torch.as_tensor(timestep).flatten()[:1].cpu()
    starts = (_as_rounded(timesteps.cpu(), given) == given).nonzero().flatten().tolist()
    if not starts:
        raise ValueError(_of_another_scheduler(pipe, timestep))
    count = _told_count(pipe, len(timesteps), by_hand)
    begin = _begin(pipe.scheduler, starts, len(timesteps), count, by_hand)
    end = len(timesteps) if count is None else (begin or 0) + count
    if begin is None or end > len(timesteps):
        raise ValueError(
            f"a run of {type(pipe).__name__} begins at time-step {time_step_value(timestep)}, in the middle of its scheduler's "
            f"{len(timesteps)}. Nothing tells where it ends; accepted: a run from the first time-step on, or a pipeline that sets "
            "num_timesteps or its scheduler's begin_index. Make other calls (inversions, masks) outside the block"
        )
    return timesteps[begin:end]


def _begin(scheduler: Any, starts: list[int], most: int, count: int | None, by_hand: bool) -> int | None:
    """Where among the scheduler's time-steps a run begins whose first one stands at each of `starts`; None if that cannot be told."""
    told: int | None = getattr(scheduler, "begin_index", None)
    if told is not None:
        return told if told in starts else None
    if count is not None and most - count in starts:
        return most - count
    if 0 in starts:
        return 0
    return starts[0] if len(starts) == 1 and (by_hand or count is not None) else None


def _told_count(pipe: DiffusionPipeline, most: int, by_hand: bool) -> int | None:
    """How many time-steps the pipeline says its run has; what it said of its last call means nothing in a loop by hand."""
    count = None if by_hand and isinstance(pipe, DiffusionPipeline) else num_time_steps_of(pipe)
    return count if isinstance(count, int) and 1 <= count <= most else None


def _timesteps_of(pipe: DiffusionPipeline) -> Tensor:
    timesteps = getattr(pipe.scheduler, "timesteps", None)
    if not isinstance(timesteps, Tensor):
        raise ValueError(
            f"{type(pipe.scheduler).__name__} has no time-steps yet. Call the pipeline, or set_timesteps, first; a run of another "
            "scheduler (such as an inversion) belongs outside the block"
        )
    return timesteps


def _of_another_scheduler(pipe: DiffusionPipeline, timestep: Any) -> str:
    values = _timesteps_of(pipe).tolist()
    return (
        f"{type(pipe).__name__} calls its denoiser at time-step {time_step_value(timestep)}, which is none of its "
        f"{type(pipe.scheduler).__name__}'s (from {values[0]:g} to {values[-1]:g}). It goes through another scheduler, or in another "
        "direction (inversion), which is not supported; make this call outside the block"
    )


class RunTracker:
    """Recognises runs: one begins with each call of the pipeline, at new time-steps, and after the last planned step.

    >>> tracker = RunTracker(pipe)  # doctest: +SKIP
    >>> run, step, is_new = tracker.advance(timestep)  # doctest: +SKIP
    """

    def __init__(self, pipe: DiffusionPipeline) -> None:
        self.pipe = pipe
        self.run: Run | None = None

    def forget(self) -> None:
        """Drops the run; it holds on to the pipeline's call."""
        self.run = None

    def current(self, timestep: Any) -> tuple[Run, bool]:
        """The run that the coming call belongs to, and whether it begins with it.

        Raises ValueError for a call that is neither the next step of a run nor the first of one; RuntimeError for two threads at once.
        """
        call, run = call_of(self.pipe), self.run
        if run is not None and run.call is not None:
            self._check_alone(run, call)
        if run is not None and run.call is call and run.step < run.num_steps and self._goes_on(run, timestep):
            return run, run.step == 0
        self.run = Run(_timesteps_of(self.pipe), planned_timesteps(self.pipe, timestep, by_hand=call is None), call=call)
        return self.run, True

    def _check_alone(self, run: Run, call: FrameType | None) -> None:
        """Refuse both of two runs at once: the second has set the scheduler anew before its first call."""
        other = "" if run.call is call else thread_that_calls(self.pipe, run.call)
        run.was_disturbed |= bool(other)
        if other or (run.was_disturbed and run.call is call):
            raise RuntimeError(f"{type(self.pipe).__name__} is called in two threads at once; {ONE_AT_A_TIME}")

    def _goes_on(self, run: Run, timestep: Any) -> bool:
        """Is the call the next step of this run? A pipeline may put an equal copy in the place of the scheduler's time-steps."""
        timesteps = _timesteps_of(self.pipe)
        same = run.timesteps is timesteps or (run.timesteps.shape == timesteps.shape and bool((run.timesteps == timesteps).all()))
        if same and run.is_at(timestep, run.step):
            return True
        # At its second call a pipeline that is back at the first time-step makes two calls for each; a loop by hand may begin anew.
        begins_anew = run.is_at(timestep, 0) and (run.step > 1 or (run.call is None and run.timesteps is not timesteps))
        if same and run.step and not begins_anew:
            raise ValueError(self._astray(run, timestep))
        return False

    def _astray(self, run: Run, timestep: Any) -> str:
        kind, value, expected = type(self.pipe).__name__, time_step_value(timestep), time_step_value(run.planned[run.step])
        if run.is_at(timestep, run.step - 1):
            return (
                f"{kind} calls its denoiser again at time-step {value}, before the next one ({expected}). Several calls at one time-step "
                "(tiles, views, one for each half of the guidance) are not supported; put all rows into one call, or leave the block"
            )
        return (
            f"step {run.step} of {kind} comes at time-step {value}, not at the scheduler's next one ({expected}): steps were left out, or go "
            "another way, which is not supported; make this call outside the block"
        )

    def begin_loop(self, planned: Tensor) -> None:
        """The pipeline says that it will go through these of the scheduler's time-steps: a run of their own."""
        timesteps = self.pipe.scheduler.timesteps
        places = range(len(timesteps) - len(planned) + 1)
        start = next((place for place in places if torch.equal(timesteps[place : place + len(planned)], planned)), None)
        self.run = Run(timesteps, planned, start=start, call=call_of(self.pipe))

    def advance(self, timestep: Any) -> tuple[Run, int, bool]:
        """The run, the step that begins with this call, and whether it is the run's first."""
        run, is_new = self.current(timestep)
        step, run.step = run.step, run.step + 1
        if run.step == run.num_steps:
            run.call = None  # a frame holds on to all that the pipeline works with
        return run, step, is_new


def announced(begin_loop: Callable[[Tensor], None], inner: Callable) -> Callable:
    """Wraps a pipeline's loop: calls `begin_loop` with the loop's `timesteps`, shape (steps,), before it runs."""

    def loop(*args: Any, **kwargs: Any) -> Any:
        begin_loop(inspect.signature(inner).bind(*args, **kwargs).arguments["timesteps"])
        return inner(*args, **kwargs)

    return loop
