"""The command line: one library call per command."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

app = typer.Typer(
    help="Measure and use encoder propagation in diffusion models.", no_args_is_help=True, add_completion=False,
    pretty_exceptions_enable=False,
)  # fmt: skip

Model = Annotated[Optional[str], typer.Option(help="Folder or hub id of a diffusers pipeline; without it, the embedded one.")]
Device = Annotated[str, typer.Option(help="cpu, cuda, cuda:1 or mps.")]
Dtype = Annotated[str, typer.Option(help="float32, float16, bfloat16 or float64.")]
Seed = Annotated[int, typer.Option(help="Seed of the initial noise.")]
Steps = Annotated[int, typer.Option(help="Denoising steps, 1 or more (the paper's keys need 9).")]
Guidance = Annotated[float, typer.Option(help="Guidance scale; 1 or less turns guidance off.")]
Scheduler = Annotated[Optional[str], typer.Option(help="ddim, pndm, euler, dpm-solver++, ...; without it, the model's own.")]


@app.command()
def tour(
    model: Model = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    steps: Steps = 50,
    guidance: Guidance = 5.0,
    scheduler: Scheduler = None,
    output: Annotated[Path, typer.Option(help="Folder for the page, the table, the recording and the schedule.")] = Path(
        "runs/tour"
    ),
) -> None:
    """Execute the quickstart notebook and export it as one HTML page."""
    from .tour import run_tour

    run_tour(
        output, source=model, device=device, dtype=dtype, seed=seed, num_inference_steps=steps, guidance_scale=guidance, scheduler=scheduler
    )  # fmt: skip


@app.command()
def sample(
    prompt: Annotated[str, typer.Argument(help="What to draw, such as 'a small red circle at the left on a blue background'.")],
    keys: Annotated[
        str, typer.Option(help="'none' (untouched), 'paper', a count of uniform keys, or text such as '0-3,5 of 20'.")
    ] = "paper",
    prior_noise: Annotated[float, typer.Option(help="Weight of prior noise injection; the paper's is 0.003.")] = 0.0,
    model: Model = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    seed: Seed = 0,
    steps: Steps = 50,
    guidance: Guidance = 5.0,
    scheduler: Scheduler = None,
    output: Annotated[Path, typer.Option(help="PNG file to write.")] = Path("sample.png"),
) -> None:
    """Draw one picture with the accelerated sampler."""
    from .evaluation import Arm, denoiser_calls
    from .evaluation import sample as draw
    from .pipelines import load_pipeline

    _check_output(output)
    pipe = load_pipeline(model, device=device, dtype=dtype, scheduler=scheduler)
    arm = Arm(_schedule(keys, denoiser_calls(pipe, steps)), prior_noise=prior_noise)
    drawn = draw(pipe, arm, [prompt], [seed], num_inference_steps=steps, guidance_scale=guidance)
    drawn.images[0].save(output)
    counts = drawn.counts
    typer.echo(
        f"{output}: {drawn.seconds:.2f} s, {counts.encoder_calls} encoder calls, {counts.decoder_calls} steps decoded in "
        f"{counts.forward_calls} forwards"
    )


def _schedule(keys: str, calls: int):
    from .schedule import KeySchedule

    if keys == "none":
        return None
    if keys == "paper":
        return KeySchedule.of_paper(calls)
    return KeySchedule.uniform(calls, int(keys)) if keys.isdecimal() else KeySchedule.parse(keys)


def _check_output(path: Path) -> None:
    folder = path if path.is_dir() else path.absolute().parent
    if path.is_dir() or not folder.is_dir() or not os.access(folder, os.W_OK):
        raise OSError(f"cannot write {path}: {'it is a folder' if path.is_dir() else f'{folder} is no folder that can be written'}")


@app.command()
def compare(
    schedule: Annotated[Optional[list[Path]], typer.Option(help="File of a key schedule to compare; give it for each.")] = None,
    order: Annotated[int, typer.Option(help="0: features held; 1: extrapolated. Of the schedules' arms.")] = 0,
    suite: Annotated[bool, typer.Option("--suite", help="All arms that a sceptic would ask for, instead of schedules.")] = False,
    costs: Annotated[Optional[list[Path]], typer.Option(help="With --suite: file of reuse costs; give it for each.")] = None,
    prompts: Annotated[int, typer.Option(help="How many held-out captions, half of them with two objects.")] = 32,
    seeds: Annotated[int, typer.Option(help="How many seeds per caption, from 0 on.")] = 2,
    reference: Annotated[int, typer.Option(help="Steps of the converged reference; 0 for none.")] = 1000,
    repeats: Annotated[int, typer.Option(help="Timed runs per arm; 0 for none.")] = 3,
    batch: Annotated[int, typer.Option(help="Pictures drawn at once.")] = 16,
    threads: Annotated[Optional[int], typer.Option(help="CPU threads; without it, as many as torch takes.")] = None,
    model: Model = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    steps: Steps = 50,
    guidance: Guidance = 5.0,
    scheduler: Scheduler = None,
    output: Annotated[Path, typer.Option(help="Folder for the tables and the figure.")] = Path("runs/compare"),
    store: Annotated[Optional[Path], typer.Option(help="File that keeps each picture; without it, in the output folder.")] = None,
) -> None:
    """Compare schedules, or with --suite every rival, and write the tables; a call that was stopped goes on."""
    from .comparison import brief
    from .suite_report import compare_into

    table = compare_into(
        output, schedules=schedule or [], order=order, suite=suite, costs=costs or [], prompts=prompts, seeds=seeds,
        num_inference_steps=steps, guidance_scale=guidance, reference_steps=reference or None, repeats=repeats, batch=batch,
        threads=threads, store=store, pipeline={"source": model, "device": device, "dtype": dtype, "scheduler": scheduler},
    )  # fmt: skip
    typer.echo(brief(table).to_string(index=False))


@app.command()
def train(
    output: Annotated[Path, typer.Option(help="Folder for the pipeline; checkpoints go to its folder 'training'.")] = Path(
        "runs/shapes"
    ),
    minutes: Annotated[float, typer.Option(help="Training time in all; a run that was stopped goes on.")] = 120.0,
    device: Device = "cpu",
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 2,
    processes: Annotated[int, typer.Option(help="Processes of one thread that train the denoiser together, on the CPU.")] = 1,
    seed: Annotated[int, typer.Option(help="Seed of the initial weights.")] = 0,
) -> None:
    """Train the embedded pipeline from nothing: autoencoder, judge, text encoder, denoiser."""
    from .shapes.training import train_pipeline

    train_pipeline(output, minutes=minutes, device=device, threads=threads, processes=processes, seed=seed)


@app.command()
def lab(port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 8888) -> None:
    """Start JupyterLab on the notebooks."""
    from .tour import notebooks_folder

    folder = str(notebooks_folder())
    os.execv(sys.executable, [sys.executable, "-m", "jupyterlab", "--ip=127.0.0.1", f"--port={port}", f"--notebook-dir={folder}"])


def main() -> None:
    """Runs the command line; what users can mend ends in one sentence and exit code 2."""
    try:
        app()
    except (ValueError, TypeError, OSError, KeyError, MemoryError, ModuleNotFoundError) as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        typer.echo(f"error: {message}", err=True)
        sys.exit(2)
