"""Tables on matplotlib Axes: features over steps, schedules, reuse costs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd

from ..inputs.extras import extra
from .style import BANDS, PART_COLOURS, PART_DASHES, PART_HATCHES, PETROFF

with extra("lab", "fastdiff_lab.plot"):
    import seaborn as sns
    from matplotlib.axes import Axes
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Rectangle
    from matplotlib.ticker import MaxNLocator
    from matplotlib.transforms import ScaledTranslation


def change_over_steps(table: pd.DataFrame, ax: Axes, *, keys: Sequence[int] = (), label: str = "change per step") -> Axes:
    """One line per layer from a `feature_change` table: mean over samples, with a band from lowest to highest.

    `keys` are marked by vertical lines. Encoder layers are solid, decoder layers dashed.
    """
    for key in keys:
        ax.axvline(key, color="0.85", linewidth=1, zorder=0)
    parts = dict(zip(table["layer"], table["part"], strict=True))
    colours = {layer: PETROFF[place % len(PETROFF)] for place, layer in enumerate(parts)}
    look: dict[str, Any] = {"palette": colours, "dashes": PART_DASHES, "linewidth": 1.6, "legend": False}
    lowest_to_highest = ("pi", 100)
    sns.lineplot(table, x="step", y="value", hue="layer", style="part", errorbar=lowest_to_highest, ax=ax, **look)
    ax.set(xlabel="step", ylabel=label)
    # One legend entry per layer, with colour and dash; seaborn would list them apart.
    lines = [
        Line2D([], [], color=colours[layer], label=layer, linestyle=(0, PART_DASHES[part] or None)) for layer, part in parts.items()
    ]
    # In inches, to lie below ticks and label at any height.
    below = ax.transAxes + ScaledTranslation(0, -0.5, ax.figure.dpi_scale_trans)
    ax.legend(handles=lines, fontsize="x-small", ncols=2, loc="upper center", bbox_to_anchor=(0.5, 0), bbox_transform=below)
    return ax


def change_by_part(table: pd.DataFrame, ax: Axes, *, label: str = "change per step") -> Axes:
    """A thick line for each half of the denoiser, from a `feature_change` table; its layers stay thin and grey.

    The encoder is solid, the decoder dashed. Lines are means over samples.
    """
    for _, layer in table.groupby(["part", "layer"])["value"]:
        by_step = table.loc[layer.index].groupby("step")["value"].mean()
        ax.plot(by_step.index, by_step, color="0.8", linewidth=0.8, zorder=1)
    for part, values in table.groupby("part", sort=False):
        mean = values.groupby("step")["value"].mean()
        dashes = (0, PART_DASHES[part] or None)
        ax.plot(mean.index, mean, color=PART_COLOURS[part], linestyle=dashes, linewidth=2.6, label=part)
    ax.set(xlabel="step", ylabel=label)
    ax.legend()
    return ax


def norm_by_layer(table: pd.DataFrame, ax: Axes) -> Axes:
    """A box per layer over all steps and samples from a `feature_norm` table (Fig. 3b); decoder boxes are hatched."""
    layers = list(dict.fromkeys(table["layer"]))
    boxes = ax.boxplot([table.loc[table["layer"] == layer, "value"] for layer in layers], patch_artist=True, showfliers=False)
    for layer, box in zip(layers, boxes["boxes"], strict=True):
        part = table.loc[table["layer"] == layer, "part"].iloc[0]
        box.set(facecolor=PART_COLOURS[part], hatch=PART_HATCHES[part])
    for median in boxes["medians"]:
        median.set_color("black")
    ax.set_xticks(range(1, len(layers) + 1), layers, rotation=60, ha="right", fontsize="x-small")
    ax.set_ylabel("norm of the channel mean")
    return ax


def norm_spread(table: pd.DataFrame, ax: Axes, *, relative: bool = False) -> Axes:
    """A bar per layer: the standard deviation of its norm over the steps (Fig. 3c), by the mean norm if `relative`."""
    by_step = table.groupby(["layer", "part", "step"], sort=False)["value"].mean()
    groups = by_step.groupby(["layer", "part"], sort=False)
    heights = (groups.std() / (groups.mean() if relative else 1.0)).reset_index()
    sns.barplot(heights, x="layer", y="value", hue="part", palette=PART_COLOURS, saturation=1, ax=ax)
    for bars, part in zip(ax.containers, heights["part"].unique(), strict=True):
        for bar in bars:
            bar.set_hatch(PART_HATCHES[part])
    ax.set_xticks(range(len(heights)), heights["layer"], rotation=60, ha="right", fontsize="x-small")
    ax.set(xlabel="", ylabel="std of the norm / mean norm" if relative else "std of the norm over steps")
    sns.move_legend(ax, "best", title=None, fontsize="x-small")
    return ax


def layer_map(table: pd.DataFrame, ax: Axes, *, label: str = "relative change from the step before (no unit)") -> Axes:
    """Every layer (rows) at every step (columns) as colours on a log scale, mean over samples.

    A white line separates encoder and decoder. `label` names the values with their unit.
    """
    grid = table.groupby(["layer", "part", "step"], sort=False)["value"].mean().unstack("step")
    names, parts = grid.index.get_level_values("layer"), list(grid.index.get_level_values("part"))
    options: dict[str, Any] = {"norm": LogNorm(), "cmap": "cividis", "cbar_kws": {"label": label, "shrink": 0.8}}
    sns.heatmap(grid, yticklabels=names, xticklabels=max(1, grid.shape[1] // 10), ax=ax, **options)
    ax.set(xlabel="step", ylabel="")
    ax.tick_params(axis="y", labelsize=7 if len(names) > 20 else "small")
    if "decoder" in parts[1:]:
        ax.axhline(parts.index("decoder"), color="white", linewidth=2)
    return ax


def pca_strip(maps: Mapping[str, np.ndarray], steps: Sequence[int], target: Figure) -> Figure:
    """A row of maps per layer, a column per step, from `pca_maps` (Fig. 2)."""
    axes = target.subplots(len(maps), len(steps), squeeze=False)
    for place, (row, (layer, images)) in enumerate(zip(axes, maps.items(), strict=True)):
        for ax, image, step in zip(row, images, steps, strict=True):
            ax.imshow(image, interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            if place == 0:
                ax.set_title(f"step {step}", fontsize="x-small")
        row[0].set_ylabel(layer, fontsize="x-small", rotation=0, ha="right", va="center")
    return target


def similarity_matrix(
    similarity: np.ndarray, ax: Axes, *, keys: Sequence[int] = (), vmin: float | None = None, label: str = "cosine similarity"
) -> Axes:
    """Steps against steps, bright for similar features; `keys` outlines the groups of a schedule.

    `vmin` is the darkest value, for matrices that are compared; by default the smallest one.
    """
    image = ax.imshow(similarity, origin="lower", cmap="cividis", interpolation="nearest", vmin=vmin, vmax=1)
    for first, following in pairwise([*keys, len(similarity)] if len(keys) else []):
        side = following - first
        ax.add_patch(Rectangle((first - 0.5, first - 0.5), side, side, fill=False, edgecolor="white", linewidth=1.2))
    ax.set(xlabel="step", ylabel="step")
    ax.figure.colorbar(image, ax=ax, label=label, shrink=0.8)
    return ax


def key_strips(keys: Mapping[str, Sequence[int]], num_steps: int, ax: Axes) -> Axes:
    """A row per schedule: groups as bands in two shades, key steps as squares."""
    for row, first_steps in enumerate(keys.values()):
        for place, (first, following) in enumerate(zip(first_steps, [*first_steps[1:], num_steps], strict=True)):
            ax.barh(row, following - first, left=first - 0.5, height=0.62, color=BANDS[place % 2], edgecolor="white")
        ax.plot(first_steps, [row] * len(first_steps), "s", color="black", markersize=4)
    ax.set(yticks=range(len(keys)), yticklabels=list(keys), xlim=(-0.5, num_steps - 0.5), ylim=(len(keys) - 0.5, -0.5))
    ax.set_xlabel("step (square: key step; band: its group)")
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return ax


def group_errors(spans: Sequence[tuple[int, int, float]], num_steps: int, ax: Axes, *, label: str) -> Axes:
    """A bar over each span's steps, as high as its value, on a log axis. `label` names the values with their unit."""
    for first, after, value in spans:
        ax.bar(first - 0.5, value, after - first, align="edge", color=PETROFF[1], edgecolor="white")
    ax.set(xlim=(-0.5, num_steps - 0.5), yscale="log", xlabel="step", ylabel=label)
    return ax


def span_costs(costs: np.ndarray, ax: Axes, *, keys: Sequence[int] = (), label: str = "error in the final latents") -> Axes:
    """The cost of every span as colours on a log scale: its key step (rows), and the next one (columns).

    `costs` is an array (steps, max_span + 1), blank where it is 0 or not finite. `keys` is a schedule, drawn as stairs along the
    diagonal with a mark on each of its spans.
    """
    steps, lengths = costs.shape
    grid = np.full((steps, steps + 1), np.nan)
    for length in range(1, min(lengths, steps + 1)):
        first = np.arange(steps - length + 1)
        grid[first, first + length] = costs[first, length]
    blank = ~np.isfinite(grid) | (grid <= 0)
    image = ax.imshow(np.ma.masked_where(blank, grid), norm=LogNorm(), cmap="cividis", interpolation="nearest")
    if len(keys):
        following = [*keys[1:], steps]
        turns = [(x, key) for key, after in zip(keys, following, strict=True) for x in (key, after)]
        ax.plot(*zip(*turns, (steps, steps - 0.5), strict=True), color=PETROFF[2], linewidth=1.5)
        ax.plot(following, list(keys), "o", color="white", markeredgecolor=PETROFF[2], markersize=6)
    ax.set(xlabel="next key step (or the end)", ylabel="key step whose features are reused")
    ax.figure.colorbar(image, ax=ax, label=label, shrink=0.8)
    return ax
