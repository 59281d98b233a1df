"""Arithmetic of a denoiser call, counted on the meta device (nothing is computed).

- `count_flops(model, arguments)`: floating-point operations of encoder, decoder and the rest; `total_flops`: of any module
- `flops_once(model, arguments)`: the same for estimates, counted once
- `counted(stand_in, call)`: the same for any call of a model that `on_meta` made
- `FlopCount`: the result; `of_run(encoder_calls, decoder_calls)` gives a whole run's
"""

from __future__ import annotations

import copy
import weakref
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .batch_rows import map_tensors
from .denoiser import split_denoiser
from .private_api import hook_tables, take_off_offloading, tree_leaves


@dataclass(frozen=True)
class FlopCount:
    """Floating-point operations of one denoiser call (2 per multiply-add); the paper's GFLOPs are multiply-adds.

    `encoder` (with the bottleneck), `decoder` (with the output layers) and `rest` (the embeddings).
    """

    encoder: int
    decoder: int
    rest: int

    @property
    def total(self) -> int:
        return self.encoder + self.decoder + self.rest

    def of_run(self, encoder_calls: float, decoder_calls: float) -> float:
        """Operations of a run that encodes and decodes so many steps."""
        return encoder_calls * self.encoder + decoder_calls * (self.decoder + self.rest)


def on_meta(model: nn.Module, arguments: dict[str, Any]) -> tuple[nn.Module, dict[str, Any]]:
    """A copy of the model and of the arguments of a call on the meta device: shapes without memory, nothing is computed."""
    stand_ins: dict[int, Any] = {
        id(p): nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=False) for p in model.parameters()
    }
    stand_ins |= {id(buffer): torch.empty_like(buffer, device="meta") for buffer in model.buffers()}
    hooks: dict[int, Any] = {id(kind): OrderedDict() for m in model.modules() for kind in hook_tables(m)}
    stand_in = copy.deepcopy(model, stand_ins | hooks)
    for module in stand_in.modules():
        take_off_offloading(module)
    return stand_in, map_tensors(lambda tensor, _: tensor.to("meta"), arguments)


def total_flops(model: nn.Module, arguments: dict[str, Any]) -> int:
    """The operations (2 per multiply-add) of `model(**arguments)`, of any module; arguments as for `count_flops`.

    >>> total_flops(pipe.controlnet, first_arguments(pipe.controlnet, run))  # doctest: +SKIP
    """
    stand_in, shapes = on_meta(model, arguments)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        stand_in(**shapes)
    return counter.get_total_flops()


def count_flops(model: nn.Module, arguments: dict[str, Any], encoder_blocks: int | None = None) -> FlopCount:
    """Counts the operations of `model(**arguments)`.

    >>> count_flops(pipe.unet, {"sample": latents, "timestep": 1, "encoder_hidden_states": text}).total / 1e9  # doctest: +SKIP

    `arguments`: tensors of the shapes of interest, on any device; their values do not matter. `encoder_blocks`: as in
    `split_denoiser`.
    """
    # The CPU kernels of torch 2.13 report no operations for attention; on the meta device it is counted.
    stand_in, shapes = on_meta(model, arguments)
    return counted(stand_in, lambda: stand_in(**shapes), encoder_blocks)


def sizes_of(arguments: Mapping[str, Any]) -> tuple[Any, ...]:
    """Shape and dtype of every tensor among the arguments of a call."""
    return tuple((tensor.shape, tensor.dtype) for tensor in tree_leaves(dict(arguments)) if isinstance(tensor, Tensor))


_counted: weakref.WeakKeyDictionary[nn.Module, dict[Any, FlopCount]] = weakref.WeakKeyDictionary()


def flops_once(model: nn.Module, arguments: Mapping[str, Any]) -> FlopCount:
    """`count_flops` once for each model and each size of its arguments, for estimates; adapters that came later are not counted.

    >>> flops_once(pipe.unet, {"sample": latents, "timestep": 1, "encoder_hidden_states": text}).decoder  # doctest: +SKIP
    """
    known, sizes = _counted.setdefault(model, {}), sizes_of(arguments)
    if sizes not in known:
        known[sizes] = count_flops(model, dict(arguments))
    return known[sizes]


def counted(stand_in: nn.Module, call: Callable[[], object], encoder_blocks: int | None = None) -> FlopCount:
    """Counts the operations of a call of a model that `on_meta` made.

    >>> counted(stand_in, lambda: stand_in(**shapes)).encoder  # doctest: +SKIP
    """
    split = split_denoiser(stand_in, encoder_blocks)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        call()
    name = type(stand_in).__name__
    per_module = {layer: sum(found.values()) for layer, found in counter.get_flop_counts().items()}
    encoder = sum(per_module.get(f"{name}.{layer}", 0) for layer in split.encoder)
    decoder = sum(per_module.get(f"{name}.{layer}", 0) for layer in split.decoder)
    return FlopCount(encoder, decoder, counter.get_total_flops() - encoder - decoder)
