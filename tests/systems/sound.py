"""Sound: AudioLDM, AudioLDM 2 and Dance Diffusion."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AudioLDM2Pipeline,
    AudioLDM2UNet2DConditionModel,
    AudioLDMPipeline,
    DanceDiffusionPipeline,
    IPNDMScheduler,
    UNet1DModel,
)
from transformers import (
    ClapTextConfig,
    ClapTextModelWithProjection,
    GPT2Config,
    GPT2LMHeadModel,
    SpeechT5HifiGan,
    SpeechT5HifiGanConfig,
    T5Config,
    T5EncoderModel,
)

from .base import System, done, given
from .parts import UNET, WIDTH, assembled, autoencoder, built, normal, scheduler, unet

T5_WIDTH, GPT_WIDTH = 22, 15


def _vocoder() -> SpeechT5HifiGan:
    """Spectrograms of 40 bands, so that the latents are 10 wide."""
    config = SpeechT5HifiGanConfig(
        model_in_dim=40, sampling_rate=16000, upsample_initial_channel=16, upsample_rates=[2, 2], upsample_kernel_sizes=[4, 4],
        resblock_kernel_sizes=[3, 7], resblock_dilation_sizes=[[1, 3, 5], [1, 3, 5]], normalize_before=False,
    )  # fmt: skip
    vocoder = built(lambda: SpeechT5HifiGan(config), 8)
    for parameter in vocoder.parameters():
        parameter.data *= 12 if parameter.dim() > 1 else 1  # initial weights give silence
    return vocoder


def audioldm() -> Any:
    """The pooled text is a class: joined with the embedding of the time-step, and no text is attended to."""
    config = UNET | {
        "sample_size": 14, "cross_attention_dim": (18, 48), "class_embed_type": "simple_projection", "class_embeddings_concat": True,
        "projection_class_embeddings_input_dim": WIDTH,
    }  # fmt: skip
    text = ClapTextConfig(
        vocab_size=50, hidden_size=WIDTH, intermediate_size=16, num_attention_heads=3, num_hidden_layers=1, projection_dim=WIDTH,
        max_position_embeddings=30,
    )  # fmt: skip
    encoder = built(lambda: ClapTextModelWithProjection(text), 5)
    parts = {"vae": autoencoder(in_channels=1, out_channels=1), "vocoder": _vocoder(), "scheduler": scheduler()}
    return assembled(AudioLDMPipeline, text_encoder=encoder, tokenizer=None, unet=unet(config), **parts)


def audioldm_2() -> Any:
    """Two texts, each with attention layers of its own; the first is what a language model goes on with."""
    config = {name: value for name, value in UNET.items() if name != "cross_attention_dim"} | {
        "sample_size": 14, "cross_attention_dim": ((None, GPT_WIDTH, T5_WIDTH),) * 2,
    }  # fmt: skip
    t5 = T5Config(d_model=T5_WIDTH, d_kv=4, d_ff=16, num_layers=1, num_heads=2, vocab_size=50)
    language = GPT2Config(n_embd=GPT_WIDTH, n_layer=1, n_head=3, vocab_size=50, n_positions=30, bos_token_id=1, eos_token_id=1)
    parts = {
        "text_encoder": None, "projection_model": None, "tokenizer": None, "tokenizer_2": None, "feature_extractor": None,
        "text_encoder_2": built(lambda: T5EncoderModel(t5), 5), "language_model": built(lambda: GPT2LMHeadModel(language), 6),
        "unet": built(lambda: AudioLDM2UNet2DConditionModel(**config)), "vocoder": _vocoder(),
    }  # fmt: skip
    return assembled(AudioLDM2Pipeline, vae=autoencoder(), scheduler=scheduler(), **parts)


def dance() -> Any:
    """Sound without a spectrogram: a UNet of one dimension, which has no first convolution."""
    config = {
        "sample_size": 96, "sample_rate": 16000, "in_channels": 2, "out_channels": 2, "extra_in_channels": 64, "block_out_channels": (32, 64),
        "time_embedding_type": "fourier", "flip_sin_to_cos": True, "use_timestep_embedding": False, "mid_block_type": "UNetMidBlock1D",
        "down_block_types": ("DownBlock1DNoSkip", "AttnDownBlock1D"), "up_block_types": ("AttnUpBlock1D", "UpBlock1DNoSkip"),
    }  # fmt: skip
    return assembled(DanceDiffusionPipeline, unet=built(lambda: UNet1DModel(**config)), scheduler=IPNDMScheduler())


def _other_weights(pipe: Any) -> None:
    pipe.unet.down_blocks[0].resnets[0].conv_1.weight.mul_(-1)


TEXTS = {
    "prompt_embeds": normal(1, 11, T5_WIDTH, seed=51), "generated_prompt_embeds": normal(1, 13, GPT_WIDTH, seed=52),
    "negative_prompt_embeds": normal(1, 11, T5_WIDTH, seed=53), "negative_generated_prompt_embeds": normal(1, 13, GPT_WIDTH, seed=54),
    "attention_mask": torch.ones(1, 11, dtype=torch.long), "negative_attention_mask": torch.ones(1, 11, dtype=torch.long),
}  # fmt: skip
POOLED = {"prompt_embeds": normal(1, WIDTH, seed=55), "negative_prompt_embeds": normal(1, WIDTH, seed=56)}
STEPS = {"num_inference_steps": 6}
SYSTEMS = (
    System(
        "audioldm", "AudioLDM: text to sound", audioldm, STEPS | POOLED | {"output_type": "np"},
        {"text": given(prompt_embeds=normal(1, WIDTH, seed=57)), "guidance": given(guidance_scale=1.5)}, by_hand=False, close=1e-5,
        note="in diffusers 0.42.1 under `pipelines/deprecated`",
    ),
    System(
        "audioldm-2", "AudioLDM 2: text to sound", audioldm_2, STEPS | TEXTS | {"output_type": "latent"},
        {
            "generated text": given(generated_prompt_embeds=normal(1, 13, GPT_WIDTH, seed=58)),
            "text": given(prompt_embeds=normal(1, 11, T5_WIDTH, seed=59)),
            "mask": given(attention_mask=(torch.arange(11) < 2).long()[None]), "guidance": given(guidance_scale=2.0),
        },
    ),
    System(
        "dance", "Dance Diffusion: sound, unconditional", dance, STEPS | {"batch_size": 3}, {"weights": done(_other_weights)},
        by_hand=False, close=1e-5, note="in diffusers 0.42.1 under `pipelines/deprecated`",
    ),
)  # fmt: skip
