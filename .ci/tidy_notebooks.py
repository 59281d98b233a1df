"""Takes out of executed notebooks what cannot be read on the web: widgets without their kernel, messages of libraries.

python .ci/tidy_notebooks.py notebooks/*.ipynb

A widget's output keeps its static page (text/html); `metadata.widgets` makes "Invalid Notebook" pages on some hosts.
"""

from __future__ import annotations

import sys
from pathlib import Path

import nbformat

WIDGET = "application/vnd.jupyter.widget-view+json"


def tidied(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """The notebook without widget views, widget state, stderr and times of execution."""
    notebook.metadata.pop("widgets", None)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                output.get("data", {}).pop(WIDGET, None)
    return notebook


def main() -> None:
    for name in sys.argv[1:]:
        path = Path(name)
        nbformat.write(tidied(nbformat.read(path, as_version=4)), path)


if __name__ == "__main__":
    main()
