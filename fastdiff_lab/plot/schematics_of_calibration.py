"""Schematics of what is calibrated, each a figure with its alternative text as label.

- `landing()`: what a fit is made of, and what it moves
- `programme(costs, best, keys)`: the dynamic programme over a few steps
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..inputs.extras import extra
from .drawing import DASHED, DECODER, INK, LIMIT, PALE, REUSED, SCHEDULER, SMALL, Point, arrow, box, figure_of, sheet, title, word

with extra("lab", "fastdiff_lab.plot"):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Values = Mapping[tuple[int, int], float]

LANDING = """Left, what is known at a key step: the latent, its prediction, and the differences to the predictions of the two keys before,
to the last one decoded ahead, and to the mean of the group. Each has a scalar; their sum is one offset for all predictions of the group.
Right, the latent's path from this key to the next: with reused features it lands beside the baseline, with the fit close to it."""
PROGRAMME = """Left, the cost of reusing features from a key step to the next one. Right, the least cost for each number of keys and each end,
found row by row. The best {count} keys are {keys}, at a cost of {cost:g}."""
TERMS = ("latent $x$", "prediction $p$", "$p' - p$  (last key)", "$p'' - p$  (the one before)", "$q - p$  (last decoded)",
         r"$p - \bar{p}$  (group's mean)")  # fmt: skip


def landing() -> Figure:
    """Draw the fit of a group: known tensors, a scalar for each, and where the group lands.

    >>> landing().get_label()[:33]
    'Left, what is known at a key step'
    """
    ax = sheet(12, 4.6, LANDING.replace("\n", " "))
    title(ax, (3.1, 4.3), "Known at the key step, and six scalars")
    title(ax, (9.0, 4.3), "Where the group lands")
    ax.plot([6.45, 6.45], [0.3, 4.2], color=REUSED, linewidth=1.5)
    for place, term in enumerate(TERMS):
        level = 3.76 - 0.56 * place
        box(ax, (0.25, level - 0.21), (2.6, 0.42), "white", term)
        ax.plot([3.1], [level], "o", color="white", markersize=21, markeredgecolor=SCHEDULER, markeredgewidth=1.6)
        word(ax, (3.1, level - 0.01), f"$c_{place + 1}$")
        arrow(ax, (3.26, level), (4.6, 2.5 - 0.06 * place), color=PALE, linewidth=1)
    box(ax, (4.6, 1.85), (1.45, 1.0), "#f0e8f6", "one offset,\nadded to each\nprediction", edgecolor=SCHEDULER, linewidth=1.6)
    _paths(ax, 7.1, 10.9)
    return figure_of(ax)


def _paths(ax: Axes, start: float, end: float) -> None:
    """The latent between two keys, as a sketch: baseline, reused, fitted."""
    for key, words in ((start, "key step"), (end, "next key")):
        ax.plot([key, key], [0.75, 3.95], color=REUSED, linewidth=1.5, zorder=0)
        word(ax, (key, 0.5), words, color=PALE)
    shares = [step / 9 for step in range(10)]
    paths = {
        "baseline": (0, -0.1, INK, "-", "o"),
        "reused": (1.05, 0, LIMIT, DASHED, "s"),
        "fitted": (0.14, 0.1, SCHEDULER, "-", "^"),
    }
    for words, (error, aside, colour, line, mark) in paths.items():
        levels = [3.4 - 1.9 * share**0.8 + error * share**1.7 for share in shares]
        places = [start + (end - start) * share for share in shares]
        ax.plot(places, levels, color=colour, linestyle=line, marker=mark, markersize=5, linewidth=1.8)
        word(ax, (end + 0.12, levels[-1] + aside), words, ha="left", color=colour)


def programme(costs: Values, best: Values, keys: Sequence[int]) -> Figure:
    """Draw the dynamic programme: the costs of spans, and the least sum for each number of keys and each end.

    >>> programme({(0, 1): 0, (1, 2): 0, (0, 2): 3}, {(1, 1): 0, (1, 2): 3, (2, 2): 0}, [0, 1]).get_label()[-41:]
    'The best 2 keys are 0, 1, at a cost of 0.'

    Args:
        costs: For each span, by its key step and the next one (or the end).
        best: For each number of keys and each end, the least sum of costs.
        keys: Of the best schedule, with as many keys as `best` has rows.
    """
    steps, most = max(after for _, after in costs), max(count for count, _ in best)
    path = list(zip(keys, [*keys[1:], steps], strict=True))
    top = 0.35 + 0.6 * max(steps, most)
    alt = PROGRAMME.format(count=most, keys=", ".join(map(str, keys)), cost=best[most, steps])
    ax = sheet(11, top + 1.4, alt.replace("\n", " "))
    title(ax, (2.9, top + 1.0), "Cost of a span")
    title(ax, (8.1, top + 1.0), "Least cost up to an end")
    _cells(ax, (1.3, top), costs, set(path))
    _cells(ax, (6.1, top + 0.6), best, {(count, after) for count, (_, after) in enumerate(path, start=1)})
    for line in range(steps):
        word(ax, (1.5, top - 0.6 * line), f"key {line}", ha="right")
    for count in range(1, most + 1):
        word(ax, (6.3, top + 0.6 - 0.6 * count), f"{count} key{'s' * (count > 1)}", ha="right")
    word(ax, (8.1, top - 0.6 * most), f"{most} keys, the end:  {_least(costs, best, most, steps)}")
    return figure_of(ax)


def _least(costs: Values, best: Values, count: int, end: int) -> str:
    """The last cell's sum, written out."""
    sums = [
        f"{best[count - 1, key]:g} + {costs[key, end]:g}" for key in range(end) if (count - 1, key) in best and (key, end) in costs
    ]
    return f"min({', '.join(sums)}) = {best[count, end]:g}"


def _cells(ax: Axes, corner: Point, values: Values, chosen: set[tuple[int, int]]) -> None:
    """A table of numbers by row and end, from the place of row 0; chosen cells are coloured and outlined."""
    left, top = corner
    ends = sorted({after for _, after in values})
    for after in ends:
        level = top + 0.5 - 0.6 * min(line for line, _ in values)
        word(ax, (left + 0.8 * after - 0.05, level), "the end" if after == ends[-1] else f"to {after}", fontsize=SMALL, color=PALE)
    for (line, after), value in values.items():
        is_chosen = (line, after) in chosen
        look = {"linewidth": 2.4} if is_chosen else {"edgecolor": PALE, "linewidth": 0.8}
        place = (left + 0.8 * after - 0.4, top - 0.6 * line - 0.25)
        box(ax, place, (0.7, 0.5), DECODER if is_chosen else "white", f"{value:g}", **look)
