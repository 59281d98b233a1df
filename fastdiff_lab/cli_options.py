"""Options that several commands take, said in one way."""

from __future__ import annotations

from importlib.metadata import version
from typing import Annotated

import typer


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"fastdiff-lab {version('fastdiff-lab')}")
        raise typer.Exit


Model = Annotated[str | None, typer.Option(help="Folder or hub id of a diffusers pipeline; without it, the embedded one.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 or mps.")]
Dtype = Annotated[str, typer.Option(help="float32, float16, bfloat16 or float64.")]
Seed = Annotated[int, typer.Option(help="Seed of the initial noise.")]
Steps = Annotated[int, typer.Option(help="Denoising steps, 1 or more.")]
PaperSteps = Annotated[int, typer.Option(help="Denoising steps, 1 or more; the paper's keys need 9.")]
Guidance = Annotated[float, typer.Option(help="Guidance scale; 1 or less turns guidance off.")]
Threads = Annotated[int | None, typer.Option(help="CPU threads; without it, as many as torch takes.")]
Order = Annotated[int, typer.Option(min=0, max=1, help="0: features held; 1: extrapolated.")]
Scheduler = Annotated[str | None, typer.Option(help="ddim, pndm, euler, dpm-solver++, ...; without it, the model's own.")]
Version = Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")]
