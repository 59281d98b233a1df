"""Measure the distance of sets of images to sets of drawn scenes, by our judge's features.

`python -m studies.scene_distance` does it for the embedded pipeline.

- `scene_distance(pipe, methods, count, ...)`: one row per method
- `scene_features(images)`: the judge's features of images
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pandas as pd
import torch
import typer
from PIL import Image
from torch import Tensor

from fastdiff_lab.calibration.derive import derive_schedule
from fastdiff_lab.comparison.image_quality.distances import frechet_distance, kernel_distance
from fastdiff_lab.comparison.render import drawn
from fastdiff_lab.inputs.files import write_whole
from fastdiff_lab.key_schedule import KeySchedule
from fastdiff_lab.pipelines import EMBEDDED_GUIDANCE, embedded_costs, embedded_fit, load_pipeline
from fastdiff_lab.propagation.config import PropagationConfig
from fastdiff_lab.sampling.methods import Method
from fastdiff_lab.sampling.run_settings import RunSettings
from fastdiff_lab.shapes.data import as_tensor, held_out_scenes
from fastdiff_lab.shapes.judge import load_judge
from fastdiff_lab.shapes.scenes import draw

from .options import Jobs, Threads

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


_AT_ONCE = 100  # images in a batch of the judge


@torch.no_grad()
def scene_features(images: Sequence[Image.Image]) -> Tensor:
    """The judge's features of images of 64x64 pixels, shape (images, 128).

    >>> scene_features([draw(sample_scene(0))]).shape  # doctest: +SKIP
    torch.Size([1, 128])
    """
    judge, starts = load_judge(), range(0, len(images), _AT_ONCE)
    return torch.cat([judge.features(torch.stack([as_tensor(image) for image in images[i : i + _AT_ONCE]])) for i in starts])


def scene_distance(
    pipe: DiffusionPipeline,
    methods: Mapping[str, Method],
    count: int,
    *,
    num_inference_steps: int = 50,
    guidance_scale: float | None = None,
    batch_size: int = 25,
    n_jobs: int | None = None,
    store: str | Path | None = None,
) -> pd.DataFrame:
    """Draw `count` images per method, and measure how far their features are from those of as many drawn scenes.

    >>> scene_distance(pipe, {"baseline": Method(), "paper": Method(KeySchedule.paper(50))}, 1000, store="scenes.sqlite")  # doctest: +SKIP

    Captions are those of `count` (4 or more) held-out scenes; the drawn scenes follow after them. Other arguments as for `compare`.
    Returns columns method, kernel_distance, deviation (over subsets of half the images), frechet_distance, images. The first row,
    "drawn scenes", compares with further drawn scenes: nothing can be nearer. Features are divided by the mean
    standard deviation of the drawn scenes, so that the kernel's terms count alike. Raises ValueError for fewer images.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 4:
        raise ValueError(f"{count!r} images per method asked; accepted: a whole number of 4 or more")
    scenes = held_out_scenes(3 * count)
    tasks = [(scene.caption(), seed) for seed, scene in enumerate(scenes[:count])]
    run = RunSettings(num_inference_steps, guidance_scale).on(pipe)
    results = drawn(pipe, methods, tasks, run, batch_size=batch_size, n_jobs=n_jobs, store=store)
    drawn_images = {name: [result.image for result in found] for name, found in results.items()}
    real, further = ([draw(scene) for scene in scenes[start : start + count]] for start in (count, 2 * count))
    true = scene_features(real)
    centre, scale = true.mean(dim=0), true.std(dim=0).square().mean().sqrt()

    def seen(images: list[Image.Image]) -> Tensor:
        return (scene_features(images) - centre) / scale

    return pd.DataFrame(
        [_distances(name, seen(images), seen(real)) for name, images in ({"drawn scenes": further} | drawn_images).items()]
    )


def _distances(name: str, found: Tensor, true: Tensor) -> dict[str, Any]:
    kernel, deviation = kernel_distance(found, true)
    frechet = frechet_distance(found, true)
    return {
        "method": name,
        "kernel_distance": kernel,
        "deviation": deviation,
        "frechet_distance": frechet,
        "images": len(found),
    }


def main(
    output: Annotated[Path, typer.Argument(help="CSV file to write.")],
    count: Annotated[int, typer.Option(help="Images per method.")] = 1000,
    threads: Threads = 2,
    jobs: Jobs = None,
    store: Annotated[Path, typer.Option(help="File that keeps each image.")] = Path("runs/scenes.sqlite"),
) -> None:
    """Measure the baseline, nine derived keys without and with a fit, and the paper's, on the embedded pipeline."""
    torch.set_num_threads(threads)
    methods = {
        "baseline": Method(),
        "derived 9, features reused": Method(derive_schedule(embedded_costs(), 9)),
        "derived 9, features reused, fitted": Method(PropagationConfig.of_fit(embedded_fit(9))),
        "the paper's 9, features reused": Method(KeySchedule.paper(50)),
    }
    table = scene_distance(load_pipeline(), methods, count, guidance_scale=EMBEDDED_GUIDANCE, n_jobs=jobs, store=store)
    write_whole(output, lambda place: table.to_csv(place, index=False, float_format="%.6g"))
    typer.echo(table.to_string(index=False))


if __name__ == "__main__":
    typer.run(main)
