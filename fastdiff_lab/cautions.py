"""What is looked at when a run begins, and at its calls: refusals, and warnings where propagation does no good.

- `check_rows_stay_apart`, `check_finite`: refusals
- `warn_of_other_guidance`, `warn_of_few_steps`: warnings
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from .runs import time_step_value
from .schedule import KeySchedule
from .split import row_mixing

FEW_STEPS = 4  # or fewer; the paper finds its method poor at 5 (section 5)
FEW_STEP_SCHEDULERS = ("LCMScheduler", "TCDScheduler", "CMStochasticIterativeScheduler")


def warn_of_other_guidance(pipe: Any, schedule: KeySchedule) -> None:
    """Warns where the schedule was measured with another guidance scale than the run has."""
    measured, used = (schedule.measured_on or {}).get("guidance_scale"), getattr(pipe, "_guidance_scale", None)
    used = used.max().item() if isinstance(used, Tensor) else used  # Stable Video Diffusion's grows from frame to frame
    if measured is not None and used is not None and measured != used:
        warnings.warn(
            f"this schedule was measured with guidance scale {measured}, this run has {used}; its keys need not be good here",
            stacklevel=3,
        )


def warn_of_few_steps(pipe: Any, schedule: KeySchedule) -> None:
    """Warns where nothing is gained: a model of few steps changes its features at each."""
    kind = type(getattr(pipe, "scheduler", None)).__name__
    few = schedule.num_steps <= FEW_STEPS or kind in FEW_STEP_SCHEDULERS
    if few and len(schedule.keys) < schedule.num_steps:
        warnings.warn(
            f"this run has {schedule.num_steps} steps with {kind}: models of few steps (LCM, Turbo) change their features at each, so "
            "nothing is gained by holding them; sample without encoder propagation",
            stacklevel=4,
        )


def check_rows_stay_apart(pipe: Any, parallel: bool) -> None:
    """Raises ValueError where the steps that parallel decoding puts into one batch would mix."""
    mixing = row_mixing(pipe) if parallel else None
    if mixing is not None:
        raise ValueError(f"{mixing} mixes the rows of a batch, so steps cannot share one; use parallel_decoding=False")


def check_finite(sample: Tensor, step: int, timestep: Any) -> None:
    """Raises ValueError for latents with NaN or infinite values."""
    # Only where looking costs nothing: on a device, each look would make the host wait for it.
    if sample.device.type == "cpu" and not torch.isfinite(sample).all():
        raise ValueError(f"the latents that step {step} (time-step {time_step_value(timestep)}) gets hold NaN or infinite values")
