"""The scalars of one group: least squares over images, with a ridge that is chosen by leaving images out.

- `Products`: of an image's known tensors with each other, and with what is missing
- `solved(products)`: the scalars
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

NOTHING = 1e-5  # relative: a column that is smaller is rounding (where both stages of a step have one time-step, nothing is ahead)
RIDGES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1.0)  # relative to the columns' own squares


@dataclass(frozen=True)
class Products:
    """Inner products of each image's columns, all that least squares needs of them.

    Args:
        columns: With each other, shape (images, columns, columns).
        missing: With what is missing at the group's end, shape (images, columns).
        squared: Of what is missing with itself, shape (images,).
    """

    columns: np.ndarray
    missing: np.ndarray
    squared: np.ndarray

    @classmethod
    def of(cls, responses: Tensor, missing: Tensor) -> Products:
        """Of columns with shape (columns, images, numbers), and what is missing with shape (images, numbers), in float64 on the CPU."""
        columns = responses.transpose(0, 1)
        found = (columns @ columns.mT, (columns @ missing[:, :, None])[..., 0], missing.square().sum(1))
        return cls(*(tensor.numpy() for tensor in found))

    @classmethod
    def joined(cls, parts: list[Products]) -> Products:
        """Of the images of all parts."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in ("columns", "missing", "squared")))

    def left(self, scalars: np.ndarray) -> np.ndarray:
        """The squared error that is left of each image, shape (images,)."""
        found: np.ndarray = self.squared - 2 * self.missing @ scalars + np.einsum("i,bij,j->b", scalars, self.columns, scalars)
        return found.clip(min=0)


def solved(products: Products, weights: np.ndarray) -> np.ndarray:
    """The scalars with the least squared error, shape (columns,): the ridge is the best one for images that are left out.

    `weights`: of the images. None of the scalars is kept if leaving them at 0 is best.
    """
    if len(weights) == 1:
        return _solution(products, weights, RIDGES[0])
    scores = {ridge: _left_out(products, weights, ridge) for ridge in RIDGES}
    best = min(scores, key=scores.__getitem__)
    if scores[best] >= float(weights @ products.squared):
        return np.zeros(products.missing.shape[1])
    return _solution(products, weights, best)


def _left_out(products: Products, weights: np.ndarray, ridge: float) -> float:
    """The weighted error of each image with the scalars of all others."""
    total = 0.0
    for image in range(len(weights)):
        others = weights * (np.arange(len(weights)) != image)
        total += float(weights[image] * products.left(_solution(products, others, ridge))[image])
    return total


def _solution(products: Products, weights: np.ndarray, ridge: float) -> np.ndarray:
    square = np.einsum("b,bij->ij", weights, products.columns)
    scale = np.sqrt(np.diag(square))
    used = scale > NOTHING * scale.max()
    found, scale = np.zeros(len(scale)), scale[used]
    matrix = square[np.ix_(used, used)] / np.outer(scale, scale) + ridge * np.eye(len(scale))
    found[used] = np.linalg.solve(matrix, (weights @ products.missing)[used] / scale) / scale
    return found
