"""How near pictures come to others, with intervals.

- `fidelity(images, baseline)`: PSNR and SSIM of each picture
- `mean_psnr(mse)`, `typical_psnr(psnr)`: the PSNR of an averaged error; the average of pictures' PSNR
- `interval(values, statistic)`: a bootstrap interval, paired between arms
- `paired_difference(pictures, one, other, ...)`: by how much one arm beats another, on the same pictures
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

RESAMPLES = 2000
LEVEL = 0.95
MOST_PSNR = 100.0  # dB, of identical pictures, which have no finite one


def fidelity(images: Sequence[Image.Image], baseline: Sequence[Image.Image]) -> pd.DataFrame:
    """Squared error, PSNR in dB (infinite for identical pictures) and SSIM of each picture to the baseline's.

    >>> fidelity([image], [untouched])["psnr"].item()  # doctest: +SKIP
    """
    rows = []
    for image, reference in zip(images, baseline, strict=True):
        a, b = _tensor(image), _tensor(reference)
        rows.append({
            "mse": float((a - b).square().mean()),
            "psnr": float(peak_signal_noise_ratio(a, b, data_range=1.0)),
            "ssim": float(structural_similarity_index_measure(a, b, data_range=1.0)),
        })  # fmt: skip
    return pd.DataFrame(rows)


def _tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image, dtype=np.float32) / 255).permute(2, 0, 1)[None]


def mean_psnr(mse: Sequence[float] | np.ndarray | pd.Series) -> float:
    """PSNR of the averaged squared error in dB: a mean of decibels would hide the worst pictures."""
    return float(_psnr(np.mean(mse)))


def _psnr(errors: np.ndarray | np.floating) -> np.ndarray | np.floating:
    with np.errstate(divide="ignore"):  # no error: infinitely many decibels
        return 0.0 - 10 * np.log10(errors)


def typical_psnr(psnr: Sequence[float] | np.ndarray | pd.Series) -> float:
    """The mean of pictures' PSNR in dB, which a few bad ones move little; identical ones count as 100 dB.

    >>> typical_psnr([20.0, 30.0, float("inf")])
    50.0
    """
    return float(np.minimum(psnr, MOST_PSNR).mean())


def interval(values: Sequence[float] | np.ndarray | pd.Series, statistic: Callable = np.mean) -> tuple[float, float]:
    """The 95 % bootstrap interval of `np.mean` or `mean_psnr` of pictures (percentiles of 2,000 resamples).

    >>> interval([0.1, 0.2, 0.3])  # doctest: +SKIP

    The same resamples are drawn for every arm, so that the intervals of two arms belong together.
    """
    given = np.asarray(values, dtype=float)
    drawn = _of_resamples(given, statistic)
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], method="nearest")
    return float(low), float(high)


def _of_resamples(values: np.ndarray, statistic: Callable) -> Any:
    """`np.mean` or `mean_psnr` of each resample, many at a time: a call for each takes longer than all pictures do."""
    parts = np.array_split(_resamples(len(values)), 20)  # thirty thousand pictures need not fit into memory 2,000 times
    means = np.concatenate([values[chosen].mean(axis=1) for chosen in parts])
    return means if statistic is np.mean else _psnr(means)


def _resamples(count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, count, (RESAMPLES, count))


def paired_difference(pictures: pd.DataFrame, one: str, other: str, value: str = "mse") -> pd.Series:
    """By how much one arm beats another on the same prompts and seeds: difference of PSNR in dB, or of the means of another column.

    >>> paired_difference(compare_pictures(pipe, arms, prompts), "derived", "uniform 9")  # doctest: +SKIP

    `pictures`: from `compare_pictures`. `value`: "mse" for the difference of the PSNR of averaged errors; or "ssim", "latent_mse",
    "prompt_accuracy". Returns difference, low and high ends of its 95 % interval, and the number of pictures.
    """
    wide = pictures.pivot(index=["prompt", "seed"], columns="arm", values=value)[[one, other]].dropna().to_numpy(float)
    statistic = mean_psnr if value == "mse" else np.mean
    with np.errstate(invalid="ignore"):  # both identical to the baseline
        drawn = _of_resamples(wide[:, 0], statistic) - _of_resamples(wide[:, 1], statistic)
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    difference = statistic(wide[:, 0]) - statistic(wide[:, 1])
    return pd.Series({"difference": difference, "low": low, "high": high, "pictures": len(wide)})
