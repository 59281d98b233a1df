"""The tour: the quickstart notebook, executed and exported.

- `run_tour(output, ...)`: executes it with progress and leaves page, table, recording and schedule in a folder
- `notebooks_folder()`: where the notebooks lie
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pandas as pd

from ..comparison.compare import brief
from ..inputs.extras import extra
from ..inputs.files import writable_folder, write_text
from ..key_schedule import KeySchedule
from ..pipelines import check_source
from ..sampling.methods import generators

with extra("notebooks", "the tour"):
    import nbformat
    import papermill
    from nbconvert import HTMLExporter

PAGE = "tour.html"
QUICKSTART = "00_quickstart.ipynb"
LAB = "09_interactive_lab.ipynb"
UNFINISHED = "unfinished"  # the folder of a tour that was not finished, inside the tour's


def notebooks_folder() -> Path:
    """The folder of the notebooks: inside the installed package, or of a checkout."""
    package = Path(__file__).resolve().parents[1]
    places = (package / "notebooks", package.parent / "notebooks")
    found = next((place for place in places if (place / QUICKSTART).exists()), None)
    if found is None:
        raise FileNotFoundError(f"the notebooks are missing; looked in: {', '.join(map(str, places))}")
    return found


def run_tour(output: Path, **parameters: object) -> Path:
    """Executes the quickstart notebook and exports it as one self-contained HTML page; returns the page's path.

    >>> run_tour(Path("runs/tour"), num_inference_steps=50)  # doctest: +SKIP

    `parameters`: values for the notebook's parameter cell. An interrupted tour leaves what was there, and stays in the folder's `unfinished`
    until the next tour: the notebook is saved after each cell, and exported as far as it got. A finished one replaces the files of one
    before.
    Raises OSError if the folder cannot be written, ValueError for steps below 1 and a seed that no generator takes.
    """
    steps = parameters.get("num_inference_steps", 50)
    if not isinstance(steps, int) or steps < 1:
        raise ValueError(f"{steps} steps asked; accepted: a whole number of 1 or more")
    KeySchedule.of_paper(steps)  # raises for too few steps before anything is computed
    source = parameters.get("source")
    if source is not None:
        check_source(str(source))  # before a folder is made
    if source is not None and Path(str(source)).is_dir():
        parameters["source"] = str(Path(str(source)).resolve())  # the notebook runs in another folder
    generators([parameters.get("seed", 0)])  # type: ignore[list-item]  # raises for a seed that is none
    folder = writable_folder(output)
    part = folder / UNFINISHED
    if part.is_dir():
        shutil.rmtree(part)  # of a tour before this one
    part = writable_folder(part)
    notebook = part / QUICKSTART
    try:
        papermill.execute_notebook(
            notebooks_folder() / QUICKSTART, notebook, parameters={**parameters, "output": "."}, cwd=str(part),
            kernel_name="python3", log_output=False,
        )  # fmt: skip
    except (papermill.PapermillExecutionError, KeyboardInterrupt) as stop:
        if notebook.exists():
            print(f"stopped; as far as it got: {os.path.relpath(export(notebook))}")
        if isinstance(stop, KeyboardInterrupt):
            raise
        raise ValueError(f"the notebook stopped with {stop.ename}: {stop.evalue}") from None
    export(notebook)
    for file in sorted(path for path in part.iterdir() if path.is_file()):  # the page is the last one
        file.replace(folder / file.name)
    shutil.rmtree(part)  # with the checkpoints that JupyterLab may have made there
    page = folder / PAGE
    print(brief(pd.read_csv(folder / "table.csv")).to_string(index=False))
    print(f"page: {os.path.relpath(page)}")
    return page


def export(notebook: Path) -> Path:
    """Exports an executed notebook as one HTML page that asks nothing of the network."""
    exporter = HTMLExporter(template_name="lab", embed_images=True)
    body, _ = exporter.from_notebook_node(nbformat.read(notebook, as_version=4))
    # The template asks CDNs for MathJax, RequireJS, Mermaid and widgets; the notebook needs none of them.
    body = re.sub(r"<script\b(?:(?!</script>).)*?https?://(?:(?!</script>).)*?</script>", "", body, flags=re.DOTALL)
    page = notebook.with_name(PAGE)
    write_text(page, body)
    return page
