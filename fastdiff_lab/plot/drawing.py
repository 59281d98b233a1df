"""What schematics are drawn with: white paper, boxes, arrows and words, in one style.

Places are in inches from the lower left corner. Blue is the encoder, orange the decoder, grey and dashed what is reused.
"""

from __future__ import annotations

from typing import Any

from ..inputs.extras import extra
from .style import PETROFF

with extra("lab", "fastdiff_lab.plot"):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.patches import FancyBboxPatch

Point = tuple[float, float]

INK, PALE, REUSED = "#1f1f1f", "#6b6b6b", "#dcdcdc"
ENCODER, DECODER, SCHEDULER, LIMIT = PETROFF[0], PETROFF[1], PETROFF[4], PETROFF[2]
SKIPS = "#1f6fc2"  # the encoder's blue, dark enough for lines and words
DASHED = (0, (4, 2))
LARGE, NORMAL, SMALL = 14, 11.5, 10


def sheet(width: float, height: float, alt: str) -> Axes:
    """Paper of this size in inches; the alternative text becomes the figure's label."""
    target = Figure(figsize=(width, height), facecolor="white", label=alt)
    ax = target.add_axes((0, 0, 1, 1))
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.axis("off")
    return ax


def figure_of(ax: Axes) -> Figure:
    """The finished drawing of a sheet."""
    target = ax.get_figure(root=True)
    assert target is not None
    return target


def box(ax: Axes, corner: Point, size: Point, colour: str, words: str = "", **look: Any) -> None:
    """A box with round corners, by its lower left corner and size; its words stand in the middle."""
    turned, ink = look.pop("rotation", 0), look.pop("ink", INK)
    style: dict[str, Any] = {"edgecolor": INK, "linewidth": 1.0} | look
    ax.add_patch(FancyBboxPatch(corner, *size, boxstyle="round,pad=0,rounding_size=0.05", facecolor=colour, **style))
    if words:
        word(ax, (corner[0] + size[0] / 2, corner[1] + size[1] / 2), words, rotation=turned, color=ink)


def word(ax: Axes, place: Point, text: str, **look: Any) -> None:
    """Words around a place."""
    style: dict[str, Any] = {"ha": "center", "va": "center", "color": INK, "fontsize": NORMAL, "linespacing": 1.25}
    ax.text(*place, text, **style | look)


def title(ax: Axes, place: Point, text: str, **look: Any) -> None:
    word(ax, place, text, fontsize=LARGE, weight="bold", **look)


def arrow(ax: Axes, start: Point, end: Point, **look: Any) -> None:
    style = {"arrowstyle": "-|>,head_width=0.25,head_length=0.45", "color": INK, "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", xy=end, xytext=start, arrowprops=style | look)


def skip(ax: Axes, start: Point, end: Point, level: float, line: Any) -> None:
    """An arrow that goes up from its start, along at a level, and down to its end."""
    corners = ([start[0], start[0], end[0], end[0]], [start[1], level, level, end[1] + 0.07])
    ax.plot(*corners, color=SKIPS, linewidth=1.3, linestyle=line)
    arrow(ax, (end[0], end[1] + 0.1), end, color=SKIPS, linewidth=1.3)
