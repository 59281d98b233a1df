"""Compare keys at published time-steps with derived keys: `python -m studies.published_keys`.

- `noise_levels(scheduler, num_inference_steps)`: the noise at every step of a run
- `published_keys(levels, num_keys)`: the steps nearest to the noise levels of each published rule
- `compare_published(pipe, costs, prompts, ...)`: features and predictions reused there, and at derived keys
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import typer
from diffusers.schedulers import AysSchedules
from scipy.optimize import linear_sum_assignment

from fastdiff_lab.calibration.derive import derive_schedule
from fastdiff_lab.calibration.reuse_costs import ReuseCosts
from fastdiff_lab.key_schedule import KeySchedule, check_num_keys
from fastdiff_lab.pipelines import EMBEDDED_GUIDANCE, embedded_costs, load_pipeline
from fastdiff_lab.sampling.methods import Method, denoiser_calls
from fastdiff_lab.shapes.data import held_out_prompts

from .key_rules import compare_ways, write_ways
from .options import RULES_STORE, Captions, Jobs, Kept, Keys, Output, Seeds, Threads
from .suite.run import check_held_out
from .suite.suite_methods import check_costs

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


COUNTS = (5, 7, 9, 10, 13, 17)  # Align Your Steps was published for 10
KARRAS_RHO = 7
OURS = "predictions, derived for features"
OPTIMISED = np.array(AysSchedules["StableDiffusionSigmas"][:-1])


def noise_levels(scheduler: Any, num_inference_steps: int) -> np.ndarray:
    """Standard deviation of the noise over the signal's scale at every step, and last the lowest of training.

    >>> noise_levels(load_pipeline().scheduler, 50)[[0, 49, 50]].round(2)
    array([13.12,  0.04,  0.03])

    The scheduler needs `alphas_cumprod`, as DDIM has; it stays as it is.
    """
    planned = copy.deepcopy(scheduler)
    planned.set_timesteps(num_inference_steps)
    alphas = planned.alphas_cumprod[[*planned.timesteps.round().long().tolist(), 0]].double()
    return ((1 - alphas) / alphas).sqrt().numpy()


def published_keys(levels: np.ndarray, num_keys: int) -> dict[str, KeySchedule]:
    """Place keys at the noise levels of published samplers.

    >>> levels = noise_levels(load_pipeline().scheduler, 50)
    >>> str(published_keys(levels, 10)["Align Your Steps"])
    '0,7,12,17,22,26,32,37,43,48 of 50'

    The rules are Align Your Steps (Sabour et al., 2024), for Stable Diffusion 1.5 at 10 steps, else interpolated
    log-linearly; Karras et al. (2022) with rho = 7; and steps uniform in the logarithm of the signal-to-noise
    ratio (DPM-Solver, Lu et al., 2022). Each level takes its own step, all as near as possible together.
    Raises ValueError unless `num_keys` is from 1 to the number of steps.
    """
    check_num_keys(num_keys, len(levels) - 1)
    highest, lowest, end = levels[0], levels[-2], levels[-1]
    share = np.linspace(0, 1, num_keys)
    root = 1 / KARRAS_RHO
    optimised = np.log([*OPTIMISED, end])
    wanted = {
        "Align Your Steps": np.exp(np.interp(np.linspace(0, 1, num_keys + 1), np.linspace(0, 1, len(optimised)), optimised))[:-1],
        "Karras": (highest**root + share * (lowest**root - highest**root)) ** KARRAS_RHO,
        "uniform log-SNR": highest * (lowest / highest) ** share,
    }
    return {rule: _nearest(levels[:-1], found, rule) for rule, found in wanted.items()}


def _nearest(levels: np.ndarray, wanted: np.ndarray, rule: str) -> KeySchedule:
    """The nearest steps. The first step always is a key, whatever noise the rule begins with."""
    distance = np.abs(np.log(levels[1:, None]) - np.log(wanted[None, 1:]))
    steps = linear_sum_assignment(distance)[0] + 1
    return KeySchedule(len(levels), (0, *steps.tolist()), f"nearest to the noise levels of {rule}, {len(wanted)} keys")


def compare_published(
    pipe: DiffusionPipeline,
    costs: ReuseCosts,
    prompts: Sequence[str],
    *,
    of_predictions: ReuseCosts,
    counts: Sequence[int] = COUNTS,
    num_inference_steps: int = 50,
    **kept: Any,
) -> pd.DataFrame:
    """Reuse features and predictions at published, derived and uniform keys, on the same images.

    >>> costs = {"of_predictions": embedded_costs("prediction")}
    >>> compare_published(pipe, embedded_costs(), held_out_prompts(32), seeds=[0, 1], **costs)  # doctest: +SKIP

    `costs` and `of_predictions` are of order 0, of runs of `num_inference_steps`, measured on none of `prompts`. `counts` are numbers
    of keys. Returns the columns of `compare_rules` without the order, and raises the same. The lead is that of predictions reused at
    the keys derived for features, the nearest rival of equal cost.
    """
    given = {("encoder", 0): costs, ("prediction", 0): of_predictions}
    check_held_out(given, prompts)
    check_costs(denoiser_calls(pipe, num_inference_steps), given)
    levels = noise_levels(pipe.scheduler, num_inference_steps)
    ways = {count: _ways(levels, costs, of_predictions, count) for count in counts}
    return compare_ways(pipe, ways, prompts, ours=OURS, num_inference_steps=num_inference_steps, **kept)


def _ways(levels: np.ndarray, costs: ReuseCosts, of_predictions: ReuseCosts, count: int) -> dict[str, Method]:
    derived = derive_schedule(costs, count)
    rules = {"uniform": KeySchedule.uniform(costs.num_steps, count)} | published_keys(levels, count)
    methods = {"derived": Method(derived)} | {rule: Method(keys) for rule, keys in rules.items()}
    # Without `measured_on`, so that this deliberate use does not warn.
    rules |= {
        "derived for features": replace(derived, measured_on=None),
        "derived for them": derive_schedule(of_predictions, count),
    }
    methods |= {f"predictions, {rule}": Method(keys, reuse="prediction") for rule, keys in rules.items()}
    return methods | {"fewer steps": Method(steps=count)}


def main(
    output: Output,
    count: Captions = 32,
    seeds: Seeds = 4,
    keys: Keys = None,
    threads: Threads = 2,
    jobs: Jobs = None,
    store: Kept = RULES_STORE,
) -> None:  # fmt: skip
    """Compare published time-steps with derived keys on the embedded pipeline (DDIM, 50 steps, guidance 5)."""
    torch.set_num_threads(threads)
    table = compare_published(
        load_pipeline(), embedded_costs(), held_out_prompts(count), of_predictions=embedded_costs("prediction"), counts=keys or COUNTS,
        seeds=range(seeds), n_jobs=jobs, store=store, guidance_scale=EMBEDDED_GUIDANCE,
    )  # fmt: skip
    write_ways(table, output)


if __name__ == "__main__":
    typer.run(main)
