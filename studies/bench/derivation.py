"""Time what finding a schedule takes at full size: `python -m studies.bench.derivation --help`.

The weights are random, so the schedule means nothing. Seconds and memory do not depend on them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer

import fastdiff_lab as fl
from fastdiff_lab.cli.options import Device
from fastdiff_lab.comparison.environment import about_machine
from fastdiff_lab.hooks.device import begin_peak, peak_of, synchronize
from fastdiff_lab.inputs.files import write_text

from .cases import Case, prepared
from .full_pipelines import FULL_PIPELINES, PROMPT


class Stages:
    """Seconds and peak bytes of each stage, printed and written as they come."""

    def __init__(self, output: Path, about: dict[str, Any], device: str) -> None:
        self.output, self.device, self.found = output, torch.device(device), {"about": about, "stages": {}}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        begin_peak(self.device)
        synchronize(self.device)
        started = time.perf_counter()
        yield
        synchronize(self.device)
        self.found["stages"][name] = {"seconds": time.perf_counter() - started, "peak_bytes": peak_of(self.device)}
        write_text(self.output, json.dumps(self.found, indent=1) + "\n")
        typer.echo(f"{name}: {self.found['stages'][name]}")


def derivation(
    output: Annotated[Path, typer.Argument(help="JSON file to write.")],
    system: Annotated[str, typer.Option(help="As for the benchmark.")] = "sd-1.5",
    pixels: Annotated[int | None, typer.Option(help="Side of an image; by default, the system's usual one.")] = None,
    steps: Annotated[int, typer.Option(help="DDIM steps.")] = 50,
    keys: Annotated[int, typer.Option(help="Key steps to derive.")] = 9,
    device: Device = "cpu",
    dtype: Annotated[str, typer.Option(help="float32, float16 or bfloat16.")] = "float32",
) -> None:
    """Time recording, calibrating, deriving and fitting with one prompt, then one accelerated image with and without the fit."""
    case = Case(system, pixels or FULL_PIPELINES[system].pixels, steps=steps, dtype=dtype)
    pipe = prepared(case, device)
    stages = Stages(output, about_machine(device) | {"case": str(case), "keys": keys}, device)
    guidance = case.call["guidance_scale"]
    size = {name: case.call[name] for name in ("height", "width") if name in case.call}
    run: dict[str, Any] = {"num_inference_steps": steps, "guidance_scale": guidance, "pipe_kwargs": size}

    def draw() -> None:
        pipe(**case.call, num_inference_steps=steps, generator=torch.Generator().manual_seed(0), output_type="latent")

    def twice(name: str, action: Callable[[], None]) -> None:
        """The first run warms up."""
        action()
        with stages.stage(name):
            action()

    twice("untouched", draw)
    with stages.stage("record"), fl.record(pipe):
        draw()
    with stages.stage("calibrate"):
        costs = fl.calibrate(pipe, [PROMPT], **run)
    with stages.stage("derive"):
        schedule = fl.derive_schedule(costs, keys)
    with stages.stage("fit"):
        fit = fl.fit_propagation(pipe, schedule, [PROMPT], **run)
    ways: dict[str, Any] = {"accelerated": {}, "accelerated, fitted": {"fit": fit}}
    for name, how in ways.items():
        with fl.encoder_propagation(pipe, schedule, **how):
            twice(name, draw)


if __name__ == "__main__":
    typer.run(derivation)
