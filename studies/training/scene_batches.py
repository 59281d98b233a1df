"""Batches of scenes for the denoiser: every scene is new, and every training step has its own.

- `SceneBatches`: images and token ids of one training step after another
- `scene_images(seeds)`: images alone
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import count

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import CLIPTokenizer

from fastdiff_lab.shapes.data import as_tensor
from fastdiff_lab.shapes.scenes import draw, sample_scene

from .data_parallel import Team
from .tokens import tokens_of


def scene_images(seeds: Iterable[int], objects: int | None = None) -> Tensor:
    """The images of some seeds, shape (seeds, 3, 64, 64), in [-1, 1].

    >>> scene_images(range(2)).shape
    torch.Size([2, 3, 64, 64])
    """
    return torch.stack([as_tensor(draw(sample_scene(seed, objects))) for seed in seeds])


def objects_of(seed: int) -> int:
    """How many objects the scene of a seed has. Three scenes of five have two.

    >>> [objects_of(seed) for seed in range(5)]
    [2, 2, 2, 1, 1]
    """
    return 2 if seed % 5 < 3 else 1


class _Scenes(Dataset):
    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        self.tokenizer = tokenizer

    def __getitem__(self, seed: int) -> tuple[Tensor, Tensor]:
        scene = sample_scene(seed, objects_of(seed))
        return as_tensor(draw(scene)), tokens_of([scene.caption()], self.tokenizer)[0]


class SceneBatches:
    """Images and token ids of one training step after another.

    >>> images, tokens = SceneBatches(new_tokenizer(), batch_size=16)(draw=0)  # doctest: +SKIP
    >>> images.shape, tokens.shape  # doctest: +SKIP
    (torch.Size([16, 3, 64, 64]), torch.Size([16, 24]))

    Args:
        tokenizer: the embedded pipeline's.
        batch_size: scenes per training step of one process.
        workers: processes that draw scenes ahead; 0 draws them in this process.
    """

    def __init__(self, tokenizer: CLIPTokenizer, batch_size: int, workers: int = 0) -> None:
        self.scenes, self.batch_size, self.workers = _Scenes(tokenizer), batch_size, workers
        self._coming: Iterator | None = None

    def __call__(self, draw: int) -> tuple[Tensor, Tensor]:
        """Give the images, in [-1, 1], and token ids of a draw.

        The first draw may be any; the later ones follow as `fit` counts them.
        """
        if self._coming is None:
            self._coming = iter(DataLoader(self.scenes, batch_sampler=self._seeds_from(draw), num_workers=self.workers))
        return next(self._coming)

    def _seeds_from(self, draw: int) -> Iterator[list[int]]:
        return ([later * self.batch_size + row for row in range(self.batch_size)] for later in count(draw, Team().size))
