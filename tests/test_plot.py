"""Drawings of schedules and of what reusing features costs."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from fastdiff_lab import plot


def test_a_strip_has_a_band_for_each_group_and_a_square_for_each_key():
    ax = plot.key_strips({"a": [0, 2], "b": [0, 1, 4]}, 6, plot.figure().subplots())
    bands = [(band.get_x(), band.get_width()) for band in ax.patches]
    assert bands == [(-0.5, 2), (1.5, 4), (-0.5, 1), (0.5, 3), (3.5, 2)]
    assert [line.get_xdata().tolist() for line in ax.lines] == [[0, 2], [0, 1, 4]]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b"]
    assert ax.get_ylim() == (1.5, -0.5)  # the first one on top


def test_a_strip_has_ticks_at_steps_only():
    ax = plot.key_strips({"a": [0, 7]}, 20, plot.figure(8, 1.6).subplots())
    assert all(tick == int(tick) for tick in ax.get_xticks())  # there is no step 2.5


def test_span_costs_lie_at_their_key_and_the_next_one():
    costs = np.array([[0, 0, 2.0, 3.0], [0, 0, 4.0, np.inf], [0, 0, np.nan, np.nan]])
    ax = plot.span_costs(costs, plot.figure().subplots())
    drawn = ax.images[0].get_array()
    assert drawn.shape == (3, 4) and not ax.lines
    assert [tuple(map(int, at)) for at in np.argwhere(~np.ma.getmaskarray(drawn))] == [(0, 2), (0, 3), (1, 3)]
    assert (drawn[0, 2], drawn[0, 3], drawn[1, 3]) == pytest.approx((2, 3, 4))


def test_a_schedule_is_a_path_with_a_mark_on_each_of_its_spans():
    ax = plot.span_costs(np.ones((5, 4)), plot.figure().subplots(), keys=[0, 2, 3])
    stairs, marks = ax.lines
    assert list(zip(*stairs.get_data(), strict=True))[:4] == [(0, 0), (2, 0), (2, 2), (3, 2)]
    assert list(zip(*marks.get_data(), strict=True)) == [(2, 0), (3, 2), (5, 3)]


def test_the_legend_of_changes_covers_none_of_them():
    rows = [
        {"sample": sample, "step": step, "part": part, "layer": layer, "value": 1.0 + sample + step}
        for sample in range(2) for step in range(1, 9) for layer, part in (("a", "encoder"), ("b", "encoder"), ("c", "decoder"))
    ]  # fmt: skip
    figure = plot.figure(4, 3)
    ax = plot.change_over_steps(pd.DataFrame(rows), figure.subplots())
    figure.draw_without_rendering()
    shown = ax.get_legend()
    assert shown is not None
    legend = shown.get_window_extent()
    assert not legend.overlaps(ax.get_window_extent()) and not legend.overlaps(ax.xaxis.label.get_window_extent())
    assert legend.y0 >= 0  # and all of it is on the image
