"""Committed notebooks: paired with their sources, valid, with outputs, small, and readable without colours."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

import jupytext
import nbformat
import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
EXERCISES = sorted(FOLDER.glob("exercises/**/*.ipynb"))
LINK = re.compile(r"\]\(([^)#]+)[^)]*\)")


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == sorted(path.stem for path in FOLDER.glob("*.py"))
    assert NOTEBOOKS


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_the_pair_agrees(path):
    cells, source = (
        [(cell.cell_type, cell.source) for cell in notebook.cells]
        for notebook in (nbformat.read(path, as_version=4), jupytext.read(path.with_suffix(".py")))
    )
    assert cells == source


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_can_be_read_on_the_web(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 10**6 and "widgets" not in notebook.metadata
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code)
    outputs = [output for cell in code for output in cell.outputs]
    assert outputs and all(output.output_type != "error" for output in outputs)
    assert not any("application/vnd.jupyter.widget-view+json" in output.get("data", {}) for output in outputs)
    images = [text for output in outputs for text in [output.get("data", {}).get("text/html", "")] if "<img" in text]
    assert images and all('<img alt="' in text for text in images)


FOREIGN = re.compile(
    r"""(src|data-src|poster|action)\s*=\s*["']?(https?:)?//|<(link|script|iframe)\b[^>]*//|url\(\s*["']?(https?:)?//|@import|import\("""
)


@pytest.mark.parametrize("path", [*NOTEBOOKS, *EXERCISES], ids=lambda path: path.stem)
def test_what_it_shows_asks_nothing_of_other_machines(path):
    """A link is no request: it waits for the reader."""
    cells = nbformat.read(path, as_version=4).cells
    shown = [cell.source for cell in cells if cell.cell_type == "markdown"]
    for output in (output for cell in cells for output in cell.get("outputs", [])):
        shown += [
            str(content)
            for kind, content in output.get("data", {}).items()
            if kind in ("text/html", "image/svg+xml", "text/markdown")
        ]
    assert not [found[0] for text in shown for found in [FOREIGN.search(text)] if found]


def test_requests_to_other_machines_are_found():
    asking = (
        '<img src="https://a.b/c.png">',
        "<img src='//a.b/c.png'>",
        '<link rel="stylesheet" href="https://a.b/c.css">',
        "@import 'x'",
    )
    assert all(map(FOREIGN.search, (*asking, "url(https://a.b/c.woff)", '<script src="http://a.b/c.js">')))
    assert not FOREIGN.search('<a href="https://a.b/c">see</a> <img alt="//" src="data:image/png;base64,aa//bb">')


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_one_cell_says_which_pipeline_is_used(path):
    notebook = nbformat.read(path, as_version=4)
    assert sum("load_pipeline(" in cell.source for cell in notebook.cells if cell.cell_type == "code") == 1


def links(path: Path) -> list[str]:
    """Where the texts of a notebook lead to, in their order."""
    texts = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "markdown"]
    return LINK.findall("\n".join(texts))


@pytest.mark.parametrize("path", [*NOTEBOOKS, *EXERCISES], ids=lambda path: path.stem)
def test_it_begins_with_its_title_and_its_links_lead_somewhere(path):
    first = nbformat.read(path, as_version=4).cells[0]
    assert first.cell_type == "markdown" and first.source.startswith("# ")
    assert not [link for link in links(path) if not link.startswith("https://") and not (path.parent / link).exists()]


def test_each_notebook_ends_with_the_next_one():
    assert [links(path)[-1] for path, _ in pairwise(NOTEBOOKS)] == [following.name for _, following in pairwise(NOTEBOOKS)]
    assert links(NOTEBOOKS[-1])[-1] == "exercises/1_hooks_and_features.ipynb"
