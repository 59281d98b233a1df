"""Real pipelines at full size with random weights, because time does not depend on the weights.

- `FULL_PIPELINES`: how each is made and called, by name
- `full_pipeline(name, ...)`: one of them, on a device
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DiTPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    TextToVideoSDPipeline,
)
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from fastdiff_lab.pipelines import DTYPES, check_device, load_pipeline

from ..architectures import ALL
from ..training.tokens import new_tokenizer

PROMPT = "a large red star at the left on a blue background"
# Widths and depths from the public configs of the text encoders (CLIP ViT-L/14; OpenCLIP ViT-H/14 without its last layer; ViT-bigG/14).
CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
CLIP_H = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16, "hidden_act": "gelu"}
CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20, "hidden_act": "gelu"}
NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


@dataclass(frozen=True)
class FullPipeline:
    """A real pipeline at full size: `make()` builds it, `call(batch, pixels)` gives the arguments of a call without steps.

    `pixels` is the usual side of an image; `is_fixed` says that there is no other.
    """

    description: str
    make: Callable[[], Any]
    call: Callable[[int, int], dict[str, Any]]
    pixels: int
    is_fixed: bool = False


def full_pipeline(name: str, *, device: str = "cpu", dtype: str = "float32") -> Any:
    """A pipeline of `FULL_PIPELINES` with random weights, on a device.

    >>> pipe = full_pipeline("sd-1.5", device="cuda", dtype="float16")  # doctest: +SKIP

    `device` and `dtype` as in `load_pipeline`. Raises ValueError for other values.
    """
    if name not in FULL_PIPELINES:
        raise ValueError(f"pipeline {name!r} asked; there are: {', '.join(FULL_PIPELINES)}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} asked; accepted: {', '.join(DTYPES)}")
    check_device(device)
    with torch.random.fork_rng(devices=[device] if device.startswith("cuda") else []), torch.device(device):
        torch.manual_seed(0)
        pipe = FULL_PIPELINES[name].make()
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            nn.Module.to(part, device=device, dtype=DTYPES[dtype])  # the pipeline's own `to` logs a warning for each part
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _tokenizer() -> CLIPTokenizer:
    tokenizer = new_tokenizer()
    tokenizer.model_max_length = 77
    return tokenizer


def _text(kind: type, config: dict[str, Any]) -> Any:
    """A text encoder whose ending token is our tokenizer's."""
    ending = _tokenizer().eos_token_id
    return kind(CLIPTextConfig(**config, vocab_size=49408, projection_dim=config["hidden_size"], eos_token_id=ending)).eval()


def _autoencoder(**more: Any) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, block_out_channels=(128, 256, 512, 512),
        layers_per_block=2, latent_channels=4, **more,
    ).eval()  # fmt: skip


def _denoiser(name: str) -> Any:
    return ALL[name].make().eval()


def _scheduler() -> DDIMScheduler:
    return DDIMScheduler(**NOISE, clip_sample=False, set_alpha_to_one=False, steps_offset=1)


def _embedded() -> StableDiffusionPipeline:
    with torch.device("cpu"):  # weights from a file come to the CPU first
        return load_pipeline()


def _stable_diffusion() -> StableDiffusionPipeline:
    return StableDiffusionPipeline(
        vae=_autoencoder(), text_encoder=_text(CLIPTextModel, CLIP_L), tokenizer=_tokenizer(), unet=_denoiser("sd-1.5"),
        scheduler=_scheduler(), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def _controlled() -> StableDiffusionControlNetPipeline:
    plain = _stable_diffusion()
    parts = {**plain.components, "controlnet": ControlNetModel.from_unet(plain.unet).eval()}
    return StableDiffusionControlNetPipeline(**parts, requires_safety_checker=False)


def _sdxl() -> StableDiffusionXLPipeline:
    return StableDiffusionXLPipeline(
        vae=_autoencoder(sample_size=1024, scaling_factor=0.13025), text_encoder=_text(CLIPTextModel, CLIP_L),
        text_encoder_2=_text(CLIPTextModelWithProjection, CLIP_G), tokenizer=_tokenizer(), tokenizer_2=_tokenizer(),
        unet=_denoiser("sdxl"), scheduler=_scheduler(), add_watermarker=False,
    )  # fmt: skip


def _video() -> TextToVideoSDPipeline:
    return TextToVideoSDPipeline(
        vae=_autoencoder(), text_encoder=_text(CLIPTextModel, CLIP_H), tokenizer=_tokenizer(), unet=_denoiser("text-to-video-1.7b"),
        scheduler=_scheduler(),
    )  # fmt: skip


def _dit() -> DiTPipeline:
    return DiTPipeline(_denoiser("dit-xl-2-256"), _autoencoder(), DDIMScheduler(beta_schedule="linear", clip_sample=False))


def _text_call(batch_size: int, pixels: int) -> dict[str, Any]:
    return {"prompt": [PROMPT] * batch_size, "guidance_scale": 7.5, "height": pixels, "width": pixels}


def _video_call(batch_size: int, pixels: int) -> dict[str, Any]:
    return _text_call(batch_size, pixels) | {"num_frames": 16, "guidance_scale": 9.0, "output_type": "pt"}


def _controlled_call(batch_size: int, pixels: int) -> dict[str, Any]:
    return _text_call(batch_size, pixels) | {"image": torch.zeros(batch_size, 3, pixels, pixels)}


def _embedded_call(batch_size: int, pixels: int) -> dict[str, Any]:
    return {"prompt": [PROMPT] * batch_size, "guidance_scale": 5.0}


FULL_PIPELINES: dict[str, FullPipeline] = {
    "embedded": FullPipeline("The embedded pipeline, trained", _embedded, _embedded_call, 64, True),
    "sd-1.5": FullPipeline("Stable Diffusion 1.5", _stable_diffusion, _text_call, 512),
    "sd-1.5-controlnet": FullPipeline("Stable Diffusion 1.5 with a ControlNet", _controlled, _controlled_call, 512),
    "sdxl": FullPipeline("SDXL base", _sdxl, _text_call, 1024),
    "text-to-video": FullPipeline("ModelScope text to video, 16 frames", _video, _video_call, 256),
    "dit-xl-2": FullPipeline(
        "DiT-XL/2", _dit, lambda batch, pixels: {"class_labels": [0] * batch, "guidance_scale": 4.0}, 256, True
    ),
}  # fmt: skip
