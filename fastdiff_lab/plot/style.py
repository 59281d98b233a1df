"""Colours, and an empty figure. Each colour comes with a dash, a hatch or a word, for those who do not see it."""

from __future__ import annotations

from ..inputs.extras import extra

with extra("lab", "fastdiff_lab.plot"):
    import matplotlib as mpl
    from matplotlib.figure import Figure

PETROFF = mpl.color_sequences["petroff10"]
PART_DASHES = {"encoder": "", "decoder": (4, 1.5), "": (1, 1)}
PART_COLOURS = {"encoder": PETROFF[0], "decoder": PETROFF[1], "": PETROFF[2]}
PART_HATCHES = {"encoder": "", "decoder": "//", "": ".."}
BANDS = ("#b8cbe6", "#e4e4e4")


def figure(width: float = 8.0, height: float = 4.0) -> Figure:
    """An empty figure on white, readable in dark notebooks; sizes in inches."""
    return Figure(figsize=(width, height), facecolor="white", layout="constrained")
