"""Read captions of COCO's annotation files."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

MAX_BYTES = 512 * 2**20


def read_captions(path: str | Path, count: int) -> list[tuple[str, int]]:
    """Read the first `count` pairs of caption and seed from a file such as captions_val2014.json.

    >>> read_captions("captions_val2014.json", 10_000)[0]  # doctest: +SKIP
    ('A bicycle replica with a clock as the front wheel.', 0)

    The seed is the place, from 0 on. The order of images is always the same, and not that of their numbers.
    Each gives its first caption before any gives its second. Raises ValueError for another file or too few captions, OSError for none.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"{count!r} captions asked; accepted: a whole number of 1 or more")
    found = _of_images(Path(path))
    images = sorted(found)
    random.Random(0).shuffle(images)
    most = max(map(len, found.values()), default=0)
    captions = [found[image][turn] for turn in range(most) for image in images if turn < len(found[image])]
    if len(captions) < count:
        raise ValueError(
            f"{count} captions asked of {path}, which has {len(captions)} of {len(images)} images; accepted: as many or fewer"
        )
    return [(caption, seed) for seed, caption in enumerate(captions[:count])]


def _of_images(path: Path) -> dict[int, list[str]]:
    """Captions by image, in the order of their own numbers."""
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise ValueError(f"{path} has {size} bytes; accepted: at most {MAX_BYTES}")
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        annotations = sorted(document["annotations"], key=lambda one: (one["image_id"], one["id"]))
        pairs = [(_whole(one["image_id"]), " ".join(one["caption"].split())) for one in annotations]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is no file of captions ({type(error).__name__}: {error}); accepted: COCO's JSON, with annotations that have id, "
            "image_id and caption"
        ) from None
    found: dict[int, list[str]] = {}
    for image, caption in pairs:
        if caption:
            found.setdefault(image, []).append(caption)
    return found


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"image_id {value!r} is no whole number")
    return value
