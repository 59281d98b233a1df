"""Train the embedded pipeline from nothing: `python -m studies.training --help`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fastdiff_lab.cli.options import Device

from .train import train_pipeline


def training(
    output: Annotated[Path, typer.Option(help="Folder for the pipeline; checkpoints go to its folder 'training'.")] = Path(
        "runs/shapes"
    ),
    minutes: Annotated[float, typer.Option(help="Training time in all; the same call resumes.")] = 600.0,
    device: Device = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    processes: Annotated[
        int | None,
        typer.Option(help="Processes of one thread that train the denoiser together, on the CPU; without it, one per thread."),
    ] = None,
    seed: Annotated[int, typer.Option(help="Seed of the initial weights.")] = 0,
) -> None:
    """Train autoencoder, judge, text encoder and denoiser."""
    train_pipeline(output, minutes=minutes, device=device, threads=threads, processes=processes, seed=seed)


if __name__ == "__main__":
    typer.run(training)
