"""Real pictures from a folder of files, for distances between sets of pictures.

- `picture_files(folder)`: the files, all of them checked to be pictures
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
SIDE = 256  # pixels: what the field compares COCO at


def picture_files(folder: Path) -> list[Path]:
    """The picture files in a folder by name, each looked at as far as to know that it is one; folders inside are left out.

    >>> picture_files(Path("val2014"))[0].name  # doctest: +SKIP
    'COCO_val2014_000000000042.jpg'

    Raises FileNotFoundError for no folder or one without pictures, ValueError for a file that is no picture.
    """
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS) if folder.is_dir() else []
    if not found:
        raise FileNotFoundError(f"no pictures in {str(folder)!r}; accepted: a folder with files that end in {', '.join(ENDINGS)}")
    for path in found:
        _checked(path, whole=False)
    return found


def opened(path: Path) -> Image.Image:
    """A picture file, decoded. Raises ValueError for a damaged one."""
    return _checked(path, whole=True)


def _checked(path: Path, whole: bool) -> Image.Image:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=_FORMATS) as image:
                return ImageOps.exif_transpose(image).convert("RGB") if whole else image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ValueError(
            f"{path} is no picture that can be read ({error}); accepted: JPEG, PNG or WebP, none of them damaged"
        ) from None


def as_square(image: Image.Image) -> Tensor:
    """The largest square in the middle of a picture, at 256x256 pixels (bicubic, with antialiasing), as bytes (3, 256, 256).

    >>> as_square(Image.new("RGB", (640, 480))).shape
    torch.Size([3, 256, 256])
    """
    fitted = ImageOps.fit(image.convert("RGB"), (SIDE, SIDE), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(fitted)).permute(2, 0, 1)
