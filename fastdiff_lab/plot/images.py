"""Images of several methods side by side, with their differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from ..inputs.extras import extra

with extra("lab", "fastdiff_lab.plot"):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

STRONGER = 4  # times: most differences are too dark to see


def image_row(images: Mapping[str, Image.Image], target: Figure) -> Figure:
    """Images side by side, each below its title."""
    for ax, (title, image) in zip(target.subplots(1, len(images), squeeze=False)[0], images.items(), strict=True):
        ax.imshow(np.asarray(image), interpolation="nearest")
        ax.set(xticks=[], yticks=[])
        ax.set_title(title, fontsize="small")
    return target


def image_grid(images: Mapping[str, Sequence[Image.Image]], target: Figure) -> Figure:
    """A column per method, two rows per prompt: the image, and its difference to the first method's.

    Differences are of brightness, four times stronger, with the PSNR in dB in their corner.
    """
    names = list(images)
    count = len(images[names[0]])
    axes = target.subplots(2 * count, len(names), squeeze=False)
    for ax in axes.flat:
        ax.set(xticks=[], yticks=[])
    for column, name in enumerate(names):
        axes[0][column].set_title(name, fontsize="small")
        for row in range(count):
            above, below = axes[2 * row : 2 * row + 2, column]
            above.imshow(np.asarray(images[name][row]), interpolation="nearest")
            if column:
                _difference(images[name][row], images[names[0]][row], below)
            else:
                below.axis("off")
                below.text(0.5, 0.5, f"difference\n(brightness × {STRONGER})", ha="center", va="center", fontsize="x-small")
    return target


def _difference(image: Image.Image, reference: Image.Image, ax: Axes) -> None:
    one, other = (np.asarray(each, dtype=float) for each in (image, reference))
    brightness = np.abs(one - other) @ (0.299, 0.587, 0.114)
    ax.imshow(STRONGER * brightness, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    squared = np.square(one - other).mean()
    text = f"{10 * np.log10(255**2 / squared):.1f} dB" if squared else "identical"
    ax.text(0.04, 0.05, text, transform=ax.transAxes, color="white", fontsize="x-small", backgroundcolor="#000000b0")
