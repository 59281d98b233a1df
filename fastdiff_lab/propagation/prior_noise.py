"""Prior noise injection: a little of the initial noise, added late for texture (Faster Diffusion, section 3.3).

- `prior_noise_injection(pipe, weight=, below=)`: active while the block lasts
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ..hooks.denoiser import inner_loop, is_first_stage
from ..hooks.patching import replaced_method
from ..hooks.run_tracking import RunTracker
from ..inputs.plain_values import number

_MARK = "injects_prior_noise"  # on the step that does; layers put around it carry it too


class _Injection:
    """Adds weight x z_T to the samples that the scheduler's step gets."""

    def __init__(self, pipe: DiffusionPipeline, weight: float, below: float) -> None:
        self.scheduler, self.weight, self.below = pipe.scheduler, weight, below
        self.tracker = RunTracker(pipe)
        self.signature = inspect.signature(pipe.scheduler.step)
        self.initial = torch.empty(0)
        self.values: list[float] = []
        self.below_time_step = 0.0
        self.last: float | None = None
        self.has_added = False

    def step(self, inner: Callable, args: tuple, kwargs: dict) -> Any:
        call = self.signature.bind(*args, **kwargs)
        timestep, sample = call.arguments["timestep"], call.arguments["sample"]
        run, step, is_new = self.tracker.advance(timestep)
        if is_new:
            self.begin_run(run.planned, sample)
        value = self.values[min(step, len(self.values) - 1)]
        if value < self.below_time_step and value != self.last and is_first_stage(self.scheduler):
            call.arguments["sample"] = sample + self.weight * self.sample_scale() * self.initial
            self.last, self.has_added = value, True
        return inner(*call.args, **call.kwargs)

    def begin_run(self, timesteps: Tensor, sample: Tensor) -> None:
        if sample.dtype == torch.bfloat16 and 0 < self.weight < torch.finfo(torch.bfloat16).eps:
            warnings.warn(
                f"prior noise of weight {self.weight} added in bfloat16: about half of it is lost in rounding; "
                "take float32 or float16",
                stacklevel=2,
            )
        self.values = timesteps.tolist()  # one look per run, so that no step waits for the device
        if min(self.values) < 0:
            raise ValueError(
                f"prior noise asked of {type(self.scheduler).__name__} with continuous time-steps (from {self.values[0]:g} to "
                f"{self.values[-1]:g}), where nothing says which are late; accepted: a scheduler whose time-steps are those of the training"
            )
        self.initial = sample / self.initial_scale()
        self.below_time_step = self.below * self.scheduler.config.num_train_timesteps
        self.last = None

    def why_nothing_added(self) -> str | None:
        """Why no step got noise, though some was asked; None if one did."""
        if self.has_added or not (self.weight and self.below):
            return None
        if not self.values:
            return "its scheduler made no step inside it; call this pipeline there"
        return f"no step was below time-step {self.below_time_step:g} (from {self.values[0]:g} to {self.values[-1]:g}); give a larger below"

    def in_sigma_space(self) -> bool:
        """Euler, Heun, LMS, KDPM2 carry samples of standard deviation sqrt(sigma^2 + 1); all others of about 1."""
        return float(self.scheduler.init_noise_sigma) > 1.0001

    def initial_scale(self) -> float:
        if self.in_sigma_space() and not self.scheduler.step_index:
            return float(self.scheduler.init_noise_sigma)
        return self.sample_scale()  # image-to-image begins further on

    def sample_scale(self) -> float:
        index = self.scheduler.step_index if self.in_sigma_space() else None
        return 1.0 if index is None else float((self.scheduler.sigmas[index] ** 2 + 1) ** 0.5)


@contextmanager
def prior_noise_injection(pipe: DiffusionPipeline, *, weight: float = 0.003, below: float = 0.5) -> Iterator[None]:
    """While the block lasts, weight x z_T is added to the sample that `scheduler.step` gets, late in each run.

    >>> with fl.encoder_propagation(pipe, schedule), fl.prior_noise_injection(pipe):  # doctest: +SKIP
    ...     image = pipe(prompt, num_inference_steps=50).images[0]

    z_T is the sample of the run's first step. In some schedulers samples grow with sigma (Euler, Heun, LMS, KDPM2).
    There it is scaled to unit standard deviation, and added at the scale of the current sample.
    `weight`: the paper's alpha, 0 to 1. `below`: the paper's tau as a share of the training time-steps: noise is added at
    time-steps under `below` times 1,000 (the paper's t < 25 of 50 steps), once per time-step.

    Afterwards, also after an exception, the scheduler is as it was. A block that added nothing warns at its end.

    Raises ValueError for values out of range and for Text2Video-Zero. At a run's first step it does so for continuous time-steps (Stable
    Video Diffusion's). Raises RuntimeError inside another such block.
    """
    if hasattr(pipe.scheduler.step, _MARK):
        raise RuntimeError("prior noise is injected into this pipeline already; leave the outer prior_noise_injection block first")
    if inner_loop(pipe) is not None:
        raise ValueError(
            f"prior noise asked of a {type(pipe).__name__}, which replaces its scheduler in mid-run; leave it out (the paper injects "
            "none there)"
        )
    injection = _Injection(pipe, number("weight", weight, 0, 1), number("below", below, 0, 1))
    with replaced_method(pipe.scheduler, "step", lambda inner: lambda *a, **k: injection.step(inner, a, k)):
        setattr(pipe.scheduler.step, _MARK, True)
        yield
    why = injection.why_nothing_added()
    if pipe.scheduler is not injection.scheduler:
        warnings.warn(
            "pipe.scheduler was replaced inside the prior_noise_injection block; the runs of the new one got no noise", stacklevel=3
        )
    elif why is not None:
        warnings.warn(f"the prior_noise_injection block of {type(pipe).__name__} added nothing: {why}", stacklevel=3)
