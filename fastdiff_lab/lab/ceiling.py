"""The time ceiling: what a run would take if it did nothing but encode its key steps and decode its groups.

- `TimedHalves`: seconds of encoder and decoder of one call, each half timed alone at a few group sizes
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..benchmark import halves
from ..evaluation import denoiser_arguments
from .settings import Acceleration, Settings
from .watching import Cancelled

SIZES = (1, 2, 4, 8, 16)
REPEATS = 3


class TimedHalves:
    """Seconds of encoder and rest, for a call with and without guidance; nothing is timed until `measure` is called.

    >>> timed = TimedHalves(); timed.measure(pipe, settings); timed.ceiling(settings, acceleration)  # doctest: +SKIP
    """

    def __init__(self) -> None:
        self.known: dict[bool, dict[int, tuple[float, float]]] = {}

    def measure(
        self,
        pipe: Any,
        settings: Settings,
        report: Callable[[int, int], object] = lambda done, of: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        """Times both halves at groups of 1, 2, 4, 8 and 16 steps. Raises Cancelled when asked to."""
        arguments = denoiser_arguments(pipe, settings.prompt, settings.guidance_scale)
        found = {}
        for place, size in enumerate(SIZES):
            report(place, len(SIZES))
            if cancelled():
                raise Cancelled
            found[size] = halves(pipe, arguments, size, repeats=REPEATS)
        self.known[settings.guidance_scale > 1] = found

    def ceiling(self, settings: Settings, acceleration: Acceleration) -> float | None:
        """The most that the schedule can be faster than the untouched run; None if nothing was timed. Sizes between are interpolated."""
        timed = self.known.get(settings.guidance_scale > 1)
        if timed is None:
            return None
        encoder, rest = timed[1]
        groups = acceleration.schedule.groups()
        if acceleration.what == "prediction":
            return acceleration.schedule.num_steps / len(groups)
        return acceleration.schedule.num_steps * (encoder + rest) / sum(encoder + _at(timed, len(group)) for group in groups)


def _at(timed: dict[int, tuple[float, float]], size: int) -> float:
    """Seconds of the decoder for a group of that size; beyond the largest in proportion to the last two."""
    sizes, seconds = list(timed), [rest for _, rest in timed.values()]
    if size <= sizes[-1]:
        return float(np.interp(size, sizes, seconds))
    slope = (seconds[-1] - seconds[-2]) / (sizes[-1] - sizes[-2])
    return seconds[-1] + slope * (size - sizes[-1])
