"""Plot what the gain at one number of keys is made of.

- `plot_gains(table, target)`: stairs of features and of predictions
"""

from __future__ import annotations

from itertools import pairwise

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastdiff_lab.plot import PETROFF

# What is added -> the keys of that row of the suite.
STAIRS = {
    "uniform keys,\nreused": "uniform",
    "a fit": "uniform, fitted",
    "derived keys": "fitted",
    "keys derived\nfor predictions": "derived for predictions, fitted",
    "keys moved\nfor the fit": "refined, fitted",
}


def plot_gains(table: pd.DataFrame, target: Figure, num_keys: int = 9) -> Figure:
    """Plot the PSNR of reused features and predictions, with one thing more at each stair. A hatched stair is a loss.

    >>> plot_gains(table, plot.figure(10, 4)).savefig("gains.png")  # doctest: +SKIP

    Args:
        table: Of `run_suite`, with fits; stairs that were not run are left out.
    """
    at = table[(table["num_keys"] == num_keys) & (table["order"] == 0) & ~table["noise"].astype(bool)]
    for ax, kind in zip(target.subplots(1, 2, sharey=True), ("features", "predictions"), strict=True):
        _stairs(ax, at[at["kind"] == kind].set_index("keys")["psnr"])
        ax.set_title(f"{kind} reused, {num_keys} keys")
    target.axes[0].set_ylabel("PSNR to the baseline (dB)")
    return target


def _stairs(ax: Axes, psnr: pd.Series) -> None:
    added = {title: psnr[keys] for title, keys in STAIRS.items() if keys in psnr}
    values = list(added.values())
    ax.bar(0, values[0], color="0.7")
    for place, (before, value) in enumerate(pairwise(values), start=1):
        gains = value >= before
        ax.bar(place, value - before, bottom=before, color=PETROFF[0 if gains else 1], hatch="" if gains else "//")
    for place, value in enumerate(values):
        ax.annotate(f"{value:.1f}", (place, max(value, values[place - 1] if place else 0)), ha="center", va="bottom")
    ax.set_ylim(min(values) - 3, max(values) + 2)
    ax.set_xticks(range(len(values)), list(added))
