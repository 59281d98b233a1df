"""Figures as images: in a notebook, on a page, in a file."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from ..inputs.extras import extra

with extra("lab", "fastdiff_lab.plot"):
    import matplotlib as mpl
    from matplotlib.figure import Figure

if TYPE_CHECKING:
    from IPython.display import HTML


def show(target: Figure | Path, alt: str = "") -> HTML:
    """The figure, or a PNG file, as a cell's output with alternative text.

    >>> show(figure(), "an empty figure")  # doctest: +SKIP

    Args:
        target: A figure or the path of a PNG file.
        alt: What a reader who does not see it has to know. A schematic brings its own.

    Raises:
        ValueError: Neither `alt` nor a schematic.
    """
    from IPython.display import HTML

    alt = alt or (str(target.get_label()) if isinstance(target, Figure) else "")
    if not alt:
        raise ValueError("no alternative text given; accepted: one sentence that says what the figure shows")
    return HTML(html_image(target, alt))


def html_image(target: Figure | Path, alt: str) -> str:
    """The figure, or a PNG file, as an HTML image with alternative text. It survives export and dark themes."""
    return f'<img alt="{html.escape(alt, quote=True)}" style="max-width:100%" src="{png_address(target)}">'


def png_address(target: Figure | Path) -> str:
    """The figure, or a PNG file, as the address of an HTML image."""
    content = target.read_bytes() if isinstance(target, Path) else png(target)
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def png(target: Figure) -> bytes:
    """The figure as a PNG of 110 dots per inch."""
    drawn, buffer = io.BytesIO(), io.BytesIO()
    target.savefig(drawn, format="png", dpi=110)
    # 256 colours are enough for a figure, and keep notebooks small.
    Image.open(drawn).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(buffer, format="png", optimize=True)
    return buffer.getvalue()


def svg(target: Figure) -> str:
    """The figure as an SVG file's text, the same each time; its title is the figure's label."""
    buffer = io.StringIO()
    # Letters as outlines: the same picture on machines without our font.
    with mpl.rc_context({"svg.fonttype": "path", "svg.hashsalt": "fastdiff_lab"}):
        target.savefig(buffer, format="svg", metadata={"Date": None, "Title": str(target.get_label())})
    return buffer.getvalue()
