"""Seconds of an import, beside diffusers' own: `python -m studies.import_time`.

Each import has a process of its own; they take turns, so that a machine that slows down slows all of them.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from typing import Annotated

import typer

BASELINE = "from diffusers import StableDiffusionPipeline"
IMPORTS = {
    BASELINE: BASELINE,
    "import fastdiff_lab": "import fastdiff_lab",
    "all that a run needs": "from fastdiff_lab import calibrate, derive_schedule, encoder_propagation, load_pipeline, record",
    "every public name": "from fastdiff_lab import *",
}


def seconds(code: str) -> float:
    """How long a fresh process takes for some code, less what Python itself takes to start.

    >>> seconds("import this_is_no_module")
    Traceback (most recent call last):
    ValueError: import this_is_no_module failed: ModuleNotFoundError: No module named 'this_is_no_module'
    """
    timed = f"import time; before = time.perf_counter()\n{code}\nprint(time.perf_counter() - before)"
    done = subprocess.run([sys.executable, "-c", timed], capture_output=True, text=True)
    if done.returncode:
        raise ValueError(f"{code} failed: {done.stderr.strip().splitlines()[-1]}")
    return float(done.stdout.split()[-1])


def main(rounds: Annotated[int, typer.Option(min=1, help="Processes for each import, after one that is not counted.")] = 5) -> None:
    """Print medians, and their ratios to importing StableDiffusionPipeline."""
    taken: dict[str, list[float]] = {name: [] for name in IMPORTS}
    for turn in range(rounds + 1):
        for name, code in IMPORTS.items():
            found = seconds(code)
            if turn:  # the first one fills the disk's cache
                taken[name].append(found)
    medians = {name: statistics.median(values) for name, values in taken.items()}
    typer.echo(f"{rounds} processes each, {time.strftime('%Y-%m-%d')}, Python {sys.version.split()[0]}")
    for name, median in medians.items():
        spread = f"{min(taken[name]):.2f} to {max(taken[name]):.2f}"
        typer.echo(f"{median:6.2f} s ({spread})  {median / medians[BASELINE]:.2f}x  {name}")


if __name__ == "__main__":
    typer.run(main)
