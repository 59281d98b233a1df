"""What one pass of parallel decoding needs beside the weights, counted on the meta device.

- `PassBytes`: bytes for any number of steps
- `bytes_of_pass(model, arguments, ...)`, `bytes_once(...)`: counts them; once for each model and size
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ..hooks.denoiser import Split, split_denoiser
from ..hooks.denoiser_call import DenoiserCall
from ..hooks.flops import on_meta, sizes_of
from ..hooks.patching import replaced_call
from ..hooks.peak_memory import Peak, peak_bytes
from .cached_calls import cached_calls
from .extrapolation import REUSED_FEATURES, Extrapolation
from .feature_cache import Pass, ReusedFeatures

_MANY = 8  # steps that a pass is counted with


@dataclass(frozen=True)
class PassBytes:
    """What one pass of parallel decoding needs beside the weights, in bytes.

    >>> PassBytes(encoder=300, reused=100, step=50).of(10)
    600

    `encoder`: the most while the encoder runs, on the rows of one step. `reused`: what is reused while the decoder runs. `step`: what
    each decoded step adds.
    """

    encoder: int
    reused: int
    step: int

    def of(self, steps: int) -> int:
        """The bytes of a pass that decodes so many steps, 1 or more."""
        return max(self.encoder, self.reused + steps * self.step)

    def steps(self, free: float) -> int:
        """How many steps fit into so many bytes; at least 1, which cannot be divided."""
        return max(1, int((free - self.reused) // self.step))


class _FusedAttention(TorchFunctionMode):
    """Attention without its matrix of scores, as the kernels of all accelerators compute it; the meta device has none of them."""

    def __torch_function__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, _, value = (*args, *(kwargs or {}).values())[:3]
        return query.new_empty(*query.shape[:-1], value.shape[-1])


def bytes_of_pass(
    model: nn.Module, arguments: Mapping[str, Any], split: Split | None = None, extrapolation: Extrapolation = REUSED_FEATURES
) -> PassBytes:
    """Counts on the meta device what decoding the steps of a group at once needs; nothing is computed.

    >>> bytes_of_pass(pipe.unet, first_arguments(pipe.unet, run)).of(15) / 2**30  # GiB  # doctest: +SKIP

    `arguments`: of one denoiser call. `split`: of the model, None for the usual one. `extrapolation`: how features are extrapolated.
    """
    split = split_denoiser(model) if split is None else split
    stand_in, shapes = on_meta(model, dict(arguments))
    split = split.of(stand_in)
    features = ReusedFeatures(tuple(split.encoder), split.passing, extrapolation)
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


def _pass(model: nn.Module, arguments: dict[str, Any], features: ReusedFeatures, key: int, steps: int) -> None:
    """A key step and the steps after it, decoded at once."""
    call = DenoiserCall(model, arguments)
    places = tuple(float(key + step) for step in range(steps))
    with features.during(Pass(call.rows, call.frames, places, is_key=True, is_last_use=False)):
        call.of_steps([torch.empty((), device="meta")] * steps).invoked(model)


_counted: weakref.WeakKeyDictionary[nn.Module, dict[Any, PassBytes]] = weakref.WeakKeyDictionary()


def bytes_once(model: nn.Module, arguments: Mapping[str, Any], split: Split, extrapolation: Extrapolation) -> PassBytes:
    """Counted once for each model and each size of its arguments: on a large model it takes seconds."""
    known = _counted.setdefault(model, {})
    of = (sizes_of(arguments), extrapolation.order, tuple(split.encoder))
    if of not in known:
        known[of] = bytes_of_pass(model, arguments, split, extrapolation)
    return known[of]
