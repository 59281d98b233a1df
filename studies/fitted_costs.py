"""Costs that know of a fit, so that the derivation itself places keys for it: `python -m studies.fitted_costs`.

- `fitted_costs(pipe, costs)`: what a fit leaves of each span's cost
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import torch
import typer
from diffusers import DDIMScheduler
from torch import Tensor
from tqdm import trange

from fastdiff_lab.calibration.fitting import weights_of
from fastdiff_lab.calibration.least_squares import Products, solved
from fastdiff_lab.calibration.replay import Call, Trajectory, replayed, seen
from fastdiff_lab.calibration.reuse_costs import ReuseCosts
from fastdiff_lab.hooks.denoiser_call import DenoiserCall
from fastdiff_lab.hooks.denoiser_output import sample_of
from fastdiff_lab.key_schedule import KeySchedule
from fastdiff_lab.pipelines import embedded_costs, load_pipeline
from fastdiff_lab.propagation.config import PropagationConfig
from fastdiff_lab.propagation.engine import PropagationEngine
from fastdiff_lab.propagation.fit import OLDER_KEYS
from fastdiff_lab.propagation.offsets import guided
from fastdiff_lab.sampling.call_options import own_guidance
from fastdiff_lab.sampling.run_settings import RunSettings

from .options import Threads

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def check_guided_ddim(pipe: DiffusionPipeline, guidance_scale: float | None, what: str) -> None:
    """Raise ValueError unless runs are DDIM's with guidance: elsewhere these studies would measure something else."""
    scale = own_guidance(pipe, guidance_scale)
    if not isinstance(pipe.scheduler, DDIMScheduler) or scale is None or scale <= 1:
        raise ValueError(
            f"{what} asked of {type(pipe.scheduler).__name__} with guidance scale {scale}; accepted: DDIMScheduler, and more than 1"
        )


def fitted_costs(pipe: DiffusionPipeline, costs: ReuseCosts) -> ReuseCosts:
    """What a fit leaves of each span's cost, on the images that the costs were measured on. With guidance and DDIM only.

    >>> fl.derive_schedule(fitted_costs(pipe, fl.embedded_costs()), 9)  # doctest: +SKIP

    Each span is fitted alone, along the baseline. The keys before it, whose predictions a fit uses, stand as far apart as it is long.

    Raises:
        ValueError: Another scheduler, whose steps have another closed form, or costs without guidance.
    """
    check_guided_ddim(pipe, costs.measured_on["guidance_scale"], "fitted costs")
    run = RunSettings(costs.num_steps, costs.measured_on["guidance_scale"]).on(pipe, costs.num_images, "a fit")
    call = Call(tuple(costs.about["prompts"]), tuple(costs.about["seeds"]), run.arguments())
    spans = _Spans(pipe, seen(pipe, call, costs.num_steps), costs.max_span, str(costs.measured_on["reuse"]))
    kept = np.ones((costs.num_images, costs.num_steps, costs.max_span + 1), dtype=np.float32)
    for key in trange(costs.num_steps, desc="spans", leave=False):
        spans.decode(key)
        for length in range(2, min(costs.max_span, costs.num_steps - key) + 1):
            kept[:, key, length] = spans.share_left(key, length)
    about = {**costs.about, "fitted": "each span alone"}
    return replace(costs, displacement=costs.displacement * torch.from_numpy(kept)[:, None], about=about)


@dataclass
class _Spans:
    """The spans of a baseline. `ahead`: by key, the guided predictions that are decoded from its features, (length, images, numbers)."""

    pipe: Any
    trajectory: Trajectory
    longest: int
    reuse: str = "encoder"
    ahead: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        scheduler = self.pipe.scheduler
        alphas = [*scheduler.alphas_cumprod[scheduler.timesteps], scheduler.final_alpha_cumprod]
        self.alphas = torch.stack([torch.as_tensor(alpha) for alpha in alphas]).double()
        self.sigmas = (1 / self.alphas - 1).sqrt()

    def decode(self, key: int) -> None:
        """The whole span from this key, behind the baseline."""
        steps = self.trajectory.num_steps
        if self.reuse == "prediction":
            self.ahead[key] = self.predicted(key).expand(self.longest, -1, -1)
            return
        keys = [*range(key + 1), *([key + self.longest] if key + self.longest < steps else [])]
        engine = PropagationEngine(
            self.pipe,
            PropagationConfig(KeySchedule(steps, tuple(keys))),
            known=dict(enumerate(self.trajectory.predictions[:key])),
            offsets=self,
        )
        replayed(engine, self.trajectory, key, key + 1)

    def corrected(self, call: DenoiserCall, ahead: Mapping[int, Any]) -> dict[int, Any]:
        """Called by the engine with the predictions of the span."""
        predictions = [guided(self.pipe, sample_of(value).chunk(2))[0] for value in ahead.values()]
        self.ahead[min(ahead)] = torch.stack(predictions).flatten(2).double()
        return dict(ahead)

    def images_beyond(self) -> int:
        return 0

    def share_left(self, key: int, length: int) -> np.ndarray:
        """The share of each image's displacement that a fit leaves, shape (images,)."""
        missing, moved = self.missing(key, length)
        products = Products.of(moved * torch.stack(self.columns(key, length)), missing)
        left = products.left(solved(products, weights_of(products.squared)))
        return np.sqrt(left / products.squared.clip(min=1e-30))

    def missing(self, key: int, length: int) -> tuple[Tensor, float]:
        """What the latents lack at the end of a span, shape (images, numbers); and how far a prediction of ones moves them (DDIM)."""
        end, after = self.alphas[key + length].sqrt(), self.sigmas[key : key + length + 1].diff()
        clean = self.latents(key) / self.alphas[key].sqrt() + torch.einsum("s,sbn->bn", after, self.ahead[key][:length])
        return self.latents(key + length) - end * clean, float(end * after.sum())

    def latents(self, step: int) -> Tensor:
        return self.trajectory.samples[step].flatten(1).double()

    def predicted(self, step: int) -> Tensor:
        return self.trajectory.outputs[step].flatten(1).double()

    def columns(self, key: int, length: int) -> list[Tensor]:
        """The known tensors of a group, if the keys before it stand as far apart as it is long."""
        predicted, before = self.ahead[key], [key - back * length for back in range(1, OLDER_KEYS + 1)]
        known = [self.latents(key), predicted[0], *(self.predicted(step) - predicted[0] for step in before if step >= 0)]
        if self.reuse == "prediction":
            return known
        missed = [self.ahead[before[0]][length - 1] - predicted[0]] if before[0] >= 0 else []
        return [*known, *missed, predicted[0] - predicted[:length].mean(0)]


def main(
    output: Annotated[Path, typer.Argument(help="File of costs to write.")] = Path("runs/fitted-encoder-0.safetensors"),
    threads: Threads = 2,
) -> None:
    """Measure what a fit leaves of the embedded pipeline's costs (DDIM, 50 steps, guidance 5, features reused)."""
    torch.set_num_threads(threads)
    fitted_costs(load_pipeline(), embedded_costs()).save(output)
    typer.echo(f"{output}: fastdiff-lab derive {output} --num-keys 9 derives a schedule for a fit from it")


if __name__ == "__main__":
    typer.run(main)
