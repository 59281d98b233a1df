"""The rows of a batch: made for several steps, and those of the first step taken again.

- `repeat_rows`, `first_rows`: one rule each
- `map_tensors`: a function of each tensor inside of containers
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

# Entries of dictionaries that hold one entry for all rows.
SHARED_BY_ROWS = ("ip_adapter_masks",)


def map_tensors(function, value: Any, name: str = "") -> Any:
    """`function(tensor, name)` on each tensor inside lists, tuples and dictionaries; all else unchanged."""
    if isinstance(value, Tensor):
        return function(value, name)
    if isinstance(value, Mapping):
        return {key: map_tensors(function, inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map_tensors(function, inner, name) for inner in value)
    return value


def repeat_rows(value: Any, rows: int, times: int, name: str = "", frames: int = 1, is_read_only: bool = False) -> Any:
    """Repeat each tensor that has one entry per row or frame of the sample, block of rows by block.

    `is_read_only`: nobody writes into the result. A single row is then seen several times instead of being copied, which strides
    allow for one row only. Raises TypeError for a tensor of which it is not known how its entries belong to the rows.
    """

    def repeat(tensor: Tensor, name: str) -> Tensor:
        if tensor.dim() == 0 or name in SHARED_BY_ROWS or (tensor.shape[0] == 1 and rows > 1):
            return tensor
        if tensor.shape[0] not in (rows, rows * frames):
            raise TypeError(
                f"argument {name!r} has a tensor of shape {tuple(tensor.shape)} for {rows} rows of the sample. How to repeat it for several "
                "steps is not known; accepted: one entry per row. Use parallel_decoding=False"
            )
        if is_read_only and tensor.shape[0] == 1:
            return tensor.expand(times, *tensor.shape[1:])
        return torch.cat([tensor] * times)  # keeps the order of memory (channels last), which Tensor.repeat does not

    return value if times == 1 else map_tensors(repeat, value, name)


def first_rows(value: Any, rows: Collection[int], times: int) -> Any:
    """Undo `repeat_rows`: take the first of the `times` blocks of rows. Tensors with the rows of one step stay as they are.

    `rows`: of one step. Inside a video model a tensor has one row per frame, or one per video.
    """

    def first(tensor: Tensor, name: str) -> Tensor:
        return tensor[: tensor.shape[0] // times] if tensor.dim() and tensor.shape[0] in all_rows else tensor

    all_rows = {count * times for count in rows}
    return value if times == 1 else map_tensors(first, value)
