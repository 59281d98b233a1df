"""The JavaScript and style of the widgets, from the files in `js/`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

FOLDER = Path(__file__).parent / "js"
PARTS = (
    "dom",
    "connection",
    "theme",
    "charts",
    "looking",
    "architecture",
    "projector",
    "tour",
    "lab_tour",
    "tips",
    "strip",
    "form",
    "builder",
    "predict",
    "scrubber",
    "compare",
    "guess",
    "run",
    "race",
    "history",
    "files",
)


def module(name: str) -> str:
    """The ES module that draws a widget, `lab` or `explorer`.

    >>> "export default" in module("lab")
    True
    """
    return joined((*PARTS, name))


def joined(parts: Iterable[str]) -> str:
    """Parts of the JavaScript as one text, for pages that are no widget, too.

    >>> "function keyStrip" in joined(["dom", "strip"])
    True
    """
    return "\n".join((FOLDER / f"{part}.js").read_text(encoding="utf-8") for part in parts)


def style() -> str:
    """The style of all widgets, in the colours of JupyterLab's theme."""
    return (FOLDER / "lab.css").read_text(encoding="utf-8")
