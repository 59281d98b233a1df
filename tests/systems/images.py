"""Kandinsky 2.1 and 2.2, Kolors, DreamLite, Paint by Example, GLIGEN, Marigold, LEDITS++: what diffusers' own tests showed to work."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderTiny,
    DreamLitePipeline,
    DreamLiteUNetModel,
    FlowMatchEulerDiscreteScheduler,
    KandinskyPipeline,
    KandinskyV22Pipeline,
    LEditsPPPipelineStableDiffusion,
    MarigoldDepthPipeline,
    PaintByExamplePipeline,
    StableDiffusionGLIGENPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.pipelines.deprecated.paint_by_example import PaintByExampleImageEncoder
from diffusers.pipelines.kandinsky.text_encoder import MCLIPConfig, MultilingualCLIP
from PIL import Image
from transformers import CLIPVisionConfig

from .base import System, given
from .latent import quantised
from .parts import (
    SDXL_UNET,
    SIZE,
    UNET,
    WIDTH,
    assembled,
    autoencoder,
    built,
    drawn,
    image,
    normal,
    scheduler,
    text_encoder,
    tokenizer,
    unet,
)
from .stable_diffusion import LATENT, MASK, NEGATIVE, OTHER_TEXT, stable_diffusion

IMAGE_WIDTH = 30  # of an image's embedding
OF_IMAGES = UNET | {
    "out_channels": 8, "cross_attention_dim": IMAGE_WIDTH, "encoder_hid_dim": IMAGE_WIDTH, "encoder_hid_dim_type": "image_proj",
    "addition_embed_type": "image", "attention_head_dim": 16, "resnet_time_scale_shift": "scale_shift",
    "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
    "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"), "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
}  # fmt: skip
OF_TEXTS = OF_IMAGES | {"encoder_hid_dim": WIDTH, "encoder_hid_dim_type": "text_image_proj", "addition_embed_type": "text_image"}


def kandinsky_2_2() -> Any:
    """The image's embedding, which the prior makes of the text, is all that it gets."""
    return assembled(KandinskyV22Pipeline, unet=unet(OF_IMAGES), movq=quantised(channels=4), scheduler=scheduler())


def kandinsky_2_1() -> Any:
    words = tokenizer()
    config = MCLIPConfig(
        transformerDimSize=WIDTH, imageDimSize=IMAGE_WIDTH, hidden_size=WIDTH, intermediate_size=16, num_attention_heads=3,
        num_hidden_layers=2, vocab_size=len(words), max_position_embeddings=90, pad_token_id=words.pad_token_id,
    )  # fmt: skip
    encoder = built(lambda: MultilingualCLIP(config), 5)
    for name, parameter in encoder.named_parameters():
        parameter.data *= 30 if "embeddings" in name and parameter.dim() > 1 else 1  # initial weights make all texts alike
    parts = {"unet": unet(OF_TEXTS), "movq": quantised(channels=4), "scheduler": scheduler()}
    return assembled(KandinskyPipeline, text_encoder=encoder, tokenizer=words, **parts)


def kolors() -> Any:
    """SDXL's UNet with a text of another width, by SDXL's pipeline: Kolors' own is like it, and needs sentencepiece."""
    config = SDXL_UNET | {
        "encoder_hid_dim": 22, "encoder_hid_dim_type": "text_proj", "projection_class_embeddings_input_dim": 6 * 4 + 17,
    }  # fmt: skip
    absent = dict.fromkeys(("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"))
    return assembled(StableDiffusionXLPipeline, vae=autoencoder(), unet=unet(config), scheduler=scheduler(), **absent)


def dreamlite() -> Any:
    """The image to be edited beside the noise, or zeros; the text's embedding is drawn, since its encoder is a language model."""
    config = UNET | {
        "down_block_types": ("DreamLiteCrossAttnNoSelfAttnDownBlock2D", "DreamLiteCrossAttnDownBlock2D"), "norm_num_groups": 6,
        "up_block_types": ("DreamLiteCrossAttnUpBlock2D", "DreamLiteUpBlock2D"), "addition_embed_type": "time",
        "addition_time_embed_dim": 16, "projection_class_embeddings_input_dim": 32, "use_linear_projection": True,
    }  # fmt: skip
    vae = {
        "encoder_block_out_channels": (8,) * 3,
        "decoder_block_out_channels": (8,) * 3,
        "num_encoder_blocks": (1,) * 3,
        "num_decoder_blocks": (1,) * 3,
    }
    parts = {
        "text_encoder": text_encoder(tokenizer()), "tokenizer": None, "processor": None, "vae": built(lambda: AutoencoderTiny(**vae), 2),
        "unet": built(lambda: DreamLiteUNetModel(**config)), "scheduler": FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True),
    }  # fmt: skip
    pipe = assembled(DreamLitePipeline, **parts)
    pipe.encode_prompt = _drawn_texts
    return pipe


def _drawn_texts(mode: str, prompts: list[str], dtype: torch.dtype, **_: Any) -> tuple[torch.Tensor, torch.Tensor]:
    texts = torch.cat([normal(1, 13, WIDTH, seed=len(prompt)) for prompt in prompts])
    return texts.to(dtype), (torch.arange(13) < 11).long().repeat(len(prompts), 1)


def paint_by_example() -> Any:
    config = CLIPVisionConfig(
        hidden_size=WIDTH, intermediate_size=16, num_hidden_layers=5, num_attention_heads=3, image_size=16, patch_size=8,
        projection_dim=WIDTH,
    )  # fmt: skip
    encoder = built(lambda: PaintByExampleImageEncoder(config, proj_size=WIDTH), 6)
    parts = {"vae": autoencoder(), "unet": unet(UNET | {"in_channels": 9}), "scheduler": scheduler()}
    return assembled(
        PaintByExamplePipeline, image_encoder=encoder, safety_checker=None, feature_extractor=None, **parts
    )  # fmt: skip


def gligen() -> Any:
    """Boxes, each with its own phrase, by attention layers that a switch takes out for the later steps."""
    pipe = stable_diffusion(StableDiffusionGLIGENPipeline, UNET | {"attention_type": "gated"})
    for name, parameter in pipe.unet.named_parameters():
        if ".alpha_" in name:
            parameter.fill_(1.0)  # of what the boxes add
    return pipe


def marigold() -> Any:
    """The depth of an image: its latents beside the noise, and an empty text."""
    return stable_diffusion(
        MarigoldDepthPipeline, UNET | {"in_channels": 8}, safety_checker=..., feature_extractor=..., prediction_type="depth",
        default_denoising_steps=6, default_processing_resolution=0,
    )  # fmt: skip


def ledits() -> Any:
    """An image that was inverted, to be edited; its attention processors keep the maps of all rows, at a quarter of the latents' sides."""
    config = UNET | {
        "block_out_channels": (18, 48, 27), "norm_num_groups": 3, "down_block_types": ("DownBlock2D",) + ("CrossAttnDownBlock2D",) * 2,
        "up_block_types": ("CrossAttnUpBlock2D",) * 2 + ("UpBlock2D",),
    }  # fmt: skip
    solver = scheduler("DPMSolverMultistepScheduler", algorithm_type="sde-dpmsolver++", solver_order=2)
    vae = autoencoder(channels=(4, 8, 8, 12))  # it takes sides of 32 times a number only
    pipe = stable_diffusion(LEditsPPPipelineStableDiffusion, config, vae=vae, scheduler=solver)
    pixels = (255 * drawn(3, 160, 224, seed=12).permute(1, 2, 0)).byte().numpy()
    pipe.invert(Image.fromarray(pixels), num_inversion_steps=6, skip=0.15, generator=torch.Generator().manual_seed(4))
    return pipe


def _embedding(seed: int) -> torch.Tensor:
    return normal(1, IMAGE_WIDTH, seed=seed)


EMBEDDED = {
    "image_embeds": _embedding(41), "negative_image_embeds": _embedding(42), "num_inference_steps": 6, "height": 28, "width": 20,
    "output_type": "latent",
}  # fmt: skip
OTHER_EMBEDDING = {"image's embedding": given(image_embeds=_embedding(43)), "guidance": given(guidance_scale=2.0)}
KOLORS = {
    "prompt_embeds": normal(1, 13, 22, seed=44), "pooled_prompt_embeds": normal(1, 17, seed=45),
    "num_inference_steps": 6, "output_type": "latent", "negative_prompt": None,
    "negative_prompt_embeds": normal(1, 13, 22, seed=46), "negative_pooled_prompt_embeds": normal(1, 17, seed=47),
}  # fmt: skip
BOX = [[0.1, 0.1, 0.6, 0.7]]
GLIGEN = {"gligen_phrases": ["a blue star"], "gligen_boxes": BOX, "gligen_scheduled_sampling_beta": 0.5}
EXAMPLE = drawn(1, 3, 16, 16, seed=13)
IMAGE = 2 * image() - 1
COMBINED = "the combined pipeline calls this one, and is accelerated with it (tests/test_shared_parts.py has the kind)"
DEPRECATED = "in diffusers 0.42.1 under `pipelines/deprecated`"
SYSTEMS = (
    System(
        "kandinsky-2.2", "Kandinsky 2.2", kandinsky_2_2, EMBEDDED, OTHER_EMBEDDING, by_hand=False, note=COMBINED,
    ),
    System(
        "kandinsky-2.1", "Kandinsky 2.1", kandinsky_2_1, EMBEDDED | {"prompt": "a red circle", "output_type": "pt"},
        OTHER_TEXT | {"image's embedding": given(image_embeds=_embedding(43))}, by_hand=False, note=COMBINED,
    ),
    System(
        "kolors", "Kolors: its UNet, in SDXL's pipeline", kolors, SIZE | KOLORS,
        {
            "text": given(prompt_embeds=normal(1, 13, 22, seed=48)), "pooled text": given(pooled_prompt_embeds=normal(1, 17, seed=49)),
            "size condition": given(original_size=(64, 4)),
        }, note="Kolors' own pipeline needs sentencepiece, which is not installed for these tests",
    ),
    System(
        "dreamlite", "DreamLite: text to image", dreamlite, LATENT,
        OTHER_TEXT | {"guidance": given(guidance_scale=2.0)}, by_hand=False,
        note="the text's embedding is drawn here; in bfloat16 its time-steps are rounded, and what is decoded ahead is given the same",
    ),
    System(
        "gligen", "GLIGEN: a phrase for each box", gligen, LATENT | GLIGEN,
        OTHER_TEXT | NEGATIVE | {
            "phrase": given(gligen_phrases=["a white ring"]), "box": given(gligen_boxes=[[0.5, 0.2, 0.9, 0.9]]),
            "switch": given(gligen_scheduled_sampling_beta=1.0),
        }, keys=(0, 1, 3), by_hand=False, note=f"the step at which its switch goes off must be a key; else the error says so; {DEPRECATED}",
    ),
    System(
        "paint-by-example", "Paint by Example", paint_by_example,
        SIZE | {"image": IMAGE, "mask_image": MASK, "example_image": EXAMPLE, "num_inference_steps": 6, "output_type": "latent"},
        {
            "example": given(example_image=1 - EXAMPLE), "image": given(image=-IMAGE), "mask": given(mask_image=1 - MASK),
            "guidance": given(guidance_scale=2.0),
        }, note=DEPRECATED,
    ),
    System(
        "marigold", "Marigold: depth of an image", marigold, {"image": image(), "num_inference_steps": 6, "output_type": "pt"},
        {"image": given(image=1 - image())}, note="its latents are not guided",
    ),
    System(
        "ledits", "LEDITS++: an image inverted, then edited", ledits,
        {"editing_prompt": ["a white ring"], "edit_guidance_scale": 5.0, "edit_threshold": 0.9, "output_type": "latent"},
        {"edit": given(editing_prompt=["a blue star"]), "strength": given(edit_guidance_scale=2.0)},
        parallel=False, by_hand=False,
        note="serial, since its attention processors keep the maps of all rows; between keys its masks are made of the decoder's maps",
    ),
)  # fmt: skip
