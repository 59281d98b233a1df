"""Plot the table of `studies.fits`: nearness over calls, and what the gain is made of.

- `plot_fits(table, target)`: two panels
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastdiff_lab.plot import PETROFF

LINES: dict[str, dict[str, Any]] = {
    "extrapolated features, fitted": {"color": PETROFF[1], "marker": "h", "linewidth": 2.5},
    "features, fitted": {"color": PETROFF[0], "marker": "s", "linewidth": 2.5},
    "predictions, fitted": {"color": "black", "marker": "v", "linewidth": 1.5},
    "DeepCache, fitted": {"color": PETROFF[8], "marker": "X", "linewidth": 1.5},
    "features": {"color": PETROFF[0], "marker": "s", "linewidth": 1.2, "linestyle": "--", "markerfacecolor": "white"},
    "predictions": {"color": "black", "marker": "v", "linewidth": 1.2, "linestyle": "--", "markerfacecolor": "white"},
    "DeepCache": {"color": PETROFF[8], "marker": "X", "linewidth": 1.2, "linestyle": "--", "markerfacecolor": "white"},
    "fewer steps": {"color": "0.5", "marker": "D", "linewidth": 1.2, "linestyle": ":"},
}
# From the control to our best, one thing more each time.
STAIRS = {
    "fewer steps": "fewer steps",
    "predictions": "derived keys",
    "predictions, fitted": "a fit",
    "features, fitted": "decoded features",
    "extrapolated features, fitted": "fitted lines",
    "extrapolated features, refined, fitted": "moved keys",
}


def plot_fits(table: pd.DataFrame, target: Figure, num_keys: int = 9) -> Figure:
    """Plot PSNR against the number of keys, and the gain at one number as stairs. Dashed lines are without a fit.

    >>> plot_fits(table, plot.figure(12, 5)).savefig("fits.png")  # doctest: +SKIP
    """
    nearness, stairs = target.subplots(1, 2, width_ratios=(3, 2))
    _lines(nearness, table)
    _stairs(stairs, table[table["num_keys"] == num_keys].set_index("rule")["psnr"], num_keys)
    return target


def _lines(ax: Axes, table: pd.DataFrame) -> None:
    for rule, look in LINES.items():
        found = table[table["rule"] == rule].sort_values("num_keys")
        if len(found):
            ax.plot(found["num_keys"], found["psnr"], label=rule, **look)
    ax.set(xlabel="key steps, or whole evaluations", ylabel="PSNR to the baseline (dB, of the averaged error)")
    ax.set_xticks(sorted(table["num_keys"].unique()))
    ax.legend(fontsize="small")
    ax.grid(color="0.92")
    ax.set_axisbelow(True)


def _stairs(ax: Axes, psnr: pd.Series, num_keys: int) -> None:
    rules = [rule for rule in STAIRS if rule in psnr]
    ax.bar(0, psnr[rules[0]], color="0.7")
    for place, (before, rule) in enumerate(pairwise(rules), start=1):
        step = psnr[rule] - psnr[before]
        ax.bar(place, step, bottom=psnr[before], color=PETROFF[0] if step >= 0 else PETROFF[2], hatch="" if step >= 0 else "//")
    for place, rule in enumerate(rules):
        ax.annotate(f"{psnr[rule]:.1f}", (place, psnr[rule]), ha="center", va="bottom")
    ax.set(ylim=(psnr[rules].min() - 3, psnr[rules].max() + 2), ylabel=f"PSNR at {num_keys} keys (dB)")
    ax.set_xticks(range(len(rules)), [STAIRS[rule] for rule in rules], rotation=30, ha="right")
