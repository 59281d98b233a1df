"""Measure what the embedded pipeline can do: `python -m studies.training.model_card`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pandas as pd
import torch
import typer
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from fastdiff_lab.cli.options import Device, Model
from fastdiff_lab.inputs.files import write_text, write_whole
from fastdiff_lab.pipelines import load_pipeline
from fastdiff_lab.sampling.methods import Method, sample
from fastdiff_lab.shapes.data import HELD_OUT, held_out_scenes
from fastdiff_lab.shapes.judge import load_judge, prompt_accuracy

from .judge_training import judge_accuracy
from .scene_batches import scene_images
from .train import contact_sheet

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


BATCH = 25


def draw_captions(pipe: DiffusionPipeline, captions: list[str], *, steps: int, guidance: float) -> list:
    """Draw one image per caption, with its place as the seed."""
    images: list = []
    for start in tqdm(range(0, len(captions), BATCH), desc="captions"):
        part = captions[start : start + BATCH]
        seeds = range(start, start + len(part))
        images += sample(pipe, Method(), part, list(seeds), num_inference_steps=steps, guidance_scale=guidance).images
    return images


@torch.no_grad()
def through_autoencoder(pipe: DiffusionPipeline, images: Tensor) -> list[Image.Image]:
    """Encode and decode images of shape (batch, 3, 64, 64) in [-1, 1]: what a perfect denoiser would give."""
    decoded = [pipe.vae(part).sample for part in images.to(pipe.vae.device).split(BATCH)]
    return pipe.image_processor.postprocess(torch.cat(decoded), output_type="pil")


def shares(rows: pd.DataFrame) -> dict[str, float]:
    """Share of images with each attribute right, with all of them, and with all but the layout."""
    wanted = rows.drop(columns=["abstained", "all"])
    right = {name: float(wanted[name].dropna().astype(bool).mean()) for name in wanted}
    without_layout = wanted.drop(columns="layout", errors="ignore").fillna(True).astype(bool).all(axis=1)
    return {
        "all": float(rows["all"].mean()), "all_without_layout": float(without_layout.mean()),
        "abstained": float(rows["abstained"].mean()), **right,
    }  # fmt: skip


def report(
    pipe: DiffusionPipeline,
    *,
    count: int = 500,
    kinds: Sequence[int] = (1, 2),
    steps: int = 50,
    guidance: float = 5.0,
    folder: Path | None = None,
) -> dict[str, Any]:
    """Prompt accuracy on `count` held-out captions of one and of two objects, and the judge's on 2,000 drawn scenes.

    `through_autoencoder` is the accuracy of the captions' own scenes, encoded and decoded.
    """
    found: dict[str, Any] = {"captions": count, "steps": steps, "guidance": guidance}
    for objects in kinds:
        captions = [scene.caption() for scene in held_out_scenes(count, objects)]
        images = draw_captions(pipe, captions, steps=steps, guidance=guidance)
        found[f"objects_{objects}"] = shares(prompt_accuracy(images, captions))
        passed = through_autoencoder(pipe, scene_images(range(HELD_OUT, HELD_OUT + count), objects))
        found[f"objects_{objects}_through_autoencoder"] = shares(prompt_accuracy(passed, captions))
        if folder is not None:
            sheet = contact_sheet(images[:64])
            write_whole(folder / f"objects_{objects}.png", lambda place, sheet=sheet: sheet.save(place, format="png"))  # type: ignore[misc]
    found["judge_on_drawn_scenes"] = judge_accuracy(load_judge(), range(HELD_OUT, HELD_OUT + 2000))
    return found


def main(
    count: Annotated[int, typer.Option(help="Held-out captions of each kind.")] = 500,
    objects: Annotated[int | None, typer.Option(help="1 or 2 objects in a caption only; both without it.")] = None,
    steps: Annotated[int, typer.Option(help="DDIM steps.")] = 50,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    model: Model = None,
    device: Device = "cpu",
    output: Annotated[Path | None, typer.Option(help="Folder for report.json and two sheets of 64 images.")] = None,
) -> None:
    """Print the embedded pipeline's prompt accuracy."""
    torch.set_num_threads(threads)
    pipe, kinds = load_pipeline(model, device=device), (1, 2) if objects is None else (objects,)
    found = report(pipe, count=count, kinds=kinds, steps=steps, folder=output)
    typer.echo(json.dumps(found, indent=2))
    if output is not None:
        write_text(output / "report.json", json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
