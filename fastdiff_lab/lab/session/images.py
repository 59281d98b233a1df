"""Show images: their difference, and their form inside a page."""

from __future__ import annotations

import base64
import io

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


def data_address(image: Image.Image, most: int = 512) -> str:
    """The image as a `data:` address (PNG), scaled down to `most` pixels a side.

    >>> data_address(Image.new("RGB", (2, 2)))[:22]
    'data:image/png;base64,'
    """
    shown = image.convert("RGB")
    if max(shown.size) > most:
        shown = shown.copy()
        shown.thumbnail((most, most))
    buffer = io.BytesIO()
    shown.save(buffer, format="png")
    return f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
