"""Committed notebooks: paired with their sources, valid, with outputs, small, and readable without colours."""

from __future__ import annotations

import re
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

import jupytext
import nbformat
import numpy as np
import pytest
import torch

from fastdiff_lab.exercises import check, checking
from fastdiff_lab.exercises.checking import GAPS
from teaching import minutes
from teaching.gaps import filled, has_gap, with_gaps
from teaching.sheets import with_solution, without_solution

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SOURCES = sorted(FOLDER.glob("*.py"))
IN_ORDER = [path for path in NOTEBOOKS if path.stem[0].isdigit()]
EXERCISES = sorted(FOLDER.glob("exercises/**/*.ipynb"))
LINK = re.compile(r"\]\(([^)#]+)[^)]*\)")
MOST_CELLS, MOST_TABLES = 45, 6
HEADER = "# ---\n# jupyter:\n#   kernelspec:\n#     display_name: Python 3\n#     language: python\n#     name: python3\n# ---\n\n"

each_source = pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == [path.stem for path in SOURCES]
    assert len(IN_ORDER) == 10


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_is_made_from_its_source(path):
    committed, made = nbformat.read(path, as_version=4), with_gaps(path.with_suffix(".py"))
    assert [(cell.cell_type, cell.source) for cell in committed.cells] == [(cell.cell_type, cell.source) for cell in made.cells]


@each_source
def test_a_student_sees_gaps_and_folded_answers(path):
    cells = with_gaps(path).cells
    assert len(jupytext.read(path).cells) <= MOST_CELLS
    assert not [cell for cell in cells if "# BEGIN" in cell.source or "# END" in cell.source]
    gaps = [cell for cell in jupytext.read(path).cells if has_gap(cell)]
    folded = [cell.source for cell in cells if cell.source.startswith("<details>")]
    assert len(folded) == len(gaps) and all(with_solution(gap.source) in text for gap, text in zip(gaps, folded, strict=True))


@each_source
def test_a_source_imports_the_public_names_hides_how_it_plots_and_links_the_words(path):
    cells = jupytext.read(path).cells
    code = [cell for cell in cells if cell.cell_type == "code"]
    assert not [cell.source for cell in code if re.search(r"from fastdiff_lab|import fastdiff_lab\.", cell.source)]
    assert all("hide-input" in cell.metadata.get("tags", []) for cell in code if "plot.show(" in cell.source)
    assert "(../docs/glossary.md)" in cells[0].source


def gaps() -> dict[str, tuple[str, str]]:
    """For each gap that a notebook checks: what students begin with, and the answer."""
    found = {}
    for path in SOURCES:
        cells = jupytext.read(path).cells
        for cell, check_cell in pairwise(cells):
            asked = re.match(r'fl\.check\("(\w+)", \1\)$', check_cell.source)
            if has_gap(cell) and asked:
                found[asked[1]] = (without_solution(cell.source), with_solution(cell.source))
    return found


def defined(name: str, solved: bool):
    space = {"np": np, "torch": torch}
    exec(gaps()[name][solved], space)
    return space[name]


def test_each_notebook_of_the_method_has_two_gaps():
    assert list(gaps()) == list(GAPS)
    for path in SOURCES[1:9]:
        assert sum(has_gap(cell) for cell in jupytext.read(path).cells) == 2, path.stem
    for path in SOURCES[:9]:
        assert any(re.match(r"guess\w* = \.\.\.|guess_best, guess_worst = ", cell.source) for cell in jupytext.read(path).cells), (
            path.stem
        )


@pytest.mark.parametrize("name", GAPS)
def test_an_answer_is_right_and_a_gap_is_not(name):
    assert (report := check(name, defined(name, True))).passed, report
    assert check(name, defined(name, True), seed=4711).passed
    assert not check(name, defined(name, False)).passed


@pytest.mark.parametrize(("name", "place"), [(name, place) for name in GAPS for place in range(len(GAPS[name].mistakes))])
def test_a_mistake_is_told(name, place):
    sentence, mistake = list(GAPS[name].mistakes.items())[place]
    report = judged_as_the_students(name, mistake)
    assert not report.passed and f"perhaps: {sentence}" in report.text


def judged_as_the_students(name: str, mistake):
    """The library's own mistakes call the library, which a student's answer may not: take their results."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checking, "_by_itself", lambda broken: nullcontext())
        return check(name, mistake)


def test_a_filled_notebook_stops_at_a_wrong_answer(tmp_path):
    (tmp_path / "a.py").write_text(
        HEADER
        + '# %%\ndef guidance():\n    # BEGIN SOLUTION\n    return 1\n    # END SOLUTION\n\n# %%\nfl.check("guidance", guidance)\n'
    )
    gap, asked = filled(tmp_path / "a.py").cells
    assert gap.source == "def guidance():\n    return 1"
    assert asked.source == 'assert (report := fl.check("guidance", guidance)).passed, report'


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_its_head_says_how_long_it_takes(path):
    """In whole minutes. `make notebooks` measures the running; the reading follows from the number of words and lines."""
    said = re.search(
        r"\n\nReads in (\d+) min, runs in (\d+) min with one CPU thread\.$", nbformat.read(path, as_version=4).cells[0].source
    )
    assert said and 1 <= int(said[1]) <= 30 and 1 <= int(said[2]) <= 5


def test_a_head_counts_words_lines_and_seconds(tmp_path, monkeypatch):
    monkeypatch.setattr(minutes, "MEASURED", tmp_path / "seconds.json")
    minutes.MEASURED.write_text("{}")
    (tmp_path / "a.py").write_text(
        HEADER + "# %% [markdown]\n# # " + "word " * 119 + "\n\n# %%\n" + "1\n" * 13 + '\n# %% tags=["hide-input"]\n' + "2\n" * 99
    )
    notebook = with_gaps(tmp_path / "a.py")
    assert notebook.cells[0].source.endswith("\n\nReads in 3 min, runs in ? min with one CPU thread.")
    for cell, begin, end in zip(notebook.cells[1:], ("05:00", "06:30"), ("06:00", "06:31.5"), strict=True):
        cell.metadata["execution"] = {
            f"iopub.status.{state}": f"2026-01-01T10:{moment}Z" for state, moment in (("busy", begin), ("idle", end))
        }
    nbformat.write(notebook, tmp_path / "a.ipynb")
    minutes.main(tmp_path)
    assert minutes.MEASURED.read_text() == '{\n "a": 62\n}\n'
    for made in (nbformat.read(tmp_path / "a.ipynb", as_version=4), with_gaps(tmp_path / "a.py")):
        assert made.cells[0].source.endswith("\n\nReads in 3 min, runs in 2 min with one CPU thread.")


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
    assert sum("<table" in output.get("data", {}).get("text/html", "") for output in outputs) <= MOST_TABLES


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
    assert [links(path)[-1] for path, _ in pairwise(IN_ORDER)] == [following.name for _, following in pairwise(IN_ORDER)]
    assert links(IN_ORDER[-1])[-1] == "exercises/1_hooks_and_features.ipynb"
