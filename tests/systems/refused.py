"""Pipelines that cannot be accelerated this way, real ones at a tiny size, and why."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from diffusers import (
    AmusedPipeline,
    AmusedScheduler,
    AutoencoderKL,
    ControlNetXSAdapter,
    DDPMWuerstchenScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    Kandinsky3Pipeline,
    Kandinsky3UNet,
    SD3Transformer2DModel,
    StableCascadePriorPipeline,
    StableCascadeUNet,
    StableDiffusion3Pipeline,
    StableDiffusionControlNetXSPipeline,
    StableDiffusionSAGPipeline,
    UnCLIPPipeline,
    UVit2DModel,
    VersatileDiffusionTextToImagePipeline,
)

from .latent import plain, quantised
from .parts import DTYPE, UNET, autoencoder, built, scheduler, unet
from .stable_diffusion import stable_diffusion


@dataclass(frozen=True)
class Refused:
    """`why` it cannot work, words of the error, and what the error `names` to go on with."""

    title: str
    build: Callable[[], Any]
    why: str
    words: str
    names: str = "this page"


BLOCKS = {"num_layers": 1, "attention_head_dim": 8, "num_attention_heads": 2, "joint_attention_dim": 8, "pooled_projection_dim": 8}
NO_SKIPS = "a row of blocks in which text and image are mixed: no encoder whose features a decoder gets through skips"


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


def kandinsky_3() -> Any:
    config = {
        "in_channels": 4,
        "time_embedding_dim": 6, "groups": 3, "attention_head_dim": 6, "layers_per_block": 1, "block_out_channels": (12, 18),
        "cross_attention_dim": 6, "encoder_hid_dim": 8,
    }  # fmt: skip
    parts = {"tokenizer": None, "text_encoder": None, "scheduler": scheduler(), "movq": quantised(channels=4)}
    return Kandinsky3Pipeline(unet=built(lambda: Kandinsky3UNet(**config)), **parts)


def controlnet_xs() -> Any:
    net = ControlNetXSAdapter.from_unet(
        unet(UNET | {"layers_per_block": 2}), size_ratio=1.0, conditioning_embedding_out_channels=(4, 8, 12)
    )
    return stable_diffusion(StableDiffusionControlNetXSPipeline, UNET | {"layers_per_block": 2}, controlnet=net)


def versatile() -> Any:
    parts = {"tokenizer": None, "text_encoder": None, "text_unet": None, "vae": autoencoder(), "scheduler": scheduler()}
    return VersatileDiffusionTextToImagePipeline(image_unet=unet(), **parts)


def unclip() -> Any:
    upscaling = {"super_res_first": plain(DTYPE), "super_res_last": plain(DTYPE)}
    absent = ("prior", "text_encoder", "tokenizer", "text_proj", "prior_scheduler", "decoder_scheduler", "super_res_scheduler")
    return UnCLIPPipeline(decoder=unet(), **upscaling, **dict.fromkeys(absent))


CACHES = "diffusers' own caches"
LISTED = "docs/systems.md lists the pipelines that work"
SEVERAL = "several denoisers, each with a scheduler of its own: which of them a schedule is for would be open"
REFUSED = (
    Refused("Flux", flux, NO_SKIPS, r"FluxTransformer2DModel; .* pipe.transformer.enable_cache\(FirstBlockCacheConfig\(\)\)", CACHES),
    Refused("Stable Diffusion 3", stable_diffusion_3, NO_SKIPS, f"SD3Transformer2DModel; accepted: .*{LISTED}"),
    Refused(
        "Stable Cascade", stable_cascade, "the blocks of its UNets are lists, whose layers the forward calls one by one",
        f"no 'transformer' .its UNets have other names: 'prior', a StableCascadeUNet.*{LISTED}",
    ),
    Refused(
        "UVit (aMUSEd)", uvit, "it predicts tokens in a few steps, not noise along a diffusion",
        f"UVit2DModel; it predicts tokens in a few steps, .*{LISTED}",
    ),
    Refused(
        "Kandinsky 3",
        kandinsky_3,
        "its forward joins skips and hidden states outside of its up blocks, so no up block is given the encoder's features",
        f"Kandinsky3UNet; its forward joins skips .*{LISTED}",
    ),
    Refused(
        "ControlNet-XS", controlnet_xs, "a second encoder runs inside its blocks, and its forward adds the two outside of them",
        f"UNetControlNetXSModel; a second encoder runs inside .*{LISTED}",
    ),
    Refused(
        "Versatile Diffusion", versatile,
        "it works with two UNets, `image_unet` and `text_unet` (UNetFlatConditionModel), and puts attention blocks of one into the other",
        f"its UNets have other names: 'image_unet', a UNet2DConditionModel.*{LISTED}",
    ),
    Refused(
        "UnCLIP", unclip, SEVERAL,
        f"UNets have other names: 'decoder', a UNet2DConditionModel; 'super_res_first', a UNet2DModel; .*would be open.*{LISTED}",
    ),
)  # fmt: skip
# Refused in mid-run, when it is seen: no error on entering.
LATER = (
    Refused(
        "Self-attention guidance (SAG)",
        lambda: stable_diffusion(StableDiffusionSAGPipeline),
        "it calls its UNet twice for each time-step, the second time with another image",
        "StableDiffusionSAGPipeline calls its denoiser again at time-step .*Several calls at one time-step .* are not supported",
        "the time-step that is called again",
    ),
)
