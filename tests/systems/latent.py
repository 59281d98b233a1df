"""Latent diffusion and diffusion transformers, class-conditional and unconditional."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    CMStochasticIterativeScheduler,
    ConsistencyModelPipeline,
    DDIMPipeline,
    DDPMPipeline,
    DiTPipeline,
    DiTTransformer2DModel,
    LDMPipeline,
    LDMTextToImagePipeline,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    UNet2DModel,
    VQModel,
)
from diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion import LDMBertConfig, LDMBertModel
from torch import nn

from .base import PAPERS, System, done, given
from .parts import DTYPE, SIZE, UNET, WIDTH, assembled, autoencoder, built, normal, scheduler, tokenizer, unet
from .stable_diffusion import stable_diffusion

PLAIN = {
    "sample_size": (14, 10), "in_channels": 3, "out_channels": 3, "block_out_channels": (12, 36), "layers_per_block": 1, "norm_num_groups": 4,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 9,
}  # fmt: skip


def plain(dtype: torch.dtype, **options: Any) -> UNet2DModel:
    return built(lambda: UNet2DModel(**PLAIN | options), dtype=dtype)


def quantised(dtype: torch.dtype = DTYPE, channels: int = 3) -> VQModel:
    config = {
        "block_out_channels": (4, 8),
        "latent_channels": channels,
        "norm_num_groups": 4,
        "num_vq_embeddings": 16,
        "vq_embed_dim": channels,
    }
    kinds = {"down_block_types": ("DownEncoderBlock2D",) * 2, "up_block_types": ("UpDecoderBlock2D",) * 2}
    return built(lambda: VQModel(**config, **kinds), 2, dtype)


def _other_weights(pipe: Any) -> None:
    pipe.unet.conv_in.weight.mul_(-1)


def unconditional() -> Any:
    return assembled(LDMPipeline, vqvae=quantised(torch.float32), unet=plain(torch.float32, sample_size=10), scheduler=scheduler())


def text_to_image() -> Any:
    words = tokenizer()
    config = LDMBertConfig(
        vocab_size=len(words), d_model=WIDTH, encoder_layers=2, encoder_ffn_dim=16, encoder_attention_heads=2, head_dim=4,
        pad_token_id=words.pad_token_id, init_std=1.0,
    )  # fmt: skip
    parts = {"vqvae": autoencoder(channels=(4, 8, 12)), "bert": built(lambda: LDMBertModel(config), 5), "tokenizer": words}
    return assembled(LDMTextToImagePipeline, **parts, unet=unet(), scheduler=scheduler())


def of_classes() -> Any:
    """Latent diffusion on ImageNet: the class is a text of one token, embedded by a table."""
    return stable_diffusion(config=UNET | {"in_channels": 4}, tokenizer=None, text_encoder=None)


CLASSES = nn.Embedding(1001, WIDTH, dtype=DTYPE, _weight=normal(1001, WIDTH, seed=21))


def of_class(number: int) -> Any:
    return CLASSES.weight.detach()[number].reshape(1, 1, WIDTH)


def consistency() -> Any:
    model = plain(DTYPE, sample_size=10, num_class_embeds=5, resnet_time_scale_shift="scale_shift")
    return assembled(ConsistencyModelPipeline, unet=model, scheduler=CMStochasticIterativeScheduler(num_train_timesteps=40))


def transformer() -> Any:
    """As DiT-XL: the first 18 of 28 blocks are the encoder, here 3 of 4; the variance is learned."""
    config = {
        "sample_size": 15, "patch_size": 3, "in_channels": 4, "out_channels": 8, "num_layers": 4, "num_attention_heads": 7,
        "attention_head_dim": 12, "num_embeds_ada_norm": 1000,
    }  # fmt: skip
    model = built(lambda: DiTTransformer2DModel(**config))
    return assembled(DiTPipeline, transformer=model, vae=autoencoder(), scheduler=scheduler())


def pixart() -> Any:
    """Text by cross-attention, one modulation for all blocks, the variance learned."""
    config = {
        "sample_size": 16, "in_channels": 4, "out_channels": 8, "num_layers": 4, "num_attention_heads": 3, "attention_head_dim": 12,
        "cross_attention_dim": 36, "caption_channels": WIDTH, "use_additional_conditions": False,
    }  # fmt: skip
    model = built(lambda: PixArtTransformer2DModel(**config))
    return assembled(
        PixArtAlphaPipeline, tokenizer=None, text_encoder=None, vae=autoencoder(), transformer=model, scheduler=scheduler()
    )


PIXART_TEXT = {
    "prompt_embeds": normal(1, 13, WIDTH, seed=31), "prompt_attention_mask": torch.ones(1, 13), "negative_prompt": None,
    "negative_prompt_embeds": normal(1, 13, WIDTH, seed=32), "negative_prompt_attention_mask": torch.ones(1, 13),
}  # fmt: skip
STEPS = {"num_inference_steps": 6}
PIXELS = STEPS | {"batch_size": 2, "output_type": "np"}
LABELS = STEPS | {"class_labels": [3, 700, 41], "output_type": "pt"}
SYSTEMS = (
    System(
        "ldm", "Latent diffusion, unconditional", unconditional, PIXELS, {"weights": done(_other_weights)}, close=1e-5,
        size="ldm-celebahq", note="in diffusers 0.42.1 under `pipelines/deprecated`",
        group=PAPERS,
    ),
    System(
        "ddim", "Unconditional images, DDIM", lambda: assembled(DDIMPipeline, unet=plain(DTYPE), scheduler=scheduler()), PIXELS,
        {"weights": done(_other_weights)}, close=1e-5, size="ddpm-cifar10",
        group=PAPERS,
    ),
    System(
        "ddpm", "Unconditional images, DDPM",
        lambda: assembled(DDPMPipeline, unet=plain(torch.float32), scheduler=scheduler("DDPMScheduler")), PIXELS,
        {"weights": done(_other_weights)}, close=1e-5, size="ddpm-cifar10",
        group=PAPERS,
    ),
    System(
        "ldm-text", "Latent diffusion, text to image", text_to_image,
        STEPS | {"prompt": "a red circle", "guidance_scale": 5.0, "output_type": "pt", "height": 8 * 14, "width": 8 * 10},
        {"text": given(prompt="a white ring at the left on a blue background"), "guidance": given(guidance_scale=2.0)}, size="ldm-text2im",
        group=PAPERS,
    ),
    System(
        "ldm-class", "Latent diffusion, class-conditional (ImageNet)", of_classes,
        STEPS | {
            "prompt_embeds": of_class(7), "negative_prompt_embeds": of_class(1000), "guidance_scale": 3.0, "output_type": "latent",
            **SIZE,
        },
        {"class": given(prompt_embeds=of_class(8)), "null class": given(negative_prompt_embeds=of_class(9))},
        paper="ldm-imagenet", paper_steps=250, size="ldm-cin256",
        note="diffusers has no pipeline class of its own for it: the embedded class goes into Stable Diffusion's as a text of one token",
        group=PAPERS,
    ),
    System(
        "consistency", "Consistency models, class-conditional UNet2DModel", consistency, STEPS | {"class_labels": 3, "output_type": "pt"},
        {"class": given(class_labels=1)}, note="made for one to three steps, where nothing is gained",
        group=PAPERS,
    ),
    System(
        "dit", "DiT, class-conditional", transformer, LABELS | {"guidance_scale": 4.0},
        {"class": given(class_labels=[3, 5, 41]), "guidance": given(guidance_scale=2.0)}, size="dit-xl-2-256",
        note="the first 18 of 28 blocks are the encoder, as in the paper; `encoder_blocks=` takes others. The paper prints no key list",
        group=PAPERS,
    ),
    System(
        "pixart", "PixArt-alpha", pixart,
        STEPS | PIXART_TEXT | SIZE | {"output_type": "latent", "use_resolution_binning": False},
        {
            "text": given(prompt_embeds=normal(1, 13, WIDTH, seed=33)), "guidance": given(guidance_scale=2.0),
            "mask": given(prompt_attention_mask=(torch.arange(13) < 2).double()[None]),
        }, note="the first 18 of 28 blocks are the encoder, as in DiT",
    ),
    System(
        "dit-unguided", "DiT without guidance, other split", transformer, LABELS | {"guidance_scale": 1.0},
        {"class": given(class_labels=[3, 5, 41])}, options={"encoder_blocks": 2}, size="dit-xl-2-256",
        group=PAPERS,
    ),
)  # fmt: skip
