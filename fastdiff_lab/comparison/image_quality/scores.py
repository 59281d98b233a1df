"""Judge images by the field's measures, with weights from this machine.

- `METRICS`: fid, kid, clip_score, lpips
- `quality_of(metrics, ...)`: load and check all that they need
- `Quality`: judges images, and sets of them
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor, nn
from tqdm import tqdm

from ...inputs.extras import extra
from .distances import frechet_distance, kernel_distance
from .real_images import as_square, image_files, opened
from .weights import load_clip, load_inception, load_lpips

with extra("quality", "CLIPScore"):
    from torchmetrics.multimodal.clip_score import CLIPScore

OF_SETS = ("fid", "kid")
METRICS = (*OF_SETS, "clip_score", "lpips")
FEWEST = {"fid": 2, "kid": 4}  # images; a covariance needs two, and so does a subset of half of them
SUBSET = 1000  # most images in a subset of KID, as in its authors' code
_AT_ONCE = 32  # images in a network's batch


@dataclass(frozen=True)
class Quality:
    """Judge images. `real` holds features of the real ones, (images, 2048); CLIP reads `caption_prefix` before each prompt.

    A network that no metric needs is None.
    """

    metrics: tuple[str, ...]
    device: torch.device
    inception: nn.Module | None
    real: Tensor | None
    clip: CLIPScore | None
    lpips: nn.Module | None
    caption_prefix: str = ""

    def of_images(self, images: Sequence[Image.Image], baseline: Sequence[Image.Image], prompts: Sequence[str]) -> pd.DataFrame:
        """`clip_score` of each image to its prompt and `lpips` to its baseline image, as far as asked."""
        columns: dict[str, list[float]] = {}
        if self.clip is not None:
            columns["clip_score"] = [self._clip_score(image, prompt) for image, prompt in zip(images, prompts, strict=True)]
        if self.lpips is not None:
            columns["lpips"] = [self._lpips(image, other) for image, other in zip(images, baseline, strict=True)]
        return pd.DataFrame(columns, index=range(len(images)))

    @torch.no_grad()
    def _clip_score(self, image: Image.Image, prompt: str) -> float:
        # One by one, because torchmetrics returns a mean.
        assert self.clip is not None
        self.clip.reset()
        self.clip.update([_bytes(image).to(self.device)], [self.caption_prefix + prompt])
        return float(self.clip.compute())

    @torch.no_grad()
    def _lpips(self, image: Image.Image, other: Image.Image) -> float:
        assert self.lpips is not None
        a, b = (_bytes(each)[None].to(self.device) / 255 for each in (image, other))
        return float(self.lpips(a, b, normalize=True))

    def features(self, images: Sequence[Image.Image]) -> Tensor | None:
        """Inception's features of images, (images, 2048), on the CPU; None if no metric needs them."""
        if self.inception is None:
            return None
        parts = [images[start : start + _AT_ONCE] for start in range(0, len(images), _AT_ONCE)]
        return torch.cat([_seen(self.inception, part, self.device) for part in parts])

    def of_set(self, features: Tensor | None) -> dict[str, float]:
        """`fid`, `kid` and `kid_std` (over 100 subsets) between a method's features and the real ones."""
        found: dict[str, float] = {}
        if features is None or self.real is None:
            return found
        if "fid" in self.metrics:
            found["fid"] = frechet_distance(features, self.real)
        if "kid" in self.metrics:
            subset = min(SUBSET, len(features) // 2, len(self.real) // 2)
            found["kid"], found["kid_std"] = kernel_distance(features, self.real, subset_size=subset)
        return found


def _bytes(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1)


@torch.no_grad()
def _seen(inception: nn.Module, images: Sequence[Image.Image], device: torch.device) -> Tensor:
    return inception(torch.stack([as_square(image) for image in images]).to(device)).cpu()


def quality_of(
    metrics: Sequence[str],
    *,
    metric_weights: str | Path | None = None,
    real_images: str | Path | None = None,
    images: int,
    device: Any = "cpu",
    caption_prefix: str = "",
) -> Quality | None:
    """Load what the metrics need, and check the real images; None for no metrics.

    >>> quality = quality_of(["fid", "lpips"], metric_weights="weights", real_images="val2014", images=10_000)  # doctest: +SKIP

    Args:
        metrics: Names from `METRICS`.
        metric_weights: Folder of the weight files (docs/quality.md).
        real_images: Folder of real images, for FID and KID.
        images: How many images each method will have.
        device: Where the networks run.

    Raises:
        TypeError: A text instead of a list.
        ValueError: Unknown metrics, folders that are missing or not needed, damaged files, or too few images.
        FileNotFoundError: Weights or images are not there.
    """
    asked = _checked_metrics(metrics, metric_weights, real_images)
    if not asked:
        return None
    folder, place = Path(str(metric_weights)), torch.device(device)
    files = image_files(Path(str(real_images))) if set(asked) & set(OF_SETS) else []
    _check_counts(asked, images, len(files))
    clip = load_clip(folder) if "clip_score" in asked else None
    lpips = load_lpips(folder).to(place) if "lpips" in asked else None
    inception = load_inception(folder).to(place) if files else None
    return Quality(
        asked,
        place,
        inception,
        None if inception is None else _of_files(inception, files, place),
        None if clip is None else CLIPScore(lambda: clip).to(place),
        lpips,
        caption_prefix,
    )


def _checked_metrics(metrics: Sequence[str], weights: object, real: object) -> tuple[str, ...]:
    if isinstance(metrics, str):
        raise TypeError(f"metrics={metrics!r} given; accepted: a list of names, such as [{metrics!r}]")
    unknown = next((name for name in metrics if name not in METRICS), None)
    if unknown is not None:
        raise ValueError(f"metric {unknown!r} asked; accepted: {', '.join(METRICS)}")
    asked = tuple(dict.fromkeys(metrics))
    of_sets = [name for name in asked if name in OF_SETS]
    if asked and weights is None:
        raise ValueError(
            f"{' and '.join(asked)} asked without weights; accepted: metric_weights=FOLDER (--weights), as docs/quality.md lays it out"
        )
    if of_sets and real is None:
        raise ValueError(f"{' and '.join(of_sets)} asked without real images; accepted: real_images=FOLDER of image files (--real)")
    if (weights is not None and not asked) or (real is not None and not of_sets):
        given = "real_images (--real)" if asked or weights is None else "metric_weights (--weights)"
        raise ValueError(
            f"{given} given, and no metric that needs it (metrics={list(asked)}); accepted: metrics=[...] of {', '.join(METRICS)}, "
            f"real_images with {' or '.join(OF_SETS)} only"
        )
    return asked


def _check_counts(asked: Sequence[str], drawn: int, real: int) -> None:
    for name in asked:
        if name in OF_SETS and min(drawn, real) < FEWEST[name]:
            raise ValueError(
                f"{name} asked of {drawn} images a method and {real} real ones; accepted: {FEWEST[name]} or more of each"
            )


def _of_files(inception: nn.Module, files: Sequence[Path], device: torch.device) -> Tensor:
    """Features of image files, batch by batch."""
    starts = tqdm(range(0, len(files), _AT_ONCE), desc="real images", leave=False)
    return torch.cat([_seen(inception, [opened(path) for path in files[i : i + _AT_ONCE]], device) for i in starts])
