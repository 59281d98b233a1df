"""Profile one run, operation by operation: `python -m studies.bench.profile`.

- `profiled(pipe, method, case)`: one run's operations, and its seconds
- `named_method(pipe, case, name)`: one of the benchmark's methods
- `busy_share(table, seconds)`: how much of the time a GPU worked
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import pandas as pd
import torch
import typer
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

from fastdiff_lab.hooks.denoiser import denoiser_of
from fastdiff_lab.hooks.denoiser_classes import sample_argument
from fastdiff_lab.inputs.files import write_whole
from fastdiff_lab.sampling.methods import Method, first_arguments

from .cases import Case, prepared
from .command import chosen_cases
from .parts import methods_of
from .timing import timed_run

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


ON_CPU, ON_CUDA = [ProfilerActivity.CPU], [ProfilerActivity.CPU, ProfilerActivity.CUDA]


def profiled(pipe: DiffusionPipeline, method: Method, case: Case) -> tuple[pd.DataFrame, float]:
    """The operations of one run of a method, and its seconds, after one warm-up.

    >>> case = Case("embedded", 64, steps=20)
    >>> table, seconds = profiled(prepared(case, "cpu"), Method(KeySchedule.of_paper(20)), case)  # doctest: +SKIP

    Columns are `is_kernel`, name, calls, and `host_seconds` and `device_seconds` without what it called; the largest first.
    A kernel is a GPU's own work, which is also in the `device_seconds` of its operation. The profiler slows the host down, so compare
    shares, and take seconds from `python -m studies.bench`.
    """
    on_cuda = next(denoiser_of(pipe).parameters()).is_cuda
    timed_run(pipe, method, case.call, case.steps)
    with torch.profiler.profile(activities=ON_CUDA if on_cuda else ON_CPU) as found:
        run = timed_run(pipe, method, case.call, case.steps)
    table = pd.DataFrame([_row(event) for event in found.key_averages()])
    return table.sort_values(["device_seconds", "host_seconds"], ascending=False, ignore_index=True), run.seconds


def _row(event: Any) -> dict[str, Any]:
    return {
        "is_kernel": event.device_type != DeviceType.CPU and not event.is_user_annotation,
        "name": event.key,
        "calls": event.count,
        "host_seconds": event.self_cpu_time_total / 1e6,
        "device_seconds": event.self_device_time_total / 1e6,
    }


def busy_share(table: pd.DataFrame, seconds: float) -> float:
    """The part of a run in which a GPU worked. Far below 1, the host is too slow to feed it.

    >>> busy_share(pd.DataFrame({"is_kernel": [True, False], "device_seconds": [0.3, 0.3]}), seconds=0.5)
    0.6
    """
    return float(table.loc[table["is_kernel"], "device_seconds"].sum() / seconds)


def named_method(pipe: DiffusionPipeline, case: Case, name: str) -> Method:
    """One of the benchmark's methods. Raises ValueError for an unknown name."""
    model = denoiser_of(pipe)
    arguments = first_arguments(model, lambda: pipe(**case.call, num_inference_steps=case.steps))
    methods = methods_of(case, pipe, rows=len(arguments[sample_argument(model)]))
    if name not in methods:
        raise ValueError(f"method {name!r} asked; there are: {'; '.join(methods)}")
    return methods[name]


def main(
    system: Annotated[str, typer.Option(help="As for bench.")] = "embedded",
    run: Annotated[str, typer.Option(help="Scheduler and steps.")] = "ddim-50",
    batch_size: Annotated[int, typer.Option(help="Images at once.")] = 1,
    mode: Annotated[str, typer.Option(help="eager, channels-last or compiled.")] = "eager",
    method: Annotated[str, typer.Option(help="One of the benchmark's methods, by its name.")] = "paper, parallel",
    device: Annotated[str, typer.Option(help="Where to run: cpu, cuda, cuda:1, ...")] = "cpu",
    dtype: Annotated[str | None, typer.Option(help="As for bench.")] = None,
    pixels: Annotated[int | None, typer.Option(help="Side of an image.")] = None,
    output: Annotated[Path | None, typer.Option(help="CSV file to write: all operations.")] = None,
    most: Annotated[int, typer.Option(help="Operations to print.")] = 20,
) -> None:
    """Print which operations take the time of one run of a benchmark's method."""
    (case,) = chosen_cases(device, systems=[system], runs=[run], batches=[batch_size], modes=[mode], dtype=dtype, pixels=pixels)
    pipe = prepared(case, device)
    table, seconds = profiled(pipe, named_method(pipe, case, method), case)
    if output is not None:
        write_whole(output, lambda place: table.to_csv(place, index=False, float_format="%.5g"))
    typer.echo(f"{case}, {method}: {seconds:.3f} s with the profiler")
    for _, rows in table.groupby("is_kernel"):
        typer.echo(rows.drop(columns="is_kernel").head(most).round(4).to_string(index=False))
    if device != "cpu":
        typer.echo(f"the device worked {busy_share(table, seconds):.0%} of the time")


if __name__ == "__main__":
    typer.run(main)
