"""Encoder | decoder of a denoiser; the only file that knows diffusers' modules.

- `denoiser_of(pipe)`: the UNet or diffusion transformer of a pipeline
- `split_denoiser(model)`: its encoder and decoder children, by the host's own names
- `inner_layers(split)`: the layers inside the blocks
- `frames_of(model, sample)`, `guided_rows(pipe, ...)`, `by_picture(pipe, ...)`: what the rows of a sample and of a feature are
- `takes_several_pictures(pipe)`: whose the pictures in a list are
- `several_runs(pipe)`: what makes a pipeline go through the time-steps several times in one call
- `CONDITIONS`, `HELD_RESIDUALS`: what the arguments of a denoiser mean for encoder propagation
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import (
    AudioLDM2UNet2DConditionModel,
    ControlNetModel,
    ControlNetUnionModel,
    DiTTransformer2DModel,
    I2VGenXLUNet,
    MultiAdapter,
    MultiControlNetModel,
    PixArtTransformer2DModel,
    SparseControlNetModel,
    UNet1DModel,
    UNet2DConditionModel,
    UNet2DModel,
    UNet3DConditionModel,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
)
from diffusers.models.cache_utils import CacheMixin
from diffusers.models.controlnets.multicontrolnet_union import MultiControlNetUnionModel
from torch import Tensor, nn

from ..inputs.plain_values import is_whole
from .patching import is_compiled

_UNETS = (
    UNet2DConditionModel,
    UNet2DModel,
    UNet3DConditionModel,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
    I2VGenXLUNet,
    AudioLDM2UNet2DConditionModel,
    UNet1DModel,
)
# Transformers that are a row of blocks between `pos_embed` and their output layers: those that have a forward of their own, by name.
_TRANSFORMERS: dict[type, tuple[str, ...]] = {
    DiTTransformer2DModel: ("norm_out",),
    PixArtTransformer2DModel: ("norm_out", "proj_out"),
}
_CONTROLNETS = (ControlNetModel, ControlNetUnionModel, MultiControlNetModel, MultiControlNetUnionModel, SparseControlNetModel)
ACCEPTED = ", ".join(kind.__name__ for kind in (*_UNETS, *_TRANSFORMERS))
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
# The axis of the sample that counts frames: inside these models each frame is a row.
_FRAMES_AXIS = {UNet3DConditionModel: 2, UNetMotionModel: 2, UNetSpatioTemporalConditionModel: 1, I2VGenXLUNet: 2}
# The paper takes the first 18 of DiT-XL's 28 blocks for the encoder (section 3.1).
_DIT_ENCODER_SHARE = 18 / 28
# Arguments of which each row belongs to a row of the sample: repeated for every step that is decoded in one batch.
CONDITIONS = (
    "encoder_hidden_states",
    "encoder_hidden_states_1",
    "class_labels",
    "timestep_cond",
    "attention_mask",
    "cross_attention_kwargs",
    "added_cond_kwargs",
    "added_time_ids",
    "encoder_attention_mask",
    "encoder_attention_mask_1",
    "fps",
    "image_latents",
    "image_embeddings",
)
# What ControlNet and T2I-Adapter add to the encoder's features: part of what is held, so never repeated.
HELD_RESIDUALS = (
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "down_intrablock_additional_residuals",
)
# Entries of dictionaries that hold one entry for all rows.
SHARED_BY_ROWS = ("ip_adapter_masks",)


@dataclass(frozen=True)
class Split:
    """The children of a denoiser that encoder propagation deals with, by the names that the host gives them.

    `encoder`: run at key steps only, in the order of the host's calls: `conv_in`, `down_blocks.*`, `mid_block`.
    `decoder`: run at every step: `up_blocks.*` (which get the encoder's features) and the output layers.
    `entries`: the names of those of `decoder` that get the encoder's features.
    `passing`: the names of those of `encoder` whose output has the shape of their input, and goes to the next one only: it need not be held.
    """

    encoder: dict[str, nn.Module]
    decoder: dict[str, nn.Module]
    entries: tuple[str, ...]
    passing: frozenset[str] = frozenset()

    @property
    def blocks(self) -> dict[str, nn.Module]:
        """What is recorded by default: all of the encoder, and the decoder without its output layers."""
        return self.encoder | {name: child for name, child in self.decoder.items() if "blocks." in name}

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


def denoiser_of(pipe: Any) -> nn.Module:
    """The denoiser of a pipeline.

    Raises TypeError if the pipeline has none.
    """
    for name in ("unet", "transformer"):
        model = getattr(pipe, name, None)
        if isinstance(model, nn.Module):
            return model
    raise TypeError(
        f"{type(pipe).__name__} has no 'unet' and no 'transformer' ({_parts_of(pipe)}); accepted: diffusers pipelines with one of {ACCEPTED} "
        f"under one of these names. {_PAGE}"
    )


def _parts_of(pipe: Any) -> str:
    """What a pipeline has instead: denoisers under other names, or else its components."""
    components = getattr(pipe, "components", {})
    others = [f"{name!r}, a {type(part).__name__}" for name, part in sorted(components.items()) if _is_unet(part)]
    if others:
        return f"its UNets have other names: {'; '.join(others)}; which of several a schedule is for would be open"
    return f"its components: {', '.join(sorted(components)) or 'none'}"


def _is_unet(part: Any) -> bool:
    return isinstance(part, nn.Module) and (isinstance(part, _UNETS) or type(part).__name__ in _NOT_SPLIT)


def _cannot(model: nn.Module) -> str:
    """Why a denoiser cannot be split, as far as it is known, and where those go on who have it."""
    if isinstance(model, CacheMixin):
        caches = f"caches of its own ({_CACHES}): pipe.transformer.enable_cache(FirstBlockCacheConfig())"
        return f"accepted: {ACCEPTED}. For this one diffusers has {caches}"
    why = _NOT_SPLIT.get(type(model).__name__)
    return f"{f'{why}; ' if why else ''}accepted: {ACCEPTED}. {_PAGE}"


def split_denoiser(model: nn.Module, encoder_blocks: int | None = None) -> Split:
    """Splits a denoiser into encoder and decoder as in the paper, section 3.1.

    >>> list(split_denoiser(pipe.unet).encoder)  # doctest: +SKIP
    ['conv_in', 'down_blocks.0', 'down_blocks.1', 'down_blocks.2', 'down_blocks.3', 'mid_block']

    `encoder_blocks`: how many blocks of a diffusion transformer are its encoder, 1 to all but one; None for the paper's share,
    18 of 28. A UNet says itself what its encoder is.

    Raises TypeError for a class that is not supported, and for a model that is compiled as a whole; ValueError for
    `encoder_blocks` out of range or with a UNet.
    """
    if isinstance(model, torch._dynamo.OptimizedModule) or is_compiled(model):
        raise TypeError(
            f"{type(model).__name__} is compiled as a whole, so its encoder cannot be left out at a step; compile its blocks "
            "instead, before the block: pipe.unet.compile_repeated_blocks()"
        )
    if isinstance(model, tuple(_TRANSFORMERS)):
        return _split_transformer(model, encoder_blocks)
    if encoder_blocks is not None:
        raise ValueError(
            f"encoder_blocks={encoder_blocks!r} asked of a {type(model).__name__}; accepted: None, for a transformer only"
        )
    if isinstance(model, _UNETS):
        return _split_unet(model)
    raise TypeError(f"cannot split a {type(model).__name__}; {_cannot(model)}")


def _split_unet(model: Any) -> Split:
    inputs = {name: getattr(model, name, None) for name in ("conv_in", "transformer_in")}
    first = {name: layer for name, layer in inputs.items() if layer is not None}
    encoder = first | _children("down_blocks", model.down_blocks)
    if model.mid_block is not None:
        encoder["mid_block"] = model.mid_block
    entries = _children("up_blocks", model.up_blocks)
    outputs = {name: getattr(model, name, None) for name in ("conv_norm_out", "conv_act", "conv_out", "out_block")}
    decoder = entries | {name: layer for name, layer in outputs.items() if layer is not None}
    return Split(encoder, decoder, tuple(entries))


def _split_transformer(model: Any, encoder_blocks: int | None) -> Split:
    blocks = _children("transformer_blocks", model.transformer_blocks)
    count = max(1, round(len(blocks) * _DIT_ENCODER_SHARE)) if encoder_blocks is None else encoder_blocks
    if not is_whole(count) or not 1 <= count < len(blocks):
        raise ValueError(
            f"encoder_blocks={encoder_blocks!r} asked of a transformer with {len(blocks)} blocks; accepted: 1 to {len(blocks) - 1}"
        )
    names = list(blocks)
    encoder = {"pos_embed": model.pos_embed} | {name: blocks[name] for name in names[:count]}
    outputs = next(outputs for kind, outputs in _TRANSFORMERS.items() if isinstance(model, kind))
    decoder = {name: blocks[name] for name in names[count:]} | {name: getattr(model, name) for name in outputs}
    passing = frozenset(names[: count - 1])
    return Split(encoder, decoder, (names[count],), passing)


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


def frames_of(model: nn.Module, sample: Tensor) -> int:
    """How many rows of the features belong to one row of the sample: its frames in video models, else 1."""
    axis = next((axis for kind, axis in _FRAMES_AXIS.items() if isinstance(model, kind)), None)
    return 1 if axis is None else sample.shape[axis]


def _children(name: str, blocks: nn.ModuleList) -> dict[str, nn.Module]:
    return {f"{name}.{index}": block for index, block in enumerate(blocks)}


def controlnet_of(pipe: Any) -> nn.Module | None:
    """The ControlNet of a pipeline, if it has one: it is evaluated with the encoder, at key steps only."""
    model = getattr(pipe, "controlnet", None)
    return model if isinstance(getattr(model, "_orig_mod", model), _CONTROLNETS) else None  # torch.compile wraps it


def takes_several_pictures(pipe: Any) -> bool:
    """Does a list of pictures belong to one call: a picture for each of several ControlNets, control modes or T2I adapters?"""
    controlnet, adapter = controlnet_of(pipe), getattr(pipe, "adapter", None)
    several = (ControlNetUnionModel, MultiControlNetModel, MultiControlNetUnionModel)
    return isinstance(getattr(controlnet, "_orig_mod", controlnet), several) or isinstance(adapter, MultiAdapter)


def inner_loop(pipe: Any) -> str | None:
    """The method that Text2Video-Zero calls for each of its loops, with the time-steps of the loop; other pipelines have none."""
    return "backward_loop" if callable(getattr(pipe, "backward_loop", None)) else None


def several_runs(pipe: Any) -> str | None:
    """What makes a pipeline go through the time-steps several times in one call: Text2Video-Zero's loops, FreeInit."""
    return inner_loop(pipe) or ("free_init" if (getattr(pipe, "_free_init_num_iters", None) or 1) > 1 else None)


def is_first_stage(scheduler: Any) -> bool:
    """False at the second call of a step of a two-stage scheduler (Heun, KDPM2), which works from its stored sample."""
    return bool(getattr(scheduler, "state_in_first_order", True))


def guided_rows(pipe: Any, arguments: Mapping[str, Any], half: str = "conditional") -> slice:
    """The rows of the sample that belong to the prompt, or those that belong to the negative one, for a call of the denoiser.

    `half`: "conditional", "unconditional" or "all"; without guidance all rows belong to the prompt.

    Under guidance Stable Diffusion puts them into the second half, DiTPipeline into the first (the labels of the other are the
    null class). Pipelines that do not tell whether they guide (DeepFloyd-IF, LDM, text-to-video) give the same sample in both halves.
    InstructPix2Pix and perturbed-attention guidance have a third block of rows.
    """
    model = denoiser_of(pipe)
    rows = len(arguments[sample_argument(model)])
    blocks = _blocks_of_rows(pipe, model, arguments[sample_argument(model)])
    size = rows // len(blocks)
    is_whole = half == "all" or rows % len(blocks) != 0
    if is_whole or not ("perturbed" in blocks or _is_guided(pipe, model, arguments, slice(0, size), slice(size, 2 * size))):
        return slice(0, rows)
    place = blocks.index(half if half in blocks else "conditional")
    return slice(place * size, (place + 1) * size)


def _blocks_of_rows(pipe: Any, model: nn.Module, sample: Tensor) -> tuple[str, ...]:
    """What the blocks of rows are when a pipeline guides."""
    if isinstance(model, DiTTransformer2DModel):
        return ("conditional", "unconditional")
    if "InstructPix2Pix" in type(pipe).__name__:
        return ("conditional", "of the picture", "unconditional")
    if getattr(pipe, "do_perturbed_attention_guidance", False):
        guides = getattr(pipe, "do_classifier_free_guidance", None)
        if guides is None:  # PixArt-Sigma does not tell; the same sample comes once for each block
            third = len(sample) // 3
            guides = len(sample) == 3 * third and torch.equal(sample[:third], sample[third : 2 * third])
        return ("unconditional",) * bool(guides) + ("conditional", "perturbed")
    return ("unconditional", "conditional")


def _is_guided(pipe: Any, model: nn.Module, arguments: Mapping[str, Any], first: slice, second: slice) -> bool:
    if isinstance(model, DiTTransformer2DModel):
        null = arguments["class_labels"] == model.config.num_embeds_ada_norm
        return bool(null[second].all()) and not bool(null[first].any())
    told = getattr(pipe, "do_classifier_free_guidance", None)
    if told is not None:
        return bool(told)
    sample = arguments[sample_argument(model)]
    labels = arguments.get("class_labels")  # AudioLDM's embedded text
    has_text = arguments.get("encoder_hidden_states") is not None or (labels is not None and labels.is_floating_point())
    return has_text and torch.equal(sample[first], sample[second])


def by_picture(pipe: Any, latents: Tensor, pictures: int) -> Tensor:
    """Latents as the scheduler steps them, as one row of numbers for each picture (or video).

    Under guidance DiTPipeline steps both halves, which are equal; text-to-video steps each frame of a video as a row.
    """
    rows = latents[:pictures] if isinstance(denoiser_of(pipe), DiTTransformer2DModel) else latents
    return rows.reshape(pictures, -1)


def sample_argument(model: nn.Module) -> str:
    """The name of the argument of the denoiser's forward that carries the sample."""
    return "hidden_states" if isinstance(model, tuple(_TRANSFORMERS)) else "sample"
