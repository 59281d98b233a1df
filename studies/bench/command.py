"""`python -m studies.bench`: a benchmark of this machine, in parts that resume.

- `bench_into(output, ...)`: time what is missing, and write table and figure
- `chosen_cases(...)`: what is timed
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from fastdiff_lab.comparison.environment import about_machine
from fastdiff_lab.inputs.files import writable_folder
from fastdiff_lab.pipelines import check_device

from .cases import COMPILED, EAGER, Case
from .full_pipelines import FULL_PIPELINES
from .parts import run_part
from .report import write_report
from .timings_file import Book

# Full size would take hours on a CPU: here the embedded pipeline, and Stable Diffusion's UNet on few pixels.
ON_CPU = (Case("embedded", 64), Case("sd-1.5", 128, steps=20))


def chosen_cases(
    device: str, *, systems: Sequence[str] = (), runs: Sequence[str] = (), batches: Sequence[int] = (), modes: Sequence[str] = (),
    dtype: str | None = None, pixels: int | None = None,
) -> list[Case]:  # fmt: skip
    """Every combination of the given values, and by default what the device can do in reasonable time.

    >>> [str(case) for case in chosen_cases("cpu", systems=["embedded"], batches=[1, 4])]
    ['embedded 64 px, ddim 50, float32, batch 1, eager', 'embedded 64 px, ddim 50, float32, batch 4, eager']

    `runs` are scheduler and steps, such as "ddim-50". By default a CPU times the embedded pipeline, and Stable Diffusion 1.5 on few
    pixels. A GPU times everything at full size: float16, batches of 1, 4 and 16, eager and compiled, DDIM 50 and DPM-Solver++ 20.
    That takes many hours, the small batches first. Raises ValueError for other values.
    """
    on_cpu = device == "cpu"
    if on_cpu and not (systems or runs or batches or modes or dtype or pixels):
        return list(ON_CPU)
    systems = systems or (["embedded"] if on_cpu else [name for name in FULL_PIPELINES if name != "embedded"])
    runs, batches = runs or (["ddim-50"] if on_cpu else ["ddim-50", "dpm-solver++-20"]), batches or ([1] if on_cpu else [1, 4, 16])
    modes = modes or ([EAGER] if on_cpu else [EAGER, COMPILED])
    dtype = dtype or ("float32" if on_cpu else "float16")
    return [
        Case(system, pixels or _pixels(system), scheduler, steps, dtype, batch, mode)
        for batch, (scheduler, steps), mode, system in product(batches, map(_run, runs), modes, systems)
    ]


def _pixels(system: str) -> int:
    return FULL_PIPELINES[system].pixels if system in FULL_PIPELINES else 1  # Case refuses unknown names


def _run(text: str) -> tuple[str, int]:
    found = re.fullmatch(r"(.+)-(\d{1,4})", text)
    if found is None:
        raise ValueError(f"run {text!r} asked; accepted: a scheduler and its steps, such as ddim-50 or dpm-solver++-20")
    return found[1], int(found[2])


def bench_into(
    output: Path | None, cases: Sequence[Case], *, device: str, threads: int | None = None, repeats: int = 5, minutes: float = 10.0,
    retries_failed: bool = False,
) -> tuple[pd.DataFrame, Book, bool]:  # fmt: skip
    """Time what is missing of the cases; return the table, everything known, and whether nothing is missing.

    >>> bench_into(None, chosen_cases("cpu"), device="cpu", threads=2)  # doctest: +SKIP

    `output` is the folder of bench.json, bench.csv and bench.png; None for data/bench/<machine>. Other arguments as for `run_part`.
    """
    if device != "cpu" and not device.startswith("cuda"):
        raise ValueError(f"device={device!r} asked for a benchmark; accepted: cpu, cuda, cuda:1, ...")
    check_device(device)
    if threads is not None:
        torch.set_num_threads(threads)
    about = about_machine(device)
    folder = writable_folder(output or Path("data/bench") / machine_name(about))
    book = Book(folder, about)
    try:
        is_whole = run_part(book, cases, device=device, repeats=repeats, minutes=minutes, retries_failed=retries_failed)
    finally:  # also what a stopped part has timed
        table = write_report(book)
    return table, book, is_whole


def machine_name(about: dict[str, Any]) -> str:
    """A folder's name for a machine.

    >>> machine_name({"device": "NVIDIA H200", "threads": 16})
    'nvidia-h200'
    """
    name = f"{about['processor']} {about['threads']} threads" if about["device"] == "cpu" else about["device"]
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
