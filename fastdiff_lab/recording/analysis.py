"""Turn a recording into tidy tables.

- `feature_change(recording, kind=)`: the change of each layer from step to step (Fig. 3a)
- `feature_norm(recording)`: the norm of each layer's features (Fig. 3b and 3c)
- `pca_maps(recording, layer, steps=)`: three principal components as colours (Fig. 2)
- `step_similarity(recording, layer)`, `step_clusters(similarity, count)`: similar steps
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from torch import Tensor, nn

from ..inputs.plain_values import choice, whole_number
from .recording import Recording

KINDS = ("squared", "relative", "cosine")


def _tidy(recording: Recording, values: Tensor) -> pd.DataFrame:
    """One row per sample, step and layer from values of shape (samples, steps, layers)."""
    samples, steps, layers = values.shape
    index = pd.MultiIndex.from_product([range(samples), range(steps), range(layers)], names=["sample", "step", "place"])
    table = index.to_frame(index=False)
    table["time_step"] = np.asarray(recording.time_steps)[table["step"]]
    table["part"] = np.asarray(recording.parts)[table["place"]]
    table["layer"] = np.asarray(recording.layers)[table["place"]]
    table["value"] = values.flatten().numpy()
    return table.drop(columns="place").dropna(ignore_index=True)


def feature_change(recording: Recording, kind: str = "squared") -> pd.DataFrame:
    """Measure how much each layer's features change from the step before (the paper's Fig. 3a).

    >>> feature_change(recording).groupby("part")["value"].mean()  # doctest: +SKIP

    Args:
        kind: "squared" is the mean squared difference, as in the paper; "relative" is the length of the difference by that of
            the feature (no unit); "cosine" is 1 minus the cosine of the angle between the two.

    Returns:
        Columns sample, step, time_step, part, layer, value. Step 0 has no change.

    Raises:
        ValueError: Another kind.
    """
    choice("kind", kind, KINDS)
    change, size = recording.statistic("change"), recording.statistic("mean_square")
    if kind == "squared":
        return _tidy(recording, change)
    before = size.roll(1, dims=1)
    if kind == "relative":
        return _tidy(recording, (change / before).sqrt())
    return _tidy(recording, 1 - recording.statistic("product") / (size * before).sqrt())


def feature_norm(recording: Recording) -> pd.DataFrame:
    """Measure the Frobenius norm of each layer's features, averaged over channels first (the paper's Fig. 3b).

    >>> feature_norm(recording).groupby("layer")["value"].std()  # doctest: +SKIP

    Returns columns sample, step, time_step, part, layer, value.
    """
    return _tidy(recording, recording.statistic("norm"))


def pca_maps(recording: Recording, layer: str, steps: Sequence[int] | None = None, sample: int = 0) -> np.ndarray:
    """Show the first three principal components of a layer's features as colours, with one PCA over all steps (Fig. 2).

    >>> pca_maps(recording, "up_blocks.1", steps=[0, 10, 20]).shape  # doctest: +SKIP
    (3, 8, 8, 3)

    Returns an array (steps, height, width, 3) from 0 to 1, by default of all steps. Raises KeyError for a layer without kept features.
    """
    features = _as_maps(recording[layer][sample].float())
    shown = features if steps is None else features[list(steps)]
    count, channels, height, width = shown.shape
    maps = _components(shown.permute(0, 2, 3, 1).reshape(-1, channels).numpy())
    low, high = np.percentile(maps, [1, 99], axis=0)
    return np.clip((maps - low) / np.maximum(high - low, 1e-12), 0, 1).reshape(count, height, width, 3)


def _components(pixels: np.ndarray) -> np.ndarray:
    """The first three principal components of pixels (pixels, channels); the largest weight of each is positive."""
    axes = np.linalg.eigh(np.cov(pixels, rowvar=False))[1][:, :-4:-1]
    axes = axes * np.sign(axes[np.abs(axes).argmax(0), range(3)])
    return (pixels - pixels.mean(0)) @ axes


def _as_maps(features: Tensor) -> Tensor:
    """Features of shape (steps, channels, height, width); a transformer's tokens are a square of patches."""
    if features.dim() == 4:
        return features
    side = round(features.shape[1] ** 0.5)
    return features.transpose(1, 2).unflatten(2, (side, side))


def step_similarity(recording: Recording, layer: str) -> np.ndarray:
    """Cosine similarity of a layer's features at every two steps, averaged over samples.

    >>> step_similarity(recording, "mid_block")[0, 1]  # doctest: +SKIP

    Returns an array (steps, steps) from -1 to 1. Raises KeyError for a layer without kept features.
    """
    flat = nn.functional.normalize(recording[layer].flatten(2).float(), dim=-1)
    return (flat @ flat.transpose(1, 2)).mean(0).numpy()


def step_clusters(similarity: np.ndarray, count: int) -> np.ndarray:
    """Steps in `count` groups of neighbours, parted where neighbouring steps are least alike.

    >>> step_clusters(np.array([[1, 0.9, 0], [0.9, 1, 0], [0, 0, 1]]), 2)
    array([0, 0, 1])

    Returns the number of each step's group, rising from 0. Raises ValueError for a count out of range.
    """
    steps = len(similarity)
    count = whole_number("count", count, 1, steps, also=" (the steps)")
    last_of_groups = np.argsort(np.diagonal(similarity, 1), kind="stable")[: count - 1]
    return np.isin(np.arange(steps), last_of_groups + 1).cumsum()
