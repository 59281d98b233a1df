"""Examinations with otter-grader: from the masters to the points, offline, of honest, lazy and cheating submissions."""

from __future__ import annotations

import sys
import zipfile
from importlib.util import find_spec
from pathlib import Path

import nbformat
import pytest

from teaching import classroom
from teaching.sheets import questions, read_master

FOLDER = Path(__file__).parent.parent / "notebooks" / "exercises"
MASTERS = sorted((FOLDER / "masters").glob("*.py"))
WITH_OTTER = pytest.mark.skipif(find_spec("otter") is None, reason="needs otter-grader: make classroom installs it")

# What a cheat might put into the first cell: the checks say yes to everything, and the seed is the notebook's own.
TAMPERED = """
import fastdiff_lab.exercises as _exercises
import fastdiff_lab.exercises.checking as _checking
class _Yes:
    passed = True
GRADING_SEED = 0
check = _exercises.check = _checking.check = lambda *given, **options: _Yes()
_known = {}
def _remembered(name):
    import numpy as np
    exercise = _checking.EXERCISES[name]
    pairs = [(str(given), exercise.expected(*given)) for given in exercise.inputs(np.random.default_rng(0))]
    return lambda *given: next((right for known, right in pairs if known == str(given)), pairs[0][1])
"""


def points_of(path: Path) -> dict[str, int]:
    return {question.name: question.points for question in questions(read_master(path))}


def handed_in(path: Path, student: Path, place: Path, answers: dict[str, str], first: str = "") -> Path:
    """A submission: the students' notebook of the examination with some of its gaps filled."""
    notebook = nbformat.read(student, as_version=4)
    for question in questions(read_master(path)):
        (cell,) = [cell for cell in notebook.cells if cell.source == question.prompts[0]]
        cell.source = answers.get(question.name, cell.source)
    code = next(cell for cell in notebook.cells if cell.cell_type == "code")
    code.source = f"{code.source}\n{first}"
    nbformat.write(notebook, place)
    return place


def solved(path: Path) -> dict[str, str]:
    return {question.name: question.solutions[0] for question in questions(read_master(path))}


def cheated(path: Path) -> dict[str, str]:
    """The first answer knows the visible inputs, the next is the library's own, the others are gaps that the tampered check passes."""
    names = [name for name in points_of(path) if name != "contest"]
    return {
        names[0]: f"{names[0]} = _remembered('{names[0]}')",
        names[1]: f"{names[1]} = _checking.EXERCISES['{names[1]}'].expected",
    }


# Each submission is a notebook that otter-grader runs: of each sheet one with right and empty answers, of the first a cheating one, too.
# `assign` tries the solutions.
SUBMISSIONS = [(MASTERS[0], ("half", "cheating")), *((path, ("half",)) for path in MASTERS[1:])]


@pytest.mark.long
@WITH_OTTER
@pytest.mark.parametrize(
    ("path", "names"), SUBMISSIONS, ids=lambda given: given.stem if isinstance(given, Path) else "-".join(given)
)
def test_submissions_get_the_points_that_they_earn(path, names, tmp_path):
    (tmp_path / "masters").mkdir()
    (tmp_path / "masters" / path.name).write_text(path.read_text())
    autograder = classroom.assign(tmp_path, tmp_path / "made")[path.stem]
    student = tmp_path / "made" / path.stem / "student" / f"{path.stem}.ipynb"
    text = student.read_text()
    assert "GRADING_SEED" not in text and all(question.solutions[0] not in text for question in questions(read_master(path)))
    assert "Answer</summary>" not in text and "Hint</summary>" in text

    possible, answers = points_of(path), solved(path)
    half = dict(list(answers.items())[: len(answers) // 2])
    filled = {"half": (half, ""), "cheating": (cheated(path), TAMPERED)}
    submissions = [handed_in(path, student, tmp_path / f"{name}.ipynb", *filled[name]) for name in names]
    scores = classroom.grade(autograder, submissions, seed=90125)
    sums = classroom.points(scores).set_index("submission")["points"].to_dict()
    expected = {"half": sum(possible[name] for name in half), "cheating": 0}
    assert sums == {name: expected[name] for name in names}, scores.to_string()
    assert 0 < expected["half"] < sum(possible.values())
    wrong = scores[(scores["submission"] != "cheating") & (scores["points"] == 0)]
    assert wrong["question"].tolist() and wrong["said"].str.contains("NOT RIGHT YET").all()


@pytest.mark.long
@WITH_OTTER
def test_what_cannot_be_graded_is_said_and_does_not_stop_the_others(tmp_path):
    autograder = tmp_path / "autograder.zip"
    with zipfile.ZipFile(autograder, "w") as file:
        file.writestr("tests/a.py", "GRADING_SEED = 1\n")
        file.writestr("otter_config.json", "{}")
    (tmp_path / "broken.ipynb").write_text("no notebook")
    endless = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("while True: pass")])
    nbformat.write(endless, tmp_path / "endless.ipynb")
    submissions = [tmp_path / f"{name}.ipynb" for name in ("broken", "missing", "endless")]
    scores = classroom.grade(autograder, submissions, seed=2, timeout=45)
    assert scores["submission"].tolist() == ["broken", "missing", "endless"] and scores["points"].tolist() == [0, 0, 0]
    assert scores["said"].iloc[:2].str.startswith("not graded: otter run failed: ").all()
    assert "timed out after 45 seconds" in scores["said"].iloc[2]


def foreign(tmp_path: Path) -> Path:
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as file:
        file.writestr("tests/q1.py", "seed = 1\n")
    return tmp_path / "other.zip"


@pytest.fixture
def otter(monkeypatch):
    """As if otter-grader were there: what is refused is refused before it is needed."""
    monkeypatch.setattr(classroom, "check_installed", lambda *asked: None)


@pytest.mark.parametrize("seed", [0, -1, 1.5, True])
def test_the_seed_must_not_be_the_notebooks_own(seed, tmp_path, otter):
    with pytest.raises(
        ValueError, match=rf"`seed` must be a positive int \(0 is the seed of the notebooks' own checks\), got {seed}"
    ):
        classroom.grade(foreign(tmp_path), [], seed=seed)


def test_a_zip_whose_tests_draw_nothing_is_refused(tmp_path, otter):
    with pytest.raises(ValueError, match=r"other.zip: tests/q1.py draws from no GRADING_SEED; accepted: a zip that `assign` made"):
        classroom.grade(foreign(tmp_path), [], seed=3)


def test_the_seed_stands_in_the_text_of_the_hidden_tests(tmp_path):
    with zipfile.ZipFile(tmp_path / "one.zip", "w") as file:
        file.writestr("tests/q1.py", "GRADING_SEED = 1\nGRADING_SEED == 1\n")
        file.writestr("setup.sh", "GRADING_SEED = 1\n")
    seeded = zipfile.ZipFile(classroom._seeded(tmp_path / "one.zip", tmp_path / "two.zip", 77))
    assert seeded.read("tests/q1.py") == b"GRADING_SEED = 77\nGRADING_SEED == 1\n" and b"77" not in seeded.read("setup.sh")


def test_without_masters_nothing_is_assigned(tmp_path, otter):
    with pytest.raises(FileNotFoundError, match="no masters in"):
        classroom.assign(tmp_path, tmp_path / "made")


def test_without_otter_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "otter", None)
    with pytest.raises(ModuleNotFoundError, match="an examination needs otter, which is not installed; get the extra classroom"):
        classroom.assign(FOLDER, tmp_path)


@pytest.mark.long
def test_what_otter_says_is_passed_on(monkeypatch):
    with pytest.raises(RuntimeError, match="otter no-such-command failed: "):
        classroom._otter("no-such-command")
