"""How much memory the tensors of a computation need at most, on any device.

- `peak_bytes()`: counts while the block lasts
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, UntypedStorage

from .private_api import TorchDispatchMode, tree_leaves


@dataclass
class Peak:
    """`bytes`: the most that tensors made in the block took at one time; `now`: what they hold still."""

    bytes: int = 0
    now: int = 0


class _Counting(TorchDispatchMode):
    """Follows each storage from the operation that made it to its end."""

    def __init__(self, peak: Peak) -> None:
        super().__init__()
        self.peak = peak
        self.seen: weakref.WeakSet[UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        given = {id(t.untyped_storage()) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and id(tensor.untyped_storage()) not in given:
                self.follow(tensor.untyped_storage())
        return output

    def follow(self, storage: UntypedStorage) -> None:
        if storage in self.seen:
            return
        self.seen.add(storage)
        size = storage.nbytes()
        self.peak.now += size
        self.peak.bytes = max(self.peak.bytes, self.peak.now)
        weakref.finalize(storage, self.release, size)

    def release(self, size: int) -> None:
        self.peak.now -= size


@contextmanager
def peak_bytes() -> Iterator[Peak]:
    """While the block lasts, counts the bytes of all tensors that are made in it: features, activations, results, not the weights.

    >>> with peak_bytes() as peak:  # doctest: +SKIP
    ...     pipe(prompt, num_inference_steps=50)
    >>> peak.bytes  # doctest: +SKIP

    Scratch memory inside an operation is not seen. Slow: for measuring, not for timing.
    """
    peak = Peak()
    with _Counting(peak):
        yield peak
