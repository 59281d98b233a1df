"""The time ceiling: the seconds of a run that only encodes its key steps and decodes its groups.

- `encoder_seconds`, `decoder_seconds`: one half of a forward alone
- `at_best(encoder_calls, sizes, ...)`: the seconds of a run of nothing else
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..hooks.batch_rows import repeat_rows
from ..hooks.denoiser import split_denoiser
from ..hooks.denoiser_classes import frames_of, sample_argument
from ..hooks.device import synchronize
from ..hooks.patching import replaced_call

CALLS_ON_CUDA = 3  # back to back, as in a run, where a device works while the next call is queued


def encoder_seconds(model: nn.Module, arguments: dict[str, Any], *, repeats: int = 7) -> float:
    """Seconds of encoder and bottleneck in one call: those of the whole call without the decoder's.

    >>> encoder_seconds(pipe.unet, denoiser_arguments(pipe, prompt))  # doctest: +SKIP

    `arguments` are those of a denoiser call. The fastest of `repeats` counts, 1 or more.
    """
    with torch.no_grad():
        whole = _fastest(model, arguments, repeats)
    return max(whole - decoder_seconds(model, arguments, 1, repeats=repeats), 0.0)


@torch.no_grad()
def decoder_seconds(model: nn.Module, arguments: dict[str, Any], times: int, *, repeats: int = 7) -> float:
    """Seconds of one forward over the rows of `times` steps, with the encoder's outputs given.

    >>> decoder_seconds(pipe.unet, denoiser_arguments(pipe, prompt), times=10)  # doctest: +SKIP

    `arguments` are those of a denoiser call, whose rows are repeated. The fastest of `repeats` counts, 1 or more.
    Raises TypeError for an argument that cannot be repeated.
    """
    sample: Tensor = arguments[sample_argument(model)]
    rows, frames = len(sample), frames_of(model, sample)
    many = {name: repeat_rows(value, rows, times, name, frames) for name, value in arguments.items()}
    outputs: dict[str, Any] = {}
    with _encoder_given(model, outputs):
        model(**arguments)
        for name, value in outputs.items():
            outputs[name] = repeat_rows(value, rows, times, name, frames)
        return _fastest(model, many, repeats)


@contextmanager
def _encoder_given(model: nn.Module, outputs: dict[str, Any]) -> Iterator[None]:
    """Run the encoder's children once inside the block, for one step, then return what `outputs` holds."""

    def around(name: str) -> Callable[[Callable], Callable]:
        def make(inner: Callable) -> Callable:
            def call(*args: Any, **kwargs: Any) -> Any:
                if name not in outputs:
                    outputs[name] = inner(*args, **kwargs)
                return outputs[name]

            return call

        return make

    with ExitStack() as stack:
        for name, child in split_denoiser(model).encoder.items():
            stack.enter_context(replaced_call(child, around(name)))
        yield


def _fastest(model: nn.Module, arguments: dict[str, Any], repeats: int) -> float:
    device = arguments[sample_argument(model)].device
    found, calls = [], CALLS_ON_CUDA if device.type == "cuda" else 1
    for _ in range(repeats + 1):  # the first warms up
        synchronize(device)
        started = time.perf_counter()
        for _ in range(calls):
            model(**arguments)
        synchronize(device)
        found.append((time.perf_counter() - started) / calls)
    return min(found[1:])


def at_best(encoder_calls: int, sizes: Sequence[int], encoder: float, decoder: Mapping[int, float]) -> float:
    """Seconds of so many encoder calls, and of forwards that decode so many steps each.

    >>> at_best(2, [4, 6], 1.0, {4: 3.0, 6: 4.0})
    9.0
    """
    return encoder_calls * encoder + sum(decoder[size] for size in sizes)
