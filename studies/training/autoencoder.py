"""The autoencoder of the embedded pipeline: 64x64 images to 16x16x4 latents."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderTiny
from torch import Tensor, nn

from fastdiff_lab.shapes.scenes import IMAGE_SIZE, sample_scene

from .scene_batches import Ahead, scene_images, seeds_of_draw
from .trainer import fit

# A decoder trained on slightly wrong latents draws clean edges from the denoiser's.
LATENT_NOISE = 0.1
CROP = IMAGE_SIZE // 2


def new_autoencoder() -> AutoencoderTiny:
    return AutoencoderTiny(
        encoder_block_out_channels=(32, 32, 32),
        decoder_block_out_channels=(32, 32, 32),
        num_encoder_blocks=(1, 2, 2),
        num_decoder_blocks=(2, 2, 1),
        latent_channels=4,
    )


def image_error(drawn: Tensor, images: Tensor) -> Tensor:
    """Absolute plus squared error of decoded images, both of shape (batch, 3, height, width) in [-1, 1]; a scalar."""
    return nn.functional.l1_loss(drawn, images) + nn.functional.mse_loss(drawn, images)


def reconstruction_loss(model: nn.Module, images: Tensor, noise: Tensor) -> Tensor:
    """Absolute and squared error of images decoded from noisy latents, plus a pull of the latents to unit size."""
    latents = model.encoder(images)
    scale = latents.detach().std()
    drawn = model.decoder(latents + LATENT_NOISE * scale * noise)
    size = (latents.square().mean(dim=(0, 2, 3)) - 1).square().mean() + latents.mean(dim=(0, 2, 3)).square().mean()
    return image_error(drawn, images) + 0.01 * size


def crops(size: int, draw: int) -> Tensor:
    """Crop each image of a draw to half its side around a part of an object: a quarter of the arithmetic."""
    generator = torch.Generator().manual_seed(draw)
    seeds, cut = seeds_of_draw(draw, size), []
    for seed, image in zip(seeds, scene_images(seeds), strict=True):
        things = sample_scene(seed).things
        x, y = things[seed % len(things)].centre
        left, top = (torch.randint(-CROP // 2, CROP // 2 + 1, (2,), generator=generator) - CROP // 2).tolist()
        left, top = (min(max(round(c) + d, 0), IMAGE_SIZE - CROP) for c, d in ((x, left), (y, top)))
        cut.append(image[:, top : top + CROP, left : left + CROP])
    return torch.stack(cut)


def train_autoencoder(
    folder: Path, *, device: str, max_steps: int, max_seconds: float, batch_size: int = 24, workers: int = 0
) -> AutoencoderTiny:
    """Train the autoencoder on drawn scenes.

    >>> vae = train_autoencoder(Path("runs/train"), device="cpu", max_steps=3000, max_seconds=480)  # doctest: +SKIP
    """

    batches = Ahead(partial(crops, batch_size), workers)

    def loss(model: nn.Module, step: int, progress: float) -> Tensor:
        images = batches(step).to(device)
        noise = torch.randn(batch_size, 4, 8, 8, generator=torch.Generator().manual_seed(step)).to(device)
        return reconstruction_loss(model, images, noise)

    model = new_autoencoder().to(device)
    trained = fit(
        model, loss, name="autoencoder", folder=folder, learning_rate=2e-3, max_steps=max_steps, max_seconds=max_seconds, ema_decay=0.995
    )  # fmt: skip
    return calibrated(trained, device)


@torch.no_grad()
def calibrated(model: AutoencoderTiny, device: str) -> AutoencoderTiny:
    """Set the scaling factor that gives the latents unit standard deviation, as in Stable Diffusion."""
    latents = model.encoder(scene_images(range(512)).to(device))
    model.register_to_config(scaling_factor=round(float(1 / latents.std()), 4))
    return model
