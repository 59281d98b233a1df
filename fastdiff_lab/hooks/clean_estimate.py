"""The clean latents that a run predicts in the middle of it: x0, of which previews are made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor


def clean_estimate(scheduler: Any, prediction: Tensor, timestep: Any, sample: Tensor) -> Callable[[], Tensor]:
    """The clean latents that a prediction says lie under a sample; computed when called, also after the scheduler went on.

    >>> clean = clean_estimate(pipe.scheduler, prediction, timestep, sample)  # doctest: +SKIP
    >>> pipe.scheduler.step(prediction, timestep, sample); clean().shape  # doctest: +SKIP

    The sample is signal x clean + noise_level x noise, with signal^2 + noise_level^2 = 1. Schedulers in sigma-space carry it divided
    by the signal. A prediction is of the noise, of the clean latents, or of the velocity between them.

    Args:
        scheduler: Before its step. Of one without noise levels (flow matching) nothing is known, and the sample itself is given.
        prediction: Of the denoiser, guided, (rows, ...); so is `sample`.
    """
    kind = scheduler.config.get("prediction_type")
    if kind is None:
        return lambda: sample
    signal, noise_level, scale = _levels(scheduler, timestep)

    def clean() -> Tensor:
        scaled = sample * scale
        if kind == "sample":
            return prediction
        if kind == "v_prediction":
            return signal * scaled - noise_level * prediction
        return (scaled - noise_level * prediction) / signal

    return clean


def _levels(scheduler: Any, timestep: Any) -> tuple[float, float, float]:
    """Signal and noise level at this step, and the factor that gives the sample these."""
    if float(scheduler.init_noise_sigma) <= 1.0001:
        signal = float(scheduler.alphas_cumprod[int(timestep)]) ** 0.5
        return signal, (1 - signal**2) ** 0.5, 1.0
    sigma = float(scheduler.sigmas[_place(scheduler, timestep)])
    signal = 1 / (sigma**2 + 1) ** 0.5
    return signal, sigma * signal, signal


def _place(scheduler: Any, timestep: Any) -> int:
    return scheduler.index_for_timestep(timestep) if scheduler.step_index is None else scheduler.step_index
