"""Draw the explainer's images and keep them, so that the same call goes on where it was stopped.

- `Drawer`: draws and fits into a folder
- `Drawn`: one image, with the clean ones that were predicted on its way
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image
from torch import Tensor

from fastdiff_lab.calibration.derive import derive_schedule
from fastdiff_lab.calibration.fitting import fit_propagation
from fastdiff_lab.calibration.reuse_costs import ReuseCosts
from fastdiff_lab.hooks.fingerprint import identity
from fastdiff_lab.inputs.files import write_text, write_whole
from fastdiff_lab.lab.session.watching import watched
from fastdiff_lab.pipelines import EMBEDDED_GUIDANCE
from fastdiff_lab.propagation.fit import PropagationFit
from fastdiff_lab.sampling.methods import Method, decode, sample
from fastdiff_lab.shapes.data import calibration_scenes

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

FILM_EVERY = 5  # steps
FITTED_ON = 8  # images


@dataclass(frozen=True)
class Drawn:
    """The image, its film (empty if none was asked), and its counts and seconds in `about`."""

    image: Image.Image
    film: list[Image.Image]
    about: dict[str, float]


class Drawer:
    """Draw with one pipeline, into a folder of its weights and steps.

    >>> Drawer(load_pipeline(), embedded_costs(), Path("runs/explainer"), 50).image("a red ring", 0, "baseline", Method())  # doctest: +SKIP
    """

    def __init__(self, pipe: DiffusionPipeline, costs: ReuseCosts, store: Path, steps: int) -> None:
        self.pipe, self.costs, self.steps = pipe, costs, steps
        self.folder = store / f"{identity(pipe)['weights'][:12]}-{steps}"
        self.folder.mkdir(parents=True, exist_ok=True)

    def fit(self, count: int) -> PropagationFit:
        """The fit of so many derived keys."""
        path = self.folder / f"fit-{count}.safetensors"
        if not path.exists():
            prompts = [scene.caption() for scene in calibration_scenes(FITTED_ON)]
            options = {"num_inference_steps": self.steps, "guidance_scale": EMBEDDED_GUIDANCE}
            fit_propagation(self.pipe, derive_schedule(self.costs, count), prompts, **options).save(path)
        return PropagationFit.load(path)

    def image(self, prompt: str, seed: int, name: str, method: Method, filmed: bool = False) -> Drawn:
        """One image by a method. It is drawn alone, so that its seconds are those of one image."""
        path = self.folder / f"{'-'.join(prompt.split())}-{seed}-{name}"
        if not path.with_suffix(".json").exists():
            _keep(path, self._drawn(prompt, seed, method, filmed))
        return _kept(path)

    def _drawn(self, prompt: str, seed: int, method: Method, filmed: bool) -> Drawn:
        film, spent = [], 0.0

        def seen(latents: Tensor, clean: Callable[[], Tensor]) -> None:
            nonlocal spent
            started = time.perf_counter()
            if filmed:
                film.append(clean())
            spent += time.perf_counter() - started

        with watched(self.pipe, seen, lambda: False):
            drawn = sample(
                self.pipe, method, [prompt], [seed], num_inference_steps=self.steps, guidance_scale=EMBEDDED_GUIDANCE
            )
        counts = {name: getattr(drawn.counts, name) for name in ("encoder_calls", "decoder_calls", "forward_calls")}
        seen_at = [decode(self.pipe, clean)[0] for clean in film[FILM_EVERY - 1 : -1 : FILM_EVERY]]
        return Drawn(drawn.images[0], seen_at, counts | {"seconds": drawn.seconds - spent})


def _keep(path: Path, drawn: Drawn) -> None:
    """Write the tiles side by side, the image first; the numbers last, which say that all is there."""
    tiles = np.concatenate([np.asarray(image.convert("RGB")) for image in (drawn.image, *drawn.film)], axis=1)
    write_whole(path.with_suffix(".png"), lambda place: Image.fromarray(tiles).save(place, format="png"))
    write_text(path.with_suffix(".json"), json.dumps(drawn.about))


def _kept(path: Path) -> Drawn:
    tiles = Image.open(path.with_suffix(".png")).convert("RGB")
    size = tiles.height
    parts = [tiles.crop((left, 0, left + size, size)) for left in range(0, tiles.width, size)]
    return Drawn(parts[0], parts[1:], json.loads(path.with_suffix(".json").read_text()))
