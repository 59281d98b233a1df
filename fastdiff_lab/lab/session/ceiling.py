"""The time ceiling of the lab's run."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from ...comparison.time_ceiling import at_best, decoder_seconds, encoder_seconds
from ...hooks.denoiser import denoiser_of
from ...hooks.exclusive_use import kept_to_this_thread
from ...sampling.methods import denoiser_arguments
from .settings import Acceleration, Settings
from .watching import Cancelled

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


SIZES = (1, 2, 4, 8, 16)
REPEATS = 3


class TimedHalves:
    """Seconds of encoder and rest of a call with and without guidance. `measure` times them.

    >>> timed = TimedHalves(); timed.measure(pipe, settings); timed.ceiling(settings, acceleration)  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self.known: dict[bool, tuple[float, dict[int, float]]] = {}  # with guidance? -> encoder; decoder by number of steps

    def measure(
        self,
        pipe: DiffusionPipeline,
        settings: Settings,
        report: Callable[[int, int], object] = lambda done, of: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """Time both halves at groups of 1, 2, 4, 8 and 16 steps.

        Raises Cancelled when asked to stop, RuntimeError if another thread uses the pipeline.
        """
        with kept_to_this_thread(pipe, "the lab's timing"):
            self._measure(pipe, settings, report, cancelled)

    def _measure(
        self, pipe: DiffusionPipeline, settings: Settings, report: Callable[[int, int], object], cancelled: Callable[[], bool]
    ) -> None:
        arguments = denoiser_arguments(pipe, settings.prompt, settings.guidance_scale)
        model, decoder = denoiser_of(pipe), {}
        for place, size in enumerate(SIZES):
            report(place, len(SIZES))
            if cancelled():
                raise Cancelled
            decoder[size] = decoder_seconds(model, arguments, size, repeats=REPEATS)
        self.known[settings.is_guided] = encoder_seconds(model, arguments, repeats=REPEATS), decoder

    def ceiling(self, settings: Settings, acceleration: Acceleration) -> float | None:
        """The largest speed-up of the schedule, or None if nothing was timed. Sizes between are interpolated."""
        timed = self.known.get(settings.is_guided)
        if timed is None:
            return None
        encoder, decoder = timed
        schedule = acceleration.schedule
        sizes = [len(group) for group in schedule.groups()]
        if acceleration.reuse == "prediction":
            return schedule.num_steps / len(sizes)
        baseline = schedule.num_steps * (encoder + decoder[1])
        return baseline / at_best(len(sizes), sizes, encoder, {size: _at(decoder, size) for size in sizes})


def _at(decoder: dict[int, float], size: int) -> float:
    """Seconds of the decoder for a group of that size, extrapolated from the two largest."""
    sizes, seconds = list(decoder), list(decoder.values())
    if size <= sizes[-1]:
        return float(np.interp(size, sizes, seconds))
    slope = (seconds[-1] - seconds[-2]) / (sizes[-1] - sizes[-2])
    return seconds[-1] + slope * (size - sizes[-1])
