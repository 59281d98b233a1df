"""Generate the notebooks of students and teachers from one master per sheet: `python -m teaching.sheets FOLDER`.

- `student(master)`: the notebook with gaps, hints and folded answers
- `solution(master)`: the notebook with the answers in place
- `questions(master)`: each question's solution, prompt and hidden tests
- `generate(folder)`: write both notebooks of each master in `folder/masters`
- `executed(notebook)`: a notebook with its outputs

Masters are py:percent files with the markers of otter-grader's `assign`, which makes the examinations from them.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from nbconvert.preprocessors import ExecutePreprocessor
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from fastdiff_lab.inputs.files import write_text

_MARK = re.compile(r"#\s+(BEGIN|END)\s+(QUESTION|SOLUTION|TESTS)")
_SOLUTION = re.compile(r"( *)# BEGIN SOLUTION( NO PROMPT)?$")
FOLDED = "<details>\n<summary>Answer</summary>\n\n```python\n{}\n```\n\n</details>"


@dataclass
class Question:
    """A question of a master: its solution cells as a student gets them and solved, and its hidden tests."""

    name: str
    points: int
    prompts: list[str] = field(default_factory=list)
    solutions: list[str] = field(default_factory=list)
    tests: list[str] = field(default_factory=list)


def without_solution(source: str) -> str:
    """A solution cell for students: regions become `...`, or the prompt that follows them."""
    kept, inside = [], False
    for line in source.split("\n"):
        begins = _SOLUTION.match(line)
        if begins:
            inside = True
            if not begins[2]:
                kept.append(f"{begins[1]}...")
        elif line.strip() == "# END SOLUTION":
            inside = False
        elif not inside and not line.endswith(("# BEGIN PROMPT", "# END PROMPT")):
            kept.append(line)
    return "\n".join(kept).strip("\n")


def with_solution(source: str) -> str:
    """A solved solution cell, without markers and prompt."""
    kept, in_prompt = [], False
    for line in source.split("\n"):
        if line.endswith(("# BEGIN PROMPT", "# END PROMPT")):
            in_prompt = line.endswith("# BEGIN PROMPT")
        elif not in_prompt and not _SOLUTION.match(line) and line.strip() != "# END SOLUTION":
            kept.append(line)
    return "\n".join(kept).strip("\n")


def read_master(path: Path) -> Any:
    """Read a master as a notebook. Raises ValueError for blocks that do not close."""
    master = jupytext.read(path)
    if list(_blocks(master))[-1:] and list(_blocks(master))[-1][1]:
        raise ValueError(f"{path.name}: a block of the master is not closed; accepted: an END cell for each BEGIN cell")
    return master


def _blocks(master: Any) -> Iterator[tuple[Any, tuple[str, ...]]]:
    """Each cell with the blocks around it; for an END cell, those that remain."""
    inside: tuple[str, ...] = ()
    for cell in master.cells:
        mark = _MARK.match(cell.source) if cell.cell_type == "raw" else None
        if mark:
            inside = (*inside, mark[2]) if mark[1] == "BEGIN" else inside[:-1]
        yield cell, inside


def questions(master: Any) -> list[Question]:
    found: list[Question] = []
    for cell, inside in _blocks(master):
        if cell.cell_type == "raw" and cell.source.startswith("# BEGIN QUESTION"):
            about = dict(line.split(": ", 1) for line in cell.source.split("\n")[1:] if ": " in line)
            found.append(Question(about["name"], int(about["points"])))
        elif cell.cell_type == "code" and inside[-1:] == ("SOLUTION",):
            found[-1].prompts.append(without_solution(cell.source))
            found[-1].solutions.append(with_solution(cell.source))
        elif cell.cell_type == "code" and inside[-1:] == ("TESTS",):
            found[-1].tests.append(cell.source)
    return found


def student(master: Any) -> Any:
    """The students' notebook: gaps, and after each question its folded answer."""
    return _made(master, without_solution, answers=True)


def solution(master: Any) -> Any:
    return _made(master, with_solution, answers=False)


def _made(master: Any, of_solution: Any, answers: bool) -> Any:
    cells, waiting = [], list(questions(master))
    for cell, inside in _blocks(master):
        if cell.cell_type == "raw":
            if answers and cell.source.startswith("# END QUESTION"):
                cells.append(new_markdown_cell(FOLDED.format("\n\n".join(waiting.pop(0).solutions))))
        elif inside[-1:] != ("TESTS",):
            source = of_solution(cell.source) if cell.cell_type == "code" and inside[-1:] == ("SOLUTION",) else cell.source
            source = source if answers else source.replace("](../", "](../../")  # solutions are one folder deeper
            cells.append((new_code_cell if cell.cell_type == "code" else new_markdown_cell)(source))
    for place, cell in enumerate(cells):
        cell.id = f"cell-{place}"  # the same each time, for small diffs
    return new_notebook(cells=cells, metadata={"kernelspec": dict(master.metadata["kernelspec"])})


def generate(folder: Path, *, execute: bool = False) -> list[Path]:
    """Write `folder/NAME.ipynb` and `folder/solutions/NAME.ipynb` of each `folder/masters/NAME.py`; return the paths.

    >>> generate(Path("notebooks/exercises"))  # doctest: +SKIP

    With `execute`, solutions have outputs. Raises FileNotFoundError for a folder without masters.
    """
    masters = sorted((folder / "masters").glob("*.py"))
    if not masters:
        raise FileNotFoundError(f"no masters in {folder / 'masters'}; accepted: a folder with masters/*.py")
    written = []
    for path in masters:
        master = read_master(path)
        solved = solution(master)
        for place, made in ((folder, student(master)), (folder / "solutions", executed(solved) if execute else solved)):
            written.append(place / f"{path.stem}.ipynb")
            write_text(written[-1], nbformat.writes(made) + "\n")
    return written


def _is_bar(output: Any) -> bool:
    return output.get("name") == "stderr" or (output.output_type == "stream" and ("\r" in output.text or not output.text.strip()))


def executed(notebook: Any) -> Any:
    """Run a notebook, and drop progress bars and times from its outputs."""
    done, _ = ExecutePreprocessor(timeout=600).preprocess(notebook)
    for cell in done.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_bar(output)]
    done.metadata.pop("language_info", None)
    return done


if __name__ == "__main__":
    print(*generate(Path(sys.argv[1]), execute=True), sep="\n")
