"""How many rows of a group are decoded at once: as many as were asked, or as many as fit into memory.

- `PassBytes`: what one pass needs beside the weights; `bytes_of_pass(model, arguments, ...)` counts it
- `RowLimit`: the limit of a block, lower once memory has run out
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..hooks.denoiser import Split, split_denoiser
from ..hooks.denoiser_call import DenoiserCall
from ..hooks.denoiser_classes import sample_argument
from ..hooks.device import free_bytes, is_out_of_memory, release_cache
from ..hooks.flops import on_meta
from ..hooks.patching import replaced_call
from ..hooks.peak_memory import Peak, peak_bytes
from ..hooks.private_api import tree_leaves
from .cached_calls import cached_calls
from .extrapolation import HELD_FEATURES, Extrapolation
from .feature_cache import HeldFeatures, Pass

Output = TypeVar("Output")
# Of the free memory: the rest is for the scheduler, for scratch memory inside operations and for gaps between tensors.
SHARE = 0.8
_MANY = 8  # steps that a pass is counted with


@dataclass(frozen=True)
class PassBytes:
    """What one pass of parallel decoding needs beside the weights, in bytes.

    >>> PassBytes(encoder=300, held=100, step=50).of(10)
    600

    `encoder`: the most while the encoder runs, on the rows of one step. `held`: what is held while the decoder runs. `step`: what
    each decoded step adds.
    """

    encoder: int
    held: int
    step: int

    def of(self, steps: int) -> int:
        """The bytes of a pass that decodes so many steps, 1 or more."""
        return max(self.encoder, self.held + steps * self.step)

    def steps(self, free: float) -> int:
        """How many steps fit into so many bytes; at least 1, which cannot be divided."""
        return max(1, int((free - self.held) // self.step))


class _FusedAttention(TorchFunctionMode):
    """Attention without its matrix of scores, as the kernels of all accelerators compute it; the meta device has none of them."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, _, value = (*args, *(kwargs or {}).values())[:3]
        return query.new_empty(*query.shape[:-1], value.shape[-1])


def bytes_of_pass(
    model: nn.Module, arguments: Mapping[str, Any], split: Split | None = None, extrapolation: Extrapolation = HELD_FEATURES
) -> PassBytes:
    """Counts on the meta device what decoding the steps of a group at once needs; nothing is computed.

    >>> bytes_of_pass(pipe.unet, first_arguments(pipe.unet, run)).of(15) / 2**30  # GiB  # doctest: +SKIP

    `arguments`: of one denoiser call. `split`: of the model, None for the usual one. `extrapolation`: how features are extrapolated.
    """
    split = split_denoiser(model) if split is None else split
    stand_in, shapes = on_meta(model, dict(arguments))
    split = split.of(stand_in)
    features = HeldFeatures(tuple(split.encoder), split.passing, extrapolation)
    before = Peak()

    def at_the_decoder(inner: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            before.bytes, before.now = peak.bytes, peak.now
            peak.bytes = peak.now  # from here on the decoder's
            return inner(*args, **kwargs)

        return call

    with ExitStack() as stack:
        entries = {name: split.decoder[name] for name in split.entries}
        stack.enter_context(cached_calls(split.encoder, entries, lambda: features))
        stack.enter_context(replaced_call(split.decoder[split.entries[0]], at_the_decoder))
        stack.enter_context(torch.no_grad())
        stack.enter_context(_FusedAttention())
        peak = stack.enter_context(peak_bytes())
        for place in range(extrapolation.order + 1):  # the last pass has the features of the others beside it
            _pass(stand_in, shapes, features, place, _MANY if place == extrapolation.order else 1)
    return PassBytes(before.bytes, before.now, max(1, -(-(peak.bytes - before.now) // _MANY)))


def _pass(model: nn.Module, arguments: dict[str, Any], features: HeldFeatures, key: int, steps: int) -> None:
    """A key step and the steps after it, decoded at once."""
    call = DenoiserCall(model, arguments)
    places = tuple(float(key + step) for step in range(steps))
    with features.during(Pass(call.rows, call.frames, places, is_key=True, is_last_use=False)):
        call.of_steps([torch.empty((), device="meta")] * steps).invoked(model)


_counted: weakref.WeakKeyDictionary[nn.Module, dict[Any, PassBytes]] = weakref.WeakKeyDictionary()


def _counted_once(model: nn.Module, arguments: Mapping[str, Any], split: Split, extrapolation: Extrapolation) -> PassBytes:
    """Counted once for each model and each size of its arguments: on a large model it takes seconds."""
    sizes = tuple((tensor.shape, tensor.dtype) for tensor in tree_leaves(dict(arguments)) if isinstance(tensor, Tensor))
    known = _counted.setdefault(model, {})
    of = (sizes, extrapolation.order, tuple(split.encoder))
    if of not in known:
        known[of] = bytes_of_pass(model, arguments, split, extrapolation)
    return known[of]


def _arriving(model: nn.Module, device: torch.device) -> int:
    """Bytes of the weights that offloading will bring to the device when the model is called."""
    return sum(p.nbytes for p in model.parameters() if p.device.type == "cpu") if device.type != "cpu" else 0


@dataclass
class RowLimit:
    """The most rows that are decoded at once in a block, or in all runs of a calibration.

    >>> RowLimit(asked=8).rows
    8

    `asked`: `max_rows` as it was given; with None it is, off the CPU, what fits into the memory that is free when a run begins.
    """

    asked: int | None = None
    fitting: int | None = field(default=None, init=False)  # rows; of the run at hand
    survived: int | None = field(default=None, init=False)  # rows; once memory has run out

    @property
    def rows(self) -> int | None:
        """Rows at most, as far as they are known beforehand; None for no limit."""
        return self.fitting if self.asked is None else self.asked

    def begin_run(
        self, model: nn.Module, arguments: Mapping[str, Any], extrapolation: Extrapolation, split: Split, pictures: int = 1
    ) -> None:
        """Looks how much memory is left, where nothing was asked and the device says it."""
        self.fitting = None
        sample = arguments[sample_argument(model)]
        free = free_bytes(sample.device) if self.asked is None else None
        if free is None:
            return
        needed = _counted_once(model, arguments, split, extrapolation)
        self.fitting = len(sample) * needed.steps(SHARE * (free - _arriving(model, sample.device)) / pictures)

    def bytes_told(
        self, model: nn.Module, arguments: Mapping[str, Any], steps: int, extrapolation: Extrapolation, pictures: int = 1
    ) -> int:
        """Beside the weights, what decoding so many steps at once needs under this limit, told before a run.

        `pictures`: how many calls like this one share the memory that is free.
        """
        split, rows = split_denoiser(model), len(arguments[sample_argument(model)])
        self.begin_run(model, arguments, extrapolation, split, pictures)
        fewer = steps if self.rows is None else max(1, min(steps, self.rows // rows))
        return _counted_once(model, arguments, split, extrapolation).of(fewer)

    def steps_at_once(self, rows: int) -> int | None:
        """How many steps, of so many rows each, may be decoded at once, 1 or more; None for no limit.

        Raises ValueError where not even one step fits into `max_rows` as it was given.
        """
        if self.asked is not None and self.asked < rows:
            raise ValueError(f"max_rows={self.asked} asked, but one step of this run has {rows} rows; accepted: {rows} or more")
        return None if self.rows is None else max(1, self.rows // rows)

    def steps_of(self, steps: int, rows: int) -> int:
        """How many of so many steps, of so many rows each, are decoded at once by this process."""
        return steps if self.survived is None else max(1, min(steps, self.survived // rows))

    def in_passes(
        self, steps: Sequence[int], rows: int, device: torch.device, attempt: Callable[[Sequence[int], bool, bool], Output]
    ) -> Iterator[tuple[Sequence[int], Output]]:
        """The steps, of so many rows each, with what `attempt(part, is_first, is_last)` gives: at once, or in parts once memory ran out.

        Where memory runs out with a single step, raises what `attempt` does.
        """
        left = list(steps)
        while left:
            part = left[: self.steps_of(len(left), rows)]
            found = _unless_full(attempt, part, rows, len(left) == len(steps), len(part) == len(left))
            if found is None:
                release_cache(device)
                self.halve(len(part), rows)
                continue
            yield part, found[0]
            left = left[len(part) :]

    def halve(self, steps: int, rows: int) -> None:
        """After memory ran out with so many steps, 2 or more, of so many rows each: half of them from now on, and a warning."""
        self.survived = (steps + 1) // 2 * rows
        warnings.warn(
            f"memory ran out while {steps * rows} rows were decoded at once; going on with {self.survived}. The pictures stay the same. "
            f"Give max_rows={self.survived} to begin with so many",
            stacklevel=2,
        )


def _unless_full(attempt: Callable, part: Sequence[int], rows: int, is_first: bool, is_last: bool) -> tuple[Any] | None:
    """What `attempt` gives; None if memory ran out and fewer steps may fit. With the error go its frames, and the tensors in them."""
    try:
        return (attempt(part, is_first, is_last),)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        if len(part) == 1:
            error.add_note(f"one step of {rows} rows does not fit; draw fewer pictures in one call")
            raise
        return None
