"""Tiny real parts that the pipelines of the systems are built of, from configs and without the network."""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

import diffusers
import torch
from diffusers import AutoencoderKL, ControlNetModel, ControlNetUnionModel, UNet2DConditionModel
from models import NOISE, redraw_zeros
from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from fastdiff_lab.shapes.text import MAX_TOKENS
from studies.training.tokens import new_tokenizer

diffusers.logging.set_verbosity_error()  # it warns of deprecated classes and of safety checkers that are not there
Model = TypeVar("Model", bound=nn.Module)
DTYPE = torch.float64
# No two sizes are equal by chance (tests/test_systems.py): code that takes one for the other would pass every test.
WIDTH = 15  # of a text encoder's output
PIXELS = (56, 40)  # height and width of an image, whose latents are 14 by 10
SIZE = {"height": PIXELS[0], "width": PIXELS[1]}
# Of a video: for 3D UNets, and for motion modules. Two rows of five frames are ten, as the latents above are wide.
OF_FRAMES, OF_MOTION = (24, 56), (32, 56)
UNET = {
    "sample_size": 16, "in_channels": 4, "out_channels": 4, "block_out_channels": (18, 48), "layers_per_block": 1,
    "norm_num_groups": 6, "cross_attention_dim": WIDTH, "attention_head_dim": 3,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
SDXL_UNET = UNET | {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 6 * 4 + WIDTH,
    "transformer_layers_per_block": (1, 2), "use_linear_projection": True, "cross_attention_dim": 2 * WIDTH,
}  # fmt: skip
# What a ControlNet shares with the UNet that it steers.
_SHARED = (
    "block_out_channels",
    "layers_per_block",
    "norm_num_groups",
    "cross_attention_dim",
    "attention_head_dim",
    "down_block_types",
)
_SHARED_XL = (*_SHARED, "addition_embed_type", "addition_time_embed_dim", "projection_class_embeddings_input_dim",
              "transformer_layers_per_block", "use_linear_projection")  # fmt: skip


def built(make: Callable[[], Model], seed: int = 0, dtype: torch.dtype = DTYPE) -> Model:
    """A model of drawn weights, none of them all zero: a layer that adds nothing would let any law pass."""
    torch.manual_seed(seed)
    return redraw_zeros(make()).eval().requires_grad_(False).to(dtype)  # type: ignore[return-value]


def unet(config: dict[str, Any] = UNET, dtype: torch.dtype = DTYPE) -> UNet2DConditionModel:
    return built(lambda: UNet2DConditionModel(**config), dtype=dtype)


def controlnet(config: dict[str, Any] = UNET, seed: int = 3) -> ControlNetModel:
    names = _SHARED_XL if "addition_embed_type" in config else _SHARED
    options = {name: config[name] for name in names} | {"in_channels": 4, "conditioning_embedding_out_channels": (4, 8, 12)}
    return built(lambda: ControlNetModel(**options), seed)


def controlnet_union(seed: int = 3) -> ControlNetUnionModel:
    """One ControlNet for six kinds of control images, of which several may be given at once."""
    options = {name: SDXL_UNET[name] for name in _SHARED_XL} | {"in_channels": 4, "conditioning_embedding_out_channels": (4, 8, 12)}
    width = SDXL_UNET["block_out_channels"][0]
    fuser = {"num_trans_channel": width, "num_proj_channel": width, "num_trans_head": 3, "num_trans_layer": 1}
    return built(lambda: ControlNetUnionModel(**options, **fuser), seed)


def autoencoder(dtype: torch.dtype = DTYPE, channels: tuple[int, ...] = (4, 8, 12), **options: Any) -> AutoencoderKL:
    """Images of four times the latents' sides."""
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * len(channels), "up_block_types": ("UpDecoderBlock2D",) * len(channels)}
    config = {"block_out_channels": channels, "latent_channels": 4, "norm_num_groups": 4, "sample_size": 64} | kinds | options
    return built(lambda: AutoencoderKL(**config), dtype=dtype)


@functools.cache
def _tokenizer() -> CLIPTokenizer:
    return new_tokenizer()


def tokenizer() -> CLIPTokenizer:
    """Made anew from what was learned once: textual inversion adds tokens to it."""
    return copy.deepcopy(_tokenizer())


def _text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=16, projection_dim=WIDTH, num_hidden_layers=2,
        num_attention_heads=3, max_position_embeddings=MAX_TOKENS, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip


def text_encoder(tokenizer: CLIPTokenizer, kind: type = CLIPTextModel, dtype: torch.dtype = DTYPE) -> Any:
    return _louder(built(lambda: kind(_text_config(tokenizer)), 5, dtype))


def _louder(encoder: Any) -> Any:
    """Initial weights of 0.02 make all texts alike."""
    for name, parameter in encoder.named_parameters():
        if parameter.dim() > 1:
            parameter.data *= 30 if "embedding" in name else 5
    return encoder


def image_encoder(side: int = 16) -> CLIPVisionModelWithProjection:
    """`side`: of the images that it gets, in pixels; it looks at four patches."""
    config = CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=16, projection_dim=WIDTH, num_hidden_layers=2, num_attention_heads=3, image_size=side,
        patch_size=side // 2,
    )  # fmt: skip
    return _louder(built(lambda: CLIPVisionModelWithProjection(config), 6))


def text_parts(dtype: torch.dtype = DTYPE) -> dict[str, Any]:
    words = tokenizer()
    return {"tokenizer": words, "text_encoder": text_encoder(words, dtype=dtype)}


def two_text_parts() -> dict[str, Any]:
    """SDXL's: the second encoder also gives the pooled text."""
    words = tokenizer()
    second = {"tokenizer_2": tokenizer(), "text_encoder_2": text_encoder(words, CLIPTextModelWithProjection)}
    return {"tokenizer": words, "text_encoder": text_encoder(words)} | second


def scheduler(kind: str = "DDIMScheduler", **options: Any) -> Any:
    """With Stable Diffusion's noise, whatever of its settings the kind knows."""
    known = inspect.signature(getattr(diffusers, kind)).parameters
    defaults = {name: value for name, value in {"steps_offset": 1, "clip_sample": False}.items() if name in known}
    return getattr(diffusers, kind)(**NOISE | defaults | options)


UNSAFE = {"safety_checker": None, "feature_extractor": None}  # there is nothing that a checker could find in noise


def assembled(kind: type, **parts: Any) -> Any:
    """A real pipeline of the given parts."""
    pipe = kind(**parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def image(seed: int = 8, *, count: int = 1, channels: int = 3) -> Tensor:
    """`count` images of drawn pixels."""
    return drawn(count, channels, *PIXELS, seed=seed)


def drawn(*shape: int, seed: int = 8) -> Tensor:
    """Numbers from 0 to 1, such as an image's."""
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def normal(*shape: int, seed: int = 9) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
