"""Measure the library's own cost on the embedded pipeline, as ratios in one run: `python -m studies.bench.overheads`.

- `measure(pipe, ...)`: hooks with every step a key, fitting and using a fit, recording, memory of an image
"""

from __future__ import annotations

import json
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer

from fastdiff_lab.calibration.fitting import fit_propagation
from fastdiff_lab.comparison.environment import about_run
from fastdiff_lab.hooks.peak_memory import peak_bytes
from fastdiff_lab.inputs.files import write_text
from fastdiff_lab.key_schedule import KeySchedule
from fastdiff_lab.pipelines import load_pipeline
from fastdiff_lab.propagation.config import PropagationConfig
from fastdiff_lab.recording.record import record
from fastdiff_lab.sampling.methods import Method, denoiser_calls, sample
from fastdiff_lab.shapes.data import calibration_scenes

from .full_pipelines import PROMPT

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def _methods(num_steps: int) -> dict[str, Method]:
    paper = KeySchedule.of_paper(num_steps)
    return {
        "baseline": Method(),
        "paper, serial": Method(paper, parallel_decoding=False),
        "paper, parallel": Method(paper),
        "paper, parallel, max_rows=10": Method(paper, max_rows=10),
    }


def memory(pipe: DiffusionPipeline, methods: dict[str, Method], options: dict[str, Any]) -> dict[str, int]:
    """The most bytes that tensors of one image hold at one time, per method, without the weights."""
    found = {}
    for name, method in methods.items():
        with peak_bytes() as peak:
            sample(pipe, method, [PROMPT], [0], **options)
        found[name] = peak.bytes
    return found


def in_turns(pipe: DiffusionPipeline, method: Method, beside: Method, steps: int, pairs: int) -> dict[str, float]:
    """Seconds of a method by seconds of another: of the fastest runs, and the median of pairs.

    Noise only adds time, so the fastest runs are compared. The two take turns at going first.
    """
    methods = (beside, method)
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(pairs + 1):
        for place in (0, 1) if turn % 2 else (1, 0):
            spent = sample(pipe, methods[place], [PROMPT], [0], num_inference_steps=steps).seconds
            if turn:
                seconds[place].append(spent)
    ratios = [one / other for other, one in zip(*seconds, strict=True)]
    return {"of_the_fastest": min(seconds[1]) / min(seconds[0]), "median_of_pairs": statistics.median(ratios), "pairs": pairs}


def fit_cost(pipe: DiffusionPipeline, options: dict[str, Any], pairs: int, images: int = 8) -> dict[str, Any]:
    """Seconds of fitting the paper's keys, and those of sampling with the fit by those without.

    Both were measured on something, so both compare it with the pipeline when their block is entered.
    """
    steps, prompts = options["num_inference_steps"], [scene.caption() for scene in calibration_scenes(images)]
    schedule = KeySchedule.of_paper(denoiser_calls(pipe, steps))
    started = time.perf_counter()
    fit = fit_propagation(pipe, schedule, prompts, **options)
    seconds = time.perf_counter() - started
    unfitted = Method(replace(schedule, measured_on=fit.measured_on))
    ratio = in_turns(pipe, Method(PropagationConfig.of_fit(fit)), unfitted, steps, pairs)
    return {"fitting_seconds": seconds, "images": images, "sampling": ratio}


def recording_cost(pipe: DiffusionPipeline, options: dict[str, Any], repeats: int) -> float:
    """Seconds with statistics of all blocks recorded by seconds without, the median of runs that take turns."""
    ratios = []
    for turn in range(repeats + 1):
        plain = sample(pipe, Method(), [PROMPT], [0], **options).seconds
        with record(pipe):
            recorded = sample(pipe, Method(), [PROMPT], [0], **options).seconds
        if turn:
            ratios.append(recorded / plain)
    return statistics.median(ratios)


def measure(pipe: DiffusionPipeline, *, num_inference_steps: int = 50, repeats: int = 7) -> dict[str, Any]:
    """Measure the cost of propagation's and recording's hooks and of a fit, and the memory of an image.

    >>> measure(load_pipeline(), repeats=3)["every_step_a_key"]  # doctest: +SKIP
    """
    options, pairs = {"num_inference_steps": num_inference_steps}, 2 * repeats + 1
    return about_run(pipe) | {
        "repeats": repeats,
        "every_step_a_key": in_turns(pipe, Method(KeySchedule.uniform(20, 20)), Method(), steps=20, pairs=pairs),
        "fit": fit_cost(pipe, options, pairs),
        "recording_statistics": recording_cost(pipe, options, repeats),
        "peak_bytes": memory(pipe, _methods(denoiser_calls(pipe, num_inference_steps)), options),
    }


def main(
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    repeats: Annotated[int, typer.Option(help="Timed runs per method.")] = 7,
    output: Annotated[Path | None, typer.Option(help="JSON file to write.")] = None,
) -> None:
    """Print what hooks, recording and a fit cost on the embedded pipeline, and the memory of an image."""
    torch.set_num_threads(threads)
    result = json.dumps(measure(load_pipeline(), repeats=repeats), indent=2, default=str)
    typer.echo(result)
    if output is not None:
        write_text(output, result + "\n")


if __name__ == "__main__":
    typer.run(main)
