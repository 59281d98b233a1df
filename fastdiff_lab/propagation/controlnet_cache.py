"""ControlNet joins the encoder: its residuals are reused at non-key steps (Faster Diffusion, section 4.3).

- `ReusedResiduals`: evaluates the ControlNet at key steps only
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..hooks.adapters import Steered
from ..hooks.device import read_checks
from ..hooks.run_tracking import RunTracker, time_step_value
from ..key_schedule import KeySchedule
from .call_conditions import Conditions

_CHANGES_BY_STEP = ("sample", "timestep", "return_dict")


@dataclass(frozen=True)
class _AtKey:
    """What a ControlNet gave at key step `step`, and under which conditions; `steered` is the run's."""

    step: int
    residuals: Any
    conditions: Conditions
    steered: Steered


class ReusedResiduals:
    """What a ControlNet gave at the last key step, given again at the steps that follow it.

    >>> reused = ReusedResiduals(pipe.controlnet, tracker, schedule)  # doctest: +SKIP
    >>> residuals, evaluated = reused.call(pipe.controlnet, (sample, timestep), options)  # doctest: +SKIP

    `is_other`: the call at the last key step differed from the one at the key step before.
    """

    def __init__(self, controlnet: nn.Module | None, tracker: RunTracker, schedule: KeySchedule) -> None:
        self.controlnet, self.tracker, self.keys = controlnet, tracker, frozenset(schedule.keys)
        self.at_key: _AtKey | None = None
        self.is_other = False

    def call(self, inner: Callable, args: tuple, kwargs: dict) -> tuple[Any, bool]:
        """The residuals for the coming step, and whether the ControlNet was evaluated for them.

        Raises ValueError if the call at a non-key step differs from the key step's in its scale or its weights.
        """
        arguments = dict(zip(("sample", "timestep", "encoder_hidden_states", "controlnet_cond"), args, strict=False)) | kwargs
        run, is_new = self.tracker.current(arguments["timestep"])
        compared = {name: value for name, value in arguments.items() if name not in _CHANGES_BY_STEP}
        rows, known = len(arguments["sample"]), None if is_new else self.at_key
        assert self.controlnet is not None
        steered = Steered(self.controlnet) if known is None else known.steered
        scales = steered.now()
        difference = None if known is None else known.conditions.difference(rows=rows, arguments=compared, scales=scales)
        if known is None or run.step in self.keys:
            self.is_other = difference is not None
            steered.values.at_key(-1 if known is None else known.step, run.step)
            self.at_key = _AtKey(run.step, inner(*args, **kwargs), Conditions(rows, compared, scales), steered)
            return _new_containers(self.at_key.residuals), True
        if difference is None:
            steered.values.between_keys()
            if run.step == run.num_steps - 1:
                read_checks(steered.values.at_end(known.step, run.step + 1))
            return _new_containers(known.residuals), False
        raise ValueError(
            f"step {run.step} (time-step {time_step_value(arguments['timestep'])}) is no key step, but its ControlNet's call differs "
            f"from the one at key step {known.step}: {difference}. control_guidance_start and _end do that; "
            f"make step {run.step} a key step"
        )


def _new_containers(residuals: Any) -> Any:
    """Pipelines take the lists of a ControlNet's output apart, and never write into the tensors."""
    if isinstance(residuals, list | tuple):
        return type(residuals)(_new_containers(inner) for inner in residuals)
    return residuals
