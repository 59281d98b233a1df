"""Read real images from a folder, for distances between sets.

- `image_files(folder)`: the files, each checked to be an image
- `opened(path)`: one of them
- `as_square(image)`: the form in which sets are compared
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
_FORMATS = ("JPEG", "PNG", "WEBP")
SIDE = 256  # pixels, as usual for COCO


def image_files(folder: Path) -> list[Path]:
    """The image files in a folder by name, each checked by its header. Folders inside are left out.

    >>> image_files(Path("val2014"))[0].name  # doctest: +SKIP
    'COCO_val2014_000000000042.jpg'

    Raises FileNotFoundError for no folder or no images in it, ValueError for a file that is no image.
    """
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS) if folder.is_dir() else []
    if not found:
        raise FileNotFoundError(f"no images in {str(folder)!r}; accepted: a folder with files that end in {', '.join(ENDINGS)}")
    for path in found:
        _checked(path, whole=False)
    return found


def opened(path: Path) -> Image.Image:
    """Decode an image file. Raises ValueError for a damaged one."""
    return _checked(path, whole=True)


def _checked(path: Path, whole: bool) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as image:
                return ImageOps.exif_transpose(image).convert("RGB") if whole else image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(
            f"{path} is no image that can be read ({error}); accepted: JPEG, PNG or WebP, none of them damaged"
        ) from None


def as_square(image: Image.Image) -> Tensor:
    """Crop the largest middle square to bytes (3, 256, 256), bicubic with antialiasing.

    >>> as_square(Image.new("RGB", (640, 480))).shape
    torch.Size([3, 256, 256])
    """
    fitted = ImageOps.fit(image.convert("RGB"), (SIDE, SIDE), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1)
