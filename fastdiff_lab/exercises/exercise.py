"""Exercises, and verdicts on answers.

- `Exercise`: its name, its inputs, the expected result, and known mistakes
- `Verdict`: right or wrong on one input, and why
- `nearness(found, expected)`: the usual judge: exact, close, or wrong in shape, type or value
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .answer_values import as_arrays, shown

TOLERANCE = 1e-4


@dataclass(frozen=True)
class Verdict:
    """The verdict on an answer for one input.

    Args:
        kind: "exact", "close", or the fault: "wrong value", "wrong shape", "wrong type", "nothing returned",
            "changed its input", "raised", "interrupted", "broke a rule".
        reason: In a sentence.
        difference: The largest, if there is one.
        found: The answer's result.
    """

    kind: str
    reason: str = ""
    difference: float = 0.0
    found: Any = None

    @property
    def is_right(self) -> bool:
        return self.kind in ("exact", "close")


def _no_rules(*arguments: Any) -> AbstractContextManager[list[str]]:
    return nullcontext([])


def nearness(found: Any, expected: Any, arguments: tuple = (), tolerance: float = TOLERANCE) -> Verdict:
    """Compare numbers, whatever holds them; `tolerance` is a share of the largest expected number.

    >>> nearness([1, 2.0], np.array([1, 2])).kind
    'exact'
    """
    if found is None or found is ...:
        return Verdict("nothing returned", f"your function returned {found}: is there a `return` with a value?")
    ours, theirs = as_arrays(found), as_arrays(expected)
    assert theirs is not None
    if ours is None:
        return Verdict("wrong type", f"found {shown(found)}; expected numbers: {shown(expected)}")
    if isinstance(theirs, list) or isinstance(ours, list):
        return _of_lists(ours, theirs, tolerance)
    if ours.shape != theirs.shape:
        return Verdict("wrong shape", f"found shape {ours.shape}: {shown(ours)}; expected shape {theirs.shape}: {shown(theirs)}")
    return _of_arrays(ours, theirs, tolerance)


def _of_lists(ours: Any, theirs: Any, tolerance: float) -> Verdict:
    if len(ours) != len(theirs):
        return Verdict("wrong shape", f"found {len(ours)} parts: {shown(ours)}; expected {len(theirs)}: {shown(theirs)}")
    parts = [nearness(mine, other, (), tolerance) for mine, other in zip(ours, theirs, strict=True)]
    for place, part in enumerate(parts):
        if not part.is_right:
            return Verdict(part.kind, f"part {place}: {part.reason}", part.difference)
    return max(parts, key=lambda part: part.difference)


def _of_arrays(ours: np.ndarray, theirs: np.ndarray, tolerance: float) -> Verdict:
    if np.array_equal(ours, theirs, equal_nan=True):
        return Verdict("exact")
    if np.isnan(ours).any():
        return Verdict("wrong value", f"found NaN: {shown(ours)}; expected {shown(theirs)}", float("nan"))
    with np.errstate(invalid="ignore"):  # infinite in both is equal
        apart = np.where(ours == theirs, 0.0, np.abs(ours - theirs))
    place = np.unravel_index(int(apart.argmax()), apart.shape)
    largest = float(apart[place])
    size = np.abs(theirs[np.isfinite(theirs)]).max(initial=1e-30)
    if largest <= tolerance * float(size):
        return Verdict("close", "", largest)
    at = f" at [{', '.join(map(str, place))}]" if place else ""
    where = f"largest difference {largest:.3g}{at}: {ours[place]:.4g} instead of {theirs[place]:.4g}"
    return Verdict("wrong value", f"found {shown(ours)}; expected {shown(theirs)}; {where}", largest)


@dataclass(frozen=True)
class Exercise:
    """One exercise.

    Args:
        arguments: Names of the answer's arguments.
        inputs: Random generator -> argument tuples, of several shapes.
        expected: The right result, from the library's own functions.
        mistakes: Sentence to the student -> result of that mistake.
        judge: (found, expected, arguments) -> Verdict.
        rules: Arguments -> a block around the answer, which fills a list with broken rules.
    """

    name: str
    arguments: tuple[str, ...]
    inputs: Callable[[np.random.Generator], Iterable[tuple]]
    expected: Callable[..., Any]
    mistakes: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    judge: Callable[[Any, Any, tuple], Verdict] = nearness
    rules: Callable[..., AbstractContextManager[list[str]]] = _no_rules
