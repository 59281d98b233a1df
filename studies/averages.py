"""For which average of the calibrated images should keys be derived? `python -m studies.averages`.

- `compare_averages(pipe, costs, fitted_on, prompts, ...)`: keys for the mean and the median image, reused and fitted
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
import typer

from fastdiff_lab.calibration.derive import derive_schedule
from fastdiff_lab.calibration.fitting import fit_propagation
from fastdiff_lab.calibration.reuse_costs import ReuseCosts
from fastdiff_lab.pipelines import EMBEDDED_GUIDANCE, embedded_costs, load_pipeline
from fastdiff_lab.propagation.config import PropagationConfig
from fastdiff_lab.sampling.methods import Method
from fastdiff_lab.shapes.data import calibration_scenes, held_out_prompts

from .key_rules import compare_ways, write_ways
from .options import RULES_STORE, Captions, Jobs, Kept, Keys, Output, Seeds, Threads
from .suite.run import check_held_out
from .suite.suite_methods import REUSED

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

COUNTS, AVERAGES = (5, 7, 9, 13), ("mean", "median")
OURS = "features, median, fitted"


def compare_averages(
    pipe: DiffusionPipeline,
    costs: Mapping[str, ReuseCosts],
    fitted_on: Sequence[str],
    prompts: Sequence[str],
    *,
    counts: Sequence[int] = COUNTS,
    num_inference_steps: int = 50,
    guidance_scale: float | None = None,
    **kept: Any,
) -> pd.DataFrame:
    """Reuse features and predictions at keys derived for the mean and for the median image, without and with a fit.

    >>> costs = {"encoder": embedded_costs(), "prediction": embedded_costs("prediction")}
    >>> fitted_on = [scene.caption() for scene in calibration_scenes(16)]
    >>> compare_averages(load_pipeline(), costs, fitted_on, held_out_prompts(32), seeds=range(4))  # doctest: +SKIP

    Args:
        costs: Of order 0 by what is reused, of runs of `num_inference_steps`. None of `prompts` is theirs.
        fitted_on: Prompts of the fits, with seeds from 0 on. None of `prompts` is theirs. Other arguments as for `compare_images`.

    Returns:
        The columns of `compare_rules` without the order. The lead is that of features at the median's keys, fitted.

    Raises:
        ValueError: Prompts of `costs`, or that were fitted on.
    """
    check_held_out({(reuse, 0): given for reuse, given in costs.items()}, prompts)
    if set(fitted_on) & set(prompts):
        raise ValueError(
            f"{sorted(set(fitted_on) & set(prompts))[0]!r} asked both to fit on and to compare on; accepted: one of them"
        )
    run: dict[str, Any] = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
    ways: dict[int, dict[str, Method]] = {}
    for count in counts:
        ways[count] = {"fewer steps": Method(steps=count)}
        for (reuse, kind), average in product(REUSED.items(), AVERAGES):
            schedule = derive_schedule(costs[reuse], count, reduction=average)
            fitted = Method(PropagationConfig.of_fit(fit_propagation(pipe, schedule, fitted_on, reuse=reuse, **run)))
            ways[count] |= {f"{kind}, {average}": Method(schedule, reuse=reuse), f"{kind}, {average}, fitted": fitted}
    return compare_ways(pipe, ways, prompts, ours=OURS, **run, **kept)


def main(
    output: Output, count: Captions = 32, seeds: Seeds = 4, keys: Keys = None,
    threads: Threads = 2, jobs: Jobs = None, store: Kept = RULES_STORE,
) -> None:  # fmt: skip
    """Compare keys for the mean and the median image on the embedded pipeline (DDIM, 50 steps, guidance 5)."""
    torch.set_num_threads(threads)
    costs = {reuse: embedded_costs(reuse) for reuse in REUSED}
    table = compare_averages(
        load_pipeline(), costs, [scene.caption() for scene in calibration_scenes(16)], held_out_prompts(count), counts=keys or COUNTS,
        seeds=range(seeds), n_jobs=jobs, store=store, guidance_scale=EMBEDDED_GUIDANCE,
    )  # fmt: skip
    write_ways(table, output)


if __name__ == "__main__":
    typer.run(main)
