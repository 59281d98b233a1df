"""Measure what reusing features costs at every step of a run."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from tqdm import tqdm

from ..hooks.denoiser import denoiser_of
from ..hooks.fingerprint import identity, in_words, pipeline_digest
from ..hooks.flops import flops_once
from ..hooks.guided_rows import by_image
from ..inputs.plain_values import choice, prompts_of, whole_number
from ..key_schedule import KeySchedule
from ..propagation.checks import check_is_one_run, check_prompts, guidance_of, time_steps_in_words, warn_of_rounding
from ..propagation.extrapolation import Extrapolation
from ..propagation.row_capacity import RowLimit
from ..sampling.batches import in_halves
from ..sampling.finite_values import check_distances
from ..sampling.run_settings import RunSettings
from .replay import Trajectory, call_for, latents_after, memory_of, seeds_for, seen
from .reuse_costs import ReuseCosts

GAPS = (1, 2, 4, 8, 16)
FURTHEST = 4  # times the gap between two keys; extrapolating further never pays
FEWEST = 3  # steps; with two, the only span ends with the run
PROBES = 12  # steps at which the sensitivity is measured


@dataclass(frozen=True)
class Plan:
    """The spans to measure.

    >>> Plan(num_steps=50, max_span=25, order=0).decoder_calls
    945

    Args:
        num_steps: Steps of the run, 3 or more.
        max_span: The longest span, in steps from a key to the next.
        order: 0 or 1.
    """

    num_steps: int
    max_span: int
    order: int

    def __post_init__(self) -> None:
        if self.num_steps < FEWEST:
            raise ValueError(f"calibration of a run of {self.num_steps} steps asked; accepted: {FEWEST} or more")

    @property
    def gaps(self) -> tuple[int, ...]:
        """Steps between a key and the key before it; 0 if there is none or it does not matter."""
        return (0,) if self.order == 0 else (0, *(gap for gap in GAPS if gap < self.num_steps - 1))

    def spans(self, key: int) -> Iterator[tuple[int, int]]:
        """Yield each gap before `key`, with the end of the longest span measured for it."""
        for gap in self.gaps:
            if (gap == 0 and (self.order == 0 or key == 0)) or 0 < gap <= key:
                max_span = self.max_span if gap == 0 else min(self.max_span, FURTHEST * gap + 1)
                yield gap, min(key + max_span, self.num_steps)

    @property
    def probes(self) -> list[tuple[int, int, int]]:
        """Spans that measure the sensitivity, as (gap, key, end), each about as long as a group."""
        length = max(2, min(self.max_span, self.num_steps // 9))
        ends = np.unique(np.linspace(2, self.num_steps - 1, min(PROBES, self.num_steps - 2)).round().astype(int)).tolist()
        return [(min(length, max(end - length, 0)) if self.order else 0, max(end - length, 0), end) for end in ends]

    @property
    def forward_calls(self) -> int:
        """Evaluations of the whole denoiser."""
        keys = sum(2 if gap else 1 for key in range(self.num_steps - 1) for gap, _ in self.spans(key))
        return self.num_steps + keys + sum(self.num_steps - end + 2 for _, _, end in self.probes)

    @property
    def decoder_calls(self) -> int:
        """Evaluations of the decoder alone: the steps inside all spans."""
        inside = sum(end - key - 1 for key in range(self.num_steps - 1) for _, end in self.spans(key))
        return inside + sum(end - key - 1 for _, key, end in self.probes)


def calibrate(
    pipe: DiffusionPipeline,
    prompts: Sequence[Any],
    *,
    seeds: Sequence[int] | None = None,
    num_inference_steps: int = 50,
    guidance_scale: float | None = None,
    order: int = 0,
    reuse: str = "encoder",
    max_span: int = 25,
    batch_size: int = 4,
    max_rows: int | None = None,
    time_budget: float | None = None,
    store: str | Path | None = None,
    pipe_kwargs: Mapping[str, Any] | None = None,
) -> ReuseCosts:
    """Measure for each span of steps what reusing the features of its first step costs.

    >>> import fastdiff_lab as fl
    >>> prompts = ["a red ring on a blue background"]
    >>> fl.calibrate(fl.load_pipeline(), prompts, num_inference_steps=3).num_steps
    3

    The run is replayed from the true latents of step i, by the pipeline's own loop, guidance and scheduler.
    The steps after i use predictions decoded from the features of i. The cost is the displacement of the latents at step e.
    It counts by the share of it that remains at the end of the run. Multistep schedulers first step on until they have forgotten the span.

    Args:
        pipe: A pipeline that makes one denoiser call per time-step.
        prompts: Texts; class labels for DiTPipeline, PIL images for Stable Video Diffusion.
        seeds: One for each prompt; by default 0, 1, 2 and so on.
        num_inference_steps: As the pipeline takes it.
        guidance_scale: None for the pipeline's own.
        order: As later in `encoder_propagation`, 0 or 1. With 1 the distance to the key before varies too.
        reuse: "encoder", or "prediction" for the rival that reuses predictions.
        max_span: The longest span, 2 to the number of steps.
        batch_size: Prompts in one call.
        max_rows: The most rows decoded at once, as in `encoder_propagation`.
        time_budget: Seconds. Spans are shortened until the estimate fits.
        store: A file that is saved after every step. The same call resumes from it.
        pipe_kwargs: Further arguments of the pipeline, one for all prompts or a list with one for each.

    Returns:
        The costs, with what they were measured on. Seconds and GiB are printed before the start.

    Raises:
        ValueError: An option is out of range, the call is not one run, or the latents are NaN.
            The budget is too small, or the store holds other costs.
        RuntimeError: The pipeline is accelerated at the moment.
    """
    prompts, batch_size, max_span = (
        prompts_of(prompts),
        whole_number("batch_size", batch_size, 1),
        whole_number("max_span", max_span, 2),
    )
    seeds = seeds_for(prompts, seeds)
    order = _checked_order(order, reuse)
    check_is_one_run(pipe, guidance_scale, "calibration")
    check_prompts(pipe, prompts)
    warn_of_rounding(denoiser_of(pipe), "calibration", "small displacements are lost in rounding, so sensitivities are wrong")
    run = RunSettings(num_inference_steps, guidance_scale, pipe_kwargs).on(pipe, len(prompts), "calibration")
    about = _about(prompts, seeds, run.words) | ({"pipeline": pipeline_digest(pipe)} if store else {})
    parts = [slice(start, min(start + batch_size, len(prompts))) for start in range(0, len(prompts), batch_size)]
    num_steps = run.denoiser_calls(pipe)
    plan = Plan(num_steps, min(max_span, num_steps), order)
    runs = in_halves(pipe, parts, lambda part: seen(pipe, call_for(prompts, seeds, part, run), num_steps))
    first = next(runs)
    limit = RowLimit(max_rows)
    plan = _within(plan, first[1], pipe, len(parts), time_budget, limit, reuse)
    guidance = guidance_of(pipe) if run.guidance_scale is None else run.guidance_scale
    of_run = {"num_inference_steps": run.num_inference_steps, "guidance_scale": guidance, "order": order, "reuse": reuse}
    visited = {"time_steps": time_steps_in_words(first[1].timesteps)}
    measured_on = {**identity(pipe), **of_run, **visited, "images": len(prompts)}
    state = _State.begin(plan, measured_on, about, store)
    with tqdm(desc="calibration", total=len(parts) * (num_steps - 1), leave=False) as bar:
        for part, trajectory in chain([first], runs):
            _Measuring(pipe, plan, trajectory, reuse, limit).fill(state, part, bar)
    return state.costs


def _about(prompts: Sequence[Any], seeds: Sequence[int], pipe_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    versions = {name: version(name) for name in ("torch", "diffusers", "fastdiff-lab")}
    about = {"prompts": [str(in_words(prompt)) for prompt in prompts], "seeds": list(seeds), **versions}
    return about | ({"pipe_kwargs": dict(pipe_kwargs)} if pipe_kwargs else {})


def _checked_order(order: Any, reuse: str) -> int:
    choice("reuse", reuse, ("encoder", "prediction"))
    return whole_number("order", order, 0, 1)


def _within(
    plan: Plan, seen_once: Trajectory, pipe: DiffusionPipeline, batches: int, time_budget: float | None, limit: RowLimit, reuse: str
) -> Plan:
    """Shorten the spans until the budget fits, and print what the plan takes."""
    arguments = {name: value for name, value in seen_once.arguments.items() if value is not None}
    flops = flops_once(denoiser_of(pipe), arguments)
    per_call = seen_once.seconds / plan.num_steps
    decoder = per_call * (flops.decoder + flops.rest) / flops.total

    def seconds(plan: Plan) -> float:
        return batches * (plan.forward_calls * per_call + plan.decoder_calls * decoder)

    asked = plan
    while time_budget is not None and seconds(plan) > time_budget:
        if plan.max_span == 2:
            raise ValueError(
                f"time_budget={time_budget} s asked, but spans of 2 steps already take about {seconds(plan):.0f} s; "
                "accepted: a larger budget, fewer prompts or fewer steps"
            )
        plan = Plan(plan.num_steps, plan.max_span - 1, plan.order)
    max_span = plan.max_span if reuse == "encoder" else 1
    needed = limit.bytes_told(denoiser_of(pipe), arguments, max_span, Extrapolation(plan.order))
    shorter = "" if plan == asked else f" (spans of up to {plan.max_span} steps instead of {asked.max_span}, for the budget)"
    tqdm.write(
        f"calibration: {batches * plan.forward_calls} denoiser calls and {batches * plan.decoder_calls} decoder calls, "
        f"about {seconds(plan):.0f} s and {needed / 2**30:.1f} GiB beside the weights{shorter}", file=sys.stderr,
    )  # fmt: skip
    return plan


@dataclass
class _State:
    """Costs measured so far, saved after each key step if there is a file."""

    costs: ReuseCosts
    store: Path | None

    @classmethod
    def begin(cls, plan: Plan, measured_on: dict, about: dict, store: str | Path | None) -> _State:
        images = measured_on["images"]
        displacement = torch.full((images, len(plan.gaps), plan.num_steps, plan.max_span + 1), torch.nan)
        sensitivity = torch.full((images, plan.num_steps + 1), torch.nan)
        fresh = ReuseCosts(displacement, plan.gaps, sensitivity, measured_on, about)
        if store is None or not Path(store).exists():
            return cls(fresh, None if store is None else Path(store))
        found = ReuseCosts.load(store)
        same = found.measured_on.items() <= measured_on.items() and all(  # older files hold less
            found.about.get(name) == about.get(name) for name in ("prompts", "seeds", "pipe_kwargs", "pipeline")
        )
        if not same or found.displacement.shape != displacement.shape:
            raise ValueError(
                f"{store} holds other costs (of {found.title()}, spans up to {found.max_span}); accepted: a new path, or the same call again"
            )
        return cls(found, Path(store))

    def keep(self) -> None:
        if self.store is not None:
            self.costs.save(self.store)


@dataclass
class _Measuring:
    """Measure one batch of images."""

    pipe: DiffusionPipeline
    plan: Plan
    trajectory: Trajectory
    reuse: str
    limit: RowLimit

    def fill(self, state: _State, rows: slice, bar: tqdm) -> None:
        costs = state.costs
        for key in range(self.plan.num_steps - 1):
            if costs.displacement[rows, :, key].isnan().all():
                for gap, end in self.plan.spans(key):
                    for step, distance in self.displacements(gap, key, end).items():
                        costs.displacement[rows, self.plan.gaps.index(gap), key, step - key] = distance
                state.keep()
            bar.update()
        if costs.sensitivity[rows].isnan().any():
            costs.sensitivity[rows] = self.sensitivity()
            state.keep()

    def displacements(self, gap: int, key: int, end: int, until: int | None = None) -> dict[int, Tensor]:
        """Distances to the baseline's latents, by step, each of shape (images,); the features of `key` are reused until `end`."""
        until = end if until is None else until
        evaluated = sorted({key - gap, *range(key, until)})
        keys = [step for step in range(self.plan.num_steps) if not key < step < end]
        ahead = memory_of(self.pipe.scheduler)
        found = latents_after(
            self.pipe, self.trajectory, evaluated, KeySchedule(self.plan.num_steps, tuple(keys)), until,
            extrapolation=Extrapolation(1 if gap else 0), reuse=self.reuse, max_rows=self.limit, lookahead=ahead,
        )  # fmt: skip
        last = self.plan.num_steps
        distances = {
            step: self.by_image(latents.float() - self.trajectory.samples[min(step + ahead, last)].float()).norm(dim=1)
            for step, latents in found.items()
            if step > key
        }
        read = torch.stack(list(distances.values())).cpu()
        for step, of_images in zip(distances, read, strict=True):
            check_distances(of_images, step)
        return dict(zip(distances, read, strict=True))

    def by_image(self, latents: Tensor) -> Tensor:
        return by_image(self.pipe, latents, len(self.trajectory.call.prompts))

    def sensitivity(self) -> Tensor:
        """Share of a displacement that remains at the end, (images, steps + 1); probes are interpolated on a log scale."""
        last = self.plan.num_steps
        ends, shares = [], []
        for gap, key, end in self.plan.probes:
            found = self.displacements(gap, key, end, until=last)
            ends.append(end)
            shares.append((found[last] / found[end].clamp_min(1e-12)).clamp_min(1e-6).log().numpy())
        known = np.stack([*shares, np.zeros_like(shares[0])])
        return torch.from_numpy(
            np.exp([np.interp(np.arange(last + 1), [*ends, last], image) for image in known.T]).astype(np.float32)
        )
