"""The command line: one library call per command."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Annotated, Any, Optional

import typer
from typer.core import TyperGroup

from . import options as cli_options

GO_ON = ("calibrate", "compare")  # each of these keeps its results


class _Commands(TyperGroup):
    """Commands that say what happens next when stopped by Ctrl-C."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            typer.echo("stopped" + "; the same command goes on" * (ctx.invoked_subcommand in GO_ON), err=True)
            ctx.exit(130)


app = typer.Typer(
    cls=_Commands, help="Measure and use encoder propagation in diffusion models.", no_args_is_help=True, add_completion=False,
    pretty_exceptions_enable=False,
)  # fmt: skip


@app.callback()
def _options(shown: cli_options.Version = False) -> None: ...


@app.command()
def tour(
    model: cli_options.Model = None,
    device: cli_options.Device = "cpu",
    dtype: cli_options.Dtype = "float32",
    seed: cli_options.Seed = 0,
    steps: cli_options.PaperSteps = 50,
    guidance: cli_options.Guidance = None,
    scheduler: cli_options.Scheduler = None,
    output: Annotated[Path, typer.Option(help="Folder for the page, the table, the recording and the schedule.")] = Path(
        "runs/tour"
    ),
) -> None:
    """Execute the quickstart notebook and export it as one HTML page."""
    from .parsing import own_or_embedded
    from .tour import run_tour

    run_tour(
        output, source=model, device=device, dtype=dtype, seed=seed, num_inference_steps=steps,
        guidance_scale=own_or_embedded(guidance, model), scheduler=scheduler,
    )  # fmt: skip


@app.command()
def sample(
    ctx: typer.Context,
    prompt: Annotated[str, typer.Argument(help="What to draw, such as 'a small red circle at the left on a blue background'.")],
    keys: cli_options.Keys = None,
    schedule: cli_options.Schedule = None,
    fit: Annotated[Optional[Path], typer.Option(help="File that `fit` wrote; instead of --keys and --schedule.")] = None,
    order: cli_options.DerivedOrder = None,
    prior_noise: Annotated[float, typer.Option(help="Weight of prior noise injection; the paper's is 0.003.")] = 0.0,
    model: cli_options.Model = None,
    device: cli_options.Device = "cpu",
    dtype: cli_options.Dtype = "float32",
    seed: cli_options.Seed = 0,
    steps: cli_options.PaperSteps = 50,
    guidance: cli_options.Guidance = None,
    scheduler: cli_options.Scheduler = None,
    output: Annotated[Path, typer.Option(help="Image to write, such as a PNG file; an older one is replaced.")] = Path(
        "sample.png"
    ),
) -> None:
    """Draw one image with the accelerated sampler."""
    from ..pipelines import load_pipeline
    from ..sampling.finite_values import check_latents, finite_decoder
    from ..sampling.methods import Method, denoiser_calls
    from ..sampling.methods import sample as draw
    from .parsing import check_image, fitted, own_or_embedded, propagation, refuse_unused

    check_image(output)
    if keys == "none":
        refuse_unused(ctx, "with --keys none", ["order"])
    if fit is not None:
        refuse_unused(ctx, "with --fit", ["keys", "schedule", "order"])
    propagation_for = propagation(keys, schedule, order) if fit is None else fitted(fit)
    pipe = load_pipeline(model, device=device, dtype=dtype, scheduler=scheduler)
    accelerated = propagation_for(denoiser_calls(pipe, steps))
    of = "baseline" if accelerated is None else f"schedule {accelerated.schedule}"
    with finite_decoder(pipe, of):
        drawn = draw(
            pipe, Method(accelerated, prior_noise=prior_noise), [prompt], [seed], num_inference_steps=steps,
            guidance_scale=own_or_embedded(guidance, model),
        )  # fmt: skip
    check_latents(drawn.latents, [(prompt, seed)], of)
    drawn.images[0].save(output)
    counts = drawn.counts
    typer.echo(
        f"{output}: {drawn.seconds:.2f} s, {counts.encoder_calls} encoder calls, {counts.decoder_calls} steps decoded in "
        f"{counts.forward_calls} forwards" + ", an offset beyond what was seen when fitting" * (counts.images_beyond_fit > 0)
    )


@app.command()
def calibrate(
    ctx: typer.Context,
    output: Annotated[Path, typer.Argument(help="File to write; the same call resumes from it.")] = Path("costs.safetensors"),
    prompts: cli_options.Prompts = None,
    count: cli_options.Count = 16,
    order: cli_options.Order = 0,
    reuse: Annotated[str, typer.Option(help="What is reused: encoder (features) or prediction.")] = "encoder",
    max_span: Annotated[int, typer.Option(help="Longest span, in steps from a key to the next.")] = 25,
    time_budget: Annotated[Optional[float], typer.Option(help="Seconds; spans are shortened to fit.")] = None,
    batch_size: Annotated[int, typer.Option(help="Images at once.")] = 4,
    max_rows: cli_options.MaxRows = None,
    threads: cli_options.Threads = None,
    model: cli_options.Model = None,
    device: cli_options.Device = "cpu",
    dtype: cli_options.Dtype = "float32",
    steps: cli_options.Steps = 50,
    guidance: cli_options.Guidance = None,
    scheduler: cli_options.Scheduler = None,
) -> None:
    """Measure what reusing features costs at each step."""
    from ..calibration.calibrate import calibrate as measure
    from ..inputs.files import check_writable
    from ..pipelines import load_pipeline
    from .parsing import fitting_keys, own_or_embedded, prompt_lines, refuse_unused

    check_writable(output)
    if prompts is not None:
        refuse_unused(ctx, "with --prompts", ["count"])
    lines = prompt_lines(prompts, count)
    _use(threads)
    costs = measure(
        load_pipeline(model, device=device, dtype=dtype, scheduler=scheduler), lines, num_inference_steps=steps,
        guidance_scale=own_or_embedded(guidance, model), order=order, reuse=reuse, max_span=max_span, batch_size=batch_size,
        max_rows=max_rows, time_budget=time_budget, store=output,
    )  # fmt: skip
    typer.echo(f"{output}: fastdiff-lab derive {output} --num-keys {fitting_keys(costs)} derives a schedule from it")


def _use(threads: int | None) -> None:
    import torch

    if threads is not None:
        torch.set_num_threads(threads)


@app.command()
def derive(
    ctx: typer.Context,
    costs: Annotated[Path, typer.Argument(help="File that `calibrate` wrote.")],
    num_keys: Annotated[Optional[int], typer.Option(help="Number of keys; by default, print the front of all numbers.")] = None,
    reduction: Annotated[str, typer.Option(help="mean, median or worst of the measured images.")] = "mean",
    power: Annotated[
        int, typer.Option(min=1, max=2, help="Add errors of groups squared (2) or as they are (1: try it for order 1).")
    ] = 2,
    refine: Annotated[int, typer.Option(help="Accelerated runs at most to move keys by; 0 for none.")] = 0,
    fit: Annotated[bool, typer.Option("--fit", help="With --refine: move keys for a schedule that is fitted afterwards.")] = False,
    images: Annotated[int, typer.Option(help="With --refine: how many of the calibrated prompts to draw.")] = 8,
    threads: cli_options.Threads = None,
    model: cli_options.Model = None,
    device: cli_options.Device = "cpu",
    dtype: cli_options.Dtype = "float32",
    scheduler: cli_options.Scheduler = None,
    output: Annotated[Path, typer.Option(help="JSON file to write; an older one is replaced.")] = Path("schedule.json"),
) -> None:
    """Derive the best key steps from measured costs; with --refine also by real runs."""
    from ..calibration.derive import derive_schedule, schedule_front
    from ..calibration.refine import refine_derived
    from ..calibration.reuse_costs import ReuseCosts
    from ..inputs.files import check_writable
    from ..pipelines import load_pipeline
    from .parsing import refuse_unused

    measured = ReuseCosts.load(costs)
    if not refine:
        refuse_unused(ctx, "without --refine", ["fit", "images", "threads", "model", "device", "dtype", "scheduler"])
    if num_keys is None:
        refuse_unused(ctx, "without --num-keys", ["refine", "output"])
        typer.echo(schedule_front(measured, reduction=reduction, power=power).drop(columns="cost").to_string(index=False))
        return
    check_writable(output)
    schedule = derive_schedule(measured, num_keys, reduction=reduction, power=power)
    if refine:
        _use(threads)
        pipe = load_pipeline(model, device=device, dtype=dtype, scheduler=scheduler)
        schedule = refine_derived(pipe, measured, schedule, images=images, runs=refine, fit=fit)
    schedule.save(output)
    typer.echo(f"{output}: {schedule} ({schedule.source})")


@app.command()
def fit(
    ctx: typer.Context,
    schedule: Annotated[Path, typer.Argument(help="File of a key schedule, such as `derive` writes.")],
    prompts: cli_options.Prompts = None,
    count: cli_options.Count = 8,
    order: cli_options.DerivedOrder = None,
    reuse: Annotated[
        Optional[str], typer.Option(help="What is reused: encoder (features) or prediction; by default, as derived.")
    ] = None,
    batch_size: Annotated[int, typer.Option(help="Images at once.")] = 8,
    max_rows: cli_options.MaxRows = None,
    threads: cli_options.Threads = None,
    model: cli_options.Model = None,
    device: cli_options.Device = "cpu",
    dtype: cli_options.Dtype = "float32",
    steps: cli_options.Steps = 50,
    guidance: cli_options.Guidance = None,
    scheduler: cli_options.Scheduler = None,
    output: Annotated[Path, typer.Option(help="JSON file to write; an older one is replaced.")] = Path("fit.json"),
) -> None:
    """Fit a few scalars per group of a schedule, so that images come nearer to the baseline's."""
    from ..calibration.fitting import fit_propagation
    from ..inputs.files import check_writable
    from ..key_schedule import KeySchedule
    from ..pipelines import load_pipeline
    from .parsing import derived_order, derived_reuse, own_or_embedded, prompt_lines, refuse_unused

    check_writable(output)
    if prompts is not None:
        refuse_unused(ctx, "with --prompts", ["count"])
    keys, lines = KeySchedule.load(schedule), prompt_lines(prompts, count)
    _use(threads)
    found = fit_propagation(
        load_pipeline(model, device=device, dtype=dtype, scheduler=scheduler), keys, lines, num_inference_steps=steps,
        guidance_scale=own_or_embedded(guidance, model), order=derived_order(keys) if order is None else order,
        reuse=derived_reuse(keys) if reuse is None else reuse, batch_size=batch_size, max_rows=max_rows,
    )  # fmt: skip
    found.save(output)
    typer.echo(f"{output}: fastdiff-lab sample PROMPT --fit {output} draws with it")


@app.command()
def compare(
    ctx: typer.Context,
    schedules: Annotated[Optional[list[Path]], typer.Argument(help="Files of key schedules to compare.")] = None,
    fit: Annotated[
        Optional[list[Path]], typer.Option(help="File that `fit` wrote, to be compared too; repeat for several.")
    ] = None,
    order: Annotated[int, typer.Option(min=0, max=1, help="Order of the schedules. 0: features reused; 1: extrapolated.")] = 0,
    prompts: cli_options.Prompts = None,
    count: cli_options.Count = 32,
    seeds: Annotated[int, typer.Option(help="How many seeds per prompt, from 0 on.")] = 2,
    reference: Annotated[int, typer.Option(help="Steps of the converged reference; 0 for none.")] = 1000,
    repeats: Annotated[int, typer.Option(help="Timed runs per method; 0 for none.")] = 3,
    batch_size: Annotated[int, typer.Option(help="Images drawn at once.")] = 16,
    metric: Annotated[Optional[list[str]], typer.Option(help="Also fid, kid, clip_score or lpips; repeat for several.")] = None,
    weights: Annotated[Optional[Path], typer.Option(help="With --metric: folder of the weight files; see docs/quality.md.")] = None,
    real: Annotated[Optional[Path], typer.Option(help="With --metric fid or kid: folder of real images.")] = None,
    threads: cli_options.Threads = None,
    model: cli_options.Model = None,
    device: cli_options.Device = "cpu",
    dtype: cli_options.Dtype = "float32",
    steps: cli_options.Steps = 50,
    guidance: cli_options.Guidance = None,
    scheduler: cli_options.Scheduler = None,
    output: Annotated[Path, typer.Option(help="Folder for the tables.")] = Path("runs/compare"),
    store: Annotated[Optional[Path], typer.Option(help="File that keeps each image; without it, in the output folder.")] = None,
) -> None:
    """Compare schedules, and write the tables. The same call resumes."""
    from ..comparison.compare import brief
    from ..comparison.result_files import compare_into
    from .parsing import own_or_embedded, refuse_unused

    if prompts is not None:
        refuse_unused(ctx, "with --prompts", ["count"])
    table = compare_into(
        output, schedules or [], fits=fit or [], order=order, prompts=prompts, count=count, seeds=seeds,
        num_inference_steps=steps, guidance_scale=own_or_embedded(guidance, model), reference_steps=reference or None, repeats=repeats,
        batch_size=batch_size, threads=threads, store=store, metrics=metric or (), metric_weights=weights, real_images=real,
        pipeline={"source": model, "device": device, "dtype": dtype, "scheduler": scheduler},
    )  # fmt: skip
    typer.echo(brief(table).to_string(index=False))


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []})
def train(ctx: typer.Context) -> None:
    """Train the embedded pipeline from nothing, in a clone of the repository (--help says more)."""
    root = Path(__file__).parents[2]
    if not (root / "studies" / "training").is_dir():
        raise FileNotFoundError("training asked, which is not installed; accepted: the same command in a clone of the repository")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(root), os.environ.get("PYTHONPATH")]))}
    os.execve(sys.executable, [sys.executable, "-m", "studies.training", *ctx.args], environment)


@app.command()
def contest(
    entries: Annotated[Path, typer.Argument(help="Folder of the entries, .json files that ContestEntry.save wrote.")],
    seed: Annotated[int, typer.Option(help="Seed of captions and noise; choose it when all entries are in.")],
    images: Annotated[int, typer.Option(help="Images per entry.")] = 24,
    threads: cli_options.Threads = None,
) -> None:
    """Score the entries of the contest: the images nearest to the baseline's with seven encoder calls."""
    from ..exercises.contest import leaderboard, read_entries

    accepted, refused = read_entries(entries)
    _use(threads)
    typer.echo(leaderboard(accepted, seed=seed, images=images).round(2).to_string())
    for name, reason in refused.items():
        typer.echo(f"refused: {name}: {reason}")


@app.command()
def lab(port: Annotated[int, typer.Option(help="Port on 127.0.0.1.")] = 8888) -> None:
    """Start JupyterLab on the notebooks, with the interactive lab open."""
    from ..inputs.extras import check_installed
    from .tour import LAB, notebooks_folder

    check_installed("jupyterlab", "notebooks", "fastdiff-lab lab")
    options = ["--ip=127.0.0.1", f"--port={port}", f"--notebook-dir={notebooks_folder()}", f"--LabApp.default_url=/lab/tree/{LAB}"]
    os.execv(sys.executable, [sys.executable, "-m", "jupyterlab", *options])


def main() -> None:
    """Run the command line. What users can mend ends in one sentence and exit code 2."""
    try:
        app()
    except (ValueError, TypeError, OSError, KeyError, ModuleNotFoundError) as error:
        message = error.args[0] if isinstance(error, KeyError) and error.args else error
        typer.echo(f"error: {message}", err=True)
        sys.exit(2)
