"""Write the suite as files: tables, figure, and what they were measured on.

- `write_suite(folder, pipe, costs, ...)`: the suite
- `draw_figures(table, folder)`: its figures
- `read_costs(paths)`: reuse costs by reuse and order
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from fastdiff_lab import plot
from fastdiff_lab.calibration.reuse_costs import ReuseCosts
from fastdiff_lab.comparison.result_files import of_quality, write_about, write_table
from fastdiff_lab.inputs.files import writable_folder, write_whole
from fastdiff_lab.inputs.plain_values import prompts_of, seeds_of
from fastdiff_lab.sampling.call_options import own_guidance

from .claims import paired
from .figure import plot_suite
from .gains import plot_gains
from .run import suite_images, suite_table
from .suite_methods import Costs

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from matplotlib.figure import Figure


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
    """Run the suite and write about.json, images.csv, paired.csv, table.csv and the figures, all at the end.

    >>> write_suite("runs/suite", pipe, costs, held_out_prompts(32), store="runs/suite.sqlite")  # doctest: +SKIP

    Arguments and table as for `run_suite`. If it stops early, older files stay, and images stay in the store.
    Raises OSError for a folder that cannot be written.
    """
    place, seeds = writable_folder(Path(folder)), seeds_of(seeds, least=0)
    prompts, guidance = prompts_of(prompts), own_guidance(pipe, guidance_scale)
    of_run: dict[str, Any] = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance}
    counts = {name: options.pop(name) for name in ("counts", "further") if name in options}
    about = {"prompts": prompts, "seeds": list(seeds), "reference_steps": reference_steps, "repeats": repeats} | of_run
    images = suite_images(
        pipe, costs, prompts, seeds=seeds, reference_steps=reference_steps, store=store, **of_run, **counts, **options
    )
    table = suite_table(pipe, costs, images, repeats=repeats, **of_run, **counts)
    write_about(place, pipe, about | {"costs": [dict(given.measured_on) for given in costs.values()]} | of_quality(options))
    write_table(images, place / "images.csv")
    write_table(table, place / "table.csv")
    write_table(paired(images, table), place / "paired.csv")
    draw_figures(table, place)
    return table


def draw_figures(table: pd.DataFrame, folder: Path) -> None:
    """Write suite.png, and gains.png if there are fits."""
    figures = {"suite": plot_suite(table, plot.figure(12, 10))}
    if (table["keys"] == "uniform, fitted").any():
        figures["gains"] = plot_gains(table, plot.figure(11, 4))
    for name, figure in figures.items():
        write_whole(folder / f"{name}.png", partial(_write_png, figure))


def _write_png(figure: Figure, file: Path) -> None:
    file.write_bytes(plot.png(figure))


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
