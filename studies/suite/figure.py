"""Plot the suite: fidelity against cost."""

from __future__ import annotations

from dataclasses import dataclass
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


@dataclass(frozen=True)
class Family:
    """Methods that make one line: solid and filled with a fit, dashed and hollow without."""

    label: str
    kind: str
    keys: str
    colour: Any
    marker: str

    def of(self, table: pd.DataFrame) -> pd.DataFrame:
        return table[(table["kind"] == self.kind) & (table["keys"] == self.keys)]

    @property
    def look(self) -> dict[str, Any]:
        filled = "fitted" in self.keys
        line = {"linestyle": "-" if filled else "--", "linewidth": 2.2 if filled else 1.4}
        face = {} if filled else {"markerfacecolor": "white", "markeredgewidth": 1.5}
        return {"label": self.label, "color": self.colour, "marker": self.marker, "markersize": 8} | line | face


FAMILIES = (
    Family("features reused, fitted", "features", "fitted", PETROFF[0], "s"),
    Family("features reused, derived keys", "features", "derived", PETROFF[0], "s"),
    Family("features reused, uniform keys", "features", "uniform", PETROFF[9], "o"),
    Family("features reused, the paper's keys", "features", "paper", PETROFF[2], "*"),
    Family("predictions reused, fitted", "predictions", "fitted", PETROFF[1], "v"),
    Family("predictions reused, the features' derived keys", "predictions", "derived", PETROFF[1], "v"),
    Family("DeepCache, interval 2, 3, 5, fitted", "deepcache", "fitted", PETROFF[4], "X"),
    Family("DeepCache, interval 2, 3, 5", "deepcache", "", PETROFF[4], "X"),
    Family("fewer steps", "fewer steps", "", "black", "D"),
)


def plot_suite(table: pd.DataFrame, target: Figure) -> Figure:
    """Plot PSNR to the baseline against sequential calls, seconds and GFLOPs. Higher and further left is better.

    >>> plot_suite(table, plot.figure(12, 10)).savefig("suite.png")  # doctest: +SKIP

    The grey line is the baseline's own PSNR to the converged reference. What lies above it is nearer to the baseline than the
    baseline is to the exact solution. Extrapolation and prior noise are left out, and so are seconds if none were measured.
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
    axes["legend"].legend(*axes[panels[0]].get_legend_handles_labels(), loc="center")
    return target


def _drawn(table: pd.DataFrame) -> pd.DataFrame:
    """The methods that are plotted: nothing extrapolated, no prior noise."""
    table = table.assign(keys=table["keys"].fillna(""))  # empty cells of a CSV file are NaN
    return table[~table["noise"].astype(bool) & (table["order"] != 1) & np.isfinite(table["psnr"])]


def _panel(ax: Axes, drawn: pd.DataFrame, cost: str) -> None:
    for family in FAMILIES:
        methods = family.of(drawn).sort_values(cost)
        if not methods.empty:
            ax.plot(methods[cost], methods["psnr"], **family.look)
    ax.grid(color="0.92")
    ax.set_axisbelow(True)


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
