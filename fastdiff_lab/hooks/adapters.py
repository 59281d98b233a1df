"""What acts on a denoiser beside its weights: attention processors, and the scales of adapters.

- `processor_of(module)`, `processors(model)`: attention processors
- `row_mixing(pipe, split)`: what mixes the rows of a batch
- `attention_store(model)`: what stores attention maps
- `processors_kept(model)`, `put_back_processors(model, before)`: a run that is broken off leaves no processors behind
- `adapter_scales(model)`: where the scales of LoRA, IP-Adapter and FreeU stand
- `Steered`: all of it in one run
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from .denoiser import Split, denoiser_of, inner_loop
from .device import read_checks
from .private_api import LORA_STATE, GatedSelfAttentionDense, part_tables, submodule, sum_of_write_counts

# Attention processors that mix the rows of a batch: more steps in the batch would change what they mix.
_ROW_MIXING = ("CrossFrameAttn", "PAG")
_SEEN_PER_TENSOR = 64
_SEEN_WEIGHTS = 64
_FREEU = ("s1", "s2", "b1", "b2")


def processor_of(module: nn.Module) -> Any:
    """A module's attention processor: a plain object, or a module where it holds weights (IP-Adapter); None if it has none."""
    return vars(module).get("processor") or submodule(module, "processor")


def processors(model: nn.Module) -> list[tuple[nn.Module, Any]]:
    """Modules with their attention processors.

    Looked up where they stand: asking hundreds of modules for an attribute that they lack takes milliseconds in each run.
    """
    found = ((module, processor_of(module)) for module in model.modules())
    return [(module, processor) for module, processor in found if processor is not None]


def row_mixing(pipe: DiffusionPipeline, split: Split) -> str | None:
    """What mixes the rows of a batch, if anything does: an attention processor, or a pipeline that will install one.

    Those of single pipelines do no harm in the encoder (self-attention guidance), which gets the rows of one step only.
    """
    if inner_loop(pipe) is not None:
        return type(pipe).__name__
    encoder = {module for child in split.encoder.values() for module in child.modules()}
    found = [(module in encoder, type(processor)) for module, processor in processors(denoiser_of(pipe))]
    mixing = {kind.__name__ for is_encoder, kind in found if _is_named_so(kind) or (not is_encoder and _mixes_rows(kind))}
    return min(mixing, default=None)


def attention_store(model: nn.Module) -> str | None:
    """The attention processor that stores its maps for the pipeline, if there is one (LEDITS++, Attend-and-Excite)."""
    return next((type(processor).__name__ for _, processor in processors(model) if hasattr(processor, "attnstore")), None)


def _mixes_rows(kind: type) -> bool:
    """Processors of single pipelines look at the whole batch: they share, replace or collect attention."""
    return _is_named_so(kind) or kind.__module__.startswith("diffusers.pipelines.")


def _is_named_so(kind: type) -> bool:
    return kind.__name__.startswith(_ROW_MIXING)


@contextmanager
def processors_kept(model: Any, after_errors_only: bool = False) -> Iterator[None]:
    """Afterwards the model has its attention processors again: Text2Video-Zero and PAG leave their own behind if they are broken off."""
    before = processors(model)
    ended = False
    try:
        yield
        ended = True
    finally:
        if not (ended and after_errors_only):
            put_back_processors(model, before)


def put_back_processors(model: nn.Module, before: list[tuple[nn.Module, Any]]) -> None:
    """Gives modules the attention processors that they had before, in the place of those that mix rows.

    Others are the user's: an adapter that was loaded or unloaded meanwhile.
    """
    now = dict(processors(model))
    for module, processor in before:
        if now.get(module) is not processor and _mixes_rows(type(now.get(module))):
            module.set_processor(processor)  # type: ignore[operator]


def adapter_scales(model: nn.Module) -> list[tuple[Any, str]]:
    """Where what steers a model beside its weights stands: scales of LoRA, IP-Adapter and FreeU, GLIGEN's switch.

    Pairs of an object and the name of its attribute, which is not there where FreeU never was.
    """
    watched = [(block, name) for block in getattr(model, "up_blocks", ()) for name in _FREEU]
    for module in model.modules():
        if isinstance(vars(module).get("scaling"), dict):
            watched += [(module, name) for name in LORA_STATE if hasattr(module, name)]
        if isinstance(module, GatedSelfAttentionDense):
            watched.append((module, "enabled"))
    return watched + [(p, "scale") for _, p in processors(model) if isinstance(getattr(p, "scale", None), list)]


def _rounded(value: Any) -> Any:
    """Numbers to nine digits: the host multiplies adapter scales by a factor and divides them by it again at each call."""
    if isinstance(value, Mapping):
        return {key: _rounded(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(inner) for inner in value]
    return float(f"{value:.9g}") if isinstance(value, float) else value


class WeightValues:
    """Compare weights from key step to key step, as some writes leave no trace but the values.

    >>> weights = WeightValues(pipe.unet)  # doctest: +SKIP
    >>> weights.at_key(-1, 0)  # doctest: +SKIP

    Hot-swapped and fused LoRA and averaged weights (EMA) are written through `weight.data`. The first 64 entries of each LoRA
    weight and of 64 other weights are compared on their device. Without LoRA a device is read once, when the run ends.
    """

    def __init__(self, model: nn.Module) -> None:
        named = {name: weight for name, weight in model.named_parameters() if weight.device.type != "meta"}  # offloaded ones are
        lora = [name for name in named if ".lora_" in name]
        others = [
            name for name, weight in named.items() if ".lora_" not in name and weight.dim() > 1 and weight.is_floating_point()
        ]
        self.weights = [named[name] for name in [*lora, *random.Random(0).sample(others, min(len(others), _SEEN_WEIGHTS))]]
        self.reads_at_keys = bool(lora) or all(weight.device.type == "cpu" for weight in self.weights)
        self.places: list[int] = []
        self.entries: list[Tensor] = []
        self.kept: Tensor | None = None
        self.written: list[Tensor] = []
        self.spans: list[tuple[Tensor, ValueError]] = []

    def between_keys(self) -> None:
        """At a step that uses features of the last key step."""
        if self.kept is not None:
            now = self._now()
            self.written.append((now != self.kept.to(now.device)).any())  # offloading may have moved the model

    def at_key(self, key_step: int, step: int) -> None:
        """At a key step. Raises ValueError if the weights were others at a step since a key step."""
        if not self.weights:
            return
        self._end_span(key_step, step)
        self.kept = self._now().clone()
        if self.reads_at_keys:
            read_checks(self.spans)
            self.spans = []

    def at_end(self, key_step: int, step: int) -> list[tuple[Tensor, ValueError]]:
        """After the last step: what is not read yet, for `read_checks`."""
        self._end_span(key_step, step)
        return self.spans

    def _end_span(self, key_step: int, step: int) -> None:
        if self.written:
            self.spans.append((torch.stack(self.written).any(), _written_over(key_step, step)))
            self.written = []

    def _now(self) -> Tensor:
        places = [weight.data_ptr() for weight in self.weights]
        if places != self.places:  # also after `weight.data = other`
            self.places = places
            self.entries = [weight.detach().flatten()[:_SEEN_PER_TENSOR] for weight in self.weights]
        kinds = {(entries.dtype, entries.device) for entries in self.entries}
        same = self.entries if len(kinds) == 1 else [entries.to(self.entries[0].device, torch.float32) for entries in self.entries]
        return torch.cat(same)


def _written_over(key_step: int, step: int) -> ValueError:
    return ValueError(
        f"weights were written over (LoRA hot-swapped or fused, averaged weights) between key step {key_step} and step {step}. Steps used "
        "features of other weights; make the step after the change a key step"
    )


class Steered:
    """What acts on a model beside its weights in one run: adapters, attention processors, scales; to be compared from step to step.

    >>> steered = Steered(pipe.unet)  # doctest: +SKIP
    >>> steered.now() == steered.now()  # doctest: +SKIP
    True
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.scales_at = adapter_scales(model)
        self.attending = [module for module, _ in processors(model)]
        self.weights = [weight for weight in model.parameters() if not weight.is_inference()]
        places = [
            (table, name)
            for module in model.modules()
            for table in part_tables(module)
            for name, part in table.items()
            if not getattr(part, "is_meta", False)  # offloading brings another object at each call
        ]
        self.tables, self.names = [table for table, _ in places], [name for _, name in places]
        self.values = WeightValues(model)

    def now(self) -> list:
        adapters = [str(name) for name in getattr(self.model, "peft_config", None) or ()]
        attention = [id(processor_of(module)) for module in self.attending]
        versions = sum_of_write_counts(self.weights)
        # A layer or a weight may be another object. At each step there are a thousand: no loop in Python.
        parts = hash(tuple(map(id, map(dict.get, self.tables, self.names))))
        return [adapters, attention, versions, parts, *(_rounded(getattr(owner, name, None)) for owner, name in self.scales_at)]
