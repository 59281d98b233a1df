"""Judge what an image of a scene shows, with a small classifier that abstains on anything else.

- `Judge`: the network; `Judge.read(images)` returns the attributes of each image, or None
- `load_judge()`: the embedded pipeline's judge
- `prompt_accuracy(images, prompts)`: which attributes of the prompts the images show
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import pandas as pd
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

from .data import as_tensor
from .scenes import CHOICES, IMAGE_SIZE, POSITIONS, parse_caption

NUM_FEATURES = 128


def _convolution(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.SiLU())


class Judge(nn.Module):
    """Classify images of shape (batch, 3, 64, 64) in [-1, 1].

    >>> judge = load_judge()  # doctest: +SKIP
    >>> judge.read([image])  # doctest: +SKIP
    [{'objects': '1', 'background': 'blue', 'layout': 'left', 'shape_1': 'circle', ...}]
    """

    def __init__(self) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(
            _convolution(3, 24, 2), _convolution(24, 48, 2), _convolution(48, 64, 1), _convolution(64, 96, 2),
            _convolution(96, 96, 1), nn.Conv2d(96, 32, 1), nn.Flatten(), nn.Linear(32 * 8 * 8, NUM_FEATURES), nn.SiLU(),
        )  # fmt: skip
        self.heads = nn.ModuleDict({name: nn.Linear(NUM_FEATURES, len(choices)) for name, choices in CHOICES.items()})
        self.is_scene = nn.Linear(NUM_FEATURES, 1)

    def features(self, images: Tensor) -> Tensor:
        """The input of the heads, shape (batch, 128), for distances between sets of scenes (no FID)."""
        return self.convolutions(images)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Logits per attribute, shape (batch, choices), and `is_scene`, shape (batch,)."""
        features = self.features(images)
        scores = {name: head(features) for name, head in self.heads.items()}
        return scores | {"is_scene": self.is_scene(features).squeeze(-1)}

    @torch.no_grad()
    def read(self, images: Sequence[Image.Image] | Tensor) -> list[dict[str, str] | None]:
        """The attributes of each image, or None if the judge abstains (blurred, blended, no object).

        `images` are PIL images, or a tensor (batch, 3, 64, 64) in [-1, 1].
        """
        batch = images if isinstance(images, Tensor) else torch.stack([as_tensor(_fitting(image)) for image in images])
        scores = self(batch.to(next(self.parameters())))
        best = {name: scores[name].argmax(-1).tolist() for name in CHOICES}
        return [
            _attributes({name: CHOICES[name][best[name][row]] for name in CHOICES}) if certain > 0 else None
            for row, certain in enumerate(scores["is_scene"].tolist())
        ]


def _fitting(image: Image.Image) -> Image.Image:
    side = (IMAGE_SIZE, IMAGE_SIZE)
    return image.convert("RGB") if image.size == side else image.convert("RGB").resize(side, Image.Resampling.BOX)


def _attributes(read: dict[str, str]) -> dict[str, str]:
    if read["layout"] in POSITIONS:
        return {"objects": "1"} | {name: value for name, value in read.items() if not name.endswith("_2")}
    return {"objects": "2"} | read


@lru_cache(maxsize=1)
def load_judge() -> Judge:
    """Load the embedded pipeline's judge, in evaluation mode on the CPU.

    >>> judge = load_judge()  # doctest: +SKIP
    """
    from ..pipelines import embedded_folder

    judge = Judge()
    judge.load_state_dict(load_file(embedded_folder() / "judge" / "model.safetensors"))
    return judge.float().eval()


def prompt_accuracy(images: Sequence[Image.Image], prompts: Sequence[str]) -> pd.DataFrame:
    """Say for each image whether it shows each attribute of its prompt.

    >>> from fastdiff_lab.shapes.scenes import draw, sample_scene
    >>> scene = sample_scene(7, objects=1)
    >>> prompt_accuracy([draw(scene)], [scene.caption()])["all"].item()
    True

    Args:
        images: PIL images of 64x64 pixels.
        prompts: Captions of scenes, one for each image.

    Returns:
        One row per image. `all` is true if all attributes are right; attributes that a prompt leaves open are NaN.
        If the judge abstains, every attribute is wrong.

    Raises:
        ValueError: A prompt that is no scene's caption.
    """
    rows = []
    for shown, prompt in zip(load_judge().read(images), prompts, strict=True):
        right = {name: shown is not None and shown.get(name) == value for name, value in parse_caption(prompt).items()}
        rows.append({"abstained": shown is None, "all": all(right.values()), **right})
    return pd.DataFrame(rows)
