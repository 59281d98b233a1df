"""Batches of scenes: every scene is new, and every training step has its own.

- `scene_images(seeds)`: images
- `scene_batch(tokenizer, size, draw)`: images and token ids
- `Ahead`: batches that other processes make ahead
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPTokenizer

from fastdiff_lab.shapes.data import as_tensor
from fastdiff_lab.shapes.scenes import draw as draw_scene
from fastdiff_lab.shapes.scenes import sample_scene

from .data_parallel import Team
from .tokens import tokens_of


def scene_images(seeds: Iterable[int], objects: int | None = None) -> Tensor:
    """The images of some seeds, shape (seeds, 3, 64, 64), in [-1, 1].

    >>> scene_images(range(2)).shape
    torch.Size([2, 3, 64, 64])
    """
    return torch.stack([as_tensor(draw_scene(sample_scene(seed, objects))) for seed in seeds])


def objects_of(seed: int) -> int:
    """How many objects the scene of a seed has. Three scenes of five have two.

    >>> [objects_of(seed) for seed in range(5)]
    [2, 2, 2, 1, 1]
    """
    return 2 if seed % 5 < 3 else 1


def scene_batch(tokenizer: CLIPTokenizer, size: int, draw: int) -> tuple[Tensor, Tensor]:
    """Images, in [-1, 1], and token ids of the scenes of a draw.

    >>> images, tokens = scene_batch(new_tokenizer(), 16, draw=0)  # doctest: +SKIP
    >>> images.shape, tokens.shape  # doctest: +SKIP
    (torch.Size([16, 3, 64, 64]), torch.Size([16, 24]))
    """
    scenes = [sample_scene(seed, objects_of(seed)) for seed in seeds_of_draw(draw, size)]
    return torch.stack([as_tensor(draw_scene(scene)) for scene in scenes]), tokens_of(
        [scene.caption() for scene in scenes], tokenizer
    )


def seeds_of_draw(draw: int, size: int) -> range:
    """The seeds of a draw of so many scenes: no two draws share one."""
    return range(draw * size, (draw + 1) * size)


class _Made(Dataset):
    def __init__(self, make: Callable[[int], Any]) -> None:
        self.make = make

    def __getitem__(self, draw: int) -> Any:
        return self.make(draw)


class Ahead:
    """What a function makes of one draw after another, made ahead by other processes.

    >>> from functools import partial
    >>> Ahead(partial(seeds_of_draw, size=4), workers=0)(draw=1)
    range(4, 8)

    Args:
        make: gives what a draw's training step needs; a function of a module, or `partial` of one.
        workers: processes that make it ahead; 0 makes it in this process.
    """

    def __init__(self, make: Callable[[int], Any], workers: int) -> None:
        self.make, self.workers = make, workers
        self._coming: Iterator | None = None
        self._draws: Iterator[int] = iter(())

    def __call__(self, draw: int) -> Any:
        """Give what was made of a draw. The first may be any; the later ones follow as `fit` counts them.

        Raises ValueError for another one, which nobody makes ahead.
        """
        if not self.workers:
            return self.make(draw)
        if self._coming is None:
            self._draws, draws = (count(draw, Team().size) for _ in range(2))
            self._coming = iter(DataLoader(_Made(self.make), sampler=draws, batch_size=None, num_workers=self.workers))  # type: ignore[arg-type]
        coming = next(self._draws)
        if draw != coming:
            raise ValueError(f"draw {draw} asked; accepted: {coming}, which was made ahead")
        return next(self._coming)
