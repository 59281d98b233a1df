"""Train only the decoder of a trained autoencoder: `python -m studies.training.decoder_training`.

The encoder stays as it is, and so do the latents: a denoiser trained on them, and all that was measured on it.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import torch
import typer
from diffusers import AutoencoderTiny
from torch import nn

from fastdiff_lab.inputs.files import writable_folder

from .autoencoder import crops, image_error
from .model_files import save_half, tidy_autoencoder
from .scene_batches import Ahead
from .trainer import NO_LIMIT, fit

LARGEST_NOISE = 0.25  # in standard deviations of the latents; see LATENT_NOISE of autoencoder.py
BATCH = 24


def train_decoder(
    folder: Path, vae: AutoencoderTiny, *, device: str, max_steps: int, max_seconds: float, workers: int = 0
) -> AutoencoderTiny:
    """Train an autoencoder's decoder on noisy latents of drawn scenes; its encoder does not change.

    >>> vae = train_decoder(Path("runs/decoder"), vae, device="cpu", max_steps=20000, max_seconds=1200)  # doctest: +SKIP

    Checkpoints and losses go to `folder`. The same call resumes.

    Args:
        vae: Already trained. It is changed and returned.
        device: Where it lies.
        max_steps: Each of 24 crops of 32x32 pixels.
        max_seconds: Training ends at the first of the two limits.
        workers: Processes that draw scenes ahead.
    """
    batches = Ahead(partial(crops, BATCH), workers)

    def loss(decoder: nn.Module, step: int, progress: float) -> torch.Tensor:
        images, generator = batches(step).to(device), torch.Generator().manual_seed(step)
        with torch.no_grad():
            latents = vae.encoder(images)
        noise = torch.rand(BATCH, 1, 1, 1, generator=generator) * torch.randn(latents.shape, generator=generator)
        drawn = decoder(latents + LARGEST_NOISE * latents.std() * noise.to(device))
        return image_error(drawn, images)

    decoder = vae.decoder.requires_grad_(True)
    vae.decoder = fit(
        decoder, loss, name="decoder", folder=folder, learning_rate=1e-3, ema_decay=0.998, max_steps=max_steps, max_seconds=max_seconds
    )  # fmt: skip
    return vae


def main(
    source: Annotated[Path, typer.Argument(help="Folder of a trained autoencoder.")] = Path("data/shapes/vae"),
    output: Annotated[Path, typer.Option(help="Folder for the autoencoder; checkpoints go beside it.")] = Path("runs/decoder/vae"),
    minutes: Annotated[float, typer.Option(help="Training time; the same call resumes.")] = 25.0,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
) -> None:
    """Train the decoder and save the autoencoder with fp16 weights."""
    torch.set_num_threads(threads)
    writable_folder(output)
    vae = AutoencoderTiny.from_pretrained(source, torch_dtype=torch.float32)
    save_half(train_decoder(output.parent, vae, device="cpu", max_steps=NO_LIMIT, max_seconds=60 * minutes), output)
    tidy_autoencoder(output)


if __name__ == "__main__":
    typer.run(main)
