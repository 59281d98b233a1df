"""DeepFloyd-IF: the image in three stages (paper, section 4.1 and F.2)."""

from __future__ import annotations

from typing import Any

from diffusers import DDPMScheduler, IFPipeline, IFSuperResolutionPipeline, StableDiffusionUpscalePipeline

from .base import PAPERS, System, given
from .parts import UNET, UNSAFE, assembled, autoencoder, drawn, normal, scheduler, text_parts, unet

T5_WIDTH = 22
TEXT = {
    "prompt_embeds": normal(1, 13, T5_WIDTH, seed=1), "negative_prompt_embeds": normal(1, 13, T5_WIDTH, seed=2),
    "num_inference_steps": 6, "output_type": "pt", "guidance_scale": 4.0, "height": 14, "width": 10,
}  # fmt: skip
# Pixel space, learned variance, attention of one kind for pixels and text, and the text pooled into the time embedding.
IN_PIXELS = UNET | {
    "in_channels": 3, "out_channels": 6, "block_out_channels": (18, 48), "norm_num_groups": 6, "attention_head_dim": 12,
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "encoder_hid_dim": T5_WIDTH, "encoder_hid_dim_type": "text_proj", "addition_embed_type": "text", "addition_embed_type_num_heads": 2,
    "cross_attention_norm": "group_norm", "resnet_time_scale_shift": "scale_shift", "act_fn": "gelu", "time_embedding_act_fn": "gelu",
    "cross_attention_dim": 32,
}  # fmt: skip


def _noise(**options: Any) -> DDPMScheduler:
    return DDPMScheduler(
        beta_schedule="squaredcos_cap_v2", variance_type="learned_range", thresholding=True, sample_max_value=1.5, **options
    )


def first_stage() -> Any:
    return assembled(
        IFPipeline, tokenizer=None, text_encoder=None, unet=unet(IN_PIXELS), scheduler=_noise(), **UNSAFE, watermarker=None,
        requires_safety_checker=False,
    )  # fmt: skip


def second_stage() -> Any:
    parts = {"unet": unet(IN_PIXELS | {"in_channels": 6, "class_embed_type": "timestep"}), "scheduler": _noise()}
    return assembled(
        IFSuperResolutionPipeline, tokenizer=None, text_encoder=None, **parts, image_noising_scheduler=_noise(), **UNSAFE,
        watermarker=None, requires_safety_checker=False,
    )  # fmt: skip


def third_stage() -> Any:
    """Stable Diffusion's upscaler by four, which the paper uses as the third stage."""
    config = UNET | {
        "in_channels": 7,
        "num_class_embeds": 1000,
        "use_linear_projection": True,
        "only_cross_attention": (True, False),
    }
    parts = {"scheduler": scheduler(prediction_type="v_prediction"), "low_res_scheduler": DDPMScheduler()}
    return assembled(
        StableDiffusionUpscalePipeline, vae=autoencoder(scaling_factor=0.08333), unet=unet(config), **parts, **text_parts(), **UNSAFE,
        watermarker=None,
    )  # fmt: skip


FEATURES = {
    "text": given(prompt_embeds=normal(1, 13, T5_WIDTH, seed=3)), 
    "negative text": given(negative_prompt_embeds=normal(1, 13, T5_WIDTH, seed=3))
}  # fmt: skip
SMALL = drawn(1, 3, 7, 5)
UPSCALED = drawn(1, 3, 20, 28)
SYSTEMS = (
    System(
        "if-1", "DeepFloyd-IF, stage 1", first_stage, TEXT, FEATURES, paper="deepfloyd-if-1", paper_steps=100, size="if-1",
        note="the pooled text is part of the time embedding, which the decoder builds anew at every step", group=PAPERS,
    ),
    System(
        "if-2", "DeepFloyd-IF, stage 2", second_stage, TEXT | {"image": SMALL, "noise_level": 200},
        FEATURES | {"image": given(image=1 - SMALL), "noise level": given(noise_level=20)},
        paper="deepfloyd-if-2", paper_steps=50, group=PAPERS,
        note="the paper's list has every step a key, so nothing is saved; its code leaves out ten. Not among the full sizes: of the "
        "config of IF-II-L (1.2 B) only the layers per block could be confirmed",
    ),
    System(
        "if-3", "DeepFloyd-IF, stage 3: Stable Diffusion's upscaler by four", third_stage,
        {
            "prompt": "a red circle", "image": UPSCALED, "noise_level": 200, "num_inference_steps": 6, "guidance_scale": 4.0,
            "output_type": "latent",
        },
        {
            "text": given(prompt="a white ring at the left on a blue background"), "image": given(image=1 - UPSCALED),
            "noise level": given(noise_level=20),
        }, paper="deepfloyd-if-3", paper_steps=75, size="x4-upscaler", group=PAPERS,
    ),
)  # fmt: skip
