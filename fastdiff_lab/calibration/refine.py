"""Refine a schedule by real runs, because costs of single spans do not tell how their errors grow together.

- `refine_schedule(pipe, schedule, prompts, ...)`: move keys while the final latents come nearer to the baseline's
- `refine_derived(pipe, costs, schedule, ...)`: the same on the prompts of a calibration
- `final_errors(pipe, trajectory, schedule, ...)`: the real error of a schedule
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import Tensor
from tqdm import tqdm

from ..hooks.guided_rows import by_image
from ..inputs.plain_values import prompts_of, whole_number
from ..key_schedule import KeySchedule
from ..propagation.checks import check_is_one_run, check_prompts
from ..propagation.config import PropagationConfig
from ..propagation.extrapolation import Extrapolation
from ..propagation.row_capacity import RowLimit
from ..sampling.batches import in_halves
from ..sampling.call_options import takes_guidance
from ..sampling.finite_values import check_distances
from ..sampling.run_settings import RunSettings
from .fitting import fitted_errors
from .replay import Trajectory, call_for, latents_after, seeds_for, seen
from .reuse_costs import ReuseCosts

MOVES = (-1, 1, -2, 2, -4, 4)


def final_errors(
    pipe: DiffusionPipeline,
    trajectory: Trajectory,
    schedule: KeySchedule,
    *,
    order: int | Extrapolation = 0,
    reuse: str = "encoder",
    max_rows: int | RowLimit | None = None,
) -> Tensor:
    """Mean squared difference of the final latents to the baseline's, of shape (images,).

    >>> final_errors(pipe, seen(pipe, Call(("a red ring",), (0,)), 50), KeySchedule.paper(50))  # doctest: +SKIP
    """
    last = schedule.num_steps
    found = latents_after(
        pipe, trajectory, range(last), schedule, last, extrapolation=Extrapolation.of(order), reuse=reuse, max_rows=max_rows
    )
    difference = by_image(pipe, found[last] - trajectory.samples[last], len(trajectory.call.prompts))
    errors = difference.float().square().mean(dim=1).cpu()
    check_distances(errors, last)
    return errors


def refine_schedule(
    pipe: DiffusionPipeline,
    schedule: KeySchedule,
    prompts: Sequence[Any],
    *,
    seeds: Sequence[int] | None = None,
    num_inference_steps: int = 50,
    guidance_scale: float | None = None,
    order: int = 0,
    reuse: str = "encoder",
    runs: int = 100,
    fit: bool = False,
    max_rows: int | None = None,
    pipe_kwargs: Mapping[str, Any] | None = None,
) -> KeySchedule:
    """Move one key at a time while real runs bring the final latents nearer to the baseline's.

    >>> import fastdiff_lab as fl
    >>> start = fl.KeySchedule(3, (0, 2))
    >>> fl.refine_schedule(fl.load_pipeline(), start, ["a red ring on a blue background"], num_inference_steps=3, runs=1).keys
    (0, 2)

    Ctrl-C ends the search with the best schedule so far.

    Args:
        schedule: Where to begin. The number of keys stays.
        prompts: As for `calibrate`, in one batch, or in smaller ones where memory runs out.
            Arguments that are not listed here are as there.
        runs: Accelerated runs at most, 1 or more.
        fit: Fit each schedule on the prompts, as `fit_propagation` does, and compare what is left. Then fit the one that is found.

    Raises:
        ValueError: The schedule has another number of steps than the run.
    """
    prompts, runs = prompts_of(prompts), whole_number("runs", runs, 1)
    seeds = seeds_for(prompts, seeds)
    check_is_one_run(pipe, guidance_scale, "calibration")
    check_prompts(pipe, prompts)
    run = RunSettings(num_inference_steps, guidance_scale, pipe_kwargs).on(pipe, len(prompts), "refinement")
    num_steps = run.denoiser_calls(pipe)
    if schedule.num_steps != num_steps:
        raise ValueError(
            f"the schedule is for {schedule.num_steps} steps, the run makes {num_steps}; use schedule.rescaled({num_steps})"
        )
    limit = RowLimit(max_rows)
    parts = in_halves(
        pipe, [slice(0, len(prompts))], lambda part: seen(pipe, call_for(prompts, seeds, part, run), num_steps)
    )  # fmt: skip
    trajectories = [trajectory for _, trajectory in parts]

    def error(candidate: KeySchedule) -> float:
        if fit:
            return float(fitted_errors(pipe, trajectories, PropagationConfig(candidate, order=order, reuse=reuse), limit).mean())
        of_parts = [final_errors(pipe, one, candidate, order=order, reuse=reuse, max_rows=limit) for one in trajectories]
        return float(torch.cat(of_parts).mean())

    best, tried = _search(schedule, error, runs)
    found = f"refined in {tried} {'fitted ' * fit}runs" if best != schedule else f"of {tried} runs of refinement none came nearer"
    return replace(best, source=f"{schedule.source}, {found}", measured_on=schedule.measured_on)


def refine_derived(
    pipe: DiffusionPipeline,
    costs: ReuseCosts,
    schedule: KeySchedule,
    *,
    images: int = 8,
    runs: int = 100,
    fit: bool = False,
    pipe_kwargs: Mapping[str, Any] | None = None,
) -> KeySchedule:
    """Refine a schedule on the first prompts that its costs were measured on.

    >>> refine_derived(pipe, costs, fl.derive_schedule(costs, 9), images=4)  # doctest: +SKIP

    Args:
        images: How many prompts at most, in one batch.
        runs, fit: As for `refine_schedule`.
        pipe_kwargs: Those that the costs were measured with. The costs themselves do not hold images and tensors.

    Raises:
        ValueError: The options are others, or as for `refine_schedule`.
    """
    on, count = costs.measured_on, len(costs.about["prompts"])
    given, measured = RunSettings(pipe_kwargs=pipe_kwargs).on(pipe, count, "refinement"), costs.about.get("pipe_kwargs", {})
    if given.words != measured:
        raise ValueError(
            f"the costs were measured with pipe_kwargs {measured}, refinement is asked with {given.words}; accepted: the same ones"
        )
    chosen = range(count)[: whole_number("images", images, 1)]
    guidance = on["guidance_scale"] if takes_guidance(pipe) else None
    return refine_schedule(
        pipe, schedule, costs.about["prompts"][: len(chosen)], seeds=costs.about["seeds"][: len(chosen)], order=costs.order,
        reuse=str(on["reuse"]), num_inference_steps=int(on["num_inference_steps"]), guidance_scale=guidance, runs=runs, fit=fit,
        pipe_kwargs=given.of(chosen).pipe_kwargs,
    )  # fmt: skip


def _search(start: KeySchedule, error: Any, runs: int) -> tuple[KeySchedule, int]:
    known = {start: error(start)}
    best = start
    with tqdm(desc="refining", total=runs, initial=1, leave=False) as bar:
        try:
            while len(known) < runs:
                candidate = next((other for other in _neighbours(best, len(known)) if other not in known), None)
                if candidate is None:
                    break
                known[candidate] = error(candidate)
                best = min(best, candidate, key=known.__getitem__)
                bar.update()
        except KeyboardInterrupt:
            pass
    return best, len(known)


def _neighbours(schedule: KeySchedule, seed: int) -> Iterator[KeySchedule]:
    """Schedules with one key moved, in a reproducible order."""
    moves = [(place, move) for place in range(1, len(schedule.keys)) for move in MOVES]
    random.Random(seed).shuffle(moves)
    for place, move in moves:
        keys = sorted({*schedule.keys[:place], schedule.keys[place] + move, *schedule.keys[place + 1 :]})
        if len(keys) == len(schedule.keys) and keys[0] == 0 and keys[-1] < schedule.num_steps:
            yield KeySchedule(schedule.num_steps, tuple(keys))
