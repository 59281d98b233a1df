"""What a prediction was decoded for: the conditions of a denoiser call, compared with a later call's.

- `Conditions`: rows, arguments and scales of a call
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..hooks.batch_rows import map_tensors
from ..hooks.private_api import write_count
from .deferred import Later


def _same_tensor(kept: tuple[Tensor, int | None], given: Any, unread: list[Tensor]) -> bool:
    tensor, version = kept
    if not isinstance(given, Tensor) or tensor.shape != given.shape or tensor.device != given.device:
        return False
    unchanged = version == write_count(tensor)  # tensors of inference mode count no versions: theirs is None
    if unchanged and tensor.data_ptr() == given.data_ptr() and tensor.stride() == given.stride():
        return True
    if unchanged and tensor.device.type not in ("cpu", "meta"):
        unread.append((tensor == given).all())
        return True
    return unchanged and torch.equal(tensor, given)


def _kept(value: Any) -> Any:
    """`value` with each tensor replaced by itself and its version counter, which counts writes in place.

    Where none are counted a copy is kept, to be compared by value; on a device, that would make the host wait at each step.
    """

    def keep(tensor: Tensor, _: str) -> _Kept:
        kept = tensor.clone() if tensor.is_inference() and tensor.device.type == "cpu" else tensor
        return _Kept((kept, write_count(kept)))

    return map_tensors(keep, value)


class _Kept(tuple):
    """A tensor and its version counter."""


def _same(kept: Any, given: Any, unread: list[Tensor]) -> bool:
    """Are these the same, if all in `unread` is true? What is on a device is put there instead of being read."""
    if isinstance(kept, _Kept):
        return _same_tensor(kept, given, unread)
    if isinstance(kept, Mapping):
        alike = isinstance(given, Mapping) and kept.keys() == given.keys()
        return alike and all(_same(kept[k], given[k], unread) for k in kept)
    if isinstance(kept, list | tuple):
        alike = isinstance(given, list | tuple) and len(kept) == len(given)
        return alike and all(_same(one, other, unread) for one, other in zip(kept, given, strict=True))
    return isinstance(given, type(kept)) and bool(kept == given)


class Conditions:
    """The conditions of a denoiser call: rows of the sample, text and other arguments, adapter scales.

    >>> conditions = Conditions(rows=2, arguments={"encoder_hidden_states": text}, scales=[])  # doctest: +SKIP
    >>> conditions.difference(rows=1, arguments={"encoder_hidden_states": text}, scales=[])  # doctest: +SKIP
    'it has 1 rows, not 2'

    Tensors are compared by identity first: most pipelines pass the same tensors at every step, which needs no device sync.
    Other objects are compared by value. On a device, arguments that are made anew at every step are compared when the run ends.
    """

    def __init__(self, rows: int, arguments: Mapping[str, Any], scales: list) -> None:
        self.rows, self.arguments, self.scales = rows, {n: _kept(a) for n, a in arguments.items()}, scales

    def difference(
        self, rows: int, arguments: Mapping[str, Any], scales: list, later: Later | None = None, step: int = 0
    ) -> str | None:
        """In words, what differs in the given call, that of `step`; None if nothing does, as far as `later` does not say more."""
        if rows != self.rows:
            return f"it has {rows} rows, not {self.rows}"
        later = Later() if later is None else later
        for name in sorted(self.arguments.keys() | arguments.keys()):
            unread: list[Tensor] = []
            same = _same(self.arguments.get(name), arguments.get(name), unread)
            if not same or (unread and not later.is_same(name, step, unread)):
                return f"its {name} is another"
        return (
            None
            if scales == self.scales
            else "a weight, an adapter, an attention processor, GLIGEN's switch or a scale of LoRA, IP-Adapter or FreeU is another"
        )
