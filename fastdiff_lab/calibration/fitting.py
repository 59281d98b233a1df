"""Fit a few scalars per group, so that each group of an accelerated run ends at the baseline's latents.

- `fit_propagation(pipe, schedule, prompts, ...)`: a `PropagationFit`
- `fitted_errors(pipe, trajectories, config, limit)`: what a fit leaves of the error of the images that it is made on
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from tqdm import tqdm

from ..hooks.denoiser_call import DenoiserCall
from ..hooks.fingerprint import identity, in_words
from ..hooks.guided_rows import by_image
from ..inputs.plain_values import choice, prompts_of, whole_number
from ..key_schedule import KeySchedule
from ..propagation.checks import check_is_one_run, check_prompts, guidance_of, time_steps_in_words
from ..propagation.config import PropagationConfig
from ..propagation.engine import PropagationEngine
from ..propagation.fit import FITTED_REUSES, PropagationFit, takes_lines
from ..propagation.lines import Lines
from ..propagation.offsets import KnownTensors, combined, root_mean_square, shifted
from ..propagation.row_capacity import RowLimit
from ..sampling.batches import in_halves
from ..sampling.finite_values import check_distances
from ..sampling.run_settings import RunSettings
from .fitted_lines import fit_lines
from .least_squares import Products, solved
from .replay import Trajectory, call_for, replayed, seeds_for, seen

LINEAR = 0.05  # relative: rounding of float16 is below, what clips or thresholds is above


def fit_propagation(
    pipe: DiffusionPipeline,
    schedule: KeySchedule,
    prompts: Sequence[Any],
    *,
    seeds: Sequence[int] | None = None,
    num_inference_steps: int = 50,
    guidance_scale: float | None = None,
    order: int = 0,
    reuse: str = "encoder",
    batch_size: int = 8,
    max_rows: int | None = None,
    pipe_kwargs: Mapping[str, Any] | None = None,
) -> PropagationFit:
    """Fit the offsets of each group on a few images, so that the group ends at the baseline's latents (ours).

    >>> import fastdiff_lab as fl
    >>> schedule, prompts = fl.KeySchedule(3, (0, 1)), ["a red ring on a blue background"]
    >>> len(fl.fit_propagation(fl.load_pipeline(), schedule, prompts, num_inference_steps=3).coefficients[1])
    4

    Known at a key step are the latent, the last three key steps' predictions, and those decoded ahead. A linear combination of
    them is added to each prediction of the group. Least squares over the images finds its scalars, group after group along the
    accelerated run. Guidance and scheduler are the pipeline's own. Using a fit costs next to nothing.
    With order 1, features follow lines that are fitted first: two scalars for each feature and step.

    Args:
        pipe: A pipeline that makes one denoiser call per time-step.
        schedule: The key steps, such as from `derive_schedule`.
        prompts: About eight texts. Class labels for DiTPipeline, PIL images for Stable Video Diffusion.
        seeds: One for each prompt; by default 0, 1, 2 and so on.
        num_inference_steps: As the pipeline takes it.
        guidance_scale: None for the pipeline's own.
        order: As later in `encoder_propagation`, 0, 1 or 2.
        reuse: "encoder", or "prediction" for the rival that reuses predictions.
        batch_size: Prompts in one call.
        max_rows: The most rows decoded at once, as in `encoder_propagation`.
        pipe_kwargs: Further arguments of the pipeline, one for all prompts or a list with one for each.

    Returns:
        The fit, with what it was made on.

    Raises:
        ValueError: An option is out of range, or the call is not one run.
            The schedule is for other steps, or the scheduler clips.
        RuntimeError: The pipeline is accelerated at the moment.
    """
    prompts, batch_size = prompts_of(prompts), whole_number("batch_size", batch_size, 1)
    seeds = seeds_for(prompts, seeds)
    order, reuse = whole_number("order", order, 0, 2), choice("reuse", reuse, FITTED_REUSES)
    config, limit = PropagationConfig(schedule, order=order, reuse=reuse), RowLimit(max_rows)
    check_is_one_run(pipe, guidance_scale, "a fit")
    check_prompts(pipe, prompts)
    run = RunSettings(num_inference_steps, guidance_scale, pipe_kwargs).on(pipe, len(prompts), "a fit")
    parts = [slice(start, min(start + batch_size, len(prompts))) for start in range(0, len(prompts), batch_size)]
    runs = in_halves(pipe, parts, lambda part: seen(pipe, call_for(prompts, seeds, part, run), schedule.num_steps))
    trajectories = [trajectory for _, trajectory in runs]
    _tell(trajectories, config)
    about = {"prompts": [str(in_words(prompt)) for prompt in prompts], "seeds": list(seeds)}
    about |= {name: version(name) for name in ("torch", "diffusers", "fastdiff-lab")}
    about |= {"pipe_kwargs": run.words} if run.words else {}
    measured_on = {
        **identity(pipe), "num_inference_steps": run.num_inference_steps, "order": order, "reuse": reuse, "images": len(prompts),
        "time_steps": time_steps_in_words(trajectories[0].timesteps),
    }  # fmt: skip
    guidance = guidance_of(pipe) if run.guidance_scale is None else run.guidance_scale
    measured_on |= {} if guidance is None else {"guidance_scale": guidance}
    fitted = _fitted_runs(pipe, trajectories, config, limit)
    coefficients, bounds = _along(fitted, schedule)
    return PropagationFit(
        schedule, coefficients, bounds, reuse, order, fitted[0].tensors.blocks, fitted[0].lines, measured_on, about
    )  # fmt: skip


def _tell(trajectories: Sequence[Trajectory], config: PropagationConfig) -> None:
    runs = 2 if takes_lines(config.reuse, config.extrapolation.order) else 1  # the baseline once more, for the lines
    seconds, groups = runs * sum(one.seconds for one in trajectories), len(config.schedule.keys)
    tqdm.write(
        f"fit: {config.schedule.num_steps * len(trajectories)} decoder calls in {groups} groups, at most about {seconds:.0f} s, and the "
        "scheduler's steps for each known tensor", file=sys.stderr,
    )  # fmt: skip


def fitted_errors(
    pipe: DiffusionPipeline, trajectories: Sequence[Trajectory], config: PropagationConfig, limit: RowLimit
) -> Tensor:
    """Mean squared difference of the final latents to the baseline's with a fit on these very images, of shape (images,).

    >>> fitted_errors(pipe, [trajectory], PropagationConfig(KeySchedule.paper(50)), RowLimit())  # doctest: +SKIP
    """
    runs, last = _fitted_runs(pipe, trajectories, config, limit), config.schedule.num_steps
    _along(runs, config.schedule)
    errors = torch.cat([run.missing(last).square().mean(dim=1) for run in runs])
    check_distances(errors, last)
    return errors


def _fitted_runs(
    pipe: DiffusionPipeline, trajectories: Sequence[Trajectory], config: PropagationConfig, limit: RowLimit
) -> list[_FittedRun]:
    has_lines = takes_lines(config.reuse, config.extrapolation.order)
    lines = fit_lines(pipe, trajectories, config.schedule) if has_lines else ()
    return [_FittedRun(pipe, trajectory, config, limit, lines) for trajectory in trajectories]


def _along(runs: Sequence[_FittedRun], schedule: KeySchedule) -> tuple[tuple[tuple[float, ...], ...], tuple[float, ...]]:
    """The scalars of each group, and the largest offset that they give."""
    groups = tqdm(schedule.groups(), desc="fitting", leave=False)
    scalars, bounds = zip(*(_of_group(runs, group) for group in groups), strict=True)
    return scalars, bounds


def _of_group(runs: Sequence[_FittedRun], group: range) -> tuple[tuple[float, ...], float]:
    """The scalars of a group, and the largest offset that they give; all runs go on with it."""
    products = [run.products(group) for run in runs]
    if products[0] is None:
        for run in runs:
            run.go_on(group, ())
        return (), 0.0
    joined = Products.joined([one for one in products if one is not None])
    scalars = tuple(map(float, solved(joined, weights_of(joined.squared))))
    return scalars, max(run.go_on(group, scalars) for run in runs)


def weights_of(squared: np.ndarray) -> np.ndarray:
    """The weights of images by what is missing of each, shape (images,): one lost image must not decide for all others."""
    return 1 / np.sqrt(squared.clip(min=1e-30))


@dataclass
class _FittedRun:
    """An accelerated run along which the scalars are found, group after group.

    `known`: step -> prediction, corrected, as far as the groups are fitted. The rest is of the group that is fitted now. `ahead`:
    its predictions. `columns`: its known tensors. `landed`: the latents at its end. `responses`: how each known tensor moves these.
    """

    pipe: DiffusionPipeline
    trajectory: Trajectory
    config: PropagationConfig
    limit: RowLimit
    lines: Lines = ()
    known: dict[int, Any] = field(default_factory=dict)
    tensors: KnownTensors = field(init=False)
    ahead: dict[int, Any] = field(default_factory=dict, init=False)
    columns: list[Tensor] = field(default_factory=list, init=False)
    landed: Tensor = field(init=False)
    responses: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.tensors = KnownTensors(self.pipe, self.config.reuse)

    def corrected(self, call: DenoiserCall, ahead: Mapping[int, Any]) -> dict[int, Any]:
        """Called by the engine at each key step that is evaluated: looks at the group that is fitted, and leaves its predictions.

        Groups before it are evaluated for what extrapolation takes from their key steps; their predictions are corrected already.
        """
        if ahead.keys() <= self.known.keys():
            return {step: self.known[step] for step in ahead}
        self.ahead, self.columns = dict(ahead), self.tensors.of_group(call, ahead)
        return dict(ahead)

    def images_beyond(self) -> int:
        return 0

    def products(self, group: range) -> Products | None:
        """Evaluates the group; its inner products, or None for a group of one step."""
        self.landed = self._landed(group, {}, evaluates=True)
        if not self.columns:
            return None
        self.responses = torch.stack([self._landed(group, shifted(self.ahead, c)) - self.landed for c in self.columns])
        return Products.of(self.responses, self.missing(group.stop))

    def missing(self, step: int) -> Tensor:
        """What the latents at the end of the group lack, shape (images, numbers)."""
        return self._by_image(self.trajectory.samples[step]) - self.landed

    def go_on(self, group: range, scalars: tuple[float, ...]) -> float:
        """Takes the group's predictions with their offsets; returns the largest offset. Raises ValueError for a scheduler that clips."""
        if not self.columns:
            self.known |= self.ahead
            return 0.0
        offset = combined(self.columns, scalars)
        self.known |= shifted(self.ahead, offset)
        moved = torch.einsum("c,cbn->bn", torch.tensor(scalars, dtype=torch.float64), self.responses)
        expected, self.landed = self.landed + moved, self._landed(group, {})
        if float((self.landed - expected).norm()) > LINEAR * float(moved.norm()) + 1e-6 * float(expected.norm()):
            raise ValueError(
                f"a fit asked with {type(self.pipe.scheduler).__name__}, whose steps are not linear here (clip_sample, thresholding); "
                "accepted: a scheduler that neither clips nor thresholds"
            )
        return float(root_mean_square(offset).max())

    def _landed(self, group: range, others: Mapping[int, Any], evaluates: bool = False) -> Tensor:
        """The latents at the group's end, shape (images, numbers) in float64. `others`: predictions of its steps."""
        last = {group.stop: self.trajectory.predictions[group.stop]} if group.stop < self.trajectory.num_steps else {}
        begin = self._first_evaluated(group) if evaluates else group.stop
        before = {step: value for step, value in self.known.items() if step < begin}
        engine = PropagationEngine(
            self.pipe, self.config, known=last | before | dict(others), limit=self.limit, lines=self.lines,
            offsets=self if evaluates else None,
        )  # fmt: skip
        return self._by_image(replayed(engine, self.trajectory, group.stop - 1, group.stop)[group.stop])

    def _first_evaluated(self, group: range) -> int:
        """The key step from which on the denoiser runs: extrapolation looks back to as many key steps as its order."""
        keys = self.config.schedule.keys
        return keys[max(0, keys.index(group.start) - self.config.extrapolation.order)]

    def _by_image(self, latents: Tensor) -> Tensor:
        return by_image(self.pipe, latents, len(self.trajectory.call.prompts)).cpu().double()  # not every device has it
