"""Pipelines that cannot be accelerated this way, real ones at a tiny size, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diffusers import (
    AmusedPipeline,
    AmusedScheduler,
    AutoencoderKL,
    DDPMWuerstchenScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableCascadePriorPipeline,
    StableCascadeUNet,
    StableDiffusion3Pipeline,
    UVit2DModel,
)

from .latent import quantised
from .parts import autoencoder, built


@dataclass(frozen=True)
class Refused:
    """`why` it cannot work, and words of the error that says where to go on."""

    title: str
    build: Callable[[], Any]
    why: str
    words: str


BLOCKS = {"num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 8, "pooled_projection_dim": 8}
NO_SKIPS = "a row of blocks in which text and picture are mixed: no encoder whose features a decoder gets through skips"


def _autoencoder() -> AutoencoderKL:
    return autoencoder(shift_factor=0.0)


def flux() -> Any:
    config = BLOCKS | {"in_channels": 4, "num_single_layers": 1, "axes_dims_rope": (2, 2, 4)}
    parts = {"text_encoder": None, "tokenizer": None, "text_encoder_2": None, "tokenizer_2": None, "vae": _autoencoder()}
    return FluxPipeline(
        transformer=built(lambda: FluxTransformer2DModel(**config)), scheduler=FlowMatchEulerDiscreteScheduler(), **parts
    )


def stable_diffusion_3() -> Any:
    config = BLOCKS | {"in_channels": 4, "out_channels": 4, "sample_size": 8, "patch_size": 2, "caption_projection_dim": 16}
    parts = {f"{part}{number}": None for part in ("text_encoder", "tokenizer") for number in ("", "_2", "_3")} | {
        "vae": _autoencoder()
    }
    model = built(lambda: SD3Transformer2DModel(**config))
    return StableDiffusion3Pipeline(transformer=model, scheduler=FlowMatchEulerDiscreteScheduler(), **parts)


def stable_cascade() -> Any:
    config = {
        "in_channels": 4, "out_channels": 4, "timestep_ratio_embedding_dim": 8, "conditioning_dim": 8, "block_out_channels": (8, 8),
        "num_attention_heads": (2, 2), "down_num_layers_per_block": (1, 1), "up_num_layers_per_block": (1, 1), "clip_text_in_channels": 8,
        "clip_text_pooled_in_channels": 8, "clip_image_in_channels": 8,
    }  # fmt: skip
    parts = {"tokenizer": None, "text_encoder": None, "scheduler": DDPMWuerstchenScheduler()}
    return StableCascadePriorPipeline(prior=built(lambda: StableCascadeUNet(**config)), **parts)


def uvit() -> Any:
    config = {
        "hidden_size": 16, "cond_embed_dim": 16, "micro_cond_encode_dim": 2, "micro_cond_embed_dim": 10, "encoder_hidden_size": 16,
        "vocab_size": 17, "codebook_size": 16, "in_channels": 16, "block_out_channels": 16, "num_res_blocks": 1, "block_num_heads": 2,
        "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    }  # fmt: skip
    parts = {"vqvae": quantised(), "tokenizer": None, "text_encoder": None, "scheduler": AmusedScheduler(mask_token_id=16)}
    return AmusedPipeline(transformer=built(lambda: UVit2DModel(**config)), **parts)


REFUSED = (
    Refused("Flux", flux, NO_SKIPS, r"FluxTransformer2DModel; .* pipe.transformer.enable_cache\(FirstBlockCacheConfig\(\)\)"),
    Refused("Stable Diffusion 3", stable_diffusion_3, NO_SKIPS, "SD3Transformer2DModel; .*own caches.*FirstBlockCache"),
    Refused(
        "Stable Cascade", stable_cascade, "its prior and decoder are UNets of another kind, under other names than `unet`",
        "has no UNet and no transformer .*own caches.*FirstBlockCache",
    ),
    Refused(
        "UVit (aMUSEd)", uvit, "it predicts tokens in a few steps, not noise along a diffusion", "UVit2DModel; .*own caches.*FirstBlockCache"
    ),
)  # fmt: skip
