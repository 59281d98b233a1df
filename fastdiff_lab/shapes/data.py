"""Draw scenes as training batches. Training uses seeds below `HELD_OUT`, all reports use seeds from there on.

- `scene_images(seeds)`: a batch of images
- `held_out_scenes(count, objects)`: scenes that no training has seen
- `calibration_scenes(count)`: others that no training has seen, for calibration
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor

from .scenes import Scene, draw, sample_scene

HELD_OUT = 1_000_000_000
CALIBRATION = 2 * HELD_OUT


def as_tensor(image) -> Tensor:
    """A PIL image as a float tensor (3, height, width) in [-1, 1]."""
    return torch.from_numpy(np.asarray(image, dtype=np.float32)).permute(2, 0, 1) / 127.5 - 1


def scene_images(seeds: Iterable[int], objects: int | None = None) -> Tensor:
    """The images of some seeds, shape (seeds, 3, 64, 64), in [-1, 1].

    >>> scene_images(range(2)).shape
    torch.Size([2, 3, 64, 64])
    """
    return torch.stack([as_tensor(draw(sample_scene(seed, objects))) for seed in seeds])


def held_out_scenes(count: int, objects: int | None = None) -> list[Scene]:
    """`count` scenes whose seeds no training uses."""
    return [sample_scene(HELD_OUT + index, objects) for index in range(count)]


def calibration_scenes(count: int) -> list[Scene]:
    """`count` scenes to calibrate on, of one and two objects in turn, from no training and no report."""
    return [sample_scene(CALIBRATION + index, objects=1 + index % 2) for index in range(count)]
