"""What acts on a denoiser beside its weights: attention processors, and the scales of adapters.

- `processor_of(module)`, `processors(model)`: attention processors
- `row_mixing(pipe)`: what mixes the rows of a batch
- `processors_kept(model)`: a run that is broken off leaves no processors behind
- `adapter_scales(model)`: where the scales of LoRA, IP-Adapter and FreeU stand
- `Steered`: all of it in one run
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.models.attention import GatedSelfAttentionDense
from torch import nn

from .conditions import rounded
from .split import denoiser_of, inner_loop

# Attention processors that mix the rows of a batch: more steps in the batch would change what they mix.
_ROW_MIXING = ("CrossFrameAttn", "PAG")
_FREEU = ("s1", "s2", "b1", "b2")


def processor_of(module: nn.Module) -> Any:
    """A module's attention processor: a plain object, or a module where it holds weights (IP-Adapter); None if it has none."""
    return vars(module).get("processor") or module._modules.get("processor")


def processors(model: nn.Module) -> list[tuple[nn.Module, Any]]:
    """Modules with their attention processors.

    Looked up where they stand: asking hundreds of modules for an attribute that they lack takes milliseconds in each run.
    """
    found = ((module, processor_of(module)) for module in model.modules())
    return [(module, processor) for module, processor in found if processor is not None]


def row_mixing(pipe: Any) -> str | None:
    """What mixes the rows of a batch, if anything does: an attention processor, or a pipeline that will install one."""
    if inner_loop(pipe) is not None:
        return type(pipe).__name__
    names = {type(processor).__name__ for _, processor in processors(denoiser_of(pipe))}
    return next((name for name in sorted(names) if name.startswith(_ROW_MIXING)), None)


@contextmanager
def processors_kept(model: Any, after_errors_only: bool = False) -> Iterator[None]:
    """Afterwards the model has its attention processors again: Text2Video-Zero and PAG leave their own behind if they are broken off."""
    before = processors(model)
    ended = False
    try:
        yield
        ended = True
    finally:
        now = dict(processors(model))
        for module, processor in before if not (ended and after_errors_only) else ():
            # Others than those are the user's: an adapter that was loaded or unloaded meanwhile.
            if now.get(module) is not processor and type(now.get(module)).__name__.startswith(_ROW_MIXING):
                module.set_processor(processor)  # type: ignore[operator]


def adapter_scales(model: nn.Module) -> list[tuple[Any, str]]:
    """Where what steers a model beside its weights stands: scales of LoRA, IP-Adapter and FreeU, GLIGEN's switch.

    Pairs of an object and the name of its attribute, which is not there where FreeU never was.
    """
    watched = [(block, name) for block in getattr(model, "up_blocks", ()) for name in _FREEU]
    for module in model.modules():
        if isinstance(vars(module).get("scaling"), dict):
            watched += [(module, name) for name in ("scaling", "_disable_adapters", "_active_adapter") if hasattr(module, name)]
        if isinstance(module, GatedSelfAttentionDense):
            watched.append((module, "enabled"))
    return watched + [(p, "scale") for _, p in processors(model) if isinstance(getattr(p, "scale", None), list)]


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

    def now(self) -> list:
        adapters = [str(name) for name in getattr(self.model, "peft_config", None) or ()]
        attention = [id(processor_of(module)) for module in self.attending]
        return [adapters, attention, *(rounded(getattr(owner, name, None)) for owner, name in self.scales_at)]
