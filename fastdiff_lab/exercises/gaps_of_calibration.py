"""The gaps in notebooks 05 to 08: which keys, derive and fit, does it pay, yours.

- `equal_shares`, `drift`
- `next_row`, `landing_scalars`
- `pooled_psnr`, `cheapest`
- `ceiling`, `images_to_pay_back`
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..comparison.fidelity import mean_psnr
from ..key_schedule import KeySchedule
from .exercise import Exercise
from .propagation import _ceiling, _operations, random_schedule
from .schedules import random_costs


def _changes(rng: np.random.Generator) -> Iterator[tuple[np.ndarray, int]]:
    for steps, keys in ((8, 3), (20, 5), (50, 9)):
        yield np.concatenate([[0.0], rng.uniform(0.5, 1.5, steps - 1) * np.linspace(2, 0.5, steps - 1)]), keys


def _equal_shares(change: np.ndarray, num_keys: int) -> np.ndarray:
    return np.searchsorted(change.cumsum(), np.arange(num_keys) / num_keys * change.sum())


EQUAL_SHARES = Exercise(
    "equal_shares",
    ("change", "num_keys"),
    _changes,
    _equal_shares,
    {
        "these are uniform keys; accumulate the change first": lambda change, keys: KeySchedule.uniform(len(change), keys).keys,
        "these are the steps that change most; the accumulated change is to be cut into equal shares": lambda change, keys: np.sort(
            np.argsort(change)[-keys:]
        ),
    },
)


def _similarities(rng: np.random.Generator) -> Iterator[tuple[np.ndarray, list[int]]]:
    for steps in (6, 12, 30):
        apart = np.abs(np.subtract.outer(np.arange(steps), np.arange(steps)))
        yield np.exp(-apart / rng.uniform(5, 20)), list(random_schedule(rng, steps).keys)


def _drift(similar: np.ndarray, keys: list[int]) -> float:
    return float(
        np.mean([1 - similar[group[0], step] for group in KeySchedule(len(similar), tuple(keys)).groups() for step in group])
    )


DRIFT = Exercise(
    "drift",
    ("similar", "keys"),
    _similarities,
    _drift,
    {
        "this is the mean similarity; the drift is 1 minus it": lambda similar, keys: 1 - _drift(similar, keys),
        "this compares neighbours; a reused feature is as old as its key": lambda similar, keys: float(
            np.mean([0, *(1 - similar[step - 1, step] for step in range(1, len(similar)))])
        ),
    },
)


def _rows(rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    for steps in (4, 7, 12):
        costs = np.full((steps, steps + 1), np.inf)
        for key, row in enumerate(random_costs(rng, steps, steps)):
            costs[key, key + 1 :] = row[1 : steps - key + 1]
        yield np.concatenate([[np.inf], costs[0, 1:]]), costs


def _next_row(best: np.ndarray, costs: np.ndarray) -> np.ndarray:
    return (best[:-1, None] + costs).min(axis=0)


NEXT_ROW = Exercise(
    "next_row",
    ("best", "costs"),
    _rows,
    _next_row,
    {
        "this is the largest sum; the least is asked for": lambda best, costs: (best[:-1, None] + costs).max(axis=0),
        "this is the row before; one more span is to be added": lambda best, costs: best,
    },
)


def _landings(rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    for terms, numbers in ((1, 20), (3, 50), (6, 200)):
        given = torch.tensor(rng.normal(size=(terms, numbers)))
        missed = torch.tensor(rng.normal(size=terms)) @ given + 0.1 * torch.tensor(rng.normal(size=numbers))
        yield given, missed


def _landing_scalars(terms: Tensor, missed: Tensor) -> Tensor:
    return torch.linalg.lstsq(terms.T, missed).solution


LANDING_SCALARS = Exercise(
    "landing_scalars",
    ("terms", "missed"),
    _landings,
    _landing_scalars,
    {
        "each scalar is found as if it were alone; solve for all at once": lambda t, m: (t @ m) / t.square().sum(1),
        "the sign is wrong: the terms are to make up what is missed": lambda t, m: -_landing_scalars(t, m),
    },
)


def _errors(rng: np.random.Generator) -> Iterator[tuple[np.ndarray]]:
    for images in (2, 8, 128):
        yield (10 ** rng.uniform(-4, -1, images),)


POOLED_PSNR = Exercise(
    "pooled_psnr",
    ("squared_errors",),
    _errors,
    lambda squared_errors: mean_psnr(squared_errors),
    {
        "this is the mean of the images' PSNR, which hides the worst ones; average the errors first": lambda errors: float(
            np.mean(-10 * np.log10(errors))
        ),
        "the sign is wrong: a small error is a high PSNR": lambda errors: -mean_psnr(errors),
        "a factor of 10, not 20: these errors are squares": lambda errors: 2 * mean_psnr(errors),
    },
)


def _offers(rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray, float]]:
    for methods in (4, 10, 40):
        psnr = rng.uniform(15, 50, methods)
        yield psnr, rng.uniform(1, 50, methods), float(np.median(psnr))


def _cheapest(psnr: np.ndarray, cost: np.ndarray, wanted: float) -> int:
    return int(np.where(psnr >= wanted, cost, np.inf).argmin())


CHEAPEST = Exercise(
    "cheapest",
    ("psnr", "cost", "wanted"),
    _offers,
    _cheapest,
    {
        "this is the nearest method, not the cheapest of those that are near enough": lambda psnr, cost, wanted: int(psnr.argmax()),
        "this is the cheapest of all, near enough or not": lambda psnr, cost, wanted: int(cost.argmin()),
        "the index is to count all methods, not only those that are near enough": lambda psnr, cost, wanted: int(
            cost[psnr >= wanted].argmin()
        ),
    },
)


def _shares(rng: np.random.Generator) -> Iterator[tuple[float, int, int]]:
    for encoder, decoder, rest, num_steps, num_keys in _operations(rng):
        yield encoder / (encoder + decoder + rest), num_steps, num_keys


CEILING = Exercise(
    "ceiling",
    ("share", "num_steps", "num_keys"),
    _shares,
    lambda share, num_steps, num_keys: _ceiling(share, 1 - share, 0, num_steps, num_keys),  # type: ignore[arg-type]
    {
        "this is the share that is left; asked for is its inverse": lambda s, steps, keys: 1 - s + s * keys / steps,
        "this leaves the encoder out at all steps; it runs at the keys": lambda s, steps, keys: 1 / (1 - s),
        "this counts encoder calls only; the decoder runs at every step": lambda s, steps, keys: steps / keys,
    },
)


def _bills(rng: np.random.Generator) -> Iterator[tuple[float, float, float]]:
    for _ in range(4):
        yield float(rng.uniform(100, 5000)), float(rng.uniform(1, 20)), float(rng.uniform(1.1, 5))


IMAGES_TO_PAY_BACK = Exercise(
    "images_to_pay_back",
    ("calibration", "seconds", "speedup"),
    _bills,
    lambda calibration, seconds, speedup: calibration / (seconds - seconds / speedup),
    {
        "you divide by the time of an image; divide by what an image saves": lambda c, s, x: c / s,
        "you divide by the accelerated time; divide by what is saved": lambda c, s, x: c / (s / x),
    },
)

GAPS = (EQUAL_SHARES, DRIFT, NEXT_ROW, LANDING_SCALARS, POOLED_PSNR, CHEAPEST, CEILING, IMAGES_TO_PAY_BACK)
