"""Show a benchmark's numbers as a table and a figure.

- `bench_table(book)`: one row per case and method
- `plot_bench(table, target)`: speed-ups beside the ceilings
- `write_report(book)`: both, beside the benchmark's own file
- `told(table, book)`: the main columns as text, and what could not run
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastdiff_lab import plot
from fastdiff_lab.comparison.tables import BASELINE
from fastdiff_lab.comparison.time_ceiling import at_best
from fastdiff_lab.hooks.flops import FlopCount
from fastdiff_lab.inputs.files import write_whole

from .timing import Timed
from .timings_file import Book, Entry

SHOWN = ["method", "forward_calls", "gflops", "seconds", "ratio", "denoiser_ratio", "flop_ceiling",
         "time_ceiling", "share_of_ceiling", "denoiser_peak_ratio"]  # fmt: skip


def bench_table(book: Book) -> pd.DataFrame:
    """One row per case and timed method.

    >>> bench_table(book).query("method == 'paper, parallel'")[["ratio", "denoiser_ratio"]]  # doctest: +SKIP

    Returns the case's columns; method; runs; median seconds of the pipeline and of the denoiser's calls, with their speed-ups `ratio`
    and `denoiser_ratio`; evaluations; `gflops` per image (2 per multiply-add) and the speed-up by them, `flop_ceiling`;
    `peak_bytes` and `denoiser_peak_bytes` (CUDA only) and `denoiser_peak_ratio` to the baseline; `time_ceiling`, the denoiser's
    speed-up if each half took its time alone, and `share_of_ceiling`, the part of it that is reached; `is_finite`, whether all last
    predictions were (random weights in float16 may overflow).
    """
    return pd.DataFrame([row for entry in book.entries.values() if BASELINE in entry.runs for row in _rows(entry)])


def _rows(entry: Entry) -> list[dict[str, Any]]:
    case = {"case": str(entry.case)} | asdict(entry.case)
    rows = [case | {"method": method} | _measured(entry, method) for method in entry.methods if entry.runs.get(method)]
    baseline = next(row for row in rows if row["method"] == BASELINE)
    return [row | _beside(row, baseline) for row in rows]


def _measured(entry: Entry, method: str) -> dict[str, Any]:
    runs = entry.runs[method]
    last = runs[-1]
    flops = FlopCount(**entry.flops[method])
    return {
        "runs": len(runs), "seconds": statistics.median(run.seconds for run in runs),
        "denoiser_seconds": statistics.median(run.denoiser_seconds for run in runs),
        "encoder_calls": last.encoder_calls, "decoder_calls": last.decoder_calls, "forward_calls": last.forward_calls,
        "gflops": flops.of_run(last.encoder_calls, last.decoder_calls) / 1e9 / entry.case.batch_size,
        "peak_bytes": _most(run.peak_bytes for run in runs), "denoiser_peak_bytes": _most(run.denoiser_peak_bytes for run in runs),
        "at_best_seconds": _at_best(entry, method, last), "is_finite": all(run.is_finite for run in runs),
    }  # fmt: skip


def _most(values: Iterable[int | None]) -> float:
    return max((value for value in values if value is not None), default=float("nan"))


def _at_best(entry: Entry, method: str, run: Timed) -> float:
    """Seconds of the denoiser if each half took its time alone, or NaN.

    Calls with DeepCache or merged tokens have other parts, and a half that did not fit could not be timed.
    """
    sizes = entry.methods[method]
    decoder = {size: statistics.median(seconds) for size, seconds in entry.decoder.items() if seconds}
    if sizes is None or not entry.encoder or not {1, *sizes} <= decoder.keys():
        return float("nan")
    return at_best(run.encoder_calls, sizes or [1] * run.decoder_calls, statistics.median(entry.encoder), decoder)


def _beside(row: dict[str, Any], baseline: dict[str, Any]) -> dict[str, float]:
    return {
        "ratio": baseline["seconds"] / row["seconds"],
        "denoiser_ratio": baseline["denoiser_seconds"] / row["denoiser_seconds"],
        "flop_ceiling": baseline["gflops"] / row["gflops"],
        "denoiser_peak_ratio": row["denoiser_peak_bytes"] / baseline["denoiser_peak_bytes"],
        "time_ceiling": baseline["denoiser_seconds"] / row["at_best_seconds"],
        "share_of_ceiling": row["at_best_seconds"] / row["denoiser_seconds"],
    }


def plot_bench(table: pd.DataFrame, target: Figure) -> Figure:
    """Plot for each case the speed-ups of denoiser and pipeline, with both ceilings.

    >>> plot_bench(bench_table(book), plot.figure(12, 5)).savefig("bench.png")  # doctest: +SKIP
    """
    cases = list(table.groupby("case", sort=False))
    columns = min(3, len(cases))
    grid = target.subplots(-(-len(cases) // columns), columns, squeeze=False).flat
    for ax, (case, rows) in zip(grid, cases, strict=False):
        _panel(ax, rows[rows["method"] != BASELINE])
        ax.set_title(case.replace(", float", ",\nfloat").replace(", bfloat", ",\nbfloat"), fontsize="small")
    for ax in list(grid):
        ax.set_axis_off()
    target.legend(*target.axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize="small")
    return target


def _panel(ax: Axes, rows: pd.DataFrame) -> None:
    places = np.arange(len(rows))[::-1]
    ax.barh(places + 0.2, rows["denoiser_ratio"], 0.4, color=plot.PETROFF[0], label="denoiser")
    ax.barh(places - 0.2, rows["ratio"], 0.4, color=plot.PETROFF[1], label="whole pipeline")
    ax.plot(rows["time_ceiling"], places + 0.2, "|", color="black", markersize=9, markeredgewidth=2, label="time ceiling")
    ax.plot(rows["flop_ceiling"], places - 0.2, "D", color=plot.PETROFF[2], markersize=4, label="FLOP ceiling")
    ax.axvline(1, color="0.5", linewidth=1)
    ax.set_yticks(places, rows["method"], fontsize="x-small")
    ax.set_xlabel("times faster than the baseline")


def write_report(book: Book) -> pd.DataFrame:
    """Write bench.csv and bench.png beside the benchmark's own file; return the table."""
    table = bench_table(book)
    if table.empty:
        return table
    cases = table["case"].nunique()
    figure = plot.figure(5 * min(3, cases), 0.8 + 4 * -(-cases // 3))
    plot_bench(table, figure)
    write_whole(book.path.with_name("bench.csv"), lambda place: table.to_csv(place, index=False, float_format="%.5g"))
    write_whole(book.path.with_name("bench.png"), lambda place: figure.savefig(place, format="png", dpi=110))
    return table


def told(table: pd.DataFrame, book: Book) -> str:
    """The main columns of each case, and what could not run there.

    >>> print(told(bench_table(book), book))  # doctest: +SKIP
    """
    parts = []
    for case, entry in book.entries.items():
        rows = table[table["case"] == str(case)] if len(table) else table
        parts.append(f"\n{case}\n{rows[SHOWN].round(2).to_string(index=False) if len(rows) else 'nothing is timed yet'}")
        parts += [f"could not run: {case}: {method}: {reason}" for method, reason in entry.failed.items()]
        parts += [f"ended in NaN or infinite values: {case}: {method}" for method in _not_finite(rows)]
    return "\n".join(parts)


def _not_finite(rows: pd.DataFrame) -> list[str]:
    return [] if rows.empty else list(rows.loc[~rows["is_finite"], "method"])
