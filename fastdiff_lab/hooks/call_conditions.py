"""What a prediction was decoded for: the arguments of a denoiser call, compared and repeated.

- `repeat_rows`, `first_rows`: one rule each for making the rows of several steps, and for taking the first step's
- `repeated_arguments`: the arguments of a call with the rows of several steps
- `Conditions`: the arguments of a call, kept to be compared with a later call's
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from .deferred import Later
from .denoiser import CONDITIONS, SHARED_BY_ROWS


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
    """Repeats every tensor that has one entry per row of the sample (or per frame of each), the whole block of rows per step.

    `is_read_only`: nobody writes into the result, so a single row is seen several times instead of being copied (strides do not allow it
    for more rows than one). Raises TypeError for a tensor of which it is not known how its entries belong to the rows.
    """

    def repeat(tensor: Tensor, name: str) -> Tensor:
        if tensor.dim() == 0 or name in SHARED_BY_ROWS or (tensor.shape[0] == 1 and rows > 1):
            return tensor
        if tensor.shape[0] not in (rows, rows * frames):
            raise TypeError(
                f"argument {name!r} has a tensor of shape {tuple(tensor.shape)} for {rows} rows of the sample, so it is not known how to "
                "repeat it for several steps; accepted: one entry per row. Use parallel_decoding=False"
            )
        if is_read_only and tensor.shape[0] == 1:
            return tensor.expand(times, *tensor.shape[1:])
        return torch.cat([tensor] * times)  # keeps the order of memory (channels last), which Tensor.repeat does not

    return value if times == 1 else map_tensors(repeat, value, name)


def repeated_arguments(arguments: Mapping[str, Any], sample_name: str, rows: int, times: int, frames: int = 1) -> dict[str, Any]:
    """Of a denoiser call's arguments, those with rows of their own, repeated for several steps.

    Raises TypeError as `repeat_rows` does.
    """
    names = [sample_name, *(name for name in CONDITIONS if name in arguments)]
    return {name: repeat_rows(arguments[name], rows, times, name, frames) for name in names}


def first_rows(value: Any, rows: Collection[int], times: int) -> Any:
    """Undoes `repeat_rows`: the first of the `times` blocks of rows; tensors that have no more than one step's rows stay as they are.

    `rows`: of one step; inside a video model a tensor has either as many rows per step as there are frames in all, or pictures.
    """

    def first(tensor: Tensor, name: str) -> Tensor:
        return tensor[: tensor.shape[0] // times] if tensor.dim() and tensor.shape[0] in all_rows else tensor

    all_rows = {count * times for count in rows}
    return value if times == 1 else map_tensors(first, value)


def rounded(value: Any) -> Any:
    """Numbers to nine digits: the host multiplies adapter scales by a factor and divides them by it again at each call."""
    if isinstance(value, Mapping):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [rounded(inner) for inner in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


def _same_tensor(kept: tuple[Tensor, int | None], given: Any, unread: list[Tensor]) -> bool:
    tensor, version = kept
    if not isinstance(given, Tensor) or tensor.shape != given.shape or tensor.device != given.device:
        return False
    unchanged = version == _version(tensor)  # tensors of inference mode count no versions: theirs is None
    if unchanged and tensor.data_ptr() == given.data_ptr() and tensor.stride() == given.stride():
        return True
    if unchanged and tensor.device.type not in ("cpu", "meta"):
        unread.append((tensor == given).all())
        return True
    return unchanged and torch.equal(tensor, given)


def _version(tensor: Tensor) -> int | None:
    return None if tensor.is_inference() else tensor._version


def _kept(value: Any) -> Any:
    """`value` with each tensor replaced by itself and its version counter, which counts writes in place.

    Where none are counted a copy is kept, to be compared by value; on a device, that would make the host wait at each step.
    """

    def keep(tensor: Tensor, _: str) -> _Kept:
        kept = tensor.clone() if tensor.is_inference() and tensor.device.type == "cpu" else tensor
        return _Kept((kept, _version(kept)))

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

    Tensors are compared by identity first, so that the usual case (the pipeline passes the same tensors at every step)
    needs no device sync, and by value where they are other objects: on a device, for arguments that are made anew at every step, only
    when the run ends.
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
