"""Make the notebooks from their sources: the students' with gaps, and filled ones for CI.

`python -m teaching.gaps notebooks` writes each `NAME.ipynb` beside its `NAME.py`, `--filled FOLDER` writes filled ones.
A source marks a gap by `# BEGIN SOLUTION` and `# END SOLUTION`, as the masters do.

- `with_gaps(source)`: the students' notebook; the answers are folded
- `filled(source)`: the solved one, whose checks must say right
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any

import jupytext
import nbformat
import typer
from nbformat.v4 import new_markdown_cell

from fastdiff_lab.inputs.files import write_text

from .minutes import head
from .sheets import FOLDED, with_solution, without_solution

_CHECK = re.compile(r"^fl\.check\((.*)\)$", re.MULTILINE)


def with_gaps(source: Path) -> Any:
    """The students' notebook. A cell with a gap is followed by its answer, folded. Its head says how long it takes."""
    notebook = jupytext.read(source)
    notebook.cells[0].source += f"\n\n{head(source.stem, notebook.cells)}"
    cells = []
    for cell in notebook.cells:
        gap = has_gap(cell)
        answer = with_solution(cell.source) if gap else ""
        cell.source = without_solution(cell.source) if gap else cell.source
        cells += [cell, new_markdown_cell(FOLDED.format(answer))] if gap else [cell]
    return _numbered(notebook, cells)


def filled(source: Path) -> Any:
    """The solved notebook. A check that does not say right stops it."""
    notebook = jupytext.read(source)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.source = _CHECK.sub(r"assert (report := fl.check(\1)).passed, report", with_solution(cell.source))
    return _numbered(notebook, notebook.cells)


def has_gap(cell: Any) -> bool:
    return cell.cell_type == "code" and "# BEGIN SOLUTION" in cell.source


def _numbered(notebook: Any, cells: list[Any]) -> Any:
    notebook.cells = cells
    for place, cell in enumerate(cells):
        cell.id = f"cell-{place}"  # the same each time, for small diffs
    notebook.metadata = {"kernelspec": dict(notebook.metadata["kernelspec"])}
    return notebook


def main(
    folder: Annotated[Path, typer.Argument(help="The folder of the sources.")],
    solved: Annotated[Path | None, typer.Option("--filled", help="Where filled notebooks go.")] = None,
) -> None:
    """Write the notebooks without outputs."""
    (solved or folder).mkdir(parents=True, exist_ok=True)
    for source in sorted(folder.glob("*.py")):
        made = with_gaps(source) if solved is None else filled(source)
        write_text((solved or folder) / f"{source.stem}.ipynb", nbformat.writes(made) + "\n")


if __name__ == "__main__":
    typer.run(main)
