"""The tour's page begins with what was measured, shows no code and no progress, and ends with the next step."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pandas as pd
import pytest

from fastdiff_lab.cli.tour_page import export, verdict

BASELINE = ("baseline", 50, 1.0, float("inf"))
CONTROL = ("derived keys, prediction reused", 9, 5.1, 31.3)
FURTHER = ("uniform 9", 9, 3.4, 24.8)


def table(*rows: tuple) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=["method", "encoder_calls", "ratio", "psnr"])


@pytest.mark.parametrize(
    ("ratio", "psnr", "judged"),
    [
        (3.4, 29.9, "does not pay here"),
        (3.4, 33.0, "is nearer here, the control faster"),
        (6.0, 29.9, "is faster here, the control nearer"),
        (6.0, 33.0, "pays here"),
    ],
)
def test_the_verdict_is_computed(ratio, psnr, judged):
    ours, control, said = verdict(table(BASELINE, FURTHER, ("derived keys", 9, ratio, psnr), CONTROL))
    assert ours == (
        f"Encoder propagation with derived keys: 9 encoder calls instead of 50, {ratio}x as fast as the baseline, "
        f"{psnr} dB from the baseline's images."
    )
    assert "The nearest control, derived keys, prediction reused: 5.1x" in control and "31.3 dB" in control and judged in said


def test_without_a_control_there_is_no_verdict():
    assert verdict(table(BASELINE, FURTHER)) == verdict(table(FURTHER, CONTROL)) == verdict(table(BASELINE, CONTROL)) == []


def test_the_page_shows_what_was_measured_and_no_code(tmp_path):
    v4 = nbformat.v4
    outputs = [v4.new_output("stream", name="stderr", text="62%|######"), v4.new_output("stream", text="nine calls")]
    cells = [v4.new_markdown_cell("# Quickstart\n\n[the loop](01_sampling_loop.ipynb), [paper](https://arxiv.org)")]
    cells.append(v4.new_code_cell("hidden = 1", outputs=outputs))
    nbformat.write(v4.new_notebook(cells=cells), tmp_path / "a.ipynb")
    export(tmp_path / "a.ipynb", tmp_path / "a.html", ["One thing.", "Another."])
    page = (tmp_path / "a.html").read_text().split("<body", 1)[1]
    assert (
        page.index("One thing.") < page.index("Another.") < page.index("Quickstart") < page.index("nine calls") < page.index("Next")
    )
    link = re.search(r'href="([^"]*explainer.html)"', page)[1]
    assert (tmp_path / link).resolve() == Path(__file__).parent.parent / "docs" / "explainer.html"
    assert "hidden" not in page and "62%" not in page and "01_sampling_loop" not in page and 'href="https://arxiv.org"' in page
