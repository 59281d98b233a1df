"""Train the judge."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from fastdiff_lab.shapes.judge import Judge
from fastdiff_lab.shapes.scenes import CHOICES, sample_scene

from .scene_batches import Ahead, scene_images, seeds_of_draw
from .trainer import fit


def blur(images: Tensor, sigma: float) -> Tensor:
    """Gaussian blur with a standard deviation in pixels."""
    reach = max(1, round(3 * sigma))
    kernel = torch.exp(-(torch.arange(-reach, reach + 1, device=images.device) ** 2) / (2 * sigma**2))
    kernel = (kernel / kernel.sum()).expand(3, 1, -1)
    rows = functional.conv2d(functional.pad(images, (reach, reach, 0, 0), "replicate"), kernel[:, :, None, :], groups=3)
    return functional.conv2d(functional.pad(rows, (0, 0, reach, reach), "replicate"), kernel[:, :, :, None], groups=3)


def spoil(images: Tensor, generator: torch.Generator) -> Tensor:
    """Spoil scenes (batch, 3, 64, 64): a quarter each blurred, blended, bare and noisy."""

    def between(low: float, high: float) -> float:
        return low + (high - low) * torch.rand((), generator=generator).item()

    blurred, blended, bare, noisy = (images[kind::4] for kind in range(4))
    weight = between(0.3, 0.5)
    noise = torch.randn(noisy.shape, generator=generator).to(images.device)
    return torch.cat([
        blur(blurred, between(2.0, 6.0)),
        weight * blended + (1 - weight) * images.roll(2, dims=0)[1::4],
        bare[:, :, :1, :1].expand_as(bare) + between(0, 0.05) * torch.randn(bare.shape, generator=generator).to(images.device),
        noisy + between(0.5, 1.5) * noise,
    ])  # fmt: skip


def blemish(images: Tensor, generator: torch.Generator) -> Tensor:
    """Add what a generated scene may have: soft edges, a little noise, slightly other colours."""
    softness = 0.2 + 0.6 * torch.rand((), generator=generator).item()
    noise = 0.1 * torch.rand((), generator=generator) * torch.randn(images.shape, generator=generator)
    tint = 0.06 * torch.randn((len(images), 3, 1, 1), generator=generator)
    return blur(images, softness) + (noise + tint).to(images.device)


def targets(seeds: range) -> dict[str, Tensor]:
    """The class of each attribute; -100, which the loss ignores, for a missing second object."""
    wanted = {name: torch.full((len(seeds),), -100) for name in CHOICES}
    for row, seed in enumerate(seeds):
        scene = sample_scene(seed)
        truth = {"background": scene.background, "layout": scene.layout}
        for number, thing in enumerate(scene.things, start=1):
            truth |= {f"shape_{number}": thing.shape, f"colour_{number}": thing.colour, f"size_{number}": thing.size}
        for name, value in truth.items():
            wanted[name][row] = CHOICES[name].index(value)
    return wanted


def judged_scenes(size: int, draw: int) -> tuple[Tensor, dict[str, Tensor]]:
    """The images of a draw, and their classes."""
    seeds = seeds_of_draw(draw, size)
    return scene_images(seeds), targets(seeds)


def train_judge(folder: Path, *, device: str, max_steps: int, max_seconds: float, batch_size: int = 64, workers: int = 0) -> Judge:
    """Train the judge, in each step on a quarter as many spoilt images as scenes.

    >>> judge = train_judge(Path("runs/train"), device="cpu", max_steps=2000, max_seconds=480)  # doctest: +SKIP
    """

    batches = Ahead(partial(judged_scenes, batch_size), workers)

    def loss(model: nn.Module, step: int, progress: float) -> Tensor:
        generator = torch.Generator().manual_seed(step)
        images, classes = batches(step)
        images = images.to(device)
        spoilt = spoil(images[: batch_size // 4], generator)
        scores = model(torch.cat([blemish(images, generator), spoilt]))
        errors = [
            functional.cross_entropy(scores[name][:batch_size], wanted.to(device), ignore_index=-100)
            for name, wanted in classes.items()
        ]
        is_scene = (torch.arange(batch_size + len(spoilt), device=device) < batch_size).float()
        return sum(errors) + functional.binary_cross_entropy_with_logits(scores["is_scene"], is_scene)

    model = Judge().to(device)
    return fit(
        model, loss, name="judge", folder=folder, learning_rate=3e-3, max_steps=max_steps, max_seconds=max_seconds, ema_decay=0.99
    )  # fmt: skip


@torch.no_grad()
def judge_accuracy(judge: Judge, seeds: range) -> dict[str, float]:
    """Share of drawn scenes whose attributes the judge reads right (abstentions are wrong), and `abstained`."""
    right: dict[str, list[bool]] = {name: [] for name in CHOICES}
    abstained = 0
    for start in range(0, len(seeds), 256):
        part = seeds[start : start + 256]
        for read, seed in zip(judge.read(scene_images(part)), part, strict=True):
            abstained += read is None
            for name, wanted in targets(range(seed, seed + 1)).items():
                if wanted.item() != -100:
                    right[name].append(read is not None and read.get(name) == CHOICES[name][wanted.item()])
    return {name: sum(values) / len(values) for name, values in right.items()} | {"abstained": abstained / len(seeds)}
