"""Tiny real models for the laws, with every all-zero parameter drawn anew, and a sampling loop by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import diffusers
import torch
from diffusers import (
    AutoencoderTiny,
    ControlNetModel,
    DiTTransformer2DModel,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
    UNet2DModel,
    UNet3DConditionModel,
    UNetMotionModel,
    UNetSpatioTemporalConditionModel,
)
from torch import Tensor

from fastdiff_lab.hooks.denoiser import denoiser_of
from fastdiff_lab.pipelines import SCHEDULERS

NOISE = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
# No two sizes are equal by chance (tests/test_sizes.py): code that takes one for the other would pass every test.
TOKENS, WIDTH, POOLED = 13, 8, 17  # of the text embeddings
SIDES = (10, 14)  # of a sample
FRAMES, OF_FRAMES = 5, (6, 14)  # of a video
OF_VIDEO = 9  # width of the text embeddings of a video
# Stable Diffusion's blocks on two levels: a run takes half as long as on its four.
PLAIN = {
    "sample_size": 16, "in_channels": 4, "out_channels": 4, "block_out_channels": (18, 27), "norm_num_groups": 3,
    "cross_attention_dim": WIDTH, "attention_head_dim": 3, "layers_per_block": 1,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"), "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}  # fmt: skip
# Its four levels: sides that are halved three times, and skips of as many sizes.
DEEP = PLAIN | {
    "block_out_channels": (18, 27, 33, 36), "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
}  # fmt: skip
SDXL = {
    "sample_size": 16, "block_out_channels": (12, 18), "norm_num_groups": 3, "cross_attention_dim": WIDTH, "attention_head_dim": 3,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"), "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "addition_embed_type": "text_time", "addition_time_embed_dim": 16, "projection_class_embeddings_input_dim": 6 * 16 + POOLED,
    "transformer_layers_per_block": (1, 2), "use_linear_projection": True,
}  # fmt: skip
CONDITIONAL: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "deep": DEEP,
    "sdxl": SDXL,
    "class-conditional": PLAIN | {"num_class_embeds": 11, "class_embeddings_concat": False},
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


SMALL = {"block_out_channels": (12, 18), "norm_num_groups": 3}
VIDEO = {
    "block_out_channels": (24, 48), "norm_num_groups": 3, "layers_per_block": 1, "sample_size": 16, "cross_attention_dim": OF_VIDEO,
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """A denoiser class at a tiny size: its config, and the shape of a sample, by `rows` and side lengths (`sides` by default)."""

    kind: type
    config: dict[str, Any]
    channels: int = 4
    frames_axis: int | None = None
    sides: tuple[int, int] = SIDES

    def shape(self, rows: int, size: Sequence[int]) -> tuple[int, ...]:
        shape = [rows, self.channels, *size]
        if self.frames_axis is not None:
            shape.insert(self.frames_axis, FRAMES)
        return tuple(shape)


# Every law runs over all of these.
FAMILIES: dict[str, Family] = {
    **{name: Family(UNet2DConditionModel, config) for name, config in CONDITIONAL.items()},
    "unet2d": Family(UNet2DModel, SMALL | {
        "sample_size": 16, "in_channels": 4, "out_channels": 4, "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"), "attention_head_dim": 6,
    }),
    "unet2d-class": Family(UNet2DModel, SMALL | {
        "sample_size": 16, "in_channels": 4, "out_channels": 4, "down_block_types": ("DownBlock2D",) * 2,
        "up_block_types": ("UpBlock2D",) * 2, "attention_head_dim": 6, "num_class_embeds": 11,
    }),
    # The topology of score-based models: the image itself runs beside the features, and the output is divided by the time-step.
    "unet2d-skip": Family(UNet2DModel, {
        "sample_size": 16, "in_channels": 3, "out_channels": 3, "block_out_channels": (32, 64), "norm_num_groups": 4,
        "down_block_types": ("SkipDownBlock2D", "AttnSkipDownBlock2D"), "up_block_types": ("AttnSkipUpBlock2D", "SkipUpBlock2D"),
        "time_embedding_type": "fourier", "attention_head_dim": 16,
    }, channels=3),
    "unet3d": Family(UNet3DConditionModel, VIDEO | {
        "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"), "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
        "attention_head_dim": 3,
    }, frames_axis=2, sides=OF_FRAMES),
    "spatio-temporal": Family(UNetSpatioTemporalConditionModel, {
        "sample_size": 16, "in_channels": 11, "out_channels": 11, "block_out_channels": (32, 64), "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"), "num_attention_heads": (4, 4),
        "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"), "addition_time_embed_dim": 4,
        "projection_class_embeddings_input_dim": 12, "cross_attention_dim": OF_VIDEO,
    }, channels=11, frames_axis=1, sides=OF_FRAMES),
    "motion": Family(UNetMotionModel, VIDEO | {
        "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"), "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
        "num_attention_heads": 3, "motion_num_attention_heads": 3, "use_motion_mid_block": True, "motion_max_seq_length": 8,
    }, frames_axis=2, sides=OF_FRAMES),
    "dit": Family(DiTTransformer2DModel, {
        "sample_size": 15, "patch_size": 3, "in_channels": 4, "out_channels": 4, "num_layers": 4, "num_attention_heads": 7,
        "attention_head_dim": 8, "num_embeds_ada_norm": 1000,
    }, sides=(15, 15)),
}  # fmt: skip


# A family of each kind, for the short suite; those of `SHAPES` in laws.py are of the other video class.
FAMILY_KINDS = ("plain", "unet2d", "unet3d", "dit")


def denoiser(name: str = "plain", dtype: torch.dtype = torch.float64) -> Any:
    torch.manual_seed(0)
    family = FAMILIES[name]
    return redraw_zeros(family.kind(**family.config)).eval().requires_grad_(False).to(dtype)


def unet(name: str = "plain", dtype: torch.dtype = torch.float64) -> UNet2DConditionModel:
    return denoiser(name, dtype)


def scheduler(name: str = "ddim") -> Any:
    kind = getattr(diffusers, SCHEDULERS[name])
    return kind(**NOISE, steps_offset=1, **({"clip_sample": False} if name == "ddim" else {}))


def conditions(name: str = "plain", rows: int = 2, dtype: torch.dtype = torch.float64) -> dict[str, Any]:
    """The arguments that a config's denoiser needs beside sample and time-step."""
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    given: dict[str, Any] = {}
    if name in CONDITIONAL or name == "unet3d":
        given["encoder_hidden_states"] = draw(rows, TOKENS, WIDTH if name in CONDITIONAL else OF_VIDEO)
    if name == "motion":  # AnimateDiff passes the text once for each frame
        given["encoder_hidden_states"] = draw(rows, TOKENS, OF_VIDEO).repeat_interleave(FRAMES, dim=0)
    if name == "spatio-temporal":
        given |= {"encoder_hidden_states": draw(rows, 1, OF_VIDEO), "added_time_ids": draw(rows, 3)}
    if name == "dit":
        given["class_labels"] = torch.arange(rows) + 7
    if name == "sdxl":
        given["added_cond_kwargs"] = {"text_embeds": draw(rows, POOLED), "time_ids": draw(rows, 6)}
    if name in ("class-conditional", "unet2d-class"):
        given["class_labels"] = torch.arange(rows) % 11
    return given


def denoiser_pipe(name: str = "plain", schedule_name: str = "ddim") -> SimpleNamespace:
    """As much of a pipeline as encoder propagation needs: a denoiser and a scheduler."""
    part = "transformer" if name == "dit" else "unet"
    return SimpleNamespace(**{part: denoiser(name)}, scheduler=scheduler(schedule_name), family=FAMILIES[name])


def loop(
    pipe: Any,
    steps: int,
    arguments: dict[str, Any] | Callable[[int], dict[str, Any]],
    *,
    rows: int = 2,
    size: Sequence[int] | None = None,
    predict: Callable | None = None,
) -> Tensor:
    """A sampling loop by hand; `predict(step, sample, timestep, arguments)` stands for the denoiser where it is given."""
    model = denoiser_of(pipe)
    dtype = next(model.parameters()).dtype
    shape = pipe.family.shape(rows, size or pipe.family.sides)
    sample = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64).to(dtype)
    pipe.scheduler.set_timesteps(steps)
    sample = sample * pipe.scheduler.init_noise_sigma
    for step, timestep in enumerate(pipe.scheduler.timesteps):
        given = arguments(step) if callable(arguments) else arguments
        asked = timestep.expand(rows) if pipe.family.kind is DiTTransformer2DModel else timestep
        scaled = pipe.scheduler.scale_model_input(sample, timestep)
        noise = predict(step, scaled, timestep, given) if predict else model(scaled, timestep=asked, **given).sample
        sample = pipe.scheduler.step(noise, timestep, sample).prev_sample
    return sample


def _autoencoder(dtype: torch.dtype) -> AutoencoderTiny:
    channels = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    return AutoencoderTiny(**channels, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1)).eval().requires_grad_(False).to(dtype)


def pipeline(schedule_name: str = "ddim", dtype: torch.dtype = torch.float64, name: str = "plain") -> StableDiffusionPipeline:
    """A real StableDiffusionPipeline of tiny parts that is given text embeddings instead of prompts."""
    return pipeline_of(unet(name, dtype), schedule_name)


def pipeline_of(model: UNet2DConditionModel, schedule_name: str = "ddim") -> StableDiffusionPipeline:
    pipe = StableDiffusionPipeline(
        vae=_autoencoder(model.dtype), text_encoder=None, tokenizer=None, unet=model, scheduler=scheduler(schedule_name),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    return pipe


def controlnet_pipeline(dtype: torch.dtype = torch.float64) -> StableDiffusionControlNetPipeline:
    torch.manual_seed(3)
    options = {
        key: PLAIN[key]
        for key in ("block_out_channels", "norm_num_groups", "cross_attention_dim", "attention_head_dim", "layers_per_block")
    }
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


def run(pipe: Any, steps: int = 10, guidance: float = 5.0, images: int = 2, **options: Any) -> Tensor:
    """The final latents of a real pipeline on fixed embeddings, latents and seed; latents of half a control image's sides."""
    dtype = pipe.unet.dtype
    text = torch.randn((images, TOKENS, WIDTH), generator=torch.Generator().manual_seed(1)).to(dtype)
    sides = [side // 2 for side in options["image"].shape[-2:]] if "image" in options else SIDES
    latents = torch.randn((images, 4, *sides), generator=torch.Generator().manual_seed(2)).to(dtype)
    options = {"latents": latents, "prompt_embeds": text, "negative_prompt_embeds": torch.zeros_like(text)} | options
    generator = torch.Generator().manual_seed(3)
    return pipe(
        num_inference_steps=steps, guidance_scale=guidance, output_type="latent", generator=generator, **options
    ).images  # fmt: skip


def denoiser_calls(pipe: Any, steps: int = 10) -> int:
    pipe.scheduler.set_timesteps(steps)
    return len(pipe.scheduler.timesteps)


def state(pipe: Any) -> Any:
    """All attributes and hooks of denoiser and scheduler, by name."""
    modules = {
        name: (set(vars(m)), m.__dict__.get("_compiled_call_impl"), len(m._forward_pre_hooks), len(m._forward_hooks))
        for name, m in denoiser_of(pipe).named_modules()
    }  # fmt: skip
    return modules, {name for name in vars(pipe.scheduler) if callable(vars(pipe.scheduler)[name])}, set(vars(pipe))
