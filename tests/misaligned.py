"""A pytest plugin (`-p misaligned`): the weights of every model lie elsewhere in memory than torch would put them.

Where weights lie decides which instructions multiply them, and so the last bit of what is computed with them. It differs from processor
to processor and from one way of loading to another. Tests that pass under this plugin do not depend on it.
"""

from __future__ import annotations

import copy
import functools
import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

# In elements (four bytes of float32), and of each model another, so that no two models' weights lie alike.
_offsets = itertools.cycle(range(1, 16))
_MAKING = ("eval", "to", "float", "double", "half", "bfloat16")


def moved(tensor: Tensor, offset: int) -> Tensor:
    """The same values with the same strides, `offset` elements inside a larger storage."""
    storage = torch.empty(tensor.numel() + offset, dtype=tensor.dtype)
    return storage.as_strided(tensor.shape, tensor.stride(), offset).copy_(tensor)


def _can_be_moved(tensor: Tensor) -> bool:
    is_dense = tensor.is_contiguous() or (tensor.dim() == 4 and tensor.is_contiguous(memory_format=torch.channels_last))
    is_plain = type(tensor) in (Tensor, nn.Parameter) and tensor.device.type == "cpu" and tensor.layout == torch.strided
    return is_plain and is_dense and tensor.storage_offset() == 0 and tensor.numel() > 0


def move(module: nn.Module) -> None:
    """Moves all weights that lie where torch or a loader put them; those that were moved before stay."""
    offset = next(_offsets)
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        if _can_be_moved(tensor):
            tensor.data = moved(tensor.data, offset)


def _then_moved(make: Callable) -> Callable:
    @functools.wraps(make)
    def making(*args: Any, **kwargs: Any) -> Any:
        made = make(*args, **kwargs)
        if isinstance(made, nn.Module):
            move(made)
        return made

    return making


def pytest_configure(config: pytest.Config) -> None:
    for name in _MAKING:
        setattr(nn.Module, name, _then_moved(getattr(nn.Module, name)))
    copy.deepcopy = _then_moved(copy.deepcopy)
