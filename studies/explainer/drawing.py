"""Draw the explainer's images and keep them, so that the same call goes on where it was stopped.

- `Drawer`: draws into a folder
- `Drawn`: the images of a method, with clean ones that were predicted on the way
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from torch import Tensor

from fastdiff_lab.hooks.fingerprint import pipeline_digest
from fastdiff_lab.inputs.files import write_text, write_whole
from fastdiff_lab.lab.session.watching import watched
from fastdiff_lab.pipelines import EMBEDDED_GUIDANCE
from fastdiff_lab.sampling.methods import Method, decode, sample

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

FILM_EVERY = 5  # steps
COUNTED = ("encoder_calls", "decoder_calls", "forward_calls")


@dataclass(frozen=True)
class Drawn:
    """An image of each seed, the film of the first one, and the counts of the run. Without asking there is no film."""

    images: list[Image.Image]
    film: list[Image.Image]
    counts: dict[str, int]


class Drawer:
    """Draw with one pipeline, into a folder of its weights and steps.

    >>> import fastdiff_lab as fl
    >>> drawer = Drawer(fl.load_pipeline(), Path("runs/explainer"), 50)
    >>> drawer.images("a red ring", [0], "baseline", Method(), filmed=False).counts["encoder_calls"]  # doctest: +SKIP
    50
    """

    def __init__(self, pipe: DiffusionPipeline, store: Path, steps: int) -> None:
        self.pipe, self.steps = pipe, steps
        self.folder = store / f"{pipeline_digest(pipe)[:12]}-{steps}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def images(self, prompt: str, seeds: Sequence[int], name: str, method: Method, filmed: bool) -> Drawn:
        """An image of each seed by a method, drawn as one batch."""
        path = self.folder / f"{'-'.join(prompt.split())}-{len(seeds)}-{name}-{_digest(method)}"
        if not path.with_suffix(".json").exists():
            _keep(path, self._drawn(prompt, seeds, method, filmed))
        return _kept(path, len(seeds))

    def _drawn(self, prompt: str, seeds: Sequence[int], method: Method, filmed: bool) -> Drawn:
        clean: list[Tensor] = []

        def seen(latents: Tensor, estimate: Callable[[], Tensor]) -> None:
            if filmed:
                clean.append(estimate()[:1])

        options: dict[str, Any] = {"num_inference_steps": self.steps, "guidance_scale": EMBEDDED_GUIDANCE}
        with watched(self.pipe, seen, lambda: False):
            drawn = sample(self.pipe, method, [prompt] * len(seeds), seeds, **options)
        film = [decode(self.pipe, one)[0] for one in clean[FILM_EVERY - 1 : -1 : FILM_EVERY]]
        return Drawn(drawn.images, film, {name: getattr(drawn.counts, name) for name in COUNTED})


def _digest(method: Method) -> str:
    """Other keys are another image."""
    return hashlib.sha256(json.dumps(method.about(), sort_keys=True, default=str).encode()).hexdigest()[:8]


def _keep(path: Path, drawn: Drawn) -> None:
    """Write the images and then the film side by side; the counts last, which say that all is there."""
    tiles = np.concatenate([np.asarray(image.convert("RGB")) for image in (*drawn.images, *drawn.film)], axis=1)
    write_whole(path.with_suffix(".png"), lambda place: Image.fromarray(tiles).save(place, format="png"))
    write_text(path.with_suffix(".json"), json.dumps(drawn.counts))


def _kept(path: Path, seeds: int) -> Drawn:
    tiles = Image.open(path.with_suffix(".png")).convert("RGB")
    size = tiles.height
    parts = [tiles.crop((left, 0, left + size, size)) for left in range(0, tiles.width, size)]
    return Drawn(parts[:seeds], parts[seeds:], json.loads(path.with_suffix(".json").read_text()))
