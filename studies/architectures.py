"""The other full-size denoisers that docs/systems.md counts, from public configs, and how many weights were published.

- `ALL`: every architecture, by name
- `PUBLISHED`: their published numbers of weights, with the source
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from diffusers import (
    ControlNetUnionModel,
    DiTTransformer2DModel,
    MotionAdapter,
    UNet2DConditionModel,
    UNet2DModel,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
)
from torch import Tensor, nn

from fastdiff_lab.comparison.architectures import (
    CROSS_3,
    FRAMES,
    FULL_SIZE,
    SD_15,
    SDXL,
    FullSize,
    beside,
    conditional,
    controlnet,
    time_ids,
    zeros,
)

SD_21 = CROSS_3 | {
    "cross_attention_dim": 1024,
    "attention_head_dim": (5, 10, 20, 20),
    "use_linear_projection": True,
    "sample_size": 96,
}
REFINER = SDXL | {
    "block_out_channels": (384, 768, 1536, 1536), "cross_attention_dim": 1280, "attention_head_dim": (6, 12, 24, 24),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), "transformer_layers_per_block": 4,
    "projection_class_embeddings_input_dim": 2560,
}  # fmt: skip
UPSCALER = {
    "sample_size": 128, "in_channels": 7, "block_out_channels": (256, 512, 512, 1024), "cross_attention_dim": 1024,
    "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 3, "up_block_types": ("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",),
    "attention_head_dim": 8, "num_class_embeds": 1000, "only_cross_attention": (True, True, True, False), "use_linear_projection": True,
}  # fmt: skip
IF_1 = {
    "sample_size": 64, "in_channels": 3, "out_channels": 6, "block_out_channels": (704, 1408, 2112, 2816), "layers_per_block": 3,
    "down_block_types": ("ResnetDownsampleBlock2D",) + ("SimpleCrossAttnDownBlock2D",) * 3, "cross_attention_dim": 2816,
    "up_block_types": ("SimpleCrossAttnUpBlock2D",) * 3 + ("ResnetUpsampleBlock2D",), "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "attention_head_dim": 64, "encoder_hid_dim": 4096, "encoder_hid_dim_type": "text_proj", "addition_embed_type": "text",
    "addition_embed_type_num_heads": 64, "cross_attention_norm": "group_norm", "resnet_time_scale_shift": "scale_shift",
    "act_fn": "gelu", "time_embedding_act_fn": "gelu",
}  # fmt: skip
LDM_TEXT = CROSS_3 | {"cross_attention_dim": 1280, "attention_head_dim": 8, "sample_size": 32}
LDM_IMAGENET = {
    "sample_size": 64, "in_channels": 3, "out_channels": 3, "block_out_channels": (192, 384, 576, 960), "cross_attention_dim": 512,
    "attention_head_dim": 1, "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 3,
    "up_block_types": ("CrossAttnUpBlock2D",) * 3 + ("UpBlock2D",),
}  # fmt: skip
LDM_FACES = {
    "sample_size": 64, "in_channels": 3, "out_channels": 3, "block_out_channels": (224, 448, 672, 896), "attention_head_dim": 32,
    "down_block_types": ("DownBlock2D",) + ("AttnDownBlock2D",) * 3, "up_block_types": ("AttnUpBlock2D",) * 3 + ("UpBlock2D",),
}  # fmt: skip
CIFAR = {
    "sample_size": 32, "block_out_channels": (128, 256, 256, 256), "attention_head_dim": None, "norm_eps": 1e-6, "downsample_padding": 0,
    "flip_sin_to_cos": False, "freq_shift": 1, "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
UNION_KINDS = 6
UNION = {name: value for name, value in SDXL.items() if name not in ("sample_size", "up_block_types")} | {
    "conditioning_embedding_out_channels": (16, 32, 96, 256), "num_control_type": UNION_KINDS,
}  # fmt: skip
DIT = {
    "num_attention_heads": 16,
    "attention_head_dim": 72,
    "num_layers": 28,
    "in_channels": 4,
    "out_channels": 8,
    "sample_size": 32,
    "patch_size": 2,
}


def _controlnet_union(images: int) -> Callable[[], int]:
    """Operations of xinsir's ControlNetUnion for SDXL with so many kinds of control at once."""
    side = 128
    given = {
        "controlnet_cond": lambda: [zeros(2, 3, 8 * side, 8 * side)] * images, "control_type": lambda: zeros(2, UNION_KINDS),
        "control_type_idx": lambda: list(range(images)), "added_cond_kwargs": time_ids(6),
    }  # fmt: skip
    return beside(lambda: ControlNetUnionModel(**UNION), side, (77, 2048), **given)


def _whole_numbers() -> Tensor:
    return torch.zeros(2, dtype=torch.long, device="meta")


def _plain(description: str, config: dict[str, Any]) -> FullSize:
    side = config["sample_size"]
    call = lambda: {"sample": zeros(1, config.get("in_channels", 3), side, side), "timestep": 1}
    return FullSize(description, lambda: UNet2DModel(**config), call)


def _moving() -> nn.Module:
    return UNetMotionModel.from_unet2d(UNet2DConditionModel(**SD_15), MotionAdapter())


ALL: dict[str, FullSize] = FULL_SIZE | {
    "sd-1.5-inpainting": conditional("Stable Diffusion 1.5 inpainting, 512x512", SD_15 | {"in_channels": 9}, (77, 768)),
    "sd-2.1": conditional("Stable Diffusion 2.1, 768x768", SD_21, (77, 1024)),
    "sdxl with ControlNet": replace(
        conditional("SDXL base with a ControlNet, 1024x1024", SDXL, (77, 2048), added_cond_kwargs=time_ids(6)),
        beside=controlnet(SDXL, (77, 2048), added_cond_kwargs=time_ids(6)),
    ),
    "sdxl with ControlNetUnion": replace(
        conditional("SDXL base with ControlNetUnion, two kinds of control, 1024x1024", SDXL, (77, 2048), added_cond_kwargs=time_ids(6)),
        beside=_controlnet_union(2),
    ),
    "sdxl-refiner": conditional("SDXL refiner, 1024x1024", REFINER, (77, 1280), added_cond_kwargs=time_ids(5)),
    "if-1": conditional("IF-I-XL, 64x64", IF_1, (77, 4096)),
    "x4-upscaler": conditional("Stable Diffusion x4 upscaler, 128x128 to 512x512", UPSCALER, (77, 1024), class_labels=_whole_numbers),
    "ldm-text2im": conditional("ldm-text2im-large-256, 256x256", LDM_TEXT, (77, 1280)),
    "ldm-cin256": conditional("Latent diffusion on ImageNet (cin256), 256x256", LDM_IMAGENET, (1, 512)),
    "ldm-celebahq": _plain("ldm-celebahq-256, 256x256", LDM_FACES),
    "ddpm-cifar10": _plain("ddpm-cifar10-32, 32x32", CIFAR),
    "dit-xl-2-256": FullSize(
        "DiT-XL/2, 256x256", lambda: DiTTransformer2DModel(**DIT),
        lambda: {
            "hidden_states": zeros(2, 4, 32, 32), "timestep": _whole_numbers(),
            "class_labels": _whole_numbers(),
        },
    ),
    "svd": FullSize(
        "Stable Video Diffusion, 14 frames of 1024x576", lambda: UNetSpatioTemporalConditionModel(num_attention_heads=(5, 10, 20, 20)),
        lambda: FRAMES | {
            "sample": zeros(2, 14, 8, 72, 128), "encoder_hidden_states": zeros(2, 1, 1024), "added_time_ids": zeros(2, 3),
        },
    ),
    "animatediff": FullSize(
        "AnimateDiff on Stable Diffusion 1.5, 16 frames of 512x512", _moving,
        lambda: FRAMES | {"sample": zeros(2, 4, 16, 64, 64), "encoder_hidden_states": zeros(32, 77, 768)},
    ),
}  # fmt: skip

_BY_OTHERS = "as public repositories state it"
# Nobody states a number for inpainting, the upscaler, text to video, and AnimateDiff as a whole.
PUBLISHED: dict[str, tuple[str, str]] = {
    "sd-1.5": ("859,520,964", "diffusers' documentation of num_parameters"),
    "sd-2.1": ("865,910,724", _BY_OTHERS),
    "sdxl": ("2,567,463,684", _BY_OTHERS),
    "sdxl-refiner": ("2,259,526,660", _BY_OTHERS),
    "if-1": ("4.3 B", "DeepFloyd's model card"),
    "ldm-text2im": ("872.30 M", "CompVis' loader prints it"),
    "ldm-cin256": ("400 M", "LDM paper, LDM-4-G"),
    "ddpm-cifar10": ("35.7 M", "DDPM paper, appendix B"),
    "dit-xl-2-256": ("675,129,632", _BY_OTHERS),
    "svd": ("1,524,623,082", _BY_OTHERS),
}
