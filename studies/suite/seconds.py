"""Time the suite's methods on another device: `python -m studies.suite.seconds --help`.

What a method draws hardly depends on the device, and how long it takes does. So the images of the suite stay, and only seconds are new.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer
from tqdm import tqdm

from fastdiff_lab.cli.options import Device, Dtype, Scheduler, Steps
from fastdiff_lab.comparison.costs import timed_turns
from fastdiff_lab.comparison.environment import about_run
from fastdiff_lab.comparison.result_files import write_table
from fastdiff_lab.inputs.files import writable_folder, write_text
from fastdiff_lab.pipelines import EMBEDDED_GUIDANCE, load_pipeline
from fastdiff_lab.propagation.fit import PropagationFit
from fastdiff_lab.sampling.methods import denoiser_calls
from fastdiff_lab.sampling.run_settings import RunSettings
from fastdiff_lab.shapes.data import held_out_prompts

from ..deepcache_fit import FittedDeepCache
from .result_files import read_costs
from .suite_methods import Further, suite_methods


def seconds(
    output: Annotated[Path, typer.Argument(help="Folder for seconds.csv and about.json.")],
    fit: Annotated[list[Path] | None, typer.Option(help="As for the suite.")] = None,
    deepcache_fit: Annotated[list[Path] | None, typer.Option(help="As for the suite.")] = None,
    costs: Annotated[list[Path] | None, typer.Option(help="As for the suite.")] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs per method, after one that is not timed.")] = 3,
    device: Device = "cpu",
    dtype: Dtype = "float32",
    steps: Steps = 50,
    scheduler: Scheduler = None,
) -> None:
    """Write the median seconds of one image for each method of the suite, after each turn."""
    folder, pipe = writable_folder(output), load_pipeline(device=device, dtype=dtype, scheduler=scheduler)
    further: list[Further] = [*map(PropagationFit.load, fit or []), *map(FittedDeepCache.load, deepcache_fit or [])]
    methods = suite_methods(denoiser_calls(pipe, steps), read_costs(costs or []), further=further)
    about = about_run(pipe) | {"num_inference_steps": steps, "repeats": repeats, "dtype": dtype}
    write_text(folder / "about.json", json.dumps(about, indent=2) + "\n")
    turns = timed_turns(pipe, methods, (held_out_prompts(1)[0], 0), repeats, RunSettings(steps, EMBEDDED_GUIDANCE))
    for table in tqdm(turns, desc="turns", total=repeats):
        write_table(table.rename_axis("method").reset_index(), folder / "seconds.csv")


if __name__ == "__main__":
    typer.run(seconds)
