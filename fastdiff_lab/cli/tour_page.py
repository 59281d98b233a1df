"""The tour's page: what the run measured on top, no code, the next step at the end.

- `verdict(table)`: three sentences on a table of `compare`
- `export(notebook, page, said)`: an executed notebook as one HTML page that needs no network
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pandas as pd

from ..inputs.extras import extra
from ..inputs.files import write_text

with extra("notebooks", "the tour"):
    import nbformat
    from nbconvert import HTMLExporter

CONTROL = r"fewer steps|prediction reused"  # of the names that `compare` gives
NEXT = """**Next**

- Draw an image of your own: `fastdiff-lab sample "a small white ring on a red background" --schedule schedule.json`
- Learn how it works: `fastdiff-lab lab` opens the notebooks. Begin with 01, the sampling loop.
- Measure your own model: `fastdiff-lab tour --model FOLDER --device cuda --dtype float16`"""
EXPLAINER = Path(__file__).parents[2] / "docs" / "explainer.html"  # not installed
STYLE = "<style>.jp-OutputArea-output pre {white-space: pre-wrap}</style></head>"


def _nearest(rows: pd.DataFrame) -> pd.Series:
    return rows.loc[rows["psnr"].astype(float).idxmax()]


def _measured(row: pd.Series) -> str:
    near = "the same images" if row["psnr"] == float("inf") else f"{row['psnr']:.1f} dB from the baseline's images"
    return f"{row['ratio']:.1f}x as fast as the baseline, {near}"


def _judged(ours: pd.Series, control: pd.Series) -> str:
    nearer, faster = ours["psnr"] > control["psnr"], ours["ratio"] > control["ratio"]
    if nearer and faster:
        return "Encoder propagation pays here: it is nearer and faster than the control."
    if not nearer and not faster:
        return "Encoder propagation does not pay here: the control is as near and as fast, or better."
    return f"Encoder propagation is {'nearer' if nearer else 'faster'} here, the control {'faster' if nearer else 'nearer'}."


def verdict(table: pd.DataFrame) -> list[str]:
    """Three sentences: the nearest method that propagates, the nearest control, and which is better.

    >>> rows = [("baseline", 50, 1.0, float("inf")), ("derived keys", 9, 3.4, 30.0), ("fewer steps (13)", 13, 3.7, 32.0)]
    >>> verdict(pd.DataFrame(rows, columns=["method", "encoder_calls", "ratio", "psnr"]))[2]
    'Encoder propagation does not pay here: the control is as near and as fast, or better.'

    Args:
        table: From `compare`, with its baseline and controls.

    Returns:
        Nothing if the table has no baseline, no control, or no other method.
    """
    names = table["method"].astype(str)
    is_baseline, is_control = names.eq("baseline"), names.str.contains(CONTROL)
    groups = [table[is_baseline], table[is_control], table[~is_baseline & ~is_control]]
    if any(group.empty for group in groups):
        return []
    baseline, control, ours = (_nearest(group) for group in groups)
    calls = f"{ours['encoder_calls']:.0f} encoder calls instead of {baseline['encoder_calls']:.0f}"
    return [
        f"Encoder propagation with {ours['method']}: {calls}, {_measured(ours)}.",
        f"The nearest control, {control['method']}: {_measured(control)}.",
        _judged(ours, control),
    ]


def _next_to(page: Path) -> str:
    """The next steps; a clone has the explainer, too."""
    if not EXPLAINER.is_file():
        return NEXT
    link = Path(os.path.relpath(EXPLAINER, page.parent)).as_posix()
    return f"{NEXT}\n- Move the key steps yourself: [the explainer]({link}), a page that needs nothing installed."


def _prepared(notebook: nbformat.NotebookNode, said: list[str], next_steps: str) -> nbformat.NotebookNode:
    """Without progress bars and links to other notebooks, which a browser cannot open; verdict and next step added."""
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
        else:
            cell.source = re.sub(r"(?<!!)\[([^]]*)\]\((?!https?:|#)[^)]*\)", r"\1", cell.source)
    notebook, new_cell = nbformat.v4.upgrade(notebook), nbformat.v4.new_markdown_cell
    lines = ["**What this run measured**", *(f"{place}. {sentence}" for place, sentence in enumerate(said, 1))]
    notebook.cells = [*([new_cell("\n\n".join(lines))] if said else []), *notebook.cells, new_cell(next_steps)]
    notebook.metadata["title"] = "fastdiff_lab: the tour"
    return notebook


def export(notebook: Path, page: Path, said: list[str]) -> None:
    """Write an executed notebook as one HTML page that needs no network, `said` on top.

    >>> export(Path("00_quickstart.ipynb"), Path("tour.html"), verdict(table))  # doctest: +SKIP
    """
    exporter = HTMLExporter(
        template_name="lab", embed_images=True, exclude_input=True, exclude_input_prompt=True, exclude_output_prompt=True
    )
    body, _ = exporter.from_notebook_node(_prepared(nbformat.read(notebook, as_version=4), said, _next_to(page)))
    # The template loads MathJax, RequireJS, Mermaid and widgets from the network, but the notebook needs none.
    body = re.sub(r"<script\b(?:(?!</script>).)*?https?://(?:(?!</script>).)*?</script>", "", body, flags=re.DOTALL)
    write_text(page, body.replace("</head>", STYLE, 1))
