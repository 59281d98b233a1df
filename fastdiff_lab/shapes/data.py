"""Draw scenes as training batches. Training uses seeds below `HELD_OUT`, all reports use seeds from there on.

- `held_out_scenes(count, objects)`, `held_out_prompts(count)`: scenes that no training has seen, and captions of them
- `calibration_scenes(count)`: others that no training has seen, for calibration
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..inputs.plain_values import whole_number
from .scenes import Scene, sample_scene

HELD_OUT = 1_000_000_000
CALIBRATION = 2 * HELD_OUT


def as_tensor(image) -> Tensor:
    """A PIL image as a float tensor (3, height, width) in [-1, 1]."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1


def held_out_scenes(count: int, objects: int | None = None) -> list[Scene]:
    """`count` scenes whose seeds no training uses."""
    return [sample_scene(HELD_OUT + index, objects) for index in range(count)]


def held_out_prompts(count: int) -> list[str]:
    """Captions of scenes that no training uses, half of them with two objects, each once.

    >>> held_out_prompts(2)  # doctest: +SKIP
    ['a small red circle at the left on a blue background', 'a white star above a large green square on a black background']

    Of an odd `count` the larger half has one object. Raises ValueError below 1.
    """
    count = whole_number("count", count, 1)
    sizes = {1: count - count // 2, 2: count // 2}
    found = {size: dict.fromkeys(scene.caption() for scene in held_out_scenes(4 * wanted, size)) for size, wanted in sizes.items()}
    return [caption for size, wanted in sizes.items() for caption in list(found[size])[:wanted]]


def calibration_scenes(count: int) -> list[Scene]:
    """`count` scenes to calibrate on, of one and two objects in turn, from no training and no report."""
    return [sample_scene(CALIBRATION + index, objects=1 + index % 2) for index in range(count)]
