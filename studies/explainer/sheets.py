"""Pack many small images into few large ones, as addresses for a page.

- `Sheet`: tiles of one size, numbered as they come
"""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from fastdiff_lab.lab.session.images import tiled


@dataclass
class Sheet:
    """Images of one size that become one.

    >>> sheet = Sheet()
    >>> sheet.add([Image.new("RGB", (2, 2))] * 3), sheet.add([Image.new("RGB", (2, 2))])
    (0, 3)
    """

    images: list[Image.Image] = field(default_factory=list)

    def add(self, images: list[Image.Image]) -> int:
        """Append images; returns the number of the first."""
        self.images += images
        return len(self.images) - len(images)

    def address(self, lossless: bool = True) -> dict[str, Any]:
        """The sheet as a `data:` address (WebP), with the number of columns and of tiles. Images whose decibels are told lose nothing."""
        whole, columns = tiled(self.images)
        buffer = io.BytesIO()
        whole.save(buffer, format="webp", lossless=lossless, quality=90, method=5)
        content = base64.b64encode(buffer.getvalue()).decode()
        size = self.images[0].size[0]
        return {"address": f"data:image/webp;base64,{content}", "columns": columns, "count": len(self.images), "size": size}
