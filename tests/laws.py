"""What several files of laws share: how near is equal, key steps, denoisers at several sizes, and what steers them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from models import conditions
from torch import Tensor

from fastdiff_lab import KeySchedule

CLOSE = 1e-10
# Text2Video-Zero leaves it to torch how grid_sample takes the corners, and meshgrid the axes; torchsde compares floats; our own
# warning of few steps has its test in test_systems_apart.py.
IGNORED = ("Default grid_sample", "torch.meshgrid", "Should have ta>=t0", "this run has . steps with")
KEYS = KeySchedule(10, [0, 1, 4, 8])
FEW = KeySchedule(6, [0, 1, 3])  # groups of one, two and three steps
SIZES = {"own": None, "even": (16, 24), "odd": (9, 13)}
# Every family once, the deep one at each size. Odd are only those that pass the sizes of their skips on.
SHAPES = [
    *((name, "own") for name in ("plain", "deep", "unet2d", "unet2d-class", "unet2d-skip", "dit")),
    *((name, "even") for name in ("deep", "sdxl", "class-conditional")),
    *((name, "odd") for name in ("deep", "no-mid", "scale-shift", "unet3d", "spatio-temporal", "motion")),
]
# A shape of each kind, for the short suite.
SHAPE_KINDS = [("plain", "own"), ("sdxl", "even"), ("unet2d", "own"), ("deep", "odd"), ("motion", "odd"), ("dit", "own")]
IMAGE = torch.rand((2, 3, 20, 28), generator=torch.Generator().manual_seed(8), dtype=torch.float64)


def distance(a: Tensor, b: Tensor) -> float:
    """The largest difference of two numbers at one place."""
    return float((a - b).abs().max())


def adapter_arguments() -> Callable[[int], dict[str, Any]]:
    """The arguments of each step for the plain UNet with a T2I-Adapter."""
    generator = torch.Generator().manual_seed(9)
    shapes = [(18, 10, 14), (27, 5, 7)]
    residuals = [torch.randn((2, *shape), generator=generator, dtype=torch.float64) for shape in shapes]
    # The host takes the list apart, so every call gets its own, as from the pipelines.
    return lambda step: conditions() | {"down_intrablock_additional_residuals": [residual.clone() for residual in residuals]}
