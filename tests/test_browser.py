"""Notebooks as a reader opens them: in JupyterLab, in a browser, without a network.

What only a browser shows: errors of the page, and what it asks of other machines. Figures and tables are alike in all notebooks, so one of
them runs here, and the one with the widgets; `make test-all` runs every notebook without a browser (nbmake), and tests/test_notebooks.py
looks for addresses in what they show.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from studies.browser import CHROMIUM, lab, opened, run_all

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = [FOLDER / "02_encoder_and_decoder_features.ipynb", FOLDER / "09_interactive_lab.ipynb"]

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium: apt-get install chromium"),
]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_in_jupyterlab(notebook, tmp_path):
    folder = tmp_path / "notebooks"
    folder.mkdir()
    shutil.copy(notebook, folder)
    with lab(folder, tmp_path) as address, opened(f"{address}/lab/tree/{notebook.name}") as watched:
        cells = [cell for cell in run_all(watched.page)["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs and not [output for output in outputs if output["output_type"] == "error"]
    assert not watched.foreign and not watched.errors
