"""Fitted lines: two scalars for each feature and step, by which features follow from those of the last two key steps.

- `Lines`: the scalars, by the names of features
- `checked_lines(value, num_steps)`: reads what users and files give
- `FittedLines(lines)`: the features of steps between keys
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..inputs.plain_values import number

Line = tuple[float, float]  # shares of the last key step's feature, and of its difference to that of the key step before
Lines = tuple[tuple[str, tuple[Line, ...]], ...]  # name of a feature -> a line for each step

REUSED: Line = (1.0, 0.0)
MAX_FEATURES = 1000


def feature_name(entry: tuple[str, str]) -> str:
    """The name of what enters a child of the decoder: the child, and the argument. In a tuple, the place follows."""
    return " ".join(entry)


def checked_lines(value: Any, num_steps: int) -> Lines:
    """Lines as tuples. Raises TypeError or ValueError for anything else than a pair of numbers for each feature and step."""
    wrong = TypeError(f"lines={repr(value)[:80]} given; accepted: for each feature its name, and two numbers for each step")
    if not isinstance(value, tuple | list) or len(value) > MAX_FEATURES:
        raise wrong
    for item in value:
        if not isinstance(item, tuple | list) or len(item) != 2 or not isinstance(item[0], str):
            raise wrong
        if not isinstance(item[1], tuple | list) or len(item[1]) != num_steps:
            raise wrong
        if not all(isinstance(line, tuple | list) and len(line) == 2 for line in item[1]):
            raise wrong
    return tuple((name, tuple((number("lines", a), number("lines", b)) for a, b in steps)) for name, steps in value)


class FittedLines:
    """Gives features at steps between keys.

    >>> lines = FittedLines((("up_blocks.0 hidden_states", ((1.0, 0.0), (0.5, 2.0))),))
    >>> lines.at("up_blocks.0 hidden_states", [1.0], [torch.tensor([3.0]), torch.tensor([4.0])])
    tensor([4.])
    """

    def __init__(self, lines: Lines) -> None:
        self.lines = dict(lines)

    def at(self, name: str, places: Sequence[float], values: Sequence[Any]) -> Any:
        """The feature at each of `places`, which are steps: one block of rows for each.

        `values`: the feature at the last key steps, the newest last: tensors of one step's rows, or tuples of them.
        """
        *older, newest = values
        if isinstance(newest, tuple | list):
            parts = zip(*values, strict=True)
            return type(newest)(self.at(f"{name} {place}", places, part) for place, part in enumerate(parts))
        slope = newest - older[-1] if older else None
        return torch.cat([_on(line, newest, slope) for line in self.of(name, places)])

    def of(self, name: str, places: Sequence[float]) -> list[Line]:
        """The lines of a feature at these steps. Raises ValueError for a feature that the fit does not know."""
        if name not in self.lines:
            raise ValueError(
                f"the fit has no line for {name!r}, which enters this decoder; accepted: {', '.join(self.lines)}; fit anew on this model"
            )
        return [self.lines[name][int(place)] for place in places]


def _on(line: Line, newest: Tensor, slope: Tensor | None) -> Tensor:
    """A feature on its line. The scalars are Python's own: the host does not wait for a device."""
    share, along = line
    return newest * share if slope is None else torch.add(newest * share, slope, alpha=along)
