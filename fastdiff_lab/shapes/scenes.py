"""Draw scenes with captions and ground truth, the embedded pipeline's training data.

- `Thing`, `Scene`: values; `Scene.caption()`, `Scene.attributes()`
- `sample_scene(seed)`: the scene of a seed, the same on every machine
- `draw(scene)`: the scene as an image
- `parse_caption(text)`: the attributes in a caption
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SIZES = ("small", "large")
COLOURS = {
    "red": (220, 40, 45),
    "green": (40, 165, 70),
    "blue": (45, 85, 215),
    "yellow": (245, 215, 45),
    "purple": (140, 60, 180),
    "orange": (245, 135, 35),
    "white": (245, 245, 245),
    "black": (20, 20, 24),
}
SHAPES = ("circle", "square", "triangle", "star", "ring", "cross")
POSITIONS = {
    "left": "at the left",
    "right": "at the right",
    "top": "at the top",
    "bottom": "at the bottom",
    "center": "in the center",
}
# Each relation with its mirror image; attributes use the first of a pair.
RELATIONS = {"above": "below", "left of": "right of"}
RELATION_PHRASES = {
    "above": "above",
    "below": "below",
    "left of": "to the left of",
    "right of": "to the right of",
}
LAYOUTS = (*POSITIONS, *RELATIONS)
# The attributes of a scene and their values.
CHOICES: dict[str, tuple[str, ...]] = {
    "background": tuple(COLOURS),
    "layout": LAYOUTS,
    **{f"shape_{n}": SHAPES for n in (1, 2)},
    **{f"colour_{n}": tuple(COLOURS) for n in (1, 2)},
    **{f"size_{n}": SIZES for n in (1, 2)},
}

IMAGE_SIZE = 64
_SUPERSAMPLING = 4
_POSITION_CENTRES = {"left": (18, 32), "right": (46, 32), "top": (32, 18), "bottom": (32, 46), "center": (32, 32)}
_RELATION_CENTRES = {"above": ((32, 17), (32, 47)), "left of": ((17, 32), (47, 32))}
_RADII = {"small": (8.5, 9.5), "large": (13, 14)}
# Unit outlines to four decimals, because sin and cos may round differently on other machines.
_OUTLINES = {
    "square": ((-0.88, -0.88), (0.88, -0.88), (0.88, 0.88), (-0.88, 0.88)),
    "triangle": ((0.0, -1.0), (1.0, 0.85), (-1.0, 0.85)),
    "star": (
        (0.0, -1.05), (0.2586, -0.3559), (0.9986, -0.3245), (0.4185, 0.136), (0.6172, 0.8495),
        (0.0, 0.44), (-0.6172, 0.8495), (-0.4185, 0.136), (-0.9986, -0.3245), (-0.2586, -0.3559),
    ),
    "cross": (
        (-0.34, -1.0), (0.34, -1.0), (0.34, -0.34), (1.0, -0.34), (1.0, 0.34), (0.34, 0.34),
        (0.34, 1.0), (-0.34, 1.0), (-0.34, 0.34), (-1.0, 0.34), (-1.0, -0.34), (-0.34, -0.34),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Thing:
    """One object: its attributes, and its centre and radius in pixels."""

    shape: str
    colour: str
    size: str
    centre: tuple[float, float]
    radius: float

    def phrase(self, say_size: bool) -> str:
        words = f"{self.size} {self.colour} {self.shape}" if say_size else f"{self.colour} {self.shape}"
        return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


@dataclass(frozen=True)
class Scene:
    """One object at a position, or two in a relation, on a background.

    >>> sample_scene(3, objects=1).caption()  # doctest: +SKIP
    'a large blue star at the top on a white background'

    `things` are in canonical order, the upper or left one first. `say_*` tell what the caption mentions.
    A mirrored caption names the second thing first ("a below b" for "b above a").
    """

    background: str
    things: tuple[Thing, ...]
    layout: str
    say_sizes: tuple[bool, ...]
    say_layout: bool = True
    mirrored: bool = False

    def caption(self) -> str:
        phrases = [thing.phrase(say) for thing, say in zip(self.things, self.say_sizes, strict=True)]
        article = "an" if self.background[0] in "aeiou" else "a"
        ground = f"on {article} {self.background} background"
        if len(phrases) == 1:
            return " ".join(filter(None, [phrases[0], POSITIONS[self.layout] if self.say_layout else "", ground]))
        relation = RELATIONS[self.layout] if self.mirrored else self.layout
        first, second = reversed(phrases) if self.mirrored else phrases
        return f"{first} {RELATION_PHRASES[relation]} {second} {ground}"

    def attributes(self) -> dict[str, str]:
        """What the caption asks for: `objects`, `background`, `layout`, and `shape_1`, `colour_1`, `size_1`, `shape_2`, ..."""
        asked = {"objects": str(len(self.things)), "background": self.background}
        if self.say_layout:
            asked["layout"] = self.layout
        for number, (thing, say_size) in enumerate(zip(self.things, self.say_sizes, strict=True), start=1):
            asked |= {f"shape_{number}": thing.shape, f"colour_{number}": thing.colour}
            if say_size:
                asked[f"size_{number}"] = thing.size
        return asked


def _sample_thing(rng: np.random.Generator, background: str, centre: tuple[int, int], reach: int) -> Thing:
    size = SIZES[rng.integers(2)]
    colours = [colour for colour in COLOURS if colour != background]
    low, high = _RADII[size]
    jitter = rng.integers(-4 * reach, 4 * reach + 1, size=2) / 4
    return Thing(
        shape=SHAPES[rng.integers(len(SHAPES))],
        colour=colours[rng.integers(len(colours))],
        size=size,
        centre=(float(centre[0] + jitter[0]), float(centre[1] + jitter[1])),
        radius=float(rng.integers(int(low * 4), int(high * 4) + 1) / 4),
    )


def sample_scene(seed: int, objects: int | None = None) -> Scene:
    """The scene of a seed.

    >>> scene = sample_scene(7, objects=2)
    >>> len(scene.things)
    2

    `objects` is 1 or 2, or None for one or two with equal chance.
    """
    rng = np.random.default_rng(seed)
    drawn = int(rng.integers(1, 3))
    objects = drawn if objects is None else objects
    if objects not in (1, 2):
        raise ValueError(f"objects={objects!r} asked; a scene has 1 or 2 objects (or None to draw the number)")
    background = list(COLOURS)[rng.integers(len(COLOURS))]
    layout = list(POSITIONS if objects == 1 else RELATIONS)[rng.integers(len(POSITIONS if objects == 1 else RELATIONS))]
    centres = (_POSITION_CENTRES[layout],) if objects == 1 else _RELATION_CENTRES[layout]
    things = tuple(_sample_thing(rng, background, centre, 3 - objects) for centre in centres)
    return Scene(
        background=background,
        things=things,
        layout=layout,
        say_sizes=tuple(bool(rng.random() < 0.75) for _ in things),
        say_layout=objects == 2 or bool(rng.random() < 0.75),
        mirrored=objects == 2 and bool(rng.random() < 0.5),
    )


def _draw_thing(canvas: ImageDraw.ImageDraw, thing: Thing, background: str) -> None:
    (x, y), radius = thing.centre, thing.radius

    def disc(share: float, colour: str) -> None:
        box = [(x - share * radius) * _SUPERSAMPLING, (y - share * radius) * _SUPERSAMPLING,
               (x + share * radius) * _SUPERSAMPLING, (y + share * radius) * _SUPERSAMPLING]  # fmt: skip
        canvas.ellipse([round(edge) for edge in box], fill=COLOURS[colour])

    if thing.shape in ("circle", "ring"):
        disc(1.0, thing.colour)
        if thing.shape == "ring":
            disc(0.55, background)
        return
    outline = [
        (round((x + u * radius) * _SUPERSAMPLING), round((y + v * radius) * _SUPERSAMPLING)) for u, v in _OUTLINES[thing.shape]
    ]
    canvas.polygon(outline, fill=COLOURS[thing.colour])


def draw(scene: Scene) -> Image.Image:
    """Draw the scene as an anti-aliased RGB image of 64x64 pixels.

    >>> draw(sample_scene(0)).size
    (64, 64)
    """
    side = IMAGE_SIZE * _SUPERSAMPLING
    image = Image.new("RGB", (side, side), COLOURS[scene.background])
    canvas = ImageDraw.Draw(image)
    for thing in scene.things:
        _draw_thing(canvas, thing, scene.background)
    return image.reduce(_SUPERSAMPLING)


def words() -> tuple[str, ...]:
    """All words of captions, sorted."""
    phrases = " ".join([*POSITIONS.values(), *RELATION_PHRASES.values()])
    return tuple(sorted({"a", "an", "on", "background", *SIZES, *COLOURS, *SHAPES, *phrases.split()}))


def _alternatives(options) -> str:
    return "|".join(sorted(options, key=len, reverse=True))


_THING = rf"an? (?:({_alternatives(SIZES)}) )?({_alternatives(COLOURS)}) ({_alternatives(SHAPES)})"
_CAPTION = re.compile(
    rf"{_THING}(?: ({_alternatives(POSITIONS.values())})| ({_alternatives(RELATION_PHRASES.values())}) {_THING})?"
    rf" on an? ({_alternatives(COLOURS)}) background"
)


def parse_caption(text: str) -> dict[str, str]:
    """The attributes in a caption, as `Scene.attributes` returns them.

    >>> parse_caption("a red ring below a small white star on a black background")["layout"]
    'above'

    Raises ValueError for a text that is no caption.
    """
    match = _CAPTION.fullmatch(text.strip().lower())
    if match is None:
        raise ValueError(
            f"cannot judge {text!r}; accepted: captions such as 'a small red circle at the left on a blue background'; "
            "or 'a white star above a large green square on a black background'"
        )
    *things, background = match.groups()
    first, position, relation, second = things[:3], things[3], things[4], things[5:]
    asked = {"objects": "2" if relation else "1", "background": background}
    phrases = {phrase: name for name, phrase in (POSITIONS | RELATION_PHRASES).items()}
    if position:
        asked["layout"] = phrases[position]
    if relation:
        mirrors = {mirror: canonical for canonical, mirror in RELATIONS.items()}
        name = phrases[relation]
        asked["layout"] = mirrors.get(name, name)
        if name in mirrors:
            first, second = second, first
    for number, (size, colour, shape) in enumerate([first, second] if relation else [first], start=1):
        asked |= {f"shape_{number}": shape, f"colour_{number}": colour}
        if size:
            asked[f"size_{number}"] = size
    return asked
