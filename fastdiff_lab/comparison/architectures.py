"""Denoisers at full size on the meta device, from public configs: shapes and operations without weights.

Those of the notebooks; `studies/architectures.py` has the others.

- `FULL_SIZE`: the architectures, by name
- `full_size(name)`: one of them
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import (
    ControlNetModel,
    UNet2DConditionModel,
    UNet3DConditionModel,
)
from torch import Tensor, nn

from ..hooks.flops import FlopCount, count_flops, total_flops

CROSS_3 = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",), "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (320, 640, 1280, 1280), "sample_size": 64,
}  # fmt: skip
SD_15 = CROSS_3 | {"cross_attention_dim": 768, "attention_head_dim": 8}
SDXL = {
    "sample_size": 128, "block_out_channels": (320, 640, 1280), "cross_attention_dim": 2048, "attention_head_dim": (5, 10, 20),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "transformer_layers_per_block": (1, 2, 10),
    "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip


@dataclass(frozen=True)
class FullSize:
    """A denoiser at full size and one call of it: `make` builds it, `call` gives its arguments.

    `beside` counts the operations of what is reused with the encoder (a ControlNet).
    """

    description: str
    make: Callable[[], nn.Module]
    call: Callable[[], dict[str, Any]]
    beside: Callable[[], int] = lambda: 0

    @functools.cached_property
    def model(self) -> nn.Module:
        with torch.device("meta"):
            return self.make().eval()

    @property
    def parameters(self) -> int:
        """The number of weights."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    @functools.cached_property
    def count(self) -> FlopCount:
        """Operations of one denoiser call; the encoder's include what is reused with it."""
        counted = count_flops(self.model, self.call())
        return replace(counted, encoder=counted.encoder + self.beside())


def full_size(name: str) -> FullSize:
    """The denoiser of a published system at its usual size, on the meta device.

    >>> full_size("sd-1.5").parameters
    859520964

    `name` is one of `FULL_SIZE`. Raises ValueError for another.
    """
    if name not in FULL_SIZE:
        raise ValueError(f"full-size architecture {name!r} asked; there are: {', '.join(FULL_SIZE)}")
    return FULL_SIZE[name]


def controlnet_config(config: dict[str, Any]) -> dict[str, Any]:
    """The config of a ControlNet for a UNet with this config."""
    return {name: value for name, value in config.items() if name not in ("sample_size", "up_block_types")}


def controlnet(config: dict[str, Any], text: tuple[int, int], **more: Callable[[], Any]) -> Callable[[], int]:
    """Operations of a ControlNet with the UNet's own encoder."""
    side = config["sample_size"]
    image = lambda: zeros(2, 3, 8 * side, 8 * side)
    return beside(lambda: ControlNetModel(**controlnet_config(config)), side, text, controlnet_cond=image, **more)


def beside(make: Callable[[], nn.Module], side: int, text: tuple[int, int], **more: Callable[[], Any]) -> Callable[[], int]:
    def count() -> int:
        with torch.device("meta"):
            model = make().eval()
        given = {"sample": zeros(2, 4, side, side), "timestep": 1, "encoder_hidden_states": zeros(2, *text)}
        return total_flops(model, given | {name: value() for name, value in more.items()})

    return count


def zeros(*shape: int) -> Tensor:
    return torch.empty(shape, device="meta")


def conditional(description: str, config: dict[str, Any], text: tuple[int, int], **more: Callable[[], Any]) -> FullSize:
    """Arguments of one call for one image with guidance, so two rows; `text` is tokens and width."""
    side, channels = config["sample_size"], config.get("in_channels", 4)

    def call() -> dict[str, Any]:
        given = {"sample": zeros(2, channels, side, side), "timestep": 1, "encoder_hidden_states": zeros(2, *text)}
        return given | {name: value() for name, value in more.items()}

    return FullSize(description, lambda: UNet2DConditionModel(**config), call)


def time_ids(count: int) -> Callable[[], dict[str, Tensor]]:
    return lambda: {"text_embeds": zeros(2, 1280), "time_ids": zeros(2, count)}


FRAMES = {"timestep": 1}
FULL_SIZE: dict[str, FullSize] = {
    "sd-1.5": conditional("Stable Diffusion 1.5, 512x512", SD_15, (77, 768)),
    "sd-1.5 with ControlNet": replace(
        conditional("Stable Diffusion 1.5 with a ControlNet, 512x512", SD_15, (77, 768)), beside=controlnet(SD_15, (77, 768))
    ),
    "sdxl": conditional("SDXL base, 1024x1024", SDXL, (77, 2048), added_cond_kwargs=time_ids(6)),
    "text-to-video-1.7b": FullSize(
        "ModelScope text to video (VideoFusion), 16 frames of 256x256",
        lambda: UNet3DConditionModel(cross_attention_dim=1024, attention_head_dim=64),
        lambda: FRAMES | {"sample": zeros(2, 4, 16, 32, 32), "encoder_hidden_states": zeros(2, 77, 1024)},
    ),
}  # fmt: skip
