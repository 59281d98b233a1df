"""Count denoiser calls, and make schedulers for fewer or more steps.

- `scheduler_with_steps(scheduler, steps, of)`: the scheduler for other steps that begins where a run of `of` steps does
- `check_takes(scheduler, times)`: refuse time-steps that a scheduler does not take
- `calls_of(scheduler, steps)`, `most_steps(scheduler, below)`: the calls of a run, and the most steps it can have
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from diffusers import DDIMScheduler

_NO_TIMES: Mapping[str, Any] = MappingProxyType({})


def scheduler_with_steps(scheduler: Any, steps: int, of: int, times: Mapping[str, Any] = _NO_TIMES) -> Any:
    """The scheduler for other steps. Fewer steps begin at the first time-step of `of` steps, so that z_T means the same.

    >>> scheduler_with_steps(pipe.scheduler, 9, of=50)  # doctest: +SKIP

    The first time-step moves a little if the last would fall below 0.
    It does so too if DDIM and PNDM would leave noise.
    `times` are the time-steps or sigmas of the run of `of` steps, if any were given.
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
    """A scheduler's own refusal of a number of steps."""


def _set_time_steps(scheduler: Any, steps: int, times: Mapping[str, Any]) -> None:
    """Set them as a pipeline does: given time-steps replace their number."""
    scheduler.set_timesteps(**times) if times else scheduler.set_timesteps(steps)


def check_takes(scheduler: Any, times: Mapping[str, Any]) -> None:
    """Raise ValueError for time-steps or sigmas that a scheduler does not take."""
    unknown = sorted(times.keys() - inspect.signature(scheduler.set_timesteps).parameters.keys())
    if unknown:
        raise ValueError(
            f"pipe_kwargs with {' and '.join(unknown)} given, which {type(scheduler).__name__} does not take; accepted: none, or a scheduler "
            "that takes them, such as EulerDiscreteScheduler"
        )


def calls_of(own: Any, steps: int, times: Mapping[str, Any] = _NO_TIMES) -> int | None:
    """The denoiser calls of a run, or None if the scheduler accepts the steps without a place for them.

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
    # "Leading" time-steps may end one beyond the table of noise levels, or all be the same.
    beyond = not hasattr(own, "sigmas") and bool(scheduler.timesteps.max() >= trained)
    stands = steps > 1 and len(scheduler.timesteps.unique()) == 1
    return None if beyond or stands else len(scheduler.timesteps)


def most_steps(own: Any, below: int) -> int | None:
    """The most steps below a given number that a scheduler can make, or None.

    >>> most_steps(DDIMScheduler(steps_offset=1), 2000)
    999
    """

    def can(steps: int) -> bool:
        try:
            return bool(calls_of(own, steps))
        except SchedulerRefusesError:
            return False

    return next((steps for steps in range(min(below - 1, own.config.num_train_timesteps), 0, -1) if can(steps)), None)
