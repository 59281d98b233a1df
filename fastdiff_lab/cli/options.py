"""Options that several commands share."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"fastdiff-lab {version('fastdiff-lab')}")
        raise typer.Exit


Model = Annotated[str | None, typer.Option(help="Folder or hub id of a diffusers pipeline; by default, the embedded one.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 or mps.")]
Dtype = Annotated[str, typer.Option(help="float32, float16, bfloat16 or float64.")]
Seed = Annotated[int, typer.Option(help="Seed of the initial noise.")]
Steps = Annotated[int, typer.Option(help="Denoising steps, 1 or more.")]
PaperSteps = Annotated[int, typer.Option(help="Denoising steps, 1 or more; the paper's keys need 9.")]
Guidance = Annotated[
    float | None,
    typer.Option(help="Guidance scale; by default, the model's own (5 for the embedded one). 1 or less turns guidance off."),
]
Prompts = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Text file with a prompt per line; by default, captions of scenes.")
]
Count = Annotated[int, typer.Option(min=1, help="How many captions of scenes, without --prompts.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; by default, as many as torch takes.")]
Order = Annotated[int, typer.Option(min=0, max=1, help="0: features reused; 1: extrapolated.")]
MaxRows = Annotated[int | None, typer.Option(help="Most rows decoded at once: two an image with guidance.")]
Keys = Annotated[str | None, typer.Option(help="'none' (baseline), 'paper' (default), a count, or '0-3,5 of 20'.")]
Schedule = Annotated[Path | None, typer.Option(help="File of a key schedule, such as `derive` writes; instead of --keys.")]
DerivedOrder = Annotated[
    int | None, typer.Option(min=0, max=1, help="0: features reused; 1: extrapolated; by default, as derived.")
]
Scheduler = Annotated[str | None, typer.Option(help="ddim, pndm, euler, dpm-solver++, ...; by default, the model's own.")]
Version = Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")]
