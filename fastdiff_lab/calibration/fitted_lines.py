"""Fit the lines on which the encoder's features go on between key steps.

- `fit_lines(pipe, trajectories, schedule)`: two scalars for each feature and step
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ..hooks.denoiser import denoiser_of, split_denoiser
from ..key_schedule import KeySchedule
from ..propagation.cached_calls import cached_calls
from ..propagation.config import PropagationConfig
from ..propagation.engine import PropagationEngine
from ..propagation.feature_cache import Pass, ReusedFeatures
from ..propagation.lines import REUSED, Line, Lines, feature_name
from .least_squares import Products, solved
from .replay import Trajectory, replayed


def fit_lines(pipe: DiffusionPipeline, trajectories: Sequence[Trajectory], schedule: KeySchedule) -> Lines:
    """Two scalars for each feature and step: least squares to the features of the baseline, which runs once more for each trajectory.

    >>> fit_lines(pipe, [trajectory], KeySchedule.paper(50))  # doctest: +SKIP

    The shares of the last key step's feature, and of its difference to that of the key step before. In the first group only the first.
    """
    split, steps = split_denoiser(denoiser_of(pipe)), schedule.num_steps
    watches = [_Watch(schedule) for _ in trajectories]
    for watch, trajectory in zip(watches, trajectories, strict=True):
        baseline = PropagationEngine(pipe, PropagationConfig(KeySchedule(steps, tuple(range(steps)))))
        with cached_calls({}, {name: split.decoder[name] for name in split.entries}, lambda watch=watch: watch):  # type: ignore[misc]
            replayed(baseline, trajectory, steps - 1, steps)
    names = dict.fromkeys(name for name, _ in watches[0].products)
    return tuple(
        (name, tuple(_line([watch.products.get((name, step)) for watch in watches]) for step in range(steps))) for name in names
    )


def _line(found: Sequence[Products | None]) -> Line:
    """The line of a feature at a step; at a key step nothing is to be found."""
    products = [one for one in found if one is not None]
    if not products:
        return REUSED
    parts = (sum(getattr(one, name) for one in products) for name in ("columns", "missing", "squared"))
    shares = solved(Products(*parts), np.ones(1))
    share, along = (1 + shares[0], shares[1] if len(shares) > 1 else 0.0)
    return float(f"{share:.7g}"), float(f"{along:.7g}")


class _Watch(ReusedFeatures):
    """Sees what enters the decoder in a baseline run, and leaves it as it is.

    `products`: (name, step) -> inner products of what the line is made of. Their missing part is what the last key step's feature lacks.
    """

    now = Pass(rows=1, frames=1, places=(0.0,), is_key=True, is_last_use=False)  # type: ignore[assignment]

    def __init__(self, schedule: KeySchedule) -> None:
        super().__init__(("",))
        self.keys, self.step = set(schedule.keys), -1
        self.at_keys: dict[str, deque[Tensor]] = defaultdict(lambda: deque(maxlen=2))
        self.products: dict[tuple[str, int], Products] = {}

    def enter(self, name: str, is_first: bool, inner: Callable, args: tuple, kwargs: dict) -> Any:
        self.step += is_first
        return super().enter(name, is_first, inner, args, kwargs)

    def for_decoder(self, now: Pass, entry: tuple[str, str], value: Any, is_bottleneck: bool) -> Any:
        for name, tensor in _named(feature_name(entry), value):
            if self.step in self.keys:
                self.at_keys[name].append(tensor.clone())
            else:
                self.products[name, self.step] = _products(self.at_keys[name], tensor)
        return value


def _named(name: str, value: Any) -> Iterator[tuple[str, Tensor]]:
    if isinstance(value, tuple | list):
        for place, part in enumerate(value):
            yield from _named(f"{name} {place}", part)
    else:
        yield name, value


def _products(at_keys: Sequence[Tensor], true: Tensor) -> Products:
    """In float32 where the features are: they are large, and not every device has float64."""
    newest = at_keys[-1].flatten().float()
    columns = torch.stack([newest, *(newest - older.flatten().float() for older in list(at_keys)[:-1])])
    missing = true.flatten().float() - newest
    found = (columns @ columns.mT, columns @ missing, missing @ missing)
    return Products(*(one.cpu().double().numpy()[None] for one in found))
