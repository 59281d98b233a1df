"""The sheets: what students get, the solutions, and the masters that both are made from."""

from __future__ import annotations

import re
import subprocess
import sys

import nbformat
import pytest
from exercise_answers import FOLDER, MASTERS

from fastdiff_lab.exercises import contest
from fastdiff_lab.exercises.checking import EXERCISES
from teaching.sheets import generate, questions, read_master, solution, student, with_solution, without_solution

SHEETS = pytest.mark.parametrize("path", MASTERS, ids=lambda path: path.stem)


def test_every_exercise_stands_in_a_master_and_each_is_complete():
    masters = [read_master(path) for path in MASTERS]
    names = [question.name for master in masters for question in questions(master)]
    assert [name for name in names if name != contest.NAME] == list(EXERCISES) and names.count(contest.NAME) == 1
    for master in masters:
        texts = [
            cell.source
            for cell in master.cells
            if cell.cell_type == "markdown" and cell.source.startswith("## ") and "Difficulty" in cell.source
        ]
        assert len(texts) == len(questions(master))
        for text in texts:
            assert re.search(r"Difficulty [●○]{5} · importance [●○]{5} · \d+ minutes · \d points?", text) and "**Goal**: " in text
        for question in questions(master):
            assert len(question.solutions) == len(question.tests) == 1 and "hidden: true" in question.tests[0]


@SHEETS
def test_student_and_solution_notebooks_are_those_of_the_master(path):
    master = read_master(path)
    assert (FOLDER / f"{path.stem}.ipynb").read_text() == nbformat.writes(student(master)) + "\n"
    committed = nbformat.read(FOLDER / "solutions" / f"{path.stem}.ipynb", as_version=4)
    assert [(c.id, c.cell_type, c.source) for c in committed.cells] == [
        (c.id, c.cell_type, c.source) for c in solution(master).cells
    ]


@SHEETS
def test_students_see_no_answer_but_folded_and_no_hidden_test(path):
    notebook = student(read_master(path))
    nbformat.validate(notebook)
    text = nbformat.writes(notebook)
    assert "SOLUTION" not in text and "GRADING_SEED" not in text and "BEGIN" not in text and "PROMPT" not in text
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    for question in questions(read_master(path)):
        assert question.prompts[0] in code and question.solutions[0] not in code
        folded = [cell.source for cell in notebook.cells if question.solutions[0] in cell.source]
        assert len(folded) == 1 and folded[0].startswith("<details>\n<summary>Answer</summary>")
    hints = [cell for cell in notebook.cells if cell.source.startswith("<details>\n<summary>Hint</summary>")]
    assert len(hints) == len(questions(read_master(path)))


@SHEETS
def test_committed_solutions_ran_and_all_their_checks_say_right(path):
    notebook = nbformat.read(FOLDER / "solutions" / f"{path.stem}.ipynb", as_version=4)
    nbformat.validate(notebook)
    outputs = {cell.source: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    # An estimate, as a stream, comes before a result.
    results = {source: [output.data for output in found if "data" in output] for source, found in outputs.items()}
    said = [data["text/plain"] for source, found in results.items() if source.startswith("check(") for data in found]
    assert len(said) == len(questions(read_master(path))) and all(": right. " in text for text in said)
    drawn = [data["text/html"] for source, found in results.items() if source.startswith("show(") for data in found]
    assert len(drawn) == len(said) and all(text.startswith('<img alt="') for text in drawn)
    assert all(output.get("name") != "stderr" for found in outputs.values() for output in found)
    assert sum("load_pipeline(" in source for source in outputs) == 1


def test_regions_become_gaps_or_prompts():
    cell = "def f():\n    # BEGIN SOLUTION\n    return 1\n    # END SOLUTION"
    assert without_solution(cell) == "def f():\n    ..." and with_solution(cell) == "def f():\n    return 1"
    prompted = '# BEGIN SOLUTION NO PROMPT\nx = 1\n# END SOLUTION\n""" # BEGIN PROMPT\nx = 0\n""" # END PROMPT'
    assert without_solution(prompted) == "x = 0" and with_solution(prompted) == "x = 1"


def test_masters_must_be_there_and_closed(tmp_path):
    with pytest.raises(FileNotFoundError, match="no masters in"):
        generate(tmp_path)
    (tmp_path / "open.py").write_text("# %% [raw]\n# # BEGIN QUESTION\n# name: a\n# points: 1\n\n# %%\n1\n")
    with pytest.raises(ValueError, match=r"open.py: a block of the master is not closed; accepted: an END cell"):
        read_master(tmp_path / "open.py")


def test_a_notebook_goes_on_with_the_same_library_after_a_hidden_test():
    """Hidden tests take the library's modules away; a public name that was first used afterwards would be of another import."""
    code = """
import sys
import fastdiff_lab as fl
from fastdiff_lab.exercises import ContestEntry
for module in [module for module in sys.modules if module.split(".")[0] == "fastdiff_lab"]:
    del sys.modules[module]
print(ContestEntry(fl.KeySchedule.uniform(50, 7)).schedule)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "0,7,14,21,29,36,43 of 50\n", done.stderr
