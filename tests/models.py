"""Tiny real models for the laws, with every all-zero parameter drawn anew, and a sampling loop and a split forward by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderTiny,
    ControlNetModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from torch import Tensor

from fastdiff_lab.pipelines import SCHEDULERS

NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
WIDTH = 8  # of the text embeddings
PLAIN = {
    "sample_size": 8, "in_channels": 4, "out_channels": 4, "block_out_channels": (8, 16, 16, 16), "norm_num_groups": 4,
    "cross_attention_dim": WIDTH, "attention_head_dim": 2,
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}  # fmt: skip
SDXL = {
    "sample_size": 8, "block_out_channels": (8, 16), "norm_num_groups": 4, "cross_attention_dim": WIDTH, "attention_head_dim": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "addition_embed_type": "text_time", "addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 6 * 4 + 5,
    "transformer_layers_per_block": (1, 2), "use_linear_projection": True,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "sdxl": SDXL,
    "class-conditional": PLAIN | {"num_class_embeds": 3, "class_embeddings_concat": False},
    "no-mid": PLAIN | {"mid_block_type": None},
    "scale-shift": PLAIN | {"resnet_time_scale_shift": "scale_shift"},
}


def redraw_zeros(model: torch.nn.Module) -> torch.nn.Module:
    """Draws every all-zero parameter anew: a layer that adds nothing would let any law pass."""
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        if not parameter.detach().any():
            parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return model


def unet(name: str = "plain", dtype: torch.dtype = torch.float64) -> UNet2DConditionModel:
    torch.manual_seed(0)
    return redraw_zeros(UNet2DConditionModel(**CONFIGS[name])).eval().requires_grad_(False).to(dtype)


def scheduler(name: str = "ddim") -> Any:
    kind = getattr(diffusers, SCHEDULERS[name])
    return kind(**NOISE, steps_offset=1, **({"clip_sample": False} if name == "ddim" else {}))


def conditions(name: str = "plain", rows: int = 2, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """The arguments that a config's denoiser needs beside sample and time-step."""
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    given: dict[str, Any] = {"encoder_hidden_states": draw(rows, 6, WIDTH)}
    if name == "sdxl":
        given["added_cond_kwargs"] = {"text_embeds": draw(rows, 5), "time_ids": draw(rows, 6)}
    if name == "class-conditional":
        given["class_labels"] = torch.arange(rows) % 3
    return given


def denoiser_pipe(name: str = "plain", schedule_name: str = "ddim") -> SimpleNamespace:
    """As much of a pipeline as encoder propagation needs: a UNet and a scheduler."""
    return SimpleNamespace(unet=unet(name), scheduler=scheduler(schedule_name))


def loop(
    pipe: Any,
    steps: int,
    arguments: dict[str, Any] | Callable[[int], dict[str, Any]],
    *,
    rows: int = 2,
    size: Sequence[int] = (8, 8),
    predict: Callable | None = None,
) -> Tensor:
    """A sampling loop by hand; `predict(step, sample, timestep, arguments)` stands for the denoiser where it is given."""
    model = pipe.unet
    dtype = next(model.parameters()).dtype
    sample = torch.randn((rows, 4, *size), generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)
    pipe.scheduler.set_timesteps(steps)
    sample = sample * pipe.scheduler.init_noise_sigma
    for step, timestep in enumerate(pipe.scheduler.timesteps):
        given = arguments(step) if callable(arguments) else arguments
        scaled = pipe.scheduler.scale_model_input(sample, timestep)
        noise = predict(step, scaled, timestep, given) if predict else model(scaled, timestep, **given).sample
        sample = pipe.scheduler.step(noise, timestep, sample).prev_sample
    return sample


class Oracle:
    """Encoder propagation written by hand for UNet2DConditionModel: encode at the keys, decode with the held features."""

    def __init__(self, model: UNet2DConditionModel, keys: Sequence[int]) -> None:
        self.model, self.keys = model, keys

    def __call__(self, step: int, sample: Tensor, timestep: Tensor, given: dict[str, Any]) -> Tensor:
        model, text = self.model, given["encoder_hidden_states"]
        embedding = model.time_embedding(model.get_time_embed(sample, timestep), given.get("timestep_cond"))
        classes = model.get_class_embed(sample, given.get("class_labels"))
        embedding = embedding if classes is None else embedding + classes
        added = model.get_aug_embed(embedding, text, given.get("added_cond_kwargs"))
        embedding = embedding if added is None else embedding + added
        text = model.process_encoder_hidden_states(text, given.get("added_cond_kwargs"))
        if step in self.keys:
            self.skips, self.bottleneck = self.encode(sample, embedding, text, given)
        sizes = sample.shape[-2:]
        return self.decode(embedding, text, any(side % 2**model.num_upsamplers for side in sizes))

    def encode(self, sample: Tensor, embedding: Tensor, text: Tensor, given: dict[str, Any]) -> tuple[list[Tensor], Tensor]:
        adapter = list(given.get("down_intrablock_additional_residuals", []))
        sample = self.model.conv_in(sample)
        skips = [sample]
        for block in self.model.down_blocks:
            extra = adapter.pop(0) if adapter else None
            if getattr(block, "has_cross_attention", False):
                options = {} if extra is None else {"additional_residuals": extra}
                sample, more = block(sample, embedding, encoder_hidden_states=text, **options)
            else:
                sample, more = block(sample, embedding)
                if extra is not None:
                    # The host adds in place, so that a skip which is the sample itself changes as well.
                    more = [skip + extra if skip is sample else skip for skip in more]
                    sample = sample + extra
            skips += more
        if "down_block_additional_residuals" in given:
            skips = [a + b for a, b in zip(skips, given["down_block_additional_residuals"], strict=True)]
        if self.model.mid_block is not None:
            sample = self.model.mid_block(sample, embedding, encoder_hidden_states=text)
        return skips, sample + given.get("mid_block_additional_residual", 0)

    def decode(self, embedding: Tensor, text: Tensor, odd: bool) -> Tensor:
        skips, sample = list(self.skips), self.bottleneck.clone()
        for block in self.model.up_blocks:
            count = len(block.resnets)
            mine, skips = tuple(skips[-count:]), skips[:-count]
            size = skips[-1].shape[2:] if odd and skips else None
            options = {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}
            sample = block(sample, mine, embedding, upsample_size=size, **options)
        return self.model.conv_out(self.model.conv_act(self.model.conv_norm_out(sample)))


def _autoencoder(dtype: torch.dtype) -> AutoencoderTiny:
    channels = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    return AutoencoderTiny(**channels, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)).eval().requires_grad_(False).to(dtype)


def pipeline(schedule_name: str = "ddim", dtype: torch.dtype = torch.float64, name: str = "plain") -> StableDiffusionPipeline:
    """A real StableDiffusionPipeline of tiny parts that is given text embeddings instead of prompts."""
    pipe = StableDiffusionPipeline(
        vae=_autoencoder(dtype), text_encoder=None, tokenizer=None, unet=unet(name, dtype), scheduler=scheduler(schedule_name),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def controlnet_pipeline(dtype: torch.dtype = torch.float64) -> StableDiffusionControlNetPipeline:
    torch.manual_seed(3)
    options = {key: PLAIN[key] for key in ("block_out_channels", "norm_num_groups", "cross_attention_dim", "attention_head_dim")}
    net = ControlNetModel(
        in_channels=4, down_block_types=PLAIN["down_block_types"], conditioning_embedding_out_channels=(4, 8), **options
    )  # fmt: skip
    net = redraw_zeros(net).eval().requires_grad_(False).to(dtype)
    pipe = StableDiffusionControlNetPipeline(
        vae=_autoencoder(dtype), text_encoder=None, tokenizer=None, unet=unet("plain", dtype), controlnet=net, scheduler=scheduler(),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe: Any, steps: int = 10, guidance: float = 5.0, pictures: int = 2, **options: Any) -> Tensor:
    """The final latents of a real pipeline on fixed embeddings, latents and seed."""
    dtype = pipe.unet.dtype
    text = torch.randn((pictures, 6, WIDTH), generator=torch.Generator().manual_seed(1)).to(dtype)
    latents = torch.randn((pictures, 4, 8, 8), generator=torch.Generator().manual_seed(2)).to(dtype)
    options = {"latents": latents, "prompt_embeds": text, "negative_prompt_embeds": torch.zeros_like(text)} | options
    generator = torch.Generator().manual_seed(3)
    return pipe(
        num_inference_steps=steps, guidance_scale=guidance, output_type="latent", generator=generator, **options
    ).images  # fmt: skip


def denoiser_calls(pipe: Any, steps: int = 10) -> int:
    pipe.scheduler.set_timesteps(steps)
    return len(pipe.scheduler.timesteps)
