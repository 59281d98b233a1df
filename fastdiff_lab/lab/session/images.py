"""Show images: their difference, and their form inside a page."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

GAIN = 4


def difference(image: Image.Image, reference: Image.Image, gain: int = GAIN) -> Image.Image:
    """The absolute difference of two images of one size, times `gain`; black where they are equal.

    >>> difference(Image.new("RGB", (1, 1), (3, 0, 0)), Image.new("RGB", (1, 1))).getpixel((0, 0))
    (12, 0, 0)
    """
    apart = np.abs(np.asarray(image.convert("RGB"), dtype=int) - np.asarray(reference.convert("RGB"), dtype=int))
    return Image.fromarray((apart * gain).clip(0, 255).astype(np.uint8))


def tiled(images: Sequence[Image.Image]) -> tuple[Image.Image, int]:
    """Images of one size as tiles of one, row by row, and the number of columns.

    >>> tiled([Image.new("RGB", (2, 3))] * 5)[0].size
    (6, 6)
    """
    columns = math.ceil(math.sqrt(len(images)))
    width, height = images[0].size
    whole = Image.new("RGB", (columns * width, math.ceil(len(images) / columns) * height))
    for place, image in enumerate(images):
        whole.paste(image, (place % columns * width, place // columns * height))
    return whole, columns


def small(image: Image.Image, most: int = 176) -> Image.Image:
    """The image, at most so many pixels a side."""
    shown = image.convert("RGB").copy()
    shown.thumbnail((most, most))
    return shown


def data_address(image: Image.Image, most: int = 512) -> str:
    """The image as a `data:` address (PNG), scaled down to `most` pixels a side.

    >>> data_address(Image.new("RGB", (2, 2)))[:22]
    'data:image/png;base64,'
    """
    buffer = io.BytesIO()
    small(image, most).save(buffer, format="png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
