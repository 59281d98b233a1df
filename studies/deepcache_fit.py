"""A fit for DeepCache, so that this control has what ours has.

- `fit_deepcache(pipe, interval, prompts, ...)`: a `FittedDeepCache`, a method's rival
- `python -m studies.deepcache_fit FILE --interval 5`: the same for the embedded pipeline, written to a file
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
import typer
from torch import Tensor

from fastdiff_lab.calibration.fitting import weights_of
from fastdiff_lab.calibration.least_squares import Products, solved
from fastdiff_lab.calibration.replay import Call, Trajectory, seen
from fastdiff_lab.hooks.denoiser import denoiser_of
from fastdiff_lab.hooks.denoiser_call import DenoiserCall
from fastdiff_lab.hooks.denoiser_output import as_given, sample_of
from fastdiff_lab.hooks.patching import replaced_call
from fastdiff_lab.inputs.files import read_json, write_text
from fastdiff_lab.pipelines import EMBEDDED_GUIDANCE, load_pipeline
from fastdiff_lab.propagation.counts import Counts
from fastdiff_lab.propagation.fit import OLDER_KEYS
from fastdiff_lab.propagation.offsets import bounded, combined, guided, root_mean_square
from fastdiff_lab.sampling.rivals.deepcache import DeepCache
from fastdiff_lab.sampling.run_settings import RunSettings
from fastdiff_lab.shapes.data import calibration_scenes

from .fitted_costs import check_guided_ddim

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

SCHEMA = "fastdiff_lab.FittedDeepCache"
Offset = Callable[[int, list[Tensor]], Tensor]  # of a step, from its known tensors


@dataclass(frozen=True)
class FittedDeepCache(DeepCache):
    """DeepCache, whose cached steps each get an offset: known tensors, times scalars. For Stable Diffusion's pipeline with guidance.

    >>> method = Method(around=fit_deepcache(pipe, 5, prompts, guidance_scale=5.0))  # doctest: +SKIP

    Known at a cached step are the latent, the prediction, and its differences to earlier ones: that of the step before, and those of
    the last two whole evaluations.

    Args:
        interval: As for `DeepCache`.
        scalars: For each step one for each known tensor; none for a whole evaluation.
        bounds: For each step the largest offset that was seen when fitting, as its root mean square.
    """

    scalars: tuple[tuple[float, ...], ...]
    bounds: tuple[float, ...]

    @contextmanager
    def __call__(self, pipe: DiffusionPipeline) -> Iterator[Counts]:
        with super().__call__(pipe) as counts, _corrected(pipe, self.interval, self.offset):
            yield counts

    def offset(self, step: int, known: list[Tensor]) -> Tensor:
        """The offset of each image at a step, shape (images, ...), no larger than when fitting."""
        return bounded(combined(known, self.scalars[step]), self.bounds[step])

    def about(self) -> dict[str, Any]:
        digest = hashlib.sha256(repr((self.scalars, self.bounds)).encode()).hexdigest()[:16]
        return super().about() | {"deepcache_fit": digest}

    def save(self, path: Path) -> None:
        """Write a JSON file that `load` reads."""
        write_text(path, json.dumps({"schema": SCHEMA, "version": 1} | asdict(self)) + "\n")

    @classmethod
    def load(cls, path: Path) -> FittedDeepCache:
        """Read a file that `save` wrote. Raises ValueError for any other file."""
        found = read_json(path, str(path), SCHEMA, 1)
        try:
            return cls(found["interval"], tuple(map(tuple, found["scalars"])), tuple(found["bounds"]))
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} is no fit of DeepCache ({error!r}); accepted: a file of studies.deepcache_fit") from None


@dataclass
class _Known:
    """The known tensors of each step of one run. `whole`: guided predictions of whole evaluations; `before`: of the step before."""

    whole: deque[Tensor] = field(default_factory=lambda: deque(maxlen=OLDER_KEYS))
    before: Tensor | None = None

    def at(self, latent: Tensor, prediction: Tensor) -> list[Tensor]:
        assert self.before is not None
        return [latent, prediction, self.before - prediction, *(other - prediction for other in self.whole)]


@contextmanager
def _corrected(pipe: DiffusionPipeline, interval: int, offset: Offset) -> Iterator[None]:
    """Add an offset to the prediction of each cached step of each run in the block."""
    model = denoiser_of(pipe)

    def correcting(inner: Callable) -> Callable:
        known = _Known()

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal known
            given = DenoiserCall.of(model, args, kwargs)
            step = pipe.scheduler.timesteps.tolist().index(int(given.timestep))
            known = _Known() if step == 0 else known
            output = inner(*args, **kwargs)
            corrected, known.before = _of_step(pipe, step, step % interval == 0, known, given.sample, sample_of(output), offset)
            return as_given(output, corrected)

        return call

    with replaced_call(model, correcting):
        yield


def _of_step(
    pipe: DiffusionPipeline, step: int, is_whole: bool, known: _Known, rows: Tensor, output: Tensor, offset: Offset
) -> tuple[Tensor, Tensor]:
    """The rows of a prediction with their offset, and the guided prediction of each image."""
    (prediction,) = guided(pipe, output.chunk(2))
    if is_whole:
        known.whole.appendleft(prediction)
        return output, prediction
    moved = offset(step, known.at(rows[: len(prediction)], prediction))
    return output + torch.cat([moved] * 2), prediction + moved


def fit_deepcache(
    pipe: DiffusionPipeline,
    interval: int,
    prompts: Sequence[str],
    *,
    num_inference_steps: int = 50,
    guidance_scale: float | None = None,
) -> FittedDeepCache:
    """Fit the offsets of cached steps on a few images: after each step, the latents are the baseline's.

    >>> fit_deepcache(pipe, 5, [scene.caption() for scene in calibration_scenes(8)], guidance_scale=5.0)  # doctest: +SKIP

    Step after step along the accelerated run, in one batch, with seeds from 0 on.

    Raises:
        ValueError: A scheduler with several denoiser calls per time-step, or a run without guidance.
    """
    check_guided_ddim(pipe, guidance_scale, "a fit for DeepCache")
    run = RunSettings(num_inference_steps, guidance_scale).on(pipe, len(prompts), "a fit")
    call = Call(tuple(prompts), tuple(range(len(prompts))), run.arguments())
    fitting = _Fitting(pipe, seen(pipe, call, num_inference_steps))
    with DeepCache(interval)(pipe), _corrected(pipe, interval, fitting.offset):
        call.run(pipe)
    steps = range(num_inference_steps)
    return FittedDeepCache(
        interval, tuple(fitting.scalars.get(i, ()) for i in steps), tuple(fitting.bounds.get(i, 0.0) for i in steps)
    )


@dataclass
class _Fitting:
    """Finds the scalars of each cached step when the run comes to it."""

    pipe: DiffusionPipeline
    trajectory: Trajectory
    scalars: dict[int, tuple[float, ...]] = field(default_factory=dict)
    bounds: dict[int, float] = field(default_factory=dict)

    def offset(self, step: int, known: list[Tensor]) -> Tensor:
        latent, prediction, *_ = known
        landed = self.landed(step, latent, prediction)
        missing = (self.trajectory.samples[step + 1] - landed).flatten(1).double()
        moves = torch.stack([self.landed(step, latent, prediction + column) - landed for column in known]).flatten(2).double()
        products = Products.of(moves, missing)
        self.scalars[step] = tuple(map(float, solved(products, weights_of(products.squared))))
        found = combined(known, self.scalars[step])
        self.bounds[step] = float(root_mean_square(found).max())
        return found

    def landed(self, step: int, latent: Tensor, prediction: Tensor) -> Tensor:
        """The latents that a copy of the scheduler goes on to."""
        scheduler = copy.deepcopy(self.pipe.scheduler)
        return scheduler.step(prediction, scheduler.timesteps[step], latent)[0]


def main(
    output: Annotated[Path, typer.Argument(help="JSON file to write.")],
    interval: Annotated[int, typer.Option(help="Steps between whole evaluations.")] = 5,
    count: Annotated[int, typer.Option(help="How many captions of scenes to fit on.")] = 16,
    threads: Annotated[int, typer.Option(help="CPU threads.")] = 1,
) -> None:
    """Fit DeepCache on the embedded pipeline (DDIM, 50 steps, guidance 5)."""
    torch.set_num_threads(threads)
    prompts = [scene.caption() for scene in calibration_scenes(count)]
    with torch.no_grad():
        fit_deepcache(load_pipeline(), interval, prompts, guidance_scale=EMBEDDED_GUIDANCE).save(output)


if __name__ == "__main__":
    typer.run(main)
