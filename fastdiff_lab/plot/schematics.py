"""Schematics of the method, each a figure with its alternative text as label.

- `key_step()`: a UNet at a key step, and at a step between keys
- `timeline(keys, num_steps)`: what runs at each step: baseline, serial, parallel
- `speedup(seconds, ceilings)`: how much comes from the encoder, and how much from batches
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..inputs.extras import extra
from .drawing import DASHED, DECODER, ENCODER, INK, LIMIT, PALE, REUSED, SCHEDULER, SKIPS, SMALL

from .drawing import arrow, box, figure_of, sheet, skip, title, word  # isort: skip

with extra("lab", "fastdiff_lab.plot"):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

HEIGHTS = (2.0, 1.5, 1.0)  # of the UNet's blocks, from the outside in
WIDE, APART, MIDDLE = 0.46, 0.58, 1.95
FLOOR = 0.8  # of the waterfall

KEY_STEP = """Left, a key step: the encoder runs. Its skips and its bottleneck go to the decoder, and both know the time-step t.
Right, a step between keys: the encoder does not run. The decoder gets the features of the key step again, with its own time-step t-1.
The latent of this step is not needed."""
TIMELINE = """A run of {steps} steps with key steps {keys}. Baseline: encoder and decoder run at every step, in {steps} calls.
Serial: the encoder runs at key steps only, the decoder at every step, still in {steps} calls.
Parallel: at each key step one call decodes all steps of its group, so there are {calls} calls.
Below, the scheduler goes step by step in all three."""
SPEEDUP = (
    "{name}: times {skipped:.2f} without the encoder, times {batched:.2f} by batches, {all:.2f} in all; {ceiling:.2f} by operations"
)


def key_step() -> Figure:
    """Draw the UNet at a key step beside one between keys.

    >>> key_step().get_label()[:38]
    'Left, a key step: the encoder runs. It'
    """
    ax = sheet(11, 4.5, KEY_STEP.replace("\n", " "))
    ax.plot([5.5, 5.5], [0.3, 4.2], color=REUSED, linewidth=1.5)
    title(ax, (2.75, 4.2), "Key step: the encoder runs")
    title(ax, (8.25, 4.2), "Between keys: its features are reused")
    _unet(ax, 0.75, at_key=True)
    _unet(ax, 6.25, at_key=False)
    return figure_of(ax)


def _unet(ax: Axes, left: float, at_key: bool) -> None:
    """A UNet of 3 + 1 + 3 blocks, 3.94 inches wide, from the place where its encoder begins."""
    line = "-" if at_key else DASHED
    encoder = {"colour": ENCODER, "ink": INK} if at_key else {"colour": REUSED, "ink": PALE, "edgecolor": PALE}
    places = [left + APART * number for number in range(7)]
    for number, height in enumerate(HEIGHTS):
        enter, leave, top = places[number], places[6 - number], MIDDLE + height / 2
        words = ("encoder", "decoder") if number == 0 else ("", "")
        box(ax, (enter, MIDDLE - height / 2), (WIDE, height), words=words[0], rotation=90, linestyle=line, **encoder)
        box(ax, (leave, MIDDLE - height / 2), (WIDE, height), DECODER, words[1], rotation=90)
        skip(ax, (enter + WIDE / 2, top), (leave + WIDE / 2, top), 3.44 - 0.36 * number, line)
    box(ax, (places[3], MIDDLE - 0.3), (WIDE, 0.6), linestyle=line, **encoder)
    arrow(ax, (places[3] + WIDE, MIDDLE), (places[4], MIDDLE), color=SKIPS)
    word(ax, (places[3] + WIDE / 2, 3.63), "skips" if at_key else "the skips of step $t$, once more", color=SKIPS)
    _inputs(ax, places, at_key)


def _inputs(ax: Axes, places: Sequence[float], at_key: bool) -> None:
    """What enters a UNet, and what leaves it."""
    first, last, low = places[0], places[6] + WIDE, MIDDLE - HEIGHTS[1] / 2
    encoder, middle, decoder = (places[number] + WIDE / 2 for number in (1, 3, 5))
    chip = middle if at_key else decoder
    time = "time-step $t$" if at_key else "its own time-step $t-1$"
    box(ax, (chip - 1, 0.2), (2, 0.36), "white", time, edgecolor=SCHEDULER, linewidth=1.6)
    arrow(ax, (chip + 0.6 * at_key, 0.56), (decoder, low), color=SCHEDULER)
    arrow(ax, (last, MIDDLE), (last + 0.35, MIDDLE))
    word(ax, (last + 0.08, MIDDLE + 0.28), r"$\epsilon_t$" if at_key else r"$\epsilon_{t-1}$", ha="left")
    if at_key:
        arrow(ax, (chip - 0.6, 0.56), (encoder, low), color=SCHEDULER)
        arrow(ax, (first - 0.35, MIDDLE), (first, MIDDLE))
        word(ax, (first - 0.1, MIDDLE + 0.28), "$z_t$", ha="right")
    else:
        word(ax, (first + 0.85, 0.5), "does not run:\n$z_{t-1}$ is not needed", color=PALE)


def timeline(keys: Sequence[int], num_steps: int) -> Figure:
    """Draw what runs at each step: baseline, serial, parallel, with the scheduler's steps below.

    >>> timeline([0, 2], 4).get_label()[:36]
    'A run of 4 steps with key steps 0, 2'

    Args:
        keys: Key steps, ascending from 0.
        num_steps: Of the run, 1 or more.
    """
    alt = TIMELINE.format(steps=num_steps, keys=", ".join(map(str, keys)), calls=len(keys))
    ax = sheet(12.4, 4.9, alt.replace("\n", " "))
    unit = 9.0 / num_steps
    groups = [(key, after - key) for key, after in zip(keys, [*keys[1:], num_steps], strict=True)]
    every = [(step, 1) for step in range(num_steps)]
    for key in keys:
        ax.plot([1.5 + unit * key] * 2, [0.55, 4.45], color=REUSED, linewidth=1, zorder=0)
    _calls(ax, 3.5, "baseline", every, every, unit)
    _calls(ax, 2.35, "serial", groups, every, unit)
    _calls(ax, 1.2, "parallel", groups, groups, unit)
    for step, count in groups:
        if count * unit > 0.8:
            word(ax, (1.5 + unit * (step + count / 2), 1.38), f"{count} steps", fontsize=SMALL)
    _scheduler(ax, [1.5 + unit * (step + 0.43) for step in range(num_steps)])
    _legend(ax)
    return figure_of(ax)


def _calls(ax: Axes, low: float, name: str, encoded: Sequence, decoded: Sequence, unit: float) -> None:
    """A row of bars for encoder and decoder: (step, how many steps)."""
    look: dict[str, Any] = {"edgecolor": INK, "linewidth": 0.6}
    ax.broken_barh([(1.5 + unit * step, 0.86 * unit) for step, _ in encoded], (low + 0.42, 0.36), facecolor=ENCODER, **look)
    ax.broken_barh([(1.5 + unit * step, unit * (count - 0.14)) for step, count in decoded], (low, 0.36), facecolor=DECODER, **look)
    title(ax, (1.35, low + 0.38), name, ha="right")
    word(ax, (10.75, low + 0.38), f"{len(decoded)} calls,\n{len(encoded)} encodings", ha="left")


def _scheduler(ax: Axes, places: Sequence[float]) -> None:
    """The scheduler's steps, one after the other."""
    arrow(ax, (places[0], 0.55), (places[-1] + 0.3, 0.55), color=SCHEDULER)
    ax.plot(places, [0.55] * len(places), "o", color=SCHEDULER, markersize=4)
    title(ax, (1.35, 0.55), "scheduler", ha="right")
    word(ax, (10.75, 0.55), "one step after\nthe other, cheap", ha="left")
    for step in (0, len(places) - 1):
        word(ax, (places[step], 0.2), f"step {step}", fontsize=SMALL, color=PALE)


def _legend(ax: Axes) -> None:
    for left, colour, words in ((1.5, ENCODER, "encoder"), (3.1, DECODER, "decoder (a long bar: one batch of many steps)")):
        box(ax, (left, 4.55), (0.22, 0.22), colour, linewidth=0.5)
        word(ax, (left + 0.32, 4.66), words, ha="left", fontsize=SMALL)
    ax.plot([8.0, 8.0], [4.54, 4.78], color="0.7", linewidth=1.2)
    word(ax, (8.12, 4.66), "key step", ha="left", fontsize=SMALL)


def speedup(seconds: Mapping[str, Sequence[float]], ceilings: Sequence[float]) -> Figure:
    """Draw as a waterfall how much of a speed-up comes from the encoder, and how much from batches.

    >>> speedup({"The paper": (2.42, 1.82, 1.42)}, [1.35]).get_label()[28:]
    'The paper: times 1.33 without the encoder, times 1.28 by batches, 1.70 in all; 1.35 by operations.'

    Args:
        seconds: For each source the seconds of baseline, serial and parallel.
        ceilings: For each source how many times fewer operations there are.
    """
    told = []
    for (name, (baseline, serial, parallel)), ceiling in zip(seconds.items(), ceilings, strict=True):
        parts = {"skipped": baseline / serial, "batched": serial / parallel, "all": baseline / parallel}
        told.append(SPEEDUP.format(name=name, ceiling=ceiling, **parts))
    ax = sheet(6.1 * len(seconds) + 0.1, 4.5, f"Times faster than baseline. {'. '.join(told)}.")
    tallest = max(baseline / parallel for baseline, _, parallel in seconds.values())
    for place, ((name, of_source), ceiling) in enumerate(zip(seconds.items(), ceilings, strict=True)):
        title(ax, (2.75 + 6.1 * place, 4.25), name)
        _waterfall(ax, 0.3 + 6.1 * place, of_source, ceiling, 2.6 / tallest)
    return figure_of(ax)


def _waterfall(ax: Axes, left: float, seconds: Sequence[float], ceiling: float, unit: float) -> None:
    """Four bars: the baseline, what each part adds to it, and all."""
    baseline, serial, parallel = seconds
    skipped, batched = baseline / serial, baseline / parallel
    bars = {
        "baseline": (0, 1, REUSED, f"{baseline:.2f} s"),
        "encoder\nleft out": (1, skipped, ENCODER, f"× {skipped:.2f}"),
        "one batch\nper group": (skipped, batched, DECODER, f"× {batched / skipped:.2f}"),
        "in all": (0, batched, REUSED, f"{parallel:.2f} s\n{batched:.2f} times faster"),
    }
    for place, (under, (bottom, top, colour, above)) in enumerate(bars.items()):
        x = left + 0.15 + 1.15 * place
        box(ax, (x, FLOOR + unit * bottom), (0.9, unit * (top - bottom)), colour)
        word(ax, (x + 0.45, FLOOR + unit * top + 0.08), above, va="bottom")
        word(ax, (x + 0.45, 0.42), under)
        if place < 3:
            ax.plot([x + 0.9, x + 1.15], [FLOOR + unit * top] * 2, color=PALE, linewidth=1)
    level = FLOOR + unit * ceiling
    ax.plot([left + 1.1, left + 4.75], [level] * 2, color=LIMIT, linestyle=DASHED, linewidth=1.4)
    word(ax, (left + 4.8, level), f"by operations\nat most {ceiling:.2f}", ha="left", color=LIMIT, fontsize=SMALL)
