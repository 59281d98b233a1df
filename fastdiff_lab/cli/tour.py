"""Run the tour: execute the quickstart notebook and export it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pandas as pd

from ..comparison.compare import brief
from ..inputs.extras import extra
from ..inputs.files import writable_folder
from ..key_schedule import KeySchedule
from ..pipelines import check_source
from ..sampling.methods import generators
from .tour_page import export, verdict

with extra("notebooks", "the tour"):
    import papermill

PAGE = "tour.html"
QUICKSTART = "00_quickstart.ipynb"
LAB = "09_interactive_lab.ipynb"
UNFINISHED = "unfinished"  # folder of an unfinished tour, inside the tour's


def notebooks_folder() -> Path:
    """The folder of the notebooks, in the installed package or in a checkout."""
    package = Path(__file__).resolve().parents[1]
    places = (package / "notebooks", package.parent / "notebooks")
    found = next((place for place in places if (place / QUICKSTART).exists()), None)
    if found is None:
        raise FileNotFoundError(f"the notebooks are missing; looked in: {', '.join(map(str, places))}. Install the package whole")
    return found


def run_tour(output: Path, **parameters: object) -> Path:
    """Execute the quickstart notebook, export it as one HTML page, and return the page's path.

    >>> run_tour(Path("runs/tour"), num_inference_steps=50)  # doctest: +SKIP

    An unfinished tour stays in the folder `unfinished` until the next one, and leaves an older tour as it is.

    Args:
        output: The folder. It is made if need be.
        parameters: Values for the notebook's parameter cell.

    Raises:
        OSError: The folder cannot be written.
        ValueError: Steps below 1, or what is no seed.
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
        shutil.rmtree(part)  # of an older tour
    part = writable_folder(part)
    notebook = part / QUICKSTART
    try:
        papermill.execute_notebook(
            notebooks_folder() / QUICKSTART, notebook, parameters={**parameters, "output": "."}, cwd=str(part),
            kernel_name="python3", log_output=False,
        )  # fmt: skip
    except (papermill.PapermillExecutionError, KeyboardInterrupt) as stop:
        if notebook.exists():
            export(notebook, part / PAGE, [])
            print(f"stopped; as far as it got: {os.path.relpath(part / PAGE)}")
        if isinstance(stop, KeyboardInterrupt):
            raise
        raise ValueError(f"the notebook stopped with {stop.ename}: {stop.evalue}; its cells so far are in {part}") from None
    table = pd.read_csv(part / "table.csv")
    said = verdict(table)
    export(notebook, part / PAGE, said)
    for file in sorted(path for path in part.iterdir() if path.is_file()):  # the page is the last one
        file.replace(folder / file.name)
    shutil.rmtree(part)  # with JupyterLab's checkpoints
    page = folder / PAGE
    print(brief(table).to_string(index=False), *said, f"page: {os.path.relpath(page)}", sep="\n")
    return page
