"""Sheet 3: schedules.

- `schedule_cost`: the cost of a schedule, from the costs of its spans
- `best_keys`: the cheapest schedule, by dynamic programming
- `extrapolate`: features along the line through the last two key steps
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..calibration.derive import optimal_keys
from ..key_schedule import KeySchedule
from ..propagation.extrapolation import Extrapolation, History
from .answer_values import as_arrays, shown
from .exercise import Exercise, Verdict, nearness
from .propagation import random_schedule


def random_costs(rng: np.random.Generator, num_steps: int, max_span: int) -> np.ndarray:
    """Costs like measured ones: 0 for a step alone, growing with length, uneven over steps; array (steps, max_span + 1)."""
    lengths = np.arange(max_span + 1)
    growth = np.maximum(lengths - 1, 0) ** rng.uniform(1.0, 2.5)
    costs = rng.uniform(0.1, 5, num_steps)[:, None] * growth * rng.uniform(0.8, 1.2, (num_steps, max_span + 1))
    costs[:, 0] = np.inf
    costs[np.arange(num_steps)[:, None] + lengths > num_steps] = np.inf
    return costs


def cost_of(costs: np.ndarray, keys: Any) -> float:
    """The sum of the costs of a schedule's groups, infinite for a group that was not measured."""
    steps, lengths = costs.shape
    return float(sum(costs[key, after - key] if after - key < lengths else np.inf for key, after in pairwise((*keys, steps))))


def _scheduled(rng: np.random.Generator) -> Iterator[tuple[np.ndarray, list[int]]]:
    for num_steps in (5, 9, 20, 50, 3):
        yield random_costs(rng, num_steps, num_steps), list(random_schedule(rng, num_steps).keys)


SCHEDULE_COST = Exercise(
    "schedule_cost",
    ("costs", "keys"),
    _scheduled,
    cost_of,
    {
        "the last group is missing: it goes from the last key to the end of the run": lambda costs, keys: (
            cost_of(costs, keys) - costs[keys[-1], len(costs) - keys[-1]]
        ),
    },
)


def _problems(rng: np.random.Generator) -> Iterator[tuple[np.ndarray, int]]:
    for num_steps, max_span, num_keys in ((4, 4, 2), (6, 6, 3), (8, 4, 3), (9, 9, 9), (7, 7, 1), (50, 25, 9)):
        yield random_costs(rng, num_steps, max_span), num_keys


def _best_keys(costs: np.ndarray, num_keys: int) -> list[int]:
    return list(optimal_keys(costs[None], num_keys)[num_keys][0])


def _greedy(costs: np.ndarray, num_keys: int) -> list[int]:
    keys = [0]
    for _ in range(num_keys - 1):
        keys = min((sorted([*keys, k]) for k in range(1, len(costs)) if k not in keys), key=lambda some: cost_of(costs, some))
    return keys


def _cheap_enough(found: Any, expected: Any, arguments: tuple) -> Verdict:
    """Accept any schedule that is as cheap as the best."""
    costs, num_keys = arguments
    numbers = as_arrays(found)
    if not isinstance(numbers, np.ndarray) or numbers.ndim != 1:
        return nearness(found, expected)
    try:
        keys = KeySchedule(len(costs), tuple(int(number) for number in numbers)).keys
    except ValueError as error:
        return Verdict("wrong value", f"found {shown(found)}: {error}; expected for example {list(expected)}")
    if len(keys) != num_keys or not np.array_equal(keys, numbers):
        return Verdict("wrong shape", f"found {len(keys)} keys: {shown(found)}; expected {num_keys}, for example {list(expected)}")
    ours, best = cost_of(costs, keys), cost_of(costs, expected)
    if ours <= best * (1 + 1e-9) + 1e-12:
        return Verdict("exact")
    return Verdict(
        "wrong value", f"found {list(keys)}, which cost {ours:.4g}; expected for example {list(expected)}, which cost {best:.4g}"
    )


BEST_KEYS = Exercise(
    "best_keys",
    ("costs", "num_keys"),
    _problems,
    _best_keys,
    {
        "these keys were chosen one after the other, each the best at its time (greedy); the best whole need not hold them": _greedy,
        "these are uniform keys, whatever the costs are": lambda costs, num_keys: KeySchedule.uniform(len(costs), num_keys).keys,
    },
    _cheap_enough,
)


def _pairs(rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor, int, int, int]]:
    for shape, keys, step in (
        ((3,), (0, 2), 3),
        ((2, 4, 3, 3), (4, 8), 10),
        ((1, 2, 5, 1), (1, 2), 9),
        ((4, 1), (7, 20), 20),
        ((6,), (0, 9), 15),
    ):
        before, last = (torch.tensor(rng.normal(size=shape), dtype=torch.float32) for _ in range(2))
        yield before, last, *keys, step


def _along_the_line(before: Tensor, last: Tensor, key_before: int, key_last: int, step: int) -> Tensor:
    history = History(Extrapolation(order=1))
    history.add(float(key_before), before)
    history.add(float(key_last), last)
    return history.at([float(step)], history.values)


EXTRAPOLATE = Exercise(
    "extrapolate",
    ("before", "last", "key_before", "key_last", "step"),
    _pairs,
    _along_the_line,
    {
        "these are the reused features of the last key": lambda before, last, a, b, step: last,
        "the line goes backwards: you exchanged the two keys": lambda before, last, a, b, step: _along_the_line(
            last, before, a, b, step
        ),
        "you start from the key before: at the last key's step the line must give the last features": lambda before, last, a, b, step: (
            last + (last - before) * (step - a) / (b - a)
        ),
        "the slope is missing its divisor, the distance of the two keys": lambda before, last, a, b, step: (
            last + (last - before) * (step - b)
        ),
    },
)

EXERCISES = (SCHEDULE_COST, BEST_KEYS, EXTRAPOLATE)
