"""The slides of the lesson: eight of 16 to 9, each with its title, figure and sentence; a handout of two pages."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET

import pytest
from matplotlib.figure import Figure
from PIL import Image

from teaching.slides import TEXTS, main, slide


def test_a_slide_leaves_its_figure_between_title_and_sentence():
    figure = Figure(figsize=(11, 4.5))
    ax = figure.add_axes((0, 0, 1, 1))
    width, height = slide(figure, "A title", "A sentence.").get_size_inches()
    left, low, across, up = ax.get_position().bounds
    assert width / height == pytest.approx(16 / 9) and across * width == pytest.approx(11) and up * height == pytest.approx(4.5)
    assert left == pytest.approx(1 - left - across) and low > 0.15 and low + up < 0.8


@pytest.mark.long
def test_the_slides_and_the_handout(tmp_path):
    main(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {f"{name}.{kind}" for name in TEXTS for kind in ("svg", "png")} | {
        "handout.pdf",
        "questions",
    }
    assert {path.name for path in (tmp_path / "questions").iterdir()} == {f"{name}.png" for name in TEXTS}
    for name in TEXTS:
        with Image.open(tmp_path / f"{name}.png") as image, Image.open(tmp_path / "questions" / f"{name}.png") as question:
            assert image.size == question.size == (1920, 1080)
            below = (0, 950, 1920, 1080)  # where the sentence stands
            assert image.crop(below).convert("L").getextrema()[0] < 128 < question.crop(below).convert("L").getextrema()[0]
        assert ET.parse(tmp_path / f"{name}.svg").getroot().tag.endswith("svg")
    assert len(re.findall(rb"/Type /Page\b(?!s)", (tmp_path / "handout.pdf").read_bytes())) == 2
