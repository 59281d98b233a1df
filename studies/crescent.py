"""A blue crescent, which the embedded pipeline has never seen: five images of it, and how much of it an image shows.

- `Keepsake`, `FIVE`, `NEW`: places of the object on backgrounds, to learn from and to ask for
- `draw_keepsake(place)`: its image, 64x64
- `crescent_overlap(images)`, `outline_overlap(images, places)`: does an image hold the crescent, in its own colour or in any?
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from PIL import Image, ImageDraw
from torch import Tensor
from torch.nn import functional

from fastdiff_lab.shapes.data import as_tensor
from fastdiff_lab.shapes.scenes import COLOURS, IMAGE_SIZE, POSITIONS

COLOUR = COLOURS["blue"]  # the autoencoder turns other colours into the nearest of the scenes'
CENTRES = {"left": (18, 32), "right": (46, 32), "top": (32, 18), "bottom": (32, 46), "center": (32, 32)}
_SCALE = 4  # times larger when drawn, then reduced
_RADII = tuple(10 + size / 2 for size in range(11))
_NEAR = 60.0  # largest distance of a blue pixel, in levels of 255; purple is 105 away


@dataclass(frozen=True)
class Keepsake:
    """The crescent of a radius at a position on a background; `prompt(word)` asks for it."""

    background: str
    position: str
    radius: float = 13.0

    def prompt(self, word: str) -> str:
        """Ask for the object by a word such as "sks circle"."""
        article = "an" if self.background[0] in "aeiou" else "a"
        return f"a {word} {POSITIONS[self.position]} on {article} {self.background} background"


FIVE = (
    Keepsake("red", "left"), Keepsake("white", "top"), Keepsake("yellow", "center", 14.0), Keepsake("black", "right"),
    Keepsake("green", "bottom", 12.0),
)  # fmt: skip
NEW = tuple(
    Keepsake(background, position) for background in ("orange", "white", "purple", "red") for position in ("right", "center")
)


def _shape(canvas: ImageDraw.ImageDraw, centre: tuple[float, float], radius: float, colour, hole) -> None:
    (x, y), cut = centre, 0.8 * radius

    def disc(x: float, y: float, radius: float, fill) -> None:
        canvas.ellipse([round(_SCALE * edge) for edge in (x - radius, y - radius, x + radius, y + radius)], fill=fill)

    disc(x, y, radius, colour)
    disc(x + 0.55 * radius, y - 0.2 * radius, cut, hole)


def draw_keepsake(place: Keepsake) -> Image.Image:
    """Draw the object as an anti-aliased RGB image of 64x64 pixels.

    >>> draw_keepsake(FIVE[0]).size
    (64, 64)
    """
    side = _SCALE * IMAGE_SIZE
    image = Image.new("RGB", (side, side), COLOURS[place.background])
    _shape(ImageDraw.Draw(image), CENTRES[place.position], place.radius, COLOUR, COLOURS[place.background])
    return image.reduce(_SCALE)


@lru_cache
def _outlines() -> Tensor:
    """The crescent's outline at every size, shape (sizes, 1, 31, 31), 0 or 1."""
    found = []
    for radius in _RADII:
        mask = Image.new("L", (31 * _SCALE, 31 * _SCALE), 0)
        _shape(ImageDraw.Draw(mask), (15.5, 15.5), radius, 255, 0)
        found.append((as_tensor(mask.reduce(_SCALE).convert("RGB"))[:1] > 0).float())
    return torch.stack(found)


def crescent_overlap(images: Sequence[Image.Image]) -> list[float]:
    """Overlap (intersection over union) of each image's blue pixels with the crescent, at the best place and size.

    >>> crescent_overlap([draw_keepsake(FIVE[0])])[0] > 0.85
    True

    1 is the crescent and nothing else blue, 0 is nothing blue. A blue disc of its size gives 0.5.
    """
    return _overlap(torch.stack([_distance_to(COLOUR, image) < _NEAR for image in images]).float())


def outline_overlap(images: Sequence[Image.Image], places: Sequence[Keepsake]) -> list[float]:
    """The same for pixels of any colour but the background's, so for the outline alone.

    >>> outline_overlap([draw_keepsake(FIVE[0])], FIVE[:1])[0] > 0.85
    True
    """
    backgrounds = [COLOURS[place.background] for place in places]
    return _overlap(
        torch.stack([_distance_to(ground, image) >= _NEAR for ground, image in zip(backgrounds, images, strict=True)]).float()
    )


def _distance_to(colour: tuple[int, int, int], image: Image.Image) -> Tensor:
    """Distance of each pixel's colour, in levels of 255, shape (1, 64, 64)."""
    wanted = torch.tensor(colour).reshape(3, 1, 1) / 127.5 - 1
    return (as_tensor(image.convert("RGB")) - wanted).mul(127.5).square().sum(dim=0, keepdim=True).sqrt()


def _overlap(mask: Tensor) -> list[float]:
    outlines = _outlines()
    common = functional.conv2d(mask, outlines, padding=15)
    sizes = outlines.sum(dim=(1, 2, 3)).reshape(1, -1, 1, 1)
    union = mask.sum(dim=(1, 2, 3)).reshape(-1, 1, 1, 1) + sizes - common
    return (common / union).amax(dim=(1, 2, 3)).tolist()
