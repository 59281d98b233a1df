"""Denoisers at full size on the meta device: their shapes and operations without weights or memory.

- `FULL_SIZE`: the architectures, by name
- `full_size(name)`: one of them, with the arguments of a call
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import ControlNetModel, UNet2DConditionModel, UNet3DConditionModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from .flops import FlopCount, count_flops

TOKENS = 77
_STABLE_DIFFUSION = {"sample_size": 64, "cross_attention_dim": 768}
_SDXL = {
    "sample_size": 128, "block_out_channels": (320, 640, 1280), "attention_head_dim": (5, 10, 20), "cross_attention_dim": 2048,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"), "use_linear_projection": True,
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "transformer_layers_per_block": (1, 2, 10),
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip


@dataclass(frozen=True)
class FullSize:
    """A denoiser on the meta device, and the arguments of a call for one picture or clip with guidance.

    `picture`: what the call is for, in words. `controlnet`: evaluated with the encoder at key steps, or None.
    """

    name: str
    picture: str
    model: nn.Module
    arguments: dict[str, Any]
    controlnet: nn.Module | None = None

    @property
    def parameters(self) -> int:
        """How many weights the denoiser has, with its ControlNet."""
        return sum(p.numel() for model in (self.model, self.controlnet) if model is not None for p in model.parameters())

    def count(self) -> FlopCount:
        """The operations of one call; those of a ControlNet belong to the encoder, with which it is held."""
        found = count_flops(self.model, self.arguments)
        if self.controlnet is None:
            return found
        rows, _, height, width = self.arguments["sample"].shape
        hint = torch.empty(rows, 3, 8 * height, 8 * width, device="meta")
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.controlnet(**self.arguments, controlnet_cond=hint)
        return replace(found, encoder=found.encoder + counter.get_total_flops())


def full_size(name: str) -> FullSize:
    """The architecture of a published system at its usual size, without weights: every tensor is on the meta device.

    >>> full_size("stable-diffusion-1.5").parameters
    859520964

    `name`: one of `FULL_SIZE`. Raises ValueError for another.
    """
    if name not in FULL_SIZE:
        raise ValueError(f"full-size architecture {name!r} asked; there are: {', '.join(FULL_SIZE)}")
    with torch.device("meta"):
        return FULL_SIZE[name]()


def _call(sample: tuple[int, ...], width: int) -> dict[str, Any]:
    text = torch.empty(sample[0], TOKENS, width)
    return {"sample": torch.empty(sample), "timestep": torch.empty((), dtype=torch.long), "encoder_hidden_states": text}


def _stable_diffusion() -> FullSize:
    arguments = _call((2, 4, 64, 64), 768)
    return FullSize("stable-diffusion-1.5", "512 x 512 pixels", UNet2DConditionModel(**_STABLE_DIFFUSION), arguments)


def _sdxl() -> FullSize:
    added: dict[str, Tensor] = {"text_embeds": torch.empty(2, 1280), "time_ids": torch.empty(2, 6)}
    arguments = _call((2, 4, 128, 128), 2048) | {"added_cond_kwargs": added}
    return FullSize("sdxl", "1024 x 1024 pixels", UNet2DConditionModel(**_SDXL), arguments)


def _controlnet() -> FullSize:
    controlnet = ControlNetModel(cross_attention_dim=768)
    return replace(_stable_diffusion(), name="stable-diffusion-1.5 + ControlNet", controlnet=controlnet)


def _video() -> FullSize:
    arguments = _call((2, 4, 16, 32, 32), 1024)
    return FullSize("text-to-video (UNet3D)", "16 frames of 256 x 256 pixels", UNet3DConditionModel(), arguments)


FULL_SIZE: dict[str, Callable[[], FullSize]] = {
    "stable-diffusion-1.5": _stable_diffusion,
    "sdxl": _sdxl,
    "controlnet": _controlnet,
    "text-to-video": _video,
}
