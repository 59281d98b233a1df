"""Plot the suite: fidelity against cost."""

from __future__ import annotations

from itertools import chain
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from fastdiff_lab.plot import PETROFF

PANELS = {
    "forward_calls": "sequential denoiser calls per image",
    "seconds": "seconds per image",
    "gflops": "GFLOPs per image (2 per multiply-add)",
}
OWN, OF_FEATURES = "derived for predictions", "derived for features"
# (kind, keys) -> colour and marker; the line is dashed for order 0, solid for order 1.
LOOKS: dict[tuple[str, str], tuple[Any, str]] = {
    ("features", "uniform"): (PETROFF[0], "o"),
    ("features", "derived"): (PETROFF[1], "s"),
    ("features", "refined"): (PETROFF[3], "h"),
    ("features", "fitted"): ("black", "s"),
    ("features", "refined, fitted"): ("black", "h"),
    ("features", "uniform, fitted"): ("black", "o"),
    ("features", "paper"): (PETROFF[2], "*"),
    ("predictions", "uniform"): (PETROFF[4], "^"),
    ("predictions", "derived"): (PETROFF[5], "v"),
    ("predictions", OWN): (PETROFF[5], "v"),
    ("predictions", OF_FEATURES): (PETROFF[6], "<"),
    ("predictions", "refined"): (PETROFF[9], "H"),
    ("predictions", "fitted"): ("0.5", "v"),
    ("predictions", "refined, fitted"): ("0.5", "H"),
    ("predictions", "uniform, fitted"): ("0.5", "^"),
    ("predictions", "paper"): (PETROFF[7], "P"),
    ("fewer steps", ""): ("black", "D"),
    ("deepcache", ""): (PETROFF[8], "X"),
    ("deepcache", "fitted"): ("0.5", "X"),
}
NAMES = {
    "fitted": "fitted",
    "refined, fitted": "keys refined for the fit, fitted",
    "uniform, fitted": "uniform keys, fitted",
    "paper": "the paper's keys",
    OWN: "keys derived for them",
    OF_FEATURES: "keys derived for features",
}
RIVALS = {"fewer steps": "fewer steps", "deepcache": "DeepCache, interval 2, 3, 5"}
SINGLE = ("paper", "refined", "refined, fitted", "uniform, fitted")  # not at every number of keys
HOW = {0.0: "reused", 1.0: "extrapolated"}


def plot_suite(table: pd.DataFrame, target: Figure) -> Figure:
    """Plot PSNR to the baseline against sequential calls, seconds and GFLOPs. Higher and further left is better.

    >>> plot_suite(table, plot.figure(12, 10)).savefig("suite.png")  # doctest: +SKIP

    The grey line is the baseline's own PSNR to the converged reference. What lies above it is nearer to the baseline than the
    baseline is to the exact solution. Methods with prior noise are left out, and so are seconds if none were measured.
    """
    drawn = _drawn(table)
    panels = [name for name in PANELS if drawn[name].notna().any()]
    cells = [*panels, *["legend"] * (4 - len(panels))]
    axes: dict[str, Axes] = target.subplot_mosaic([cells[:2], cells[2:]], sharey=True)
    for place, name in enumerate(panels):
        ax = axes[name]
        _panel(ax, drawn, name)
        _reference_line(ax, table)
        ax.set(xscale="log", xlabel=PANELS[name], ylabel="" if place % 2 else "PSNR to the baseline (dB)")
        _plain_ticks(ax)
    axes["legend"].set_axis_off()
    axes["legend"].legend(*axes[panels[0]].get_legend_handles_labels(), loc="center", ncols=len(panels) % 2 or 2, fontsize="small")
    return target


def _drawn(table: pd.DataFrame) -> pd.DataFrame:
    """The methods that are plotted, without predictions extrapolated at the keys of features if they have their own."""
    table = table.assign(keys=table["keys"].fillna(""))  # empty cells of a CSV file are NaN
    shown = table[~table["noise"].astype(bool) & (table["kind"] != "baseline") & np.isfinite(table["psnr"])]
    if not (shown["keys"] == OWN).any():
        return shown
    of_features = (shown["kind"] == "predictions") & (shown["keys"] == "derived")
    return shown.assign(keys=shown["keys"].mask(of_features, OF_FEATURES))[~of_features | (shown["order"] == 0)]


def _panel(ax: Axes, drawn: pd.DataFrame, cost: str) -> None:
    for (kind, keys), (colour, marker) in LOOKS.items():
        family = drawn[(drawn["kind"] == kind) & (drawn["keys"] == keys)]
        for order, methods in chain(family.groupby("order"), [(None, family[family["order"].isna()])]):
            if not methods.empty:
                look = _look(order, keys, colour, marker)
                ordered = methods.sort_values(cost)
                ax.plot(ordered[cost], ordered["psnr"], label=_label(kind, keys, order), **look)
    ax.grid(color="0.92")
    ax.set_axisbelow(True)


def _look(order: Any, keys: str, colour: Any, marker: str) -> dict[str, Any]:
    """Hollow marks and dashed lines for order 0; single marks for the paper's keys."""
    line = "none" if keys in SINGLE else "--" if order == 0 else "-" if order == 1 else ":"
    look = {"color": colour, "marker": marker, "linestyle": line, "linewidth": 1.5, "markersize": 10 if keys in SINGLE else 6}
    return look | ({"markerfacecolor": "white", "markeredgewidth": 1.5} if order == 0 else {})


def _label(kind: str, keys: str, order: Any) -> str:
    if order is None:
        return RIVALS[kind] + (f", {keys}" if keys else "")
    return f"{kind} {HOW[order]}, {NAMES.get(keys, f'{keys} keys')}"


def _reference_line(ax: Axes, table: pd.DataFrame) -> None:
    baseline = table[table["kind"] == "baseline"]
    if "reference_psnr" in table and len(baseline):
        level = float(baseline["reference_psnr"].iloc[0])
        label = "the baseline's own PSNR to the converged reference"
        ax.axhline(level, color="0.35", linestyle=(0, (6, 2, 1, 2)), linewidth=1.2, label=label)


def _plain_ticks(ax: Axes) -> None:
    """Label ticks with numbers such as 5 and 30 instead of powers of ten."""
    ax.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 3.0, 5.0, 7.0)))
    ax.xaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())
