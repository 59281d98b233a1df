"""Compare every rival at the same numbers of keys: `python -m studies.suite --help`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import torch
import typer

from fastdiff_lab.cli.options import Count, Device, Dtype, Guidance, Model, Scheduler, Steps, Threads
from fastdiff_lab.cli.parsing import own_or_embedded
from fastdiff_lab.comparison.compare import brief
from fastdiff_lab.comparison.result_files import read_schedules
from fastdiff_lab.inputs.files import read_prompts
from fastdiff_lab.inputs.plain_values import whole_number
from fastdiff_lab.pipelines import load_pipeline
from fastdiff_lab.propagation.fit import PropagationFit
from fastdiff_lab.shapes.data import held_out_prompts

from ..deepcache_fit import FittedDeepCache
from ..options import Jobs
from .result_files import read_costs, write_suite


def suite(
    refined: Annotated[list[Path] | None, typer.Argument(help="Files of refined schedules, further methods.")] = None,
    fit: Annotated[list[Path] | None, typer.Option(help="File of a fit, a further method; repeat for several.")] = None,
    deepcache_fit: Annotated[list[Path] | None, typer.Option(help="File of studies.deepcache_fit; repeat for several.")] = None,
    costs: Annotated[list[Path] | None, typer.Option(help="File of reuse costs; repeat for several.")] = None,
    prompts: Annotated[Path | None, typer.Option(help="Text file with a prompt per line; by default, captions of scenes.")] = None,
    count: Count = 32,
    seeds: Annotated[int, typer.Option(help="How many seeds per prompt, from 0 on.")] = 2,
    reference: Annotated[int, typer.Option(help="Steps of the converged reference; 0 for none.")] = 1000,
    repeats: Annotated[int, typer.Option(help="Timed runs per method; 0 for none.")] = 3,
    batch_size: Annotated[int, typer.Option(help="Images drawn at once.")] = 16,
    threads: Threads = None,
    jobs: Jobs = None,
    model: Model = None,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    steps: Steps = 50,
    guidance: Guidance = None,
    scheduler: Scheduler = None,
    output: Annotated[Path, typer.Option(help="Folder for the tables and the figure.")] = Path("runs/suite"),
    store: Annotated[Path | None, typer.Option(help="File that keeps each image; without it, in the output folder.")] = None,
) -> None:
    """Compare features and predictions at uniform, derived and the paper's keys, fewer steps, and DeepCache. The same call resumes."""
    measured, schedules = read_costs(costs or []), read_schedules(refined or [])
    texts, at = held_out_prompts(count) if prompts is None else read_prompts(prompts), range(whole_number("seeds", seeds, 1))
    further = [*schedules.values(), *map(PropagationFit.load, fit or []), *map(FittedDeepCache.load, deepcache_fit or [])]
    if threads is not None:
        torch.set_num_threads(threads)
    table = write_suite(
        output, load_pipeline(model, device=device, dtype=dtype, scheduler=scheduler), measured, texts, seeds=at,
        num_inference_steps=steps, guidance_scale=own_or_embedded(guidance, model), reference_steps=reference or None, repeats=repeats,
        batch_size=batch_size, n_jobs=jobs, store=store or output / "images.sqlite", further=further,
    )  # fmt: skip
    typer.echo(brief(table).to_string(index=False))


if __name__ == "__main__":
    typer.run(suite)
