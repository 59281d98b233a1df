"""Calibration: what reusing features costs at every step of a run, measured on the pipeline itself.

- `calibrate(pipe, prompts, ...)`: replays the run with one group of steps reused at a time -> `ReuseCosts`
- `Plan`: which spans are measured, and what that takes
"""

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
from torch import Tensor
from tqdm import tqdm

from ..hooks.denoiser import denoiser_of
from ..hooks.fingerprint import identity, in_words, pipeline_digest
from ..hooks.flops import count_flops
from ..hooks.guided_rows import by_picture
from ..inputs.plain_values import choice, plain, prompts_of, whole_number
from ..key_schedule import KeySchedule
from ..propagation.checks import check_is_one_run, check_prompts, guidance_of, time_steps_in_words, warn_of_rounding
from ..propagation.extrapolation import Extrapolation
from ..propagation.row_capacity import RowLimit
from ..sampling.batches import in_halves
from ..sampling.call_options import call_options, own_guidance
from ..sampling.finite_values import check_distances
from ..sampling.methods import denoiser_calls
from .replay import Trajectory, call_for, latents_after, memory_of, seeds_for, seen
from .reuse_costs import ReuseCosts

GAPS = (1, 2, 4, 8, 16)
FURTHEST = 4  # features are extrapolated up to so many times the gap between the two keys: further, they are never worth it
FEWEST = 3  # steps: with two, the one span there is ends with the run
PROBES = 12  # steps at which the sensitivity is measured


@dataclass(frozen=True)
class Plan:
    """Which spans are measured.

    >>> Plan(num_steps=50, longest=25, order=0).decoder_calls
    945

    `num_steps`: of the run, 3 or more. `longest`: the longest span, in steps from a key to the next. `order`: 0 or 1.
    """

    num_steps: int
    longest: int
    order: int

    def __post_init__(self) -> None:
        if self.num_steps < FEWEST:
            raise ValueError(f"calibration of a run of {self.num_steps} steps asked; accepted: {FEWEST} or more")

    @property
    def gaps(self) -> tuple[int, ...]:
        """How far back the key before a span lies: 0 where features are held."""
        return (0,) if self.order == 0 else (0, *(gap for gap in GAPS if gap < self.num_steps - 1))

    def spans(self, key: int) -> Iterator[tuple[int, int]]:
        """The gaps to the key before `key`, and for each the end of the longest span that is measured with it."""
        for gap in self.gaps:
            if (gap == 0 and (self.order == 0 or key == 0)) or 0 < gap <= key:
                longest = self.longest if gap == 0 else min(self.longest, FURTHEST * gap + 1)
                yield gap, min(key + longest, self.num_steps)

    @property
    def probes(self) -> list[tuple[int, int, int]]:
        """Where the sensitivity is measured: gap, key and end of a span of about a group's length at each of some steps."""
        length = max(2, min(self.longest, self.num_steps // 9))
        ends = np.unique(np.linspace(2, self.num_steps - 1, min(PROBES, self.num_steps - 2)).round().astype(int)).tolist()
        return [(min(length, max(end - length, 0)) if self.order else 0, max(end - length, 0), end) for end in ends]

    @property
    def forward_calls(self) -> int:
        """Evaluations of the whole denoiser: the run itself, the keys of all spans, the ends of the runs that probe."""
        keys = sum(2 if gap else 1 for key in range(self.num_steps - 1) for gap, _ in self.spans(key))
        return self.num_steps + keys + sum(self.num_steps - end + 2 for _, _, end in self.probes)

    @property
    def decoder_calls(self) -> int:
        """Evaluations of the decoder alone: the steps inside all spans."""
        inside = sum(end - key - 1 for key in range(self.num_steps - 1) for _, end in self.spans(key))
        return inside + sum(end - key - 1 for _, key, end in self.probes)


def calibrate(
    pipe: Any,
    prompts: Sequence[Any],
    *,
    seeds: Sequence[int] | None = None,
    num_inference_steps: int = 50,
    guidance_scale: float | None = None,
    order: int = 0,
    what: str = "encoder",
    longest: int = 25,
    batch: int = 4,
    max_rows: int | None = None,
    budget: float | None = None,
    store: str | Path | None = None,
    options: Mapping[str, Any] | None = None,
) -> ReuseCosts:
    """Measures for each span of steps what it costs to reuse the features of its first step in all the others.

    >>> costs = fl.calibrate(pipe, prompts, num_inference_steps=50, guidance_scale=5.0, order=1)  # doctest: +SKIP
    >>> schedule = fl.derive_schedule(costs, num_keys=9)  # doctest: +SKIP

    The run is replayed from the true latents of step i with the predictions that are decoded from the features of i, by the
    pipeline's own loop, guidance and scheduler; the displacement of the latents at e is the span's cost, times the share of it that
    is left at the end of the run (measured on displacements of the same kind). Schedulers that remember steps are rolled on until
    they have forgotten the span; those that draw noise draw the same again.

    `prompts`: what the pipeline is called with (class labels for DiTPipeline, PIL pictures for Stable Video Diffusion). `seeds`: one
    for each; by default 0, 1, 2, ... `guidance_scale`: None for the pipeline's own; what it was stands in `measured_on`.
    `order`: as it will be in `encoder_propagation`; 1 also varies how far back the key before lies. `what`: "encoder", or
    "prediction" for the rival that holds or extrapolates predictions. `longest`: the longest span, 2 to the number of steps.
    `batch`: pictures at once. `max_rows`: the most rows that are decoded at once, as in `encoder_propagation`.
    `budget`: seconds; spans are shortened until the estimate fits. `store`: file that keeps what is measured as it comes; the same call
    goes on where a stopped one was. `options`: further arguments of the pipeline, single or a list with one for each prompt; as many
    time-steps as are among them are measured.

    Prints what it will take before it starts, in seconds and GiB. Where memory runs out, `max_rows` or `batch` is halved, with a
    warning. Raises ValueError for options out of range, latents that are NaN, a pipeline whose call is not one run (as
    Text2Video-Zero's), a budget that is too small, or a store with other costs; RuntimeError inside an `encoder_propagation` block.
    """
    prompts, batch, longest = prompts_of(prompts), whole_number("batch", batch, 1), whole_number("longest", longest, 2)
    seeds = seeds_for(prompts, seeds)
    order, num_inference_steps = _checked_order(order, what), plain(num_inference_steps)
    check_is_one_run(pipe, guidance_scale, "calibration")
    check_prompts(pipe, prompts)
    warn_of_rounding(denoiser_of(pipe), "calibration", "small displacements are lost in rounding, so sensitivities are wrong")
    given, guidance = call_options(pipe, options, len(prompts), "calibration"), own_guidance(pipe, guidance_scale)
    parts = [slice(start, min(start + batch, len(prompts))) for start in range(0, len(prompts), batch)]
    num_steps = denoiser_calls(pipe, num_inference_steps, given.alike)
    plan = Plan(num_steps, min(longest, num_steps), order)
    runs = in_halves(
        pipe, parts, lambda part: seen(pipe, call_for(prompts, seeds, part, num_inference_steps, guidance, given), num_steps)
    )
    first = next(runs)
    limit = RowLimit(max_rows)
    plan = _within(plan, first[1], pipe, len(parts), budget, limit, what)
    guidance = guidance_of(pipe) if guidance is None else guidance
    run = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance, "order": order, "what": what}
    visited = {"time_steps": time_steps_in_words(first[1].timesteps)}
    measured_on = {**identity(pipe), **run, **visited, "pictures": len(prompts)}
    about = _about(prompts, seeds, given.words) | ({"pipeline": pipeline_digest(pipe)} if store else {})
    state = _State.begin(plan, measured_on, about, store)
    with tqdm(desc="calibration", total=len(parts) * (num_steps - 1), leave=False) as bar:
        for part, trajectory in chain([first], runs):
            _Measuring(pipe, plan, trajectory, what, limit).fill(state, part, bar)
    return state.costs


def _about(prompts: Sequence[Any], seeds: Sequence[int], options: Mapping[str, Any]) -> dict[str, Any]:
    versions = {name: version(name) for name in ("torch", "diffusers", "fastdiff-lab")}
    about = {"prompts": [str(in_words(prompt)) for prompt in prompts], "seeds": list(seeds), **versions}
    return about | ({"options": dict(options)} if options else {})


def _checked_order(order: Any, what: str) -> int:
    choice("what", what, ("encoder", "prediction"))
    return whole_number("order", order, 0, 1)


def _within(plan: Plan, seen_once: Trajectory, pipe: Any, batches: int, budget: float | None, limit: RowLimit, what: str) -> Plan:
    """The plan, with spans as short as the budget asks for; says what it takes."""
    arguments = {name: value for name, value in seen_once.arguments.items() if value is not None}
    flops = count_flops(denoiser_of(pipe), arguments)
    per_call = seen_once.seconds / plan.num_steps
    decoder = per_call * (flops.decoder + flops.rest) / flops.total

    def seconds(plan: Plan) -> float:
        return batches * (plan.forward_calls * per_call + plan.decoder_calls * decoder)

    asked = plan
    while budget is not None and seconds(plan) > budget:
        if plan.longest == 2:
            raise ValueError(
                f"budget={budget} s asked, but spans of 2 steps already take about {seconds(plan):.0f} s; accepted: more"
            )
        plan = Plan(plan.num_steps, plan.longest - 1, plan.order)
    longest = plan.longest if what == "encoder" else 1
    needed = limit.bytes_told(denoiser_of(pipe), arguments, longest, Extrapolation(plan.order))
    shorter = "" if plan == asked else f" (spans of up to {plan.longest} steps instead of {asked.longest}, for the budget)"
    tqdm.write(
        f"calibration: {batches * plan.forward_calls} denoiser calls and {batches * plan.decoder_calls} decoder calls, "
        f"about {seconds(plan):.0f} s and {needed / 2**30:.1f} GiB beside the weights{shorter}", file=sys.stderr,
    )  # fmt: skip
    return plan


@dataclass
class _State:
    """Costs as far as they are measured, in a file after each key step if there is one."""

    costs: ReuseCosts
    store: Path | None

    @classmethod
    def begin(cls, plan: Plan, measured_on: dict, about: dict, store: str | Path | None) -> _State:
        pictures = measured_on["pictures"]
        displacement = torch.full((pictures, len(plan.gaps), plan.num_steps, plan.longest + 1), torch.nan)
        sensitivity = torch.full((pictures, plan.num_steps + 1), torch.nan)
        fresh = ReuseCosts(displacement, plan.gaps, sensitivity, measured_on, about)
        if store is None or not Path(store).exists():
            return cls(fresh, None if store is None else Path(store))
        found = ReuseCosts.load(store)
        same = found.measured_on.items() <= measured_on.items() and all(  # older files hold less
            found.about.get(name) == about.get(name) for name in ("prompts", "seeds", "options", "pipeline")
        )
        if not same or found.displacement.shape != displacement.shape:
            raise ValueError(f"{store} holds other costs (of {found.title()}, spans up to {found.longest}); accepted: a new path")
        return cls(found, Path(store))

    def keep(self) -> None:
        if self.store is not None:
            self.costs.save(self.store)


@dataclass
class _Measuring:
    """One batch of pictures."""

    pipe: Any
    plan: Plan
    trajectory: Trajectory
    what: str
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
        """Step -> distance (pictures,) of the latents to the untouched run's, with the features of `key` reused until `end`."""
        until = end if until is None else until
        evaluated = sorted({key - gap, *range(key, until)})
        keys = [step for step in range(self.plan.num_steps) if not key < step < end]
        ahead = memory_of(self.pipe.scheduler)
        found = latents_after(
            self.pipe, self.trajectory, evaluated, KeySchedule(self.plan.num_steps, tuple(keys)), until,
            extrapolation=Extrapolation(1 if gap else 0), what=self.what, max_rows=self.limit, lookahead=ahead,
        )  # fmt: skip
        last = self.plan.num_steps
        distances = {
            step: self.by_picture(latents.float() - self.trajectory.samples[min(step + ahead, last)].float()).norm(dim=1)
            for step, latents in found.items()
            if step > key
        }
        read = torch.stack(list(distances.values())).cpu()
        for step, of_pictures in zip(distances, read, strict=True):
            check_distances(of_pictures, step)
        return dict(zip(distances, read, strict=True))

    def by_picture(self, latents: Tensor) -> Tensor:
        return by_picture(self.pipe, latents, len(self.trajectory.call.prompts))

    def sensitivity(self) -> Tensor:
        """Shape (pictures, steps + 1): of a displacement at a step, the share that is left at the end; between probes on a log scale."""
        last = self.plan.num_steps
        ends, shares = [], []
        for gap, key, end in self.plan.probes:
            found = self.displacements(gap, key, end, until=last)
            ends.append(end)
            shares.append((found[last] / found[end].clamp_min(1e-12)).clamp_min(1e-6).log().numpy())
        known = np.stack([*shares, np.zeros_like(shares[0])])
        return torch.from_numpy(
            np.exp([np.interp(np.arange(last + 1), [*ends, last], picture) for picture in known.T]).astype(np.float32)
        )
