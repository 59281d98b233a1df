"""Write comparisons as files: tables, figure, and what they were measured on.

- `compare_into(folder, ...)`: the command `fastdiff-lab compare`
- `write_suite(folder, pipe, costs, ...)`: the suite
- `write_comparison(folder, pipe, schedules, ...)`: a comparison of given schedules
- `read_costs(paths)`: reuse costs by reuse and order
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch

from ...calibration.reuse_costs import ReuseCosts
from ...inputs.files import read_prompts, writable_folder, write_text, write_whole
from ...inputs.plain_values import prompts_of, seeds_of, whole
from ...key_schedule import KeySchedule
from ...pipelines import load_pipeline
from ...sampling.call_options import own_guidance
from ...sampling.methods import Method, denoiser_calls
from ..compare import compare_images, default_methods, with_costs
from ..environment import about_run
from .claims import paired
from .run import Costs, held_out_prompts, suite_images, suite_table

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def compare_into(
    folder: Path,
    *,
    schedules: Sequence[Path] = (),
    order: int = 0,
    suite: bool = False,
    costs: Sequence[Path] = (),
    prompts: Path | None = None,
    count: int = 32,
    seeds: int = 2,
    threads: int | None = None,
    store: Path | None = None,
    pipeline: Mapping[str, Any] | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Run the suite, or compare schedule files, on given prompts or held-out captions: `fastdiff-lab compare`.

    >>> compare_into(Path("runs/suite"), suite=True, costs=[Path("costs.safetensors")])  # doctest: +SKIP

    Args:
        schedules: Files of `KeySchedule.save`, run with `order`; in the suite, as refined ones.
        costs: Files of `ReuseCosts.save`, for the suite.
        prompts: Text file with a prompt per line; None for `count` held-out captions.
        seeds: How many.
        threads: CPU threads; None leaves them.
        store: None for images.sqlite in the folder.
        pipeline: Arguments of `load_pipeline`. Other options as for `run_suite`.

    Returns:
        The table.

    Raises:
        ValueError: Neither schedules nor suite, or a count below 1.
    """
    _check_asked(schedules, suite, costs)
    at = range(whole("seeds", seeds, 1))
    texts = held_out_prompts(count) if prompts is None else read_prompts(prompts)
    if threads is not None:
        torch.set_num_threads(threads)
    measured = read_costs(costs)
    loaded = {path.stem: KeySchedule.load(path) for path in schedules}
    pipe = load_pipeline(**(pipeline or {}))
    of_run = {"seeds": at, "store": store or folder / "images.sqlite", **options}
    if suite:
        return write_suite(folder, pipe, measured, texts, refined=list(loaded.values()), **of_run)
    methods = {name: Method(schedule, order=order) for name, schedule in loaded.items()}
    return write_comparison(folder, pipe, methods, texts, **of_run)


def _check_asked(schedules: Sequence[Path], suite: bool, costs: Sequence[Path]) -> None:
    if not (suite or schedules) or (costs and not suite):
        asked = [name for name, given in (("schedules", schedules), ("--suite", suite), ("--costs", costs)) if given]
        raise ValueError(
            f"{' and '.join(asked) or 'nothing'} asked; accepted: files of schedules (one or more), or --suite, "
            "with or without --costs FILE and files of refined schedules"
        )
    stems = [path.stem for path in schedules]
    twice = next((stem for stem in stems if stems.count(stem) > 1), None)
    if twice is not None:
        raise ValueError(f"two schedule files are named {twice!r}; accepted: files of different names, which name the methods")


def write_suite(
    folder: str | Path,
    pipe: DiffusionPipeline,
    costs: Costs,
    prompts: Sequence[str],
    *,
    seeds: Sequence[int] = (0, 1),
    num_inference_steps: int = 50,
    guidance_scale: float | None = None,
    reference_steps: int | None = 1000,
    repeats: int = 3,
    store: str | Path | None = None,
    **options: Any,
) -> pd.DataFrame:
    """Run the suite and write about.json, images.csv, paired.csv, table.csv and suite.png, all at the end.

    >>> write_suite("runs/suite", pipe, costs, held_out_prompts(32), store="runs/suite.sqlite")  # doctest: +SKIP

    Arguments and table as for `run_suite`. If it stops early, older files stay, and images stay in the store.
    Raises OSError for a folder that cannot be written.
    """
    from ... import plot  # without the extra that it needs, this fails before an image is drawn
    from .figure import plot_suite

    place, seeds = writable_folder(Path(folder)), seeds_of(seeds, least=0)
    prompts, guidance = prompts_of(prompts), own_guidance(pipe, guidance_scale)
    of_run: dict[str, Any] = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance}
    counts = {name: options.pop(name) for name in ("counts", "refined") if name in options}
    about = {"prompts": prompts, "seeds": list(seeds), "reference_steps": reference_steps, "repeats": repeats} | of_run
    images = suite_images(
        pipe, costs, prompts, seeds=seeds, reference_steps=reference_steps, store=store, **of_run, **counts, **options
    )
    table = suite_table(pipe, costs, images, repeats=repeats, **of_run, **counts)
    _write_about(place, pipe, about | {"costs": [dict(given.measured_on) for given in costs.values()]} | _of_quality(options))
    _write_table(images, place / "images.csv")
    _write_table(table, place / "table.csv")
    _write_table(paired(images, table), place / "paired.csv")
    figure = plot_suite(table, plot.figure(12, 10))
    write_whole(place / "suite.png", lambda file: figure.savefig(file, format="png", dpi=110))
    return table


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

    Arguments and table as for `compare`; files and errors as for `write_suite`.
    """
    place = writable_folder(Path(folder))
    prompts, guidance = prompts_of(prompts), own_guidance(pipe, guidance_scale)
    of_run: dict[str, Any] = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance}
    methods = default_methods(denoiser_calls(pipe, num_inference_steps), schedules)
    described = {name: method.about() for name, method in methods.items()}
    images = compare_images(pipe, methods, prompts, rivals=False, **of_run, **options)
    table = with_costs(pipe, methods, images, repeats=repeats, **of_run)
    _write_about(place, pipe, of_run | {"prompts": list(prompts), "methods": described, "repeats": repeats} | _of_quality(options))
    _write_table(images, place / "images.csv")
    _write_table(table, place / "table.csv")
    return table


def read_costs(paths: Iterable[str | Path]) -> dict[tuple[str, int], ReuseCosts]:
    """Read files of `ReuseCosts.save`, by what is reused ("encoder" or "prediction") and order.

    >>> read_costs(["encoder-1.safetensors"])  # doctest: +SKIP

    Raises ValueError for two files of the same reuse and order, and as `ReuseCosts.load` does.
    """
    found: dict[tuple[str, int], ReuseCosts] = {}
    for path in paths:
        costs = ReuseCosts.load(path)
        of = str(costs.measured_on.get("reuse", "encoder")), costs.order
        if of in found:
            raise ValueError(f"{path} holds costs for {of}, and so does a file before it; accepted: one file for each")
        found[of] = costs
    return found


def _of_quality(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options of quality and the metrics' versions."""
    return {name: options[name] for name in ("metrics", "metric_weights", "real_images") if options.get(name)}


def _write_about(folder: Path, pipe: DiffusionPipeline, asked: Mapping[str, Any]) -> None:
    document = about_run(pipe) | {"asked": dict(asked)}
    write_text(folder / "about.json", json.dumps(document, indent=2, default=str) + "\n")


def _write_table(table: pd.DataFrame, path: Path) -> None:
    write_whole(path, lambda file: table.to_csv(file, index=False, float_format="%.7g"))
