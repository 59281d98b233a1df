"""Sheet 4: time, fit and claims.

- `median_time`: time a run so that the number can be trusted
- `best_ridge`: how strong a ridge, judged by images that are left out
- `beaten_by`: which controls beat a claim
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .exercise import Exercise


class Stopwatch:
    """A run that takes known seconds, the first time longer, and the clock beside it."""

    def __init__(self, seconds: Sequence[float]) -> None:
        self.seconds, self.now, self.runs = list(seconds), 0.0, 0

    def run(self) -> None:
        self.now += self.seconds[self.runs % len(self.seconds)]
        self.runs += 1

    def clock(self) -> float:
        return self.now


def _stopwatches(rng: np.random.Generator) -> Iterator[tuple[Callable, Callable, int]]:
    for repeats in (3, 5, 8):
        usual = rng.uniform(1, 1.2, repeats)
        usual[rng.integers(repeats)] *= 10  # something else used the machine
        watch = Stopwatch([float(rng.uniform(5, 9)), *usual])
        yield watch.run, watch.clock, repeats


@contextmanager
def _from_the_start(run: Any, clock: Any, repeats: int) -> Iterator[list[str]]:
    """The stopwatch at zero, and again after the answer."""
    watch = run.__self__
    watch.now, watch.runs = 0.0, 0
    broken: list[str] = []
    yield broken
    if watch.runs > repeats + 1:
        broken.append(f"your function ran it {watch.runs} times; expected: one run that does not count, and {repeats} that do")


def _durations(run: Any) -> np.ndarray:
    return np.asarray(run.__self__.seconds)


MEDIAN_TIME = Exercise(
    "median_time",
    ("run", "clock", "repeats"),
    _stopwatches,
    lambda run, clock, repeats: float(np.median(_durations(run)[1:])),
    {
        "the first run counts; it loads and compiles, so leave it out": lambda run, clock, repeats: float(
            np.median(_durations(run)[:-1])
        ),
        "this is the mean; one disturbed run moves it, the median does not": lambda run, clock, repeats: float(
            np.mean(_durations(run)[1:])
        ),
        "this is the sum of all runs": lambda run, clock, repeats: float(np.sum(_durations(run)[1:])),
    },
    rules=_from_the_start,
)


def ridge_scalars(terms: Tensor, missed: Tensor, ridge: float) -> Tensor:
    """The scalars of least squares with a ridge: terms (images, terms, numbers), missed (images, numbers)."""
    products = torch.einsum("itn,iun->tu", terms, terms)
    return torch.linalg.solve(products + ridge * torch.eye(len(products)), torch.einsum("itn,in->t", terms, missed))


def _fits(rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor, list[float]]]:
    for images, terms, numbers in ((4, 3, 4), (6, 5, 3), (8, 6, 4)):
        given = torch.tensor(rng.normal(size=(images, terms, numbers)), dtype=torch.float32)
        truth = torch.tensor(rng.normal(size=terms), dtype=torch.float32)
        noise = torch.tensor(rng.normal(size=(images, numbers)) * 3, dtype=torch.float32)
        yield given, torch.einsum("itn,t->in", given, truth) + noise, [0.01, 0.3, 3.0, 30.0, 300.0]


def left_out_errors(terms: Tensor, missed: Tensor, ridges: Sequence[float]) -> np.ndarray:
    """For each ridge the squared error of images that were left out of the fit."""
    return np.array([sum(_left_out(terms, missed, ridge, image) for image in range(len(terms))) for ridge in ridges])


def _left_out(terms: Tensor, missed: Tensor, ridge: float, image: int) -> float:
    others = [other for other in range(len(terms)) if other != image]
    scalars = ridge_scalars(terms[others], missed[others], ridge)
    return float((missed[image] - scalars @ terms[image]).square().sum())


def _best_ridge(terms: Tensor, missed: Tensor, ridges: Sequence[float]) -> float:
    return ridges[int(left_out_errors(terms, missed, ridges).argmin())]


BEST_RIDGE = Exercise(
    "best_ridge",
    ("terms", "missed", "ridges"),
    _fits,
    _best_ridge,
    {
        "this ridge is best on the images that it was fitted on; none at all always is": lambda terms, missed, ridges: min(ridges),
        "this is the largest error that is left, not the least": lambda terms, missed, ridges: ridges[
            int(left_out_errors(terms, missed, ridges).argmax())
        ],
        "this is the place in the list; asked for is the ridge": lambda terms, missed, ridges: int(
            left_out_errors(terms, missed, ridges).argmin()
        ),
    },
)


def _tables(rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray, int]]:
    for methods in (5, 9, 20):
        seconds, psnr = rng.uniform(0.5, 3, methods), rng.uniform(20, 45, methods)
        claim = int(np.argsort(psnr)[methods // 3])
        seconds[rng.integers(methods)] = seconds[claim]  # as fast is fast enough
        yield seconds, psnr, claim


def _beaten_by(seconds: np.ndarray, psnr: np.ndarray, claim: int) -> list[int]:
    able = (seconds <= seconds[claim]) & (psnr >= psnr[claim])
    return [place for place in np.flatnonzero(able).tolist() if place != claim]


BEATEN_BY = Exercise(
    "beaten_by",
    ("seconds", "psnr", "claim"),
    _tables,
    _beaten_by,
    {
        "these are all that come as near, fast or not": lambda seconds, psnr, claim: [
            place for place in np.flatnonzero(psnr >= psnr[claim]).tolist() if place != claim
        ],
        "these are all that are as fast, near or not": lambda seconds, psnr, claim: [
            place for place in np.flatnonzero(seconds <= seconds[claim]).tolist() if place != claim
        ],
        "the claim itself is among them": lambda seconds, psnr, claim: sorted([*_beaten_by(seconds, psnr, claim), claim]),
    },
)

EXERCISES = (MEDIAN_TIME, BEST_RIDGE, BEATEN_BY)
