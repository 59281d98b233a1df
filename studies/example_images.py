"""Draw the README's images, one column per method: `python -m studies.example_images data/tour/images.png`.

- `columns(pipe, prompts, ...)`: images by the method's name
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer

from fastdiff_lab import plot
from fastdiff_lab.comparison.measured import demo
from fastdiff_lab.inputs.files import write_whole
from fastdiff_lab.key_schedule import KeySchedule
from fastdiff_lab.pipelines import EMBEDDED_GUIDANCE, embedded_fit, load_pipeline
from fastdiff_lab.propagation.config import PropagationConfig
from fastdiff_lab.sampling.methods import Method, sample

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL import Image

    from fastdiff_lab.propagation.fit import PropagationFit

KEYS = 9


def columns(
    pipe: DiffusionPipeline, fit: PropagationFit, prompts: list[str], seeds: list[int], **of_run: Any
) -> dict[str, list[Image.Image]]:
    """Images of the baseline, of encoder propagation with several schedules and with a fit, and of a control.

    >>> columns(pipe, fl.embedded_fit(), ["a red star on a blue background"], [0], num_inference_steps=50)  # doctest: +SKIP

    `of_run` is as for `fl.sample`, with as many steps as the fit's schedule.
    """
    derived, count = fit.schedule, len(fit.schedule.keys)
    methods = {
        "baseline": Method(), "the paper's keys": Method(KeySchedule.paper(derived.num_steps)),
        f"uniform {count}": Method(KeySchedule.uniform(derived.num_steps, count)), f"derived {count}": Method(derived),
        f"derived {count}, fitted": Method(PropagationConfig.of_fit(fit)), f"{count} steps": Method(steps=count),
    }  # fmt: skip
    return {name: sample(pipe, method, prompts, seeds, **of_run).images for name, method in methods.items()}


def main(
    output: Annotated[Path, typer.Argument(help="PNG file to write.")],
    count: Annotated[int, typer.Option(help="Prompts.")] = 3,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
) -> None:
    """Draw the demo prompts of the notebooks with the embedded pipeline."""
    torch.set_num_threads(threads)
    prompts, seeds = demo(count)
    fit = embedded_fit(KEYS)
    of_run = {"num_inference_steps": fit.schedule.num_steps, "guidance_scale": EMBEDDED_GUIDANCE}
    images = columns(load_pipeline(), fit, prompts, seeds, **of_run)
    figure = plot.image_grid(images, plot.figure(1.5 * len(images), 3.0 * count))
    write_whole(output, lambda place: figure.savefig(place, format="png", dpi=110))


if __name__ == "__main__":
    typer.run(main)
