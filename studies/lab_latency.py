"""Milliseconds from a key on the strip to new numbers in JupyterLab, with the explorer and without: `python -m studies.lab_latency`.

A busy machine makes all of it slower; so the two take turns, each in a JupyterLab of its own.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path
from typing import Annotated

import nbformat
import typer

from .browser import lab, opened, run_all

BEGIN = """
import fastdiff_lab as fl
from fastdiff_lab.lab.widget import recording_explorer, schedule_lab
pipe = fl.load_pipeline()
with fl.record(pipe, keep=["down_blocks.1", "mid_block"]) as recording:
    pipe("a large red star on a white background", num_inference_steps=50, guidance_scale=5.0)
lab = schedule_lab(pipe)
"""
CELLS = {"the lab alone": [BEGIN, "lab"], "with the explorer": [BEGIN, "lab", "recording_explorer(recording, lab)"]}
# Space on a step sets or clears a key; the number of calls changes with each.
MEASURE = """async (clicks) => {
  const number = document.querySelector(".fd-card-calls strong");
  const cells = [...document.querySelectorAll(".fd-cell")];
  const found = [];
  for (let click = 0; click < clicks; click += 1) {
    const cell = cells[1 + ((click * 17) % (cells.length - 1))];
    cell.focus();
    const begun = performance.now();
    const answered = new Promise((resolve) => {
      const observer = new MutationObserver(() => { observer.disconnect(); resolve(performance.now() - begun); });
      observer.observe(number, { childList: true, characterData: true, subtree: true });
    });
    cell.dispatchEvent(new KeyboardEvent("keydown", { key: " ", bubbles: true }));
    found.push(await answered);
    await new Promise((resolve) => setTimeout(resolve, 40));
  }
  return found;
}"""


def latencies(cells: list[str], clicks: int) -> list[float]:
    """Milliseconds of each of so many clicks, in a notebook of these cells."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        folder = place / "notebooks"
        folder.mkdir()
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        nbformat.write(notebook, folder / "lab.ipynb")
        with lab(folder, place) as address, opened(f"{address}/lab/tree/lab.ipynb") as watched:
            run_all(watched.page)
            watched.page.locator(".fd-cell").first.wait_for()
            watched.page.evaluate(MEASURE, 3)  # the first fill caches
            return watched.page.evaluate(MEASURE, clicks)


def main(
    clicks: Annotated[int, typer.Option(min=2, help="Clicks of each notebook in each round.")] = 50,
    rounds: Annotated[int, typer.Option(min=1, help="How often each notebook is opened.")] = 2,
) -> None:
    """Print median and maximum of both."""
    found: dict[str, list[float]] = {name: [] for name in CELLS}
    for _ in range(rounds):
        for name, cells in CELLS.items():
            found[name] += latencies(cells, clicks)
    for name, values in found.items():
        print(f"{name}: median {statistics.median(values):.0f} ms, at most {max(values):.0f} ms ({len(values)} clicks)")


if __name__ == "__main__":
    typer.run(main)
