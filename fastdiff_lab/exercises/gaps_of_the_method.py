"""The gaps in notebooks 01 to 04: the loop, features, encoder propagation, parallel decoding.

- `guidance`, `ddim_step`
- `squared_change`, `cosine_change`
- `propagate_toy`, `one_jump`
- `calls_and_rows`, `row_times`
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ..key_schedule import KeySchedule
from ..recording.analysis import feature_change
from .exercise import Exercise
from .hooks_and_features import _features, recording_of
from .propagation import _guided, random_schedule


def _halves(rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor, float]]:
    for shape in ((1, 4, 2, 2), (3, 2, 5, 1), (2, 1)):
        without, with_prompt = (torch.tensor(rng.normal(size=shape)) for _ in range(2))
        yield without, with_prompt, float(rng.uniform(1.5, 8))


GUIDANCE = Exercise(
    "guidance",
    ("without", "with_prompt", "scale"),
    _halves,
    lambda without, with_prompt, scale: _guided(torch.cat([without, with_prompt]), scale),
    {
        "the two are exchanged: at scale 1 the prediction with the prompt must come out": lambda a, b, w: b + w * (a - b),
        "you add the difference to the prediction with the prompt; start from the one without": lambda a, b, w: b + w * (b - a),
        "this is the scaled difference alone": lambda a, b, w: w * (b - a),
    },
)


def _levels(rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor, float, float]]:
    for shape in ((1, 4, 2, 2), (2, 3), (5,)):
        z, noise = (torch.tensor(rng.normal(size=shape)) for _ in range(2))
        now, following = sorted(map(float, rng.uniform(0.02, 0.98, 2)))
        yield z, noise, now, following


def _clean(z: Tensor, noise: Tensor, now: float, following: float) -> Tensor:
    return (z - (1 - now) ** 0.5 * noise) / now**0.5


def _ddim(z: Tensor, noise: Tensor, now: float, following: float) -> Tensor:
    return following**0.5 * _clean(z, noise, now, following) + (1 - following) ** 0.5 * noise


DDIM_STEP = Exercise(
    "ddim_step",
    ("z", "noise", "alpha_bar", "next_alpha_bar"),
    _levels,
    _ddim,
    {
        "this is the clean latent; mix it with the same noise at the next level": _clean,
        "the roots are missing: alpha-bar is a power, weights are its root": lambda z, n, a, b: (
            b * (z - (1 - a) * n) / a + (1 - b) * n
        ),
        "the two levels are exchanged": lambda z, n, a, b: _ddim(z, n, b, a),
    },
)

SQUARED_CHANGE = Exercise(
    "squared_change",
    ("features",),
    _features,
    lambda features: feature_change(recording_of(features), "squared")["value"].to_numpy(),
    {
        "this is the sum of squares; the paper's measure is their mean": lambda f: (
            f.double().diff(dim=0).flatten(1).square().sum(1)
        ),
        "this is the root of what is asked for": lambda f: f.double().diff(dim=0).flatten(1).square().mean(1).sqrt(),
    },
)


def _cosine_change(features: Tensor) -> np.ndarray:
    return feature_change(recording_of(features), "cosine")["value"].to_numpy()


COSINE_CHANGE = Exercise(
    "cosine_change",
    ("features",),
    lambda rng: ((10 * given[0],) for given in _features(rng) if given[0][0].numel() > 1),
    _cosine_change,
    {
        "this is the cosine; the change is 1 minus it": lambda features: 1 - _cosine_change(features),
        "these are products; divide each by the lengths of both features": lambda features: (
            1 - (features[1:].double() * features[:-1].double()).flatten(1).sum(1)
        ),
    },
)


class ToyModel:
    """A denoiser of two numbers, split in two; it notes what was evaluated."""

    def __init__(self, slope: float) -> None:
        self.slope, self.encoded, self.decoded = slope, [], []  # type: ignore[var-annotated]

    def encode(self, z: float, step: int) -> float:
        self.encoded.append(step)
        return np.tanh(z + 0.1 * step)

    def decode(self, features: float, step: int) -> float:
        self.decoded.append(step)
        return self.slope * features + np.cos(step)


def _toys(rng: np.random.Generator) -> Iterator[tuple[ToyModel, float, list[int], int]]:
    for num_steps in (4, 9, 20):
        keys = list(random_schedule(rng, num_steps).keys)
        yield ToyModel(float(rng.uniform(0.5, 2))), float(rng.normal()), keys, num_steps


def _propagated(
    model: ToyModel, z: float, keys: list[int], num_steps: int, decoder_step: Callable = lambda step, key: step
) -> float:
    features, key = 0.0, 0
    for step in range(num_steps):
        if step in keys:
            features, key = model.encode(z, step), step
        z = z - 0.1 * model.decode(features, decoder_step(step, key))
    return z


PROPAGATE_TOY = Exercise(
    "propagate_toy",
    ("model", "z", "keys", "num_steps"),
    _toys,
    _propagated,
    {
        "your encoder runs at every step": lambda model, z, keys, num_steps: _propagated(
            model, z, list(range(num_steps)), num_steps
        ),
        "your decoder is told the key's step, not its own": lambda model, z, keys, steps: _propagated(
            model, z, keys, steps, lambda step, key: key
        ),
        "your encoder runs at the first step only": lambda model, z, keys, num_steps: _propagated(model, z, [0], num_steps),
    },
)


def _jumps(rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor, list[float]]]:
    for count in (2, 5, 9):
        z, noise = (torch.tensor(rng.normal(size=(2, 3))) for _ in range(2))
        yield z, noise, sorted(map(float, rng.uniform(0.02, 0.98, count)))


def _jumped(z: Tensor, noise: Tensor, levels: list[float]) -> Tensor:
    """Step by step with the same prediction, which one jump must equal."""
    for now, following in pairwise(levels):
        z = _ddim(z, noise, now, following)
    return z


ONE_JUMP = Exercise(
    "one_jump",
    ("z", "noise", "alpha_bars"),
    _jumps,
    _jumped,
    {
        "this is the first step only; jump from the first level to the last": lambda z, n, levels: _jumped(z, n, levels[:2]),
        "this is the clean latent; the last level still has noise": lambda z, n, levels: _clean(z, n, levels[0], 1),
    },
)


def _runs(rng: np.random.Generator) -> Iterator[tuple[list[int], int, int]]:
    for num_steps in (5, 12, 50):
        yield list(random_schedule(rng, num_steps).keys), num_steps, int(rng.integers(1, 9))


def _calls_and_rows(keys: list[int], num_steps: int, images: int) -> list[int]:
    groups = KeySchedule(num_steps, tuple(keys)).groups()
    return [len(groups), 2 * images * max(map(len, groups))]


CALLS_AND_ROWS = Exercise(
    "calls_and_rows",
    ("keys", "num_steps", "images"),
    _runs,
    _calls_and_rows,
    {
        "guidance needs two rows for each image": lambda keys, steps, images: [len(keys), _calls_and_rows(keys, steps, images)[1] // 2],
        "the last group is missing: it goes from the last key to the end": lambda keys, steps, images: [
            len(keys), 2 * images * max((b - a for a, b in pairwise(keys)), default=0),
        ],
        "this counts the calls of serial decoding": lambda keys, steps, images: [steps, _calls_and_rows(keys, steps, images)[1]],
    },
)  # fmt: skip


def _blocks(rng: np.random.Generator) -> Iterator[tuple[list[int], int]]:
    for steps, rows in ((3, 2), (5, 4), (1, 6)):
        yield sorted(map(int, rng.choice(1000, steps, replace=False)), reverse=True), rows


ROW_TIMES = Exercise(
    "row_times",
    ("time_steps", "rows"),
    _blocks,
    lambda time_steps, rows: np.repeat(time_steps, rows),
    {"each time-step comes once per block; all rows of a step stand together": lambda times, rows: np.tile(times, rows)},
)

GAPS = (GUIDANCE, DDIM_STEP, SQUARED_CHANGE, COSINE_CHANGE, PROPAGATE_TOY, ONE_JUMP, CALLS_AND_ROWS, ROW_TIMES)
