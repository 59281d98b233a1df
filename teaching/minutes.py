"""How long a notebook takes: to read, from its words and lines; to run, as measured.

`python -m teaching.minutes notebooks` keeps the seconds of executed notebooks, and writes them into their heads.

- `head(name, cells)`: the line at the end of a notebook's first cell
- `seconds_of(notebook)`: how long its cells ran
"""

from __future__ import annotations

import json
import re
from datetime import datetime
from math import ceil
from pathlib import Path
from typing import Annotated, Any

import nbformat
import typer

from fastdiff_lab.inputs.files import write_text

WORDS, LINES = 120, 12  # a minute: of text, and of code that is not hidden
MEASURED = Path(__file__).parent / "seconds.json"  # with one thread


def head(name: str, cells: list[Any]) -> str:
    """Say how long a notebook takes.

    >>> head("none", [])
    'Reads in 0 min, runs in ? min with one CPU thread.'
    """
    words = sum(len(cell.source.split()) for cell in cells if cell.cell_type == "markdown")
    lines = sum(len(cell.source.split("\n")) for cell in cells if _is_read(cell))
    return f"Reads in {ceil(words / WORDS + lines / LINES)} min, {_runs(name)} with one CPU thread."


def _is_read(cell: Any) -> bool:
    return cell.cell_type == "code" and "hide-input" not in cell.metadata.get("tags", [])


def _runs(name: str) -> str:
    measured = _measured()
    return f"runs in {ceil(measured[name] / 60) if name in measured else '?'} min"


def _measured() -> dict[str, int]:
    return dict(json.loads(MEASURED.read_text(encoding="utf-8")))


def seconds_of(notebook: Any) -> float:
    """Add the seconds of its cells, which Jupyter has written down."""
    timed = [cell.metadata["execution"] for cell in notebook.cells if "execution" in cell.metadata]
    return sum(_moment(one, "idle") - _moment(one, "busy") for one in timed)


def _moment(execution: Any, state: str) -> float:
    return datetime.fromisoformat(execution[f"iopub.status.{state}"]).timestamp()


def main(folder: Annotated[Path, typer.Argument(help="The folder of executed notebooks.")]) -> None:
    """Keep the seconds of executed notebooks, and write them into their heads."""
    paths = sorted(folder.glob("*.ipynb"))
    notebooks = {path: nbformat.read(path, as_version=4) for path in paths}
    taken = {path.stem: round(seconds_of(notebook)) for path, notebook in notebooks.items()}
    measured = _measured() | {name: seconds for name, seconds in taken.items() if seconds}
    write_text(MEASURED, json.dumps(measured, indent=1, sort_keys=True) + "\n")
    for path, notebook in notebooks.items():
        first = notebook.cells[0]
        first.source = re.sub(r"runs in \S+ min(?= with one CPU thread\.$)", _runs(path.stem), first.source)
        nbformat.write(notebook, path)


if __name__ == "__main__":
    typer.run(main)
