"""Schedulers for other numbers of plain steps, and the numbers of steps that there can be.

- `plain_scheduler(scheduler, steps, of)`: the scheduler for fewer or more steps that begins where a run of `of` steps does
- `check_takes(scheduler, times)`: refuses time-steps that a scheduler cannot be given
- `calls_of(scheduler, steps)`, `most_steps(scheduler, below)`: how often a run calls the denoiser, and how many steps it can have
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from diffusers import DDIMScheduler

_NO_TIMES: Mapping[str, Any] = MappingProxyType({})


def plain_scheduler(scheduler: Any, steps: int, of: int, times: Mapping[str, Any] = _NO_TIMES) -> Any:
    """The scheduler for other plain steps: fewer begin at the same time-step as `of` steps do, so that z_T means the same.

    >>> plain_scheduler(pipe.scheduler, 9, of=50)  # doctest: +SKIP

    Nearly so where they would end below time-step 0, or so high that DDIM and PNDM leave noise in their result. `times`: the time-steps or
    sigmas that the run of `of` steps was given, if it was.
    """
    kind, config = type(scheduler), scheduler.config
    if steps > ((calls_of(scheduler, of, times) or of) if times else of):
        return DDIMScheduler.from_config(config, timestep_spacing="leading", steps_offset=0)

    def first(steps: int, times: Mapping[str, Any] = _NO_TIMES, **options: Any) -> float:
        probe = kind.from_config(config, **options)
        _set_time_steps(probe, steps, times)
        return float(probe.timesteps[0])

    offset = round(first(of, times) - first(steps, timestep_spacing="leading", steps_offset=0))
    if not hasattr(scheduler, "sigmas"):  # with them, the last step always ends at 0
        offset = min(offset, config.num_train_timesteps // steps)
    return kind.from_config(config, timestep_spacing="leading", steps_offset=max(offset, 0))


class SchedulerRefusesError(ValueError):
    """What a scheduler itself says of a number of steps."""


def _set_time_steps(scheduler: Any, steps: int, times: Mapping[str, Any]) -> None:
    """As a pipeline does it: time-steps that are given count instead of their number."""
    scheduler.set_timesteps(**times) if times else scheduler.set_timesteps(steps)


def check_takes(scheduler: Any, times: Mapping[str, Any]) -> None:
    """Raises ValueError for time-steps or sigmas that a scheduler cannot be given."""
    unknown = sorted(times.keys() - inspect.signature(scheduler.set_timesteps).parameters.keys())
    if unknown:
        raise ValueError(
            f"options with {' and '.join(unknown)} given, which {type(scheduler).__name__} does not take; accepted: none, or a scheduler "
            "that takes them, such as EulerDiscreteScheduler"
        )


def calls_of(own: Any, steps: int, times: Mapping[str, Any] = _NO_TIMES) -> int | None:
    """The denoiser calls of a run, or None where the scheduler does not refuse the steps and yet has no place for them.

    >>> calls_of(DDIMScheduler(steps_offset=1), 1000)  # none: the first time-step would be 1000, one beyond the last
    """
    check_takes(own, times)
    scheduler, trained = type(own).from_config(own.config), own.config.get("num_train_timesteps")
    if trained is not None and steps > trained and not times:
        return None
    try:
        _set_time_steps(scheduler, steps, times)
    except ValueError as error:
        raise SchedulerRefusesError(f"{steps} steps asked of {type(own).__name__}, which refuses them: {error}") from None
    if trained is None or times:
        return len(scheduler.timesteps)
    # "Leading" time-steps may end one beyond the table of noise levels, or, divided to nothing, be the same one throughout.
    beyond = not hasattr(own, "sigmas") and bool(scheduler.timesteps.max() >= trained)
    stands = steps > 1 and len(scheduler.timesteps.unique()) == 1
    return None if beyond or stands else len(scheduler.timesteps)


def most_steps(own: Any, below: int) -> int | None:
    """The largest number of steps below a given one that a scheduler can make; None if there is none.

    >>> most_steps(DDIMScheduler(steps_offset=1), 2000)
    999
    """

    def can(steps: int) -> bool:
        try:
            return bool(calls_of(own, steps))
        except SchedulerRefusesError:
            return False

    return next((steps for steps in range(min(below - 1, own.config.num_train_timesteps), 0, -1) if can(steps)), None)
