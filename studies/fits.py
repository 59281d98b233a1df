"""Compare fitted with reused features and predictions, and with DeepCache: `python -m studies.fits`.

- `compare_fits(pipe, costs, fitted_on, prompts, ...)`: at each number of keys, beside fewer steps
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import pandas as pd
import torch
import typer

from fastdiff_lab import plot
from fastdiff_lab.calibration.derive import derive_schedule
from fastdiff_lab.calibration.fitting import fit_propagation
from fastdiff_lab.calibration.refine import refine_schedule
from fastdiff_lab.calibration.reuse_costs import ReuseCosts
from fastdiff_lab.inputs.files import write_whole
from fastdiff_lab.key_schedule import KeySchedule
from fastdiff_lab.pipelines import EMBEDDED_GUIDANCE, embedded_costs, load_pipeline
from fastdiff_lab.propagation.config import PropagationConfig
from fastdiff_lab.sampling.methods import Method
from fastdiff_lab.shapes.data import calibration_scenes, held_out_prompts

from .deepcache_fit import fit_deepcache
from .fit_figure import plot_fits
from .fitted_costs import fitted_costs
from .key_rules import compare_ways
from .options import RULES_STORE, Captions, Kept, Keys, Output, Seeds, Threads
from .suite.run import check_held_out

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


COUNTS = (5, 7, 9, 13, 17, 25)
KINDS: dict[str, dict[str, Any]] = {"features": {}, "extrapolated features": {"order": 1}, "predictions": {"reuse": "prediction"}}
OURS = "features, fitted"


def compare_fits(
    pipe: DiffusionPipeline,
    costs: ReuseCosts,
    fitted_on: Sequence[str],
    prompts: Sequence[str],
    *,
    counts: Sequence[int] = COUNTS,
    refinement: int = 0,
    num_inference_steps: int = 50,
    guidance_scale: float | None = None,
    **kept: Any,
) -> pd.DataFrame:
    """Reuse features and predictions at derived keys, and DeepCache, without and with a fit, on the same images.

    >>> fitted_on = [scene.caption() for scene in calibration_scenes(8)]
    >>> compare_fits(pipe, embedded_costs(), fitted_on, held_out_prompts(32), seeds=[0, 1])  # doctest: +SKIP

    Args:
        costs: Of order 0, of runs of `num_inference_steps`. None of `prompts` is theirs.
        fitted_on: Prompts of the fits, with seeds from 0 on.
        counts: Numbers of keys.
        refinement: Fitted runs that move the keys, for each kind; 0 for none. Other arguments as for `compare_images`.

    Returns:
        The columns of `compare_rules` without the order. The lead is that of fitted features at derived keys.

    Raises:
        ValueError: Prompts of `costs`, or that were fitted on.
    """
    check_held_out({("encoder", 0): costs}, prompts)
    if set(fitted_on) & set(prompts):
        raise ValueError(
            f"{sorted(set(fitted_on) & set(prompts))[0]!r} asked both to fit on and to compare on; accepted: one of them"
        )
    run = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
    for_fits = fitted_costs(pipe, costs)
    ways = {
        count: _ways(pipe, derive_schedule(costs, count), derive_schedule(for_fits, count), fitted_on, refinement, run)
        for count in counts
    }
    return compare_ways(pipe, ways, prompts, ours=OURS, **run, **kept)


def _ways(
    pipe: DiffusionPipeline,
    derived: KeySchedule,
    for_fits: KeySchedule,
    fitted_on: Sequence[str],
    refinement: int,
    run: dict[str, Any],
) -> dict[str, Method]:
    # Without `measured_on`, so that the deliberate use for predictions does not warn.
    start, other = (replace(schedule, measured_on=None) for schedule in (derived, for_fits))
    methods: dict[str, Method] = {}
    for kind, options in KINDS.items():
        schedules = {"": start, ", derived for fits": other}
        if refinement:
            schedules[", refined"] = refine_schedule(pipe, start, fitted_on, runs=refinement, fit=True, **options, **run)
        methods[kind] = Method(start, **options)
        for name, schedule in schedules.items():
            fit = fit_propagation(pipe, schedule, fitted_on, **options, **run)
            methods[f"{kind}{name}, fitted"] = Method(PropagationConfig.of_fit(fit))
    count, steps = len(derived.keys), derived.num_steps
    interval = math.ceil(steps / count)  # as many whole evaluations as keys, where that is possible
    methods["DeepCache"] = Method(deepcache=interval)
    methods["DeepCache, fitted"] = Method(around=fit_deepcache(pipe, interval, fitted_on, **run))
    return methods | {"fewer steps": Method(steps=count)}


def main(
    output: Output,
    count: Captions = 32,
    seeds: Seeds = 4,
    images: Annotated[int, typer.Option(help="Captions that are fitted on.")] = 8,
    keys: Keys = None,
    refinement: Annotated[int, typer.Option(help="Fitted runs that move the keys; 0 for none.")] = 0,
    threads: Threads = 2,
    store: Kept = RULES_STORE,
) -> None:
    """Compare fitted with reused features and predictions on the embedded pipeline (DDIM, 50 steps, guidance 5)."""
    torch.set_num_threads(threads)
    fitted_on = [scene.caption() for scene in calibration_scenes(images)]
    table = compare_fits(
        load_pipeline(), embedded_costs(), fitted_on, held_out_prompts(count), seeds=range(seeds), counts=keys or COUNTS,
        refinement=refinement, guidance_scale=EMBEDDED_GUIDANCE, store=store,
    )  # fmt: skip
    write_whole(output, lambda place: table.to_csv(place, index=False, float_format="%.6g"))
    drawn = plot.png(plot_fits(table, plot.figure(12, 5)))
    write_whole(output.with_suffix(".png"), lambda place: place.write_bytes(drawn))
    typer.echo(table.drop(columns="key_steps").round(1).to_string(index=False))


if __name__ == "__main__":
    typer.run(main)
