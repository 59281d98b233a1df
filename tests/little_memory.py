"""Memory that runs out, without a device: a module that refuses more rows than fit.

- `little_memory(module, most)`: while the block lasts, more than `most` rows are an error of memory
- `entries(pipe)`: where a decoder runs out first, and where last
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType
from typing import Any

import torch

from fastdiff_lab.hooks.denoiser import denoiser_of, split_denoiser

FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")


@contextmanager
def little_memory(module: torch.nn.Module, most: int, error: BaseException = FULL, seen: list | None = None) -> Iterator[None]:
    """`module` runs out of memory for more rows than `most`; `seen` gets each number of rows, and a reference to what came with them."""

    def look(module, args, kwargs):
        given = args[0] if args else kwargs["hidden_states"]
        if seen is not None:
            seen.append((len(given), weakref.ref(given)))
        if len(given) > most:
            raise type(error)(*error.args)  # a new one: a traceback holds on to tensors

    # It stands for the allocator; a user's hook would be checked, which decodes more.
    of_torch = FunctionType(look.__code__, globals() | {"__name__": "torch"}, closure=look.__closure__)
    handle = module.register_forward_pre_hook(of_torch, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def entries(pipe: Any) -> list[torch.nn.Module]:
    """The first and the last of the decoder's children: nothing has been handed out before the one, all before the other."""
    split = split_denoiser(denoiser_of(pipe))
    return [split.decoder[split.entries[0]], list(split.decoder.values())[-1]]
