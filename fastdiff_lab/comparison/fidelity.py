"""Measure how near images come to others, with intervals.

- `fidelity(images, baseline)`: PSNR and SSIM of each image
- `mean_psnr(mse)`, `typical_psnr(psnr)`: the PSNR of an averaged error; the average PSNR of images
- `interval(values, statistic)`: a bootstrap interval, paired between methods
- `paired_difference(images, one, other, ...)`: the lead of one method over another, on the same images
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

RESAMPLES = 2000
LEVEL = 0.95
MOST_PSNR = 100.0  # dB, for identical images


def fidelity(images: Sequence[Image.Image], baseline: Sequence[Image.Image]) -> pd.DataFrame:
    """Squared error, PSNR in dB (infinite for identical images) and SSIM of each image to the baseline's.

    >>> white, black = (Image.new("RGB", (16, 16), colour) for colour in ("white", "black"))
    >>> fidelity([white], [black])["psnr"].item()
    0.0

    Args:
        images: PIL images of one method.
        baseline: The baseline's, as many and of the same sizes.

    Returns:
        One row per image: `mse` from 0 to 1, `psnr` and `ssim`.
    """
    rows = []
    for image, reference in zip(images, baseline, strict=True):
        a, b = _tensor(image), _tensor(reference)
        mse = float((a - b).square().mean())
        rows.append({"mse": mse, "psnr": mean_psnr([mse]), "ssim": _ssim(a, b)})
    return pd.DataFrame(rows)


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)[None]


def _ssim(a: Tensor, b: Tensor) -> float:
    """Structural similarity of two images (1, 3, height, width) from 0 to 1: Wang et al. 2004, equation 13, mean over all pixels.

    The window is theirs, a Gaussian of 11x11 pixels with standard deviation 1.5; borders are mirrored, as torchmetrics does.
    """
    side = torch.exp(-torch.arange(-5, 6, dtype=torch.float64).square() / (2 * 1.5**2))
    window = torch.outer(side, side) / side.sum() ** 2
    a, b = (functional.pad(image.double(), (5, 5, 5, 5), mode="reflect") for image in (a, b))
    local = functional.conv2d(torch.cat([a, b, a * a, b * b, a * b]), window.expand(3, 1, 11, 11), groups=3)
    mean_a, mean_b = local[0], local[1]
    variances = (local[2] - mean_a**2).clamp(min=0) + (local[3] - mean_b**2).clamp(min=0)
    luminance = (2 * mean_a * mean_b + 0.01**2) / (mean_a**2 + mean_b**2 + 0.01**2)
    return float((luminance * (2 * (local[4] - mean_a * mean_b) + 0.03**2) / (variances + 0.03**2)).mean())


def mean_psnr(mse: Sequence[float] | np.ndarray | pd.Series) -> float:
    """PSNR of the averaged squared error in dB. A mean of decibels would hide the worst images.

    >>> round(mean_psnr([0.01, 0.0001, 0.0001]), 1)
    24.7

    Args:
        mse: The squared error of each image, from 0 to 1.

    Returns:
        Decibels, infinite without any error.
    """
    return float(_psnr(np.mean(mse)))


def _psnr(errors: np.ndarray | np.floating) -> np.ndarray | np.floating:
    with np.errstate(divide="ignore"):  # no error: infinitely many decibels
        return 0.0 - 10 * np.log10(errors)


def typical_psnr(psnr: Sequence[float] | np.ndarray | pd.Series) -> float:
    """The mean PSNR of images in dB, which a few bad ones move little. Identical ones count as 100 dB.

    >>> typical_psnr([20.0, 30.0, float("inf")])
    50.0
    """
    return float(np.minimum(psnr, MOST_PSNR).mean())


def interval(values: Sequence[float] | np.ndarray | pd.Series, statistic: Callable = np.mean) -> tuple[float, float]:
    """The 95 % bootstrap interval of `np.mean` or `mean_psnr` of images (percentiles of 2,000 resamples).

    >>> interval([0.1, 0.2, 0.3])  # doctest: +SKIP

    Every method gets the same resamples, so that the intervals of two belong together.
    """
    given = np.asarray(values, dtype=float)
    drawn = _of_resamples(given, statistic)
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="nearest")
    return float(low), float(high)


def _of_resamples(values: np.ndarray, statistic: Callable) -> Any:
    """`np.mean` or `mean_psnr` of each resample, many at a time: a call for each takes longer than all images do."""
    parts = np.array_split(_resamples(len(values)), 20)  # thirty thousand images need not fit into memory 2,000 times
    means = np.concatenate([values[chosen].mean(axis=1) for chosen in parts])
    return means if statistic is np.mean else _psnr(means)


def _resamples(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, count, (RESAMPLES, count))


def paired_difference(images: pd.DataFrame, one: str, other: str, value: str = "mse") -> pd.Series:
    """Measure the lead of one method over another on the same prompts and seeds, with its interval.

    >>> paired_difference(compare_images(pipe, methods, prompts), "derived", "uniform 9")  # doctest: +SKIP

    Args:
        images: From `compare_images`.
        one: The method whose lead is measured.
        other: The method that it is compared with.
        value: "mse" for the PSNR of averaged errors in dB; or "ssim", "latent_mse", "prompt_accuracy" for their means.

    Returns:
        The difference, the ends of its 95 % interval, and the number of images.
    """
    wide = images.pivot(index=["prompt", "seed"], columns="method", values=value)[[one, other]].dropna().to_numpy(float)
    statistic = mean_psnr if value == "mse" else np.mean
    with np.errstate(invalid="ignore"):  # both identical to the baseline
        drawn = _of_resamples(wide[:, 0], statistic) - _of_resamples(wide[:, 1], statistic)
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    difference = statistic(wide[:, 0]) - statistic(wide[:, 1])
    return pd.Series({"difference": difference, "low": low, "high": high, "images": len(wide)})
