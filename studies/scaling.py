"""Measure what several devices gain for one image: `torchrun --nproc-per-node 2 -m studies.scaling`.

- `share_of(schedule, size)`: what one of several processes evaluates
- `measure(pipe, group)`: seconds of one process and of all, and the distance of their latents
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import torch.distributed as dist
import typer
from torch import Tensor, nn

from fastdiff_lab.comparison.environment import about_run
from fastdiff_lab.comparison.time_ceiling import at_best, decoder_seconds, encoder_seconds
from fastdiff_lab.hooks.denoiser import denoiser_of
from fastdiff_lab.hooks.device import synchronize
from fastdiff_lab.inputs.files import write_text
from fastdiff_lab.key_schedule import KeySchedule
from fastdiff_lab.pipelines import load_pipeline
from fastdiff_lab.propagation.distributed import Ranks
from fastdiff_lab.propagation.encoder_propagation import encoder_propagation
from fastdiff_lab.sampling.methods import denoiser_arguments, denoiser_calls, generators
from fastdiff_lab.sampling.run_settings import RunSettings
from studies.bench.full_pipelines import PROMPT

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def share_of(schedule: KeySchedule, size: int) -> KeySchedule:
    """What one of `size` processes evaluates: each key step, and the largest share of the rest of its group.

    >>> str(share_of(KeySchedule(10, [0, 4]), 2))  # groups of 4 and 6 steps: 1 + 2 and 1 + 3 are left
    '0,3 of 7'
    """
    shares = [1 + math.ceil((len(group) - 1) / size) for group in schedule.groups()]
    return KeySchedule(sum(shares), tuple(accumulate(shares[:-1], initial=0)))


def time_ceiling(model: nn.Module, arguments: dict[str, Any], schedule: KeySchedule) -> float:
    """Seconds of a parallel run that only encodes key steps and decodes groups.

    >>> time_ceiling(pipe.unet, denoiser_arguments(pipe, prompt), KeySchedule.paper(50))  # doctest: +SKIP
    """
    groups = [len(group) for group in schedule.groups()]
    return at_best(
        len(groups), groups, encoder_seconds(model, arguments), {n: decoder_seconds(model, arguments, n) for n in {*groups}}
    )


def measure(pipe: DiffusionPipeline, group: Any, *, num_inference_steps: int = 50, repeats: int = 5) -> dict[str, Any]:
    """Time the baseline, and the accelerated run on one process and on all of a group. Every process must call it.

    >>> measure(load_pipeline(), dist.group.WORLD)["seconds"]  # doctest: +SKIP

    Args:
        group: Of torch.distributed.
        num_inference_steps: 9 or more, for the paper's keys.
        repeats: Timed runs per method, which take turns; the fastest counts.

    Returns:
        Seconds per method; `time_ceiling_seconds` of one process and of all; `latents_differ`, the largest absolute
        difference between the latents of one process and of all.
    """
    schedule = KeySchedule.of_paper(denoiser_calls(pipe, num_inference_steps))
    ways: dict[str, Callable[[], AbstractContextManager]] = {
        "baseline": nullcontext,
        "one process": lambda: encoder_propagation(pipe, schedule),
        "all processes": lambda: encoder_propagation(pipe, schedule, process_group=group),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    latents = {}
    for turn in range(repeats + 1):
        for name, way in ways.items():
            dist.barrier(group)
            with way():
                latents[name], spent = _timed(pipe, num_inference_steps)
            if turn:  # the first turn is a warm-up
                seconds[name].append(spent)
    arguments, size = denoiser_arguments(pipe, PROMPT), Ranks(group).size
    return {
        "processes": size, "schedule": str(schedule), "repeats": repeats,
        "seconds": {name: min(values) for name, values in seconds.items()},
        "time_ceiling_seconds": {
            str(ranks): time_ceiling(denoiser_of(pipe), arguments, share_of(schedule, ranks)) for ranks in (1, size)
        },
        "latents_differ": float((latents["one process"] - latents["all processes"]).abs().max()),
    }  # fmt: skip


def _timed(pipe: DiffusionPipeline, num_inference_steps: int) -> tuple[Tensor, float]:
    """The latents of one image, and the seconds up to them."""
    started = time.perf_counter()
    call = RunSettings(num_inference_steps).arguments() | {"output_type": "latent"}
    latents = pipe(PROMPT, generator=generators([0]), **call)[0]
    synchronize(latents.device)
    return latents, time.perf_counter() - started


def main(
    model: Annotated[str | None, typer.Option(help="Folder or hub id of a pipeline; by default, the embedded one.")] = None,
    device: Annotated[str, typer.Option(help="cpu, or cuda for one GPU per process.")] = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
    repeats: Annotated[int, typer.Option(help="Timed runs per method.")] = 5,
    output: Annotated[Path | None, typer.Option(help="JSON file that rank 0 writes.")] = None,
) -> None:
    """Time one image on one process and on all that torchrun started."""
    dist.init_process_group("nccl" if device == "cuda" else "gloo")
    place = f"cuda:{dist.get_rank() % torch.cuda.device_count()}" if device == "cuda" else device
    if device == "cuda":
        torch.cuda.set_device(place)  # first of all, because NCCL takes the current device, cuda:0 on every rank
    torch.set_num_threads(1)
    pipe = load_pipeline(model, device=place, dtype=dtype)
    found = about_run(pipe) | measure(pipe, dist.group.WORLD, repeats=repeats)
    if dist.get_rank() == 0:
        text = json.dumps(found, indent=2, default=str)
        typer.echo(text)
        if output is not None:
            write_text(output, text + "\n")
    dist.destroy_process_group()


if __name__ == "__main__":
    typer.run(main)
