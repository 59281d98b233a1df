"""From the features of the last key steps to those of the steps between: reused, or along a line.

- `Extrapolation`: how; `Extrapolation.of(order)` reads what users give as `order`
- `History`: what was seen at the last key steps, and what follows from it at other places
- `log_snr(scheduler, timestep)`: where a time-step lies on the axis "log_snr"
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

from ..inputs.plain_values import choice, number, whole_number

AXES = ("step", "log_snr")
PARTS = ("all", "skips", "bottleneck")


@dataclass(frozen=True)
class Extrapolation:
    """How the features of a step follow from those of the key steps before it.

    >>> Extrapolation(order=1).weights([4.0, 8.0], 10.0)  # 8 + 2 steps on, along the line through 4 and 8
    (-0.5, 1.5)

    `order`: 0 reuses the features of the last key step (the paper); 1 goes on along the line through the last two, 2 along the
    parabola through the last three. Where fewer keys have passed, the order is lower. `damping`: the share of the way that is gone,
    0 to 1. `axis`: what the line runs over, "step" or "log_snr" (the logarithm of the signal-to-noise ratio). `parts`: which of
    the encoder's features, "all", the "skips" or the "bottleneck"; the others are reused.

    Raises ValueError for other values.
    """

    order: int = 0
    damping: float = 1.0
    axis: str = "step"
    parts: str = "all"

    def __post_init__(self) -> None:
        object.__setattr__(self, "order", whole_number("order", self.order, 0, 2))  # numpy's as Python's own
        number("damping", self.damping, 0, 1)
        choice("axis", self.axis, AXES)
        choice("parts", self.parts, PARTS)

    @classmethod
    def of(cls, order: Any) -> Extrapolation:
        """An `Extrapolation` as it is, or one of the given order."""
        return order if isinstance(order, Extrapolation) else cls(order)

    def weights(self, places: Sequence[float], place: float) -> tuple[float, ...]:
        """Lagrange's weights of what was seen at `places` (the last one last) for a value at `place`; their sum is 1."""
        lagrange = [
            prod((place - other) / (own - other) for j, other in enumerate(places) if j != i) for i, own in enumerate(places)
        ]
        reused = [0.0] * (len(places) - 1) + [1.0]
        return tuple(self.damping * line + (1 - self.damping) * hold for line, hold in zip(lagrange, reused, strict=True))

    def place(self, step: int, scheduler: Any, time_step: Any) -> float:
        """Where a step lies on the axis."""
        return float(step) if self.axis == "step" else log_snr(scheduler, time_step)

    def moves(self, is_bottleneck: bool) -> bool:
        """Is this feature extrapolated, or reused?"""
        return self.order > 0 and self.parts in ("all", "bottleneck" if is_bottleneck else "skips")


REUSED_FEATURES = Extrapolation()


class History:
    """Values of the last key steps, as many as the order needs, the newest last.

    >>> history = History(Extrapolation(order=1))
    >>> history.add(0.0, torch.tensor([1.0]))
    >>> history.add(2.0, torch.tensor([2.0]))
    >>> history.at([2.0, 4.0], history.values)
    tensor([2., 3.])
    """

    def __init__(self, extrapolation: Extrapolation) -> None:
        self.extrapolation = extrapolation
        self.points: deque[tuple[float, Any]] = deque(maxlen=extrapolation.order + 1)
        self.weighted: tuple[Any, list[Tensor]] | None = None  # of the last pass, and what they are for

    def add(self, place: float, value: Any) -> None:
        """The value at a key step. A place that is seen again (two stages of one step) replaces the one before."""
        if self.points and self.points[-1][0] == place:
            self.points.pop()
        self.points.append((place, value))

    def clear(self) -> None:
        self.points.clear()
        self.weighted = None

    @property
    def values(self) -> list[Any]:
        return [value for _, value in self.points]

    def at(self, places: Sequence[float], values: Sequence[Any]) -> Any:
        """`values` (one per key step: tensors of one step's rows, or tuples of them) at each of `places`, one block of rows per place."""
        if isinstance(values[-1], tuple | list):
            return type(values[-1])(self.at(places, parts) for parts in zip(*values, strict=True))
        *older, newest = values
        if not older:  # a tensor of its own even so: FreeU writes into what it gets
            return torch.cat([newest] * len(places))
        return _combined(older, newest, self.weights(tuple(places), newest))

    def weights(self, places: tuple[float, ...], like: Tensor) -> list[Tensor]:
        """For each older value its weights at `places`, as tensors beside `like`: made once for all features of a pass."""
        known = tuple(place for place, _ in self.points)
        of = (places, known, like.dtype, like.device)
        if self.weighted is None or self.weighted[0] != of:
            columns = zip(*(self.extrapolation.weights(known, place) for place in places), strict=True)
            self.weighted = of, [_filled(column, like) for column in list(columns)[:-1]]
        return self.weighted[1]


def _filled(numbers: Sequence[float], like: Tensor) -> Tensor:
    """Numbers beside a tensor; filled in one by one, since for a copy from the host's memory the host would wait for the device."""
    found = like.new_empty(len(numbers))
    for place, weight in enumerate(numbers):
        found[place].fill_(weight)
    return found


def _combined(older: Sequence[Tensor], newest: Tensor, weights: Sequence[Tensor]) -> Tensor:
    """The newest tensor and, weighted, its differences to the older ones: exactly the newest where their weights are 0."""
    block = newest[None].expand(len(weights[0]), *newest.shape)
    for tensor, weight in zip(older, weights, strict=True):
        block = torch.addcmul(block, (tensor - newest)[None], weight.view(-1, *[1] * newest.dim()))
    return block.reshape(-1, *newest.shape[1:])


def log_snr(scheduler: Any, timestep: Any) -> float:
    """The logarithm of the signal-to-noise ratio at a time-step."""
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None:
        raise ValueError(f"axis='log_snr' asked, but {type(scheduler).__name__} has no alphas_cumprod; accepted: axis='step'")
    if float(scheduler.timesteps.min()) < 0:
        raise ValueError(
            f"axis='log_snr' asked, but {type(scheduler).__name__} has continuous time-steps here; accepted: axis='step'"
        )
    alpha = float(alphas[int(timestep)])
    return math.log(alpha / (1 - alpha))
