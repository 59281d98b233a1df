"""Stable Diffusion 1.x and 2.x, SDXL, image-to-image, inpainting."""

from __future__ import annotations

from typing import Any

from diffusers import (
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
)

from .base import PAPERS, System, done, given
from .parts import (
    SDXL_UNET,
    SIZE,
    UNET,
    UNSAFE,
    WIDTH,
    assembled,
    autoencoder,
    drawn,
    image,
    scheduler,
    text_encoder,
    text_parts,
    tokenizer,
    two_text_parts,
    unet,
)

TEXT = {"prompt": "a red circle", "negative_prompt": "a small black star", "guidance_scale": 5.0, "num_inference_steps": 6}
LATENT = TEXT | SIZE | {"output_type": "latent"}
OTHER_TEXT = {"text": given(prompt="a white ring at the left on a blue background")}
NEGATIVE = {"negative text": given(negative_prompt="a large green cross")}
MASK = (image(4, channels=1) > 0.5).double()


def stable_diffusion(kind: type = StableDiffusionPipeline, config: dict[str, Any] = UNET, **parts: Any) -> Any:
    """A pipeline of Stable Diffusion's parts, `parts` beside or instead of them."""
    given_parts = {"vae": autoencoder(), "unet": unet(config), "scheduler": scheduler(), **text_parts(), **UNSAFE} | parts
    return assembled(kind, **{name: part for name, part in given_parts.items() if part is not ...})


def drawing_small() -> Any:
    """One that draws images of 32x32 pixels where no size is asked."""
    return stable_diffusion(config=UNET | {"sample_size": 8})


def sdxl(kind: type = StableDiffusionXLPipeline, config: dict[str, Any] = SDXL_UNET, **parts: Any) -> Any:
    given_parts = {"vae": autoencoder(), "unet": unet(config), "scheduler": scheduler(), **two_text_parts()} | parts
    return assembled(kind, **given_parts)


def refiner() -> Any:
    """One text encoder, and an aesthetic score among the added conditions."""
    config = SDXL_UNET | {"cross_attention_dim": WIDTH, "projection_class_embeddings_input_dim": 5 * 4 + WIDTH}
    words = tokenizer()
    from transformers import CLIPTextModelWithProjection

    second = {"tokenizer_2": words, "text_encoder_2": text_encoder(words, CLIPTextModelWithProjection)}
    return sdxl(
        StableDiffusionXLImg2ImgPipeline, config, tokenizer=None, text_encoder=None, **second, requires_aesthetics_score=True
    )


def v_prediction() -> Any:
    config = UNET | {"use_linear_projection": True, "attention_head_dim": (3, 8)}
    return stable_diffusion(config=config, scheduler=scheduler(prediction_type="v_prediction", rescale_betas_zero_snr=True))


def _with_epsilon(pipe: Any) -> None:
    pipe.scheduler = scheduler()


IMAGE = image()
OTHER_IMAGE = {"image": given(image=1 - IMAGE)}

SYSTEMS = (
    System(
        "sd", "Stable Diffusion 1.x: text to image, guided, four images per prompt", stable_diffusion,
        LATENT | {"num_images_per_prompt": 4}, OTHER_TEXT | NEGATIVE | {"guidance": given(guidance_scale=2.0)},
        paper="stable-diffusion", size="sd-1.5",
        note="callbacks that change text, rows or adapter scales in mid-run: tests/test_changes_in_mid_run.py (law 11)", group=PAPERS,
    ),
    System(
        "sd-unguided", "Stable Diffusion 1.x: two prompts without guidance", stable_diffusion,
        LATENT | {"prompt": ["a red circle", "a blue star"], "negative_prompt": None, "guidance_scale": 1.0},
        {"text": given(prompt=["a red circle", "a white ring"])}, size="sd-1.5", group=PAPERS,
    ),
    System(
        "sd-2", "Stable Diffusion 2.x: v prediction, guidance rescaled", v_prediction, LATENT | {"guidance_rescale": 0.7},
        OTHER_TEXT | NEGATIVE | {"rescale": given(guidance_rescale=0.0), "v prediction": done(_with_epsilon)}, size="sd-2.1", group=PAPERS,
    ),
    System(
        "sd-img2img", "Stable Diffusion: image to image", lambda: stable_diffusion(StableDiffusionImg2ImgPipeline),
        TEXT | {"output_type": "latent", "image": IMAGE, "strength": 0.7, "num_inference_steps": 8},
        OTHER_TEXT | OTHER_IMAGE | {"strength": given(strength=0.5)}, calls=5, size="sd-1.5",
        note="strength changed between runs is another number of steps: refused by name, never the features of the run before",
    ),
    System(
        "sd-inpaint", "Stable Diffusion: inpainting with an ordinary UNet", lambda: stable_diffusion(StableDiffusionInpaintPipeline),
        LATENT | {"image": IMAGE, "mask_image": MASK, "strength": 1.0},
        OTHER_TEXT | OTHER_IMAGE | {"mask": given(mask_image=1 - MASK)}, size="sd-1.5",
    ),
    System(
        "sd-inpaint-9", "Stable Diffusion: inpainting with its UNet of nine channels",
        lambda: stable_diffusion(StableDiffusionInpaintPipeline, UNET | {"in_channels": 9}),
        LATENT | {"image": IMAGE, "mask_image": MASK, "strength": 1.0},
        OTHER_TEXT | OTHER_IMAGE | {"mask": given(mask_image=1 - MASK)}, size="sd-1.5-inpainting",
    ),
    System(
        "sdxl", "SDXL base: text to image", sdxl, LATENT,
        OTHER_TEXT | NEGATIVE | {"size condition": given(original_size=(64, 4)), "crop": given(crops_coords_top_left=(9, 3))}, size="sdxl",
    ),
    System(
        "sdxl-ends-early", "SDXL base: denoising_end, for a refiner", sdxl, LATENT | {"denoising_end": 0.7, "num_inference_steps": 10},
        OTHER_TEXT | {"denoising_end": given(denoising_end=0.5)}, calls=7, size="sdxl",
        note="the run's own number of steps counts: 7 of 10 here",
    ),
    System(
        "sdxl-refiner", "SDXL refiner: denoising_start", refiner,
        TEXT | {"output_type": "latent", "image": drawn(1, 4, 14, 10), "denoising_start": 0.4, "num_inference_steps": 10},
        OTHER_TEXT | {"latents": given(image=drawn(1, 4, 14, 10, seed=5)), "aesthetic score": given(aesthetic_score=1.0)},
        size="sdxl-refiner",
    ),
    System(
        "sdxl-img2img", "SDXL: image to image", lambda: sdxl(StableDiffusionXLImg2ImgPipeline),
        TEXT | {"output_type": "latent", "image": IMAGE, "strength": 0.6, "num_inference_steps": 10},
        OTHER_TEXT | OTHER_IMAGE | {"strength": given(strength=0.5)}, size="sdxl",
    ),
    System(
        "sdxl-inpaint", "SDXL: inpainting", lambda: sdxl(StableDiffusionXLInpaintPipeline),
        LATENT | {"image": IMAGE, "mask_image": MASK, "strength": 1.0 - 1e-4, "num_inference_steps": 6},
        OTHER_TEXT | OTHER_IMAGE | {"mask": given(mask_image=1 - MASK)}, calls=5, size="sdxl",
    ),
)  # fmt: skip
