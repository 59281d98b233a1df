"""Read, copy, compare and describe the numbers in answers, whatever holds them.

- `as_arrays(value)`: tensors, arrays, lists and numbers as arrays of float64
- `own_copy(value)`: a copy that may be written into
- `same(one, other)`: equal to the last bit?
- `described(value)`, `shown(value)`: an argument and a result in a few words
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from torch import Tensor, nn

from ..key_schedule import KeySchedule

SHOWN_NUMBERS = 6


def as_arrays(value: Any) -> np.ndarray | list[np.ndarray] | None:
    """The numbers in `value` as an array, or a list of arrays if shapes differ; None if it holds anything else.

    >>> as_arrays([1, 2]).tolist()
    [1.0, 2.0]
    """
    if isinstance(value, KeySchedule):
        return np.asarray(value.keys, dtype=float)
    if isinstance(value, Tensor):
        return value.detach().cpu().double().numpy()
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple | range | set | frozenset):
        return _together([as_arrays(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)])
    try:
        array = np.asarray(value)
    except (TypeError, ValueError, RuntimeError):
        return None
    return array.astype(float) if array.dtype.kind in "biuf" else None


def _together(parts: list[Any]) -> np.ndarray | list[np.ndarray] | None:
    if any(part is None or isinstance(part, list) for part in parts):
        return None
    return np.asarray(parts, dtype=float) if len({part.shape for part in parts}) <= 1 else parts


def own_copy(value: Any) -> Any:
    """Copy the numbers in `value`; keep models, pipelines and functions."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, np.ndarray):
        return value.copy()
    if isinstance(value, dict):
        return {name: own_copy(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(own_copy(inner) for inner in value)
    return value


def same(one: Any, other: Any) -> bool:
    """Whether the numbers of two arguments are equal to the last bit."""
    if isinstance(one, Tensor | np.ndarray):
        return one.shape == other.shape and bool(np.array_equal(as_arrays(one), as_arrays(other), equal_nan=True))  # type: ignore[arg-type]
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[name], other[name]) for name in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return one is other or bool(one == other)


def described(value: Any) -> str:
    """Describe an argument in a few words.

    >>> described([0, 3, 5])
    '[0, 3, 5]'
    """
    if isinstance(value, Tensor | np.ndarray):
        kind = "tensor" if isinstance(value, Tensor) else "array"
        return f"{kind} {tuple(value.shape)}" + (f" = {shown(value)}" if value.ndim <= 1 else "")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{name}: {described(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list | tuple) and any(isinstance(item, Tensor) for item in value):
        return f"{type(value).__name__} of {len(value)}: " + ", ".join(described(item) for item in value)
    if isinstance(value, nn.Module) or not isinstance(value, list | tuple | str | int | float):
        return f"a {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def shown(value: Any) -> str:
    """Describe a result by its first numbers or its type."""
    arrays = as_arrays(value)
    if isinstance(arrays, list):
        return f"{len(arrays)} arrays of shapes " + ", ".join(str(array.shape) for array in arrays[:SHOWN_NUMBERS])
    if arrays is None:
        text = " ".join(repr(value).split())
        return f"{type(value).__name__} {text[:80]}"
    numbers = [f"{number:.4g}" for number in arrays.flat[: SHOWN_NUMBERS + 1]]
    if len(numbers) > SHOWN_NUMBERS:
        numbers[SHOWN_NUMBERS] = "..."
    return numbers[0] if arrays.ndim == 0 else f"[{', '.join(numbers)}]"
