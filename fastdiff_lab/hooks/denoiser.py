"""Encoder | decoder of a denoiser, and what pipelines hold beside it.

- `denoiser_of(pipe)`: the UNet or diffusion transformer of a pipeline
- `split_denoiser(model)`: its encoder and decoder children, by the host's own names
- `inner_layers(split)`: the layers inside the blocks
- `controlnet_of(pipe)`, `takes_several_images(pipe)`: its ControlNet, and whose the images in a list are
- `several_runs(pipe)`: what makes a pipeline go through the time-steps several times in one call
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from diffusers import (
    ControlNetModel,
    ControlNetUnionModel,
    DiffusionPipeline,
    MultiAdapter,
    MultiControlNetModel,
    SparseControlNetModel,
)
from torch import nn

from ..inputs.plain_values import whole_number
from .denoiser_classes import DenoiserClass, accepted, class_of
from .patching import is_compiled
from .private_api import CacheMixin, MultiControlNetUnionModel, free_init_of, is_compiled_whole, unwrapped

_CONTROLNETS = (ControlNetModel, ControlNetUnionModel, MultiControlNetModel, MultiControlNetUnionModel, SparseControlNetModel)
# Denoisers that users expect here, by name, and why they are none that can be split.
_NOT_SPLIT = {
    "Kandinsky3UNet": "its forward joins skips and hidden states outside of its up blocks, so no up block is given the encoder's features",
    "UNetControlNetXSModel": "a second encoder runs inside its blocks, and its forward adds the two outside of them",
    "UNetFlatConditionModel": "it works beside a second UNet, whose attention blocks Versatile Diffusion puts its own into",
    "StableCascadeUNet": "its blocks are lists, whose layers its forward calls one by one",
    "UVit2DModel": "it predicts tokens in a few steps, not noise along a diffusion",
}
_CACHES = "PyramidAttentionBroadcast, FasterCache and FirstBlockCache"
_PAGE = "docs/systems.md lists the pipelines that work, and why others cannot"
# The paper takes the first 18 of DiT-XL's 28 blocks for the encoder (section 3.1).
_DIT_ENCODER_SHARE = 18 / 28


@dataclass(frozen=True)
class Split:
    """The children of a denoiser that encoder propagation deals with, by the names that the host gives them.

    `encoder`: run at key steps only, in the order of the host's calls: `conv_in`, `down_blocks.*`, `mid_block`.
    `decoder`: run at every step: `up_blocks.*` (which get the encoder's features) and the output layers.
    `entries`: the names of those of `decoder` that get the encoder's features.
    `passing`: the names of those of `encoder` whose output has the shape of their input. It goes to the next one only, and need not be kept.
    """

    encoder: dict[str, nn.Module]
    decoder: dict[str, nn.Module]
    entries: tuple[str, ...]
    passing: frozenset[str] = frozenset()

    @property
    def blocks(self) -> dict[str, nn.Module]:
        """What is recorded by default: all of the encoder, and the decoder without its output layers."""
        inner = [name for name in self.decoder if name in self.entries or name.rpartition(".")[2].isdigit()]
        return self.encoder | {name: self.decoder[name] for name in inner}

    def of(self, model: nn.Module) -> Split:
        """The same split of a copy of the denoiser."""
        encoder, decoder = ({name: model.get_submodule(name) for name in half} for half in (self.encoder, self.decoder))
        return replace(self, encoder=encoder, decoder=decoder)

    def part(self, layer: str) -> str:
        """ "encoder" or "decoder": where a layer, named as in `named_modules()`, belongs; "" for the embeddings."""
        for part, children in (("encoder", self.encoder), ("decoder", self.decoder)):
            if any(layer == name or layer.startswith(f"{name}.") for name in children):
                return part
        return ""


def denoiser_of(pipe: DiffusionPipeline) -> nn.Module:
    """The denoiser of a pipeline.

    Raises TypeError if the pipeline has none.
    """
    for name in ("unet", "transformer"):
        model = getattr(pipe, name, None)
        if isinstance(model, nn.Module):
            return model
    raise TypeError(
        f"{type(pipe).__name__} has no 'unet' and no 'transformer' ({_parts_of(pipe)}); accepted: diffusers pipelines with one of "
        f"{accepted()} under one of these names. {_PAGE}"
    )


def _parts_of(pipe: DiffusionPipeline) -> str:
    """What a pipeline has instead: denoisers under other names, or else its components."""
    components = getattr(pipe, "components", {})
    others = [f"{name!r}, a {type(part).__name__}" for name, part in sorted(components.items()) if _is_unet(part)]
    if others:
        return f"its UNets have other names: {'; '.join(others)}; which of several a schedule is for would be open"
    return f"its components: {', '.join(sorted(components)) or 'none'}"


def _is_unet(part: Any) -> bool:
    return isinstance(part, nn.Module) and (_is_known_unet(part) or type(part).__name__ in _NOT_SPLIT)


def _is_known_unet(part: nn.Module) -> bool:
    known = class_of(part)
    return known is not None and known.blocks is None


def _cannot(model: nn.Module) -> str:
    """Why a denoiser cannot be split, as far as it is known, and where those go on who have it."""
    if isinstance(model, CacheMixin):
        caches = f"caches of its own ({_CACHES}): pipe.transformer.enable_cache(FirstBlockCacheConfig())"
        return f"accepted: {accepted()}. For this one diffusers has {caches}"
    why = _NOT_SPLIT.get(type(model).__name__)
    return f"{f'{why}; ' if why else ''}accepted: {accepted()}. {_PAGE}"


def split_denoiser(model: nn.Module, encoder_blocks: int | None = None) -> Split:
    """Splits a denoiser into encoder and decoder as in the paper, section 3.1.

    >>> list(split_denoiser(pipe.unet).encoder)  # doctest: +SKIP
    ['conv_in', 'down_blocks.0', 'down_blocks.1', 'down_blocks.2', 'down_blocks.3', 'mid_block']

    `encoder_blocks`: how many blocks of a diffusion transformer are its encoder, 1 to all but one; None for the paper's share,
    18 of 28. A UNet says itself what its encoder is.

    Raises TypeError for a class that is not supported, and for a model that is compiled as a whole; ValueError for
    `encoder_blocks` out of range or with a UNet.
    """
    if is_compiled_whole(model) or is_compiled(model):
        raise TypeError(
            f"{type(model).__name__} is compiled as a whole, so its encoder cannot be left out at a step; compile its blocks "
            "instead, before the block: pipe.unet.compile_repeated_blocks()"
        )
    known = class_of(model)
    if known is None:
        raise TypeError(f"cannot split a {type(model).__name__}; {_cannot(model)}")
    if known.blocks is not None:
        return _split_blocks(model, known, known.blocks, encoder_blocks)
    if encoder_blocks is not None:
        raise ValueError(
            f"encoder_blocks={encoder_blocks!r} asked of a {type(model).__name__}; accepted: None, for a transformer only"
        )
    return _split(model, known)


def _split(model: nn.Module, known: DenoiserClass) -> Split:
    encoder, decoder = _children(model, known.encoder), _children(model, known.decoder)
    return Split(encoder, decoder, tuple(_children(model, known.entries)), frozenset(_children(model, known.passing)))


def _split_blocks(model: nn.Module, known: DenoiserClass, list_of_blocks: str, encoder_blocks: int | None) -> Split:
    """The first of a transformer's blocks are its encoder, each of which passes on to the next."""
    blocks = _children(model, [list_of_blocks])
    count = max(1, round(len(blocks) * _DIT_ENCODER_SHARE)) if encoder_blocks is None else encoder_blocks
    count = whole_number("encoder_blocks", count, 1, len(blocks) - 1, also=f" for a transformer with {len(blocks)} blocks")
    names = list(blocks)
    encoder = _children(model, known.encoder) | {name: blocks[name] for name in names[:count]}
    decoder = {name: blocks[name] for name in names[count:]} | _children(model, known.decoder)
    return Split(encoder, decoder, (names[count],), frozenset(names[: count - 1]))


def _children(model: nn.Module, names: Sequence[str]) -> dict[str, nn.Module]:
    """The children of these names, as `register_denoiser` reads them."""
    found: dict[str, nn.Module] = {}
    for name in names:
        plain = name.removesuffix("?")
        child = _child(model, plain)
        if isinstance(child, nn.ModuleList):
            found |= {f"{plain}.{index}": block for index, block in enumerate(child)}
        elif isinstance(child, nn.Module):
            found[plain] = child
        elif plain == name:
            raise ValueError(
                f"this {type(model).__name__} has no child {name!r}, which its class is registered with; accepted: "
                f"{', '.join(child for child, _ in model.named_children()) or 'none'}"
            )
    return found


def _child(model: Any, name: str) -> Any:
    for part in name.split("."):
        model = getattr(model, part, None)
    return model


# The modules inside a block that the paper numbers (Table 7: 44 in Stable Diffusion 1.5), in the order in which they run.
_TURNS = ("resnets", "temp_convs", "attentions", "temp_attentions", "motion_modules")
_LAST = ("downsamplers", "upsamplers", "skip_conv")


def inner_layers(split: Split) -> tuple[str, ...]:
    """The layers inside the blocks, in the order of the host's calls; 44 in Stable Diffusion 1.5 as in the paper's Table 7.

    >>> inner_layers(split_denoiser(pipe.unet))[:3]  # doctest: +SKIP
    ('down_blocks.0.resnets.0', 'down_blocks.0.attentions.0', 'down_blocks.0.resnets.1')
    """
    return tuple(f"{block}.{layer}" for block, child in split.blocks.items() for layer in _layers_of(child))


def _layers_of(block: nn.Module) -> list[str]:
    lists = {name: child for name, child in block.named_children() if isinstance(child, nn.ModuleList)}
    turns = [name for name in _TURNS if name in lists]
    most = max((len(lists[name]) for name in turns), default=0)
    # A mid block runs one ResNet more than attentions, and begins with it; each turn then is attention, ResNet.
    inside = [f"{name}.{i}" for i in range(most) for name in turns if i < len(lists[name])]
    return inside + [f"{name}.{i}" for name in _LAST if name in lists for i in range(len(lists[name]))]


def controlnet_of(pipe: DiffusionPipeline) -> nn.Module | None:
    """The ControlNet of a pipeline, if it has one: it is evaluated with the encoder, at key steps only."""
    model = getattr(pipe, "controlnet", None)
    return model if isinstance(unwrapped(model), _CONTROLNETS) else None


def takes_several_images(pipe: DiffusionPipeline) -> bool:
    """Does a list of images belong to one call: an image for each of several ControlNets, control modes or T2I adapters?"""
    controlnet, adapter = controlnet_of(pipe), getattr(pipe, "adapter", None)
    several = (ControlNetUnionModel, MultiControlNetModel, MultiControlNetUnionModel)
    return isinstance(unwrapped(controlnet), several) or isinstance(adapter, MultiAdapter)


def inner_loop(pipe: DiffusionPipeline) -> str | None:
    """The method that Text2Video-Zero calls for each of its loops, with the time-steps of the loop; other pipelines have none."""
    return "backward_loop" if callable(getattr(pipe, "backward_loop", None)) else None


def several_runs(pipe: DiffusionPipeline) -> str | None:
    """What makes a pipeline go through the time-steps several times in one call: Text2Video-Zero's loops, FreeInit."""
    return inner_loop(pipe) or ("free_init" if free_init_of(pipe)[0] > 1 else None)


def is_first_stage(scheduler: Any) -> bool:
    """False at the second call of a step of a two-stage scheduler (Heun, KDPM2), which works from its stored sample."""
    return bool(getattr(scheduler, "state_in_first_order", True))
