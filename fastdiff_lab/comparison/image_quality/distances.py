"""Distances between two sets of images, by the features of a network."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from ...inputs.extras import extra
from ...inputs.plain_values import whole_number

with extra("quality", "FID or KID"):
    from torchmetrics.image.fid import FrechetInceptionDistance
    from torchmetrics.image.kid import KernelInceptionDistance

SUBSETS = 100


class _AsGiven(nn.Module):
    """Replace Inception in torchmetrics, because the features are known already."""

    def __init__(self, num_features: int) -> None:
        super().__init__()
        self.num_features = num_features

    def forward(self, features: Tensor) -> Tensor:
        return features


def kernel_distance(features_a: Tensor, features_b: Tensor, *, subset_size: int | None = None) -> tuple[float, float]:
    """Squared maximum mean discrepancy with a cubic kernel, and its standard deviation over 100 subsets.

    >>> kernel_distance(scene_features(images), scene_features(scenes))  # doctest: +SKIP

    Unbiased, so that it may be negative for similar sets. Computed by torchmetrics, always with the same subsets.

    Args:
        features_a: Shape (images, features); so has `features_b`.
        subset_size: Images per subset, at least 2; None for half of the smaller set.

    Raises:
        ValueError: The sets do not fit each other.
    """
    _check_features(features_a, features_b)
    fewest = min(len(features_a), len(features_b))
    given = max(2, fewest // 2) if subset_size is None else subset_size
    size = whole_number("subset_size", given, 2, fewest, also=" (the images of the smaller set)")
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.filterwarnings("ignore", message="Metric `Kernel Inception Distance` will save all extracted features")
        torch.default_generator.manual_seed(0)  # torch.manual_seed would reset a GPU's generator too
        mean, deviation = _computed(KernelInceptionDistance(_AsGiven(1), subsets=SUBSETS, subset_size=size), features_a, features_b)
    return float(mean), float(deviation)


def frechet_distance(features_a: Tensor, features_b: Tensor) -> float:
    """Frechet distance of two sets of features, each as a normal distribution. It needs thousands of images.

    >>> frechet_distance(scene_features(images), scene_features(scenes))  # doctest: +SKIP

    Both have shape (images, features). Computed by torchmetrics. Raises ValueError for sets that do not fit each other.
    """
    _check_features(features_a, features_b)
    return float(_computed(FrechetInceptionDistance(_AsGiven(features_a.shape[1])), features_a, features_b))


def _computed(metric: Any, features_a: Tensor, features_b: Tensor) -> Any:
    metric.update(features_a, real=False)
    metric.update(features_b, real=True)
    return metric.compute()


def _check_features(features_a: Tensor, features_b: Tensor) -> None:
    shapes = [tuple(features_a.shape), tuple(features_b.shape)]
    if any(len(shape) != 2 or shape[0] < 2 for shape in shapes) or shapes[0][1] != shapes[1][1]:
        raise ValueError(
            f"features of shapes {shapes[0]} and {shapes[1]} given; accepted: (images, features), 2 images or more, as many features"
        )
