"""Schematics: what they say agrees with the library, and nothing on them is cut off or covered."""

from __future__ import annotations

import html
import re
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest

from fastdiff_lab import plot
from fastdiff_lab.calibration.derive import optimal_keys
from studies.schematics import BEST, BEST_KEYS, COSTS, schematics

FIGURES = schematics()
FILES = Path(__file__).parent.parent / "docs" / "figures"


@pytest.mark.parametrize("name", FIGURES)
def test_all_words_lie_on_the_paper_and_beside_each_other(name):
    figure = FIGURES[name]
    figure.draw_without_rendering()
    paper, words = (
        figure.bbox,
        [(text.get_text(), text.get_window_extent()) for ax in figure.axes for text in ax.texts if text.get_text()],
    )
    assert len(words) > 8
    for text, place in words:
        assert paper.x0 <= place.x0 and place.x1 <= paper.x1 and paper.y0 <= place.y0 and place.y1 <= paper.y1, text
    for (one, here), (other, there) in combinations(words, 2):
        assert not here.overlaps(there), (one, other)
    assert figure.get_facecolor() == (1, 1, 1, 1)  # readable on dark pages


@pytest.mark.parametrize("name", FIGURES)
def test_the_committed_file_says_what_is_drawn_now(name):
    title = re.search("<title>(.*?)</title>", (FILES / f"{name}.svg").read_text(), re.DOTALL)
    assert title and html.unescape(title[1]) == FIGURES[name].get_label(), (
        "write it anew: python -m studies.schematics docs/figures"
    )


def test_a_file_is_the_same_each_time():
    figure = plot.landing()
    assert plot.svg(figure) == plot.svg(figure) and "<dc:date>" not in plot.svg(figure)


def widths(ax, row: int) -> list[float]:
    return [path.get_extents().width for path in ax.collections[row].get_paths()]


def test_a_timeline_has_a_bar_for_each_evaluation_as_long_as_its_steps():
    ax = plot.timeline([0, 2], 5).axes[0]
    assert [len(widths(ax, row)) for row in range(6)] == [5, 5, 2, 5, 2, 2]  # encoder and decoder: baseline, serial, parallel
    unit = 9 / 5
    assert widths(ax, 5) == pytest.approx([unit * (2 - 0.14), unit * (3 - 0.14)])
    assert "5 calls,\n2 encodings" in [text.get_text() for text in ax.texts]


def test_the_parts_of_a_waterfall_stand_on_each_other_and_make_the_whole():
    ax = plot.speedup({"a": (6.0, 4.0, 2.0)}, [1.4]).axes[0]
    bars = [patch.get_bbox() for patch in ax.patches if hasattr(patch, "get_boxstyle")]
    unit = bars[0].height
    assert [bar.height / unit for bar in bars] == pytest.approx([1, 0.5, 1.5, 3])
    assert all(after.y0 == pytest.approx(before.y1) for before, after in pairwise(bars[:3]))
    assert {"× 1.50", "× 2.00", "2.00 s\n3.00 times faster"} <= {text.get_text() for text in ax.texts}


def test_the_programme_by_hand_is_the_librarys():
    costs = np.full((4, 5), np.inf)
    for (key, after), cost in COSTS.items():
        costs[key, after - key] = cost
    for count in (1, 2, 3):
        keys, cost = optimal_keys(costs[None], 3)[count]
        assert cost == BEST[count, 4]
        assert count < 3 or tuple(keys) == BEST_KEYS
    for (count, end), cost in BEST.items():
        shorter = costs[:end, : end + 1].copy()
        shorter[np.arange(end)[:, None] + np.arange(end + 1) > end] = np.inf
        assert optimal_keys(shorter[None], count)[count][1] == cost


def test_a_figure_is_shown_with_words_only():
    shown = plot.show(plot.figure(), 'a <b> "c"').data
    assert shown.startswith('<img alt="a &lt;b&gt; &quot;c&quot;"') and 'src="data:image/png;base64,' in shown
    assert plot.key_step().get_label()[:30] in plot.show(plot.key_step()).data
    with pytest.raises(ValueError, match="no alternative text given; accepted: one sentence"):
        plot.show(plot.figure())


def test_differences_show_what_is_different():
    from PIL import Image

    grey, lighter = (Image.new("RGB", (8, 8), (value,) * 3) for value in (100, 110))
    figure = plot.image_grid({"baseline": [grey], "a": [lighter], "b": [grey]}, plot.figure())
    reference, one, other = figure.axes[3:]
    assert not reference.images and reference.texts[0].get_text() == "difference\n(brightness × 4)"
    assert np.allclose(one.images[0].get_array(), 40) and one.images[0].get_clim() == (0, 255)
    assert one.texts[0].get_text() == "28.1 dB" and other.texts[0].get_text() == "identical"
