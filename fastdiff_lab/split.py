"""Encoder | decoder of a denoiser; the only file that knows diffusers' modules.

- `denoiser_of(pipe)`: the UNet of a pipeline
- `split_denoiser(model)`: its encoder and decoder children, by the host's own names
- `CONDITIONS`, `HELD_RESIDUALS`: what the arguments of a denoiser mean for encoder propagation
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import ControlNetModel, ControlNetUnionModel, MultiControlNetModel, UNet2DConditionModel
from diffusers.models.attention import GatedSelfAttentionDense
from torch import nn

from .hooks import is_compiled

# Arguments of which each row belongs to a row of the sample: repeated for every step that is decoded in one batch.
CONDITIONS = (
    "encoder_hidden_states",
    "class_labels",
    "timestep_cond",
    "attention_mask",
    "cross_attention_kwargs",
    "added_cond_kwargs",
    "encoder_attention_mask",
)
# What ControlNet and T2I-Adapter add to the encoder's features: part of what is held, so never repeated.
HELD_RESIDUALS = (
    "down_block_additional_residuals",
    "mid_block_additional_residual",
    "down_intrablock_additional_residuals",
)
# Entries of dictionaries that hold one entry for all rows.
SHARED_BY_ROWS = ("ip_adapter_masks",)
# Attention processors that mix the rows of a batch: more steps in the batch would change what they mix.
_ROW_MIXING = ("CrossFrameAttn", "PAG")


@dataclass(frozen=True)
class Split:
    """The children of a denoiser that encoder propagation deals with, by the names that the host gives them.

    `encoder`: run at key steps only, in the order of the host's calls: `conv_in`, `down_blocks.*`, `mid_block`.
    `decoder`: run at every step: `up_blocks.*` (which get the encoder's features) and the output layers.
    `entries`: the names of those of `decoder` that get the encoder's features.
    """

    encoder: dict[str, nn.Module]
    decoder: dict[str, nn.Module]
    entries: tuple[str, ...]

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
    model = getattr(pipe, "unet", None)
    if isinstance(model, nn.Module):
        return model
    parts = ", ".join(sorted(getattr(pipe, "components", {}))) or "none"
    raise TypeError(
        f"{type(pipe).__name__} has no UNet (its components: {parts}); accepted: diffusers pipelines with a UNet2DConditionModel. "
        "Pipelines with a transformer have caches of their own in diffusers (see its CacheMixin)"
    )


def split_denoiser(model: nn.Module) -> Split:
    """Splits a denoiser into encoder and decoder as in the paper, section 3.1.

    >>> list(split_denoiser(pipe.unet).encoder)  # doctest: +SKIP
    ['conv_in', 'down_blocks.0', 'down_blocks.1', 'down_blocks.2', 'down_blocks.3', 'mid_block']

    Raises TypeError for a class that is not supported, and for a model that is compiled as a whole.
    """
    if isinstance(model, torch._dynamo.OptimizedModule) or is_compiled(model):
        raise TypeError(
            f"{type(model).__name__} is compiled as a whole, so its encoder cannot be left out at a step; compile its blocks "
            "instead, before the block: pipe.unet.compile_repeated_blocks()"
        )
    if not isinstance(model, UNet2DConditionModel):
        raise TypeError(f"cannot split a {type(model).__name__}; accepted: UNet2DConditionModel")
    encoder = {"conv_in": model.conv_in, **_children("down_blocks", model.down_blocks)}
    if model.mid_block is not None:
        encoder["mid_block"] = model.mid_block
    entries = _children("up_blocks", model.up_blocks)
    outputs = {name: getattr(model, name) for name in ("conv_norm_out", "conv_act", "conv_out")}
    return Split(encoder, entries | {name: layer for name, layer in outputs.items() if layer is not None}, tuple(entries))


def _children(name: str, blocks: nn.ModuleList) -> dict[str, nn.Module]:
    return {f"{name}.{index}": block for index, block in enumerate(blocks)}


def controlnet_of(pipe: Any) -> nn.Module | None:
    """The ControlNet of a pipeline, if it has one: it is evaluated with the encoder, at key steps only."""
    model = getattr(pipe, "controlnet", None)
    return model if isinstance(model, ControlNetModel | ControlNetUnionModel | MultiControlNetModel) else None


def row_mixing_processor(model: nn.Module) -> str | None:
    """The name of an attention processor that mixes the rows of a batch, if the model has one."""
    names = {type(processor).__name__ for processor in getattr(model, "attn_processors", {}).values()}
    return next((name for name in sorted(names) if name.startswith(_ROW_MIXING)), None)


def adapter_scales(model: nn.Module) -> list[tuple[Any, str]]:
    """Where the scales of LoRA and IP-Adapter and GLIGEN's switch stand, to be watched for changes in mid-run.

    Pairs of an object and the name of its attribute.
    """
    layers = [layer for layer in model.modules() if isinstance(getattr(layer, "scaling", None), dict)]
    watched = [
        (layer, name) for layer in layers for name in ("scaling", "_disable_adapters", "_active_adapter") if hasattr(layer, name)
    ]
    watched += [(module, "enabled") for module in model.modules() if isinstance(module, GatedSelfAttentionDense)]
    processors = getattr(model, "attn_processors", {}).values()
    return watched + [(p, "scale") for p in processors if isinstance(getattr(p, "scale", None), list)]


def is_first_stage(scheduler: Any) -> bool:
    """False at the second call of a step of a two-stage scheduler (Heun, KDPM2), which works from its stored sample."""
    return bool(getattr(scheduler, "state_in_first_order", True))


def conditional_rows(pipe: Any, rows: int) -> slice:
    """The rows of the sample that belong to the prompt: under guidance Stable Diffusion puts them into the second half."""
    guided = bool(getattr(pipe, "do_classifier_free_guidance", False)) and rows % 2 == 0
    return slice(rows // 2, rows) if guided else slice(0, rows)
