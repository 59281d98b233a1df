"""Write comparisons as files: tables, and what they were measured on.

- `compare_into(folder, schedules, ...)`: the command `fastdiff-lab compare`
- `write_comparison(folder, pipe, schedules, ...)`: a comparison of given schedules
- `write_about`, `write_table`, `of_quality`: its files
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from diffusers import DiffusionPipeline

from ..inputs.files import read_prompts, writable_folder, write_text, write_whole
from ..inputs.plain_values import prompts_of, whole_number
from ..key_schedule import KeySchedule
from ..pipelines import load_pipeline
from ..propagation.config import PropagationConfig
from ..propagation.fit import PropagationFit
from ..sampling.call_options import own_guidance
from ..sampling.methods import Method, denoiser_calls
from ..shapes.data import held_out_prompts
from .compare import compare_images, default_methods, with_costs
from .environment import about_run


def compare_into(
    folder: Path,
    schedules: Sequence[Path],
    *,
    fits: Sequence[Path] = (),
    order: int = 0,
    prompts: Path | None = None,
    count: int = 32,
    seeds: int = 2,
    threads: int | None = None,
    store: Path | None = None,
    pipeline: Mapping[str, Any] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Compare schedule files on given prompts or held-out captions: `fastdiff-lab compare`.

    >>> compare_into(Path("runs/compare"), [Path("schedule.json")])  # doctest: +SKIP

    Args:
        schedules: Files of `KeySchedule.save`, run with `order`.
        fits: Files of `PropagationFit.save`.
        prompts: Text file with a prompt per line; None for `count` held-out captions.
        seeds: How many.
        threads: CPU threads; None leaves them.
        store: None for images.sqlite in the folder.
        pipeline: Arguments of `load_pipeline`. Other options as for `compare`.

    Returns:
        The table.

    Raises:
        ValueError: No schedules and no fits, two files of one name, or a count below 1.
    """
    at = range(whole_number("seeds", seeds, 1))
    texts = held_out_prompts(count) if prompts is None else read_prompts(prompts)
    loaded = read_schedules(schedules, others=fits)
    methods = {name: Method(schedule, order=order) for name, schedule in loaded.items()}
    methods |= {path.stem: Method(PropagationConfig.of_fit(PropagationFit.load(path))) for path in fits}
    if not methods:
        raise ValueError("no schedules asked; accepted: files of schedules or of fits, one or more")
    if threads is not None:
        torch.set_num_threads(threads)
    of_run = {"seeds": at, "store": store or folder / "images.sqlite", **options}
    return write_comparison(folder, load_pipeline(**(pipeline or {})), methods, texts, **of_run)


def read_schedules(paths: Sequence[Path], others: Sequence[Path] = ()) -> dict[str, KeySchedule]:
    """Read files of `KeySchedule.save`, by file name. Raises ValueError for two of the same name, `others` among them."""
    stems = [path.stem for path in (*paths, *others)]
    twice = next((stem for stem in stems if stems.count(stem) > 1), None)
    if twice is not None:
        raise ValueError(f"two files are named {twice!r}; accepted: files of different names, which name the methods")
    return {path.stem: KeySchedule.load(path) for path in paths}


def write_comparison(
    folder: str | Path,
    pipe: DiffusionPipeline,
    schedules: Mapping[str, KeySchedule | Method],
    prompts: Sequence[str],
    *,
    num_inference_steps: int = 50,
    guidance_scale: float | None = None,
    repeats: int = 3,
    **options: Any,
) -> pd.DataFrame:
    """Compare schedules or methods and write about.json, images.csv and table.csv, all at the end.

    >>> write_comparison("runs/compare", pipe, {"mine": KeySchedule.load("schedule.json")}, prompts)  # doctest: +SKIP

    Arguments and table as for `compare`. If it stops early, older files stay, and images stay in the store.
    Raises OSError for a folder that cannot be written.
    """
    place = writable_folder(Path(folder))
    prompts, guidance = prompts_of(prompts), own_guidance(pipe, guidance_scale)
    of_run: dict[str, Any] = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance}
    methods = default_methods(denoiser_calls(pipe, num_inference_steps), schedules)
    described = {name: method.about() for name, method in methods.items()}
    images = compare_images(pipe, methods, prompts, rivals=False, **of_run, **options)
    table = with_costs(pipe, methods, images, repeats=repeats, **of_run)
    write_about(place, pipe, of_run | {"prompts": list(prompts), "methods": described, "repeats": repeats} | of_quality(options))
    write_table(images, place / "images.csv")
    write_table(table, place / "table.csv")
    return table


def of_quality(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of quality and the metrics' versions."""
    return {name: options[name] for name in ("metrics", "metric_weights", "real_images") if options.get(name)}


def write_about(folder: Path, pipe: DiffusionPipeline, asked: Mapping[str, Any]) -> None:
    """Write about.json: what was asked, and on what machine and code."""
    document = about_run(pipe) | {"asked": dict(asked)}
    write_text(folder / "about.json", json.dumps(document, indent=2, default=str) + "\n")


def write_table(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV, whole or not at all."""
    write_whole(path, lambda file: table.to_csv(file, index=False, float_format="%.7g"))
