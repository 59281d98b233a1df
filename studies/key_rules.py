"""Compare keys by rules without calibration with derived keys: `python -m studies.key_rules`.

- `rules(recording, num_keys)`: the schedules that a recording's features suggest
- `compare_rules(pipe, costs, prompts, ...)`: the fidelity of each, and the lead of derived keys
- `compare_ways(pipe, ways, prompts, ...)`: the same of any methods, for several numbers of keys; `write_ways(table, output)`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
import typer

from fastdiff_lab.calibration.derive import accumulated_change, derive_schedule
from fastdiff_lab.calibration.reuse_costs import ReuseCosts
from fastdiff_lab.comparison.compare import compare_images
from fastdiff_lab.comparison.fidelity import interval, mean_psnr, paired_difference, typical_psnr
from fastdiff_lab.hooks.denoiser import denoiser_of, split_denoiser
from fastdiff_lab.inputs.files import write_whole
from fastdiff_lab.key_schedule import KeySchedule
from fastdiff_lab.pipelines import EMBEDDED_GUIDANCE, embedded_costs, load_pipeline
from fastdiff_lab.recording.analysis import step_clusters, step_similarity
from fastdiff_lab.recording.record import record
from fastdiff_lab.recording.recording import Recording
from fastdiff_lab.sampling.methods import Method, denoiser_calls, generators
from fastdiff_lab.sampling.run_settings import RunSettings
from fastdiff_lab.shapes.data import held_out_prompts

from .options import RULES_STORE, Captions, Jobs, Kept, Keys, Output, Seeds, Threads
from .suite.run import check_held_out
from .suite.suite_methods import COUNTS, check_costs

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def rules(recording: Recording, num_keys: int) -> dict[str, KeySchedule]:
    """Place keys at equal shares of the features' change, and at first steps of clusters (section 3.2).

    >>> rules(recording, 9)["accumulated change"]  # doctest: +SKIP

    The paper looks at the same changes, and chooses its keys by hand. The clusters use the layers whose features were kept.
    Raises ValueError unless `num_keys` is from 1 to the number of steps, and if no features were kept.
    """
    if not recording.features:
        raise ValueError(
            "this recording kept no features; accepted: one of record(pipe, keep=[...]) with some of the encoder's blocks"
        )
    similar = np.mean([step_similarity(recording, layer) for layer in recording.features], axis=0)
    first = tuple(np.flatnonzero(np.diff(step_clusters(similar, num_keys), prepend=-1)).tolist())
    return {
        "accumulated change": accumulated_change(recording, num_keys),
        "accumulated squared change": accumulated_change(recording, num_keys, kind="squared"),
        "accumulated change of the decoder": accumulated_change(recording, num_keys, part="decoder"),
        "step clusters": KeySchedule(recording.num_steps, first, f"first steps of {num_keys} clusters"),
    }


def compare_rules(
    pipe: DiffusionPipeline,
    costs: ReuseCosts,
    prompts: Sequence[str],
    *,
    of_predictions: ReuseCosts | None = None,
    counts: Sequence[int] = COUNTS,
    num_inference_steps: int = 50,
    guidance_scale: float | None = None,
    pipe_kwargs: Mapping[str, Any] | None = None,
    **kept: Any,
) -> pd.DataFrame:
    """Run uniform, derived and each rule's keys on the same images. The rules see the calibrated captions.

    >>> compare_rules(pipe, fl.embedded_costs(), held_out_prompts(32), seeds=[0, 1])  # doctest: +SKIP

    Args:
        costs: Of runs of `num_inference_steps`, with the order that is run. None of `prompts` is theirs.
        of_predictions: Costs of predictions, for predictions at their own keys.
        counts: Numbers of keys, below that of the steps. Other arguments as for `compare_images`.

    Returns:
        One row per rule (or rival with as many denoiser calls) and number of keys: num_keys, order, rule, key_steps;
        psnr (dB, of the averaged error), psnr_low, psnr_high (95 %); typical (mean PSNR, identical images as 100 dB), worst;
        images; ahead, ahead_low, ahead_high: the lead of derived keys in dB (95 %).

    Raises:
        ValueError: Prompts of `costs`, costs of other steps, as many keys as steps, or features too large to keep.
    """
    given = {("encoder", costs.order): costs} | ({("prediction", costs.order): of_predictions} if of_predictions else {})
    check_held_out(given, prompts)
    check_costs(denoiser_calls(pipe, num_inference_steps), given)
    if max(counts) >= costs.num_steps:
        raise ValueError(f"{max(counts)} keys of {costs.num_steps} steps asked; accepted: fewer keys than steps")
    of_run = RunSettings(num_inference_steps, guidance_scale, pipe_kwargs)
    recording = _recorded(pipe, list(costs.about["prompts"]), of_run.arguments())
    ways = {count: _ways(recording, costs, of_predictions, count) for count in counts}
    run = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale, "pipe_kwargs": pipe_kwargs} | kept
    table = compare_ways(pipe, ways, prompts, **run)
    table.insert(1, "order", costs.order)
    return table


def compare_ways(
    pipe: DiffusionPipeline, ways: Mapping[int, Mapping[str, Method]], prompts: Sequence[str], *, ours: str = "derived", **run: Any
) -> pd.DataFrame:
    """Run every method on the same images: one row per number of keys and rule, beside one method of that number.

    >>> compare_ways(pipe, {9: {"derived": Method(schedule), "fewer steps": Method(steps=9)}}, prompts)  # doctest: +SKIP

    `ways` has the methods by rule for each number of keys; `ours` is the rule whose lead is measured; `run` as for `compare_images`.
    Returns the columns of `compare_rules` without the order.
    """
    methods = {f"{count} {rule}": method for count, found in ways.items() for rule, method in found.items()}
    images = compare_images(pipe, {"baseline": Method()} | methods, prompts, rivals=False, **run)
    about = [
        (count, rule, "" if method.schedule is None else str(method.schedule))
        for count in ways
        for rule, method in ways[count].items()
    ]
    return pd.DataFrame(
        [{"num_keys": count, "rule": rule, "key_steps": keys} | _row(images, count, rule, ours) for count, rule, keys in about]
    )


def write_ways(table: pd.DataFrame, output: Path) -> None:
    """Write a table of `compare_ways` as CSV, and print it without the keys. Raises OSError for a place that cannot be written."""
    write_whole(output, lambda place: table.to_csv(place, index=False, float_format="%.6g"))
    typer.echo(table.drop(columns="key_steps").round(1).to_string(index=False))


def _recorded(pipe: DiffusionPipeline, prompts: Sequence[str], run: dict[str, Any]) -> Recording:
    encoder = list(split_denoiser(denoiser_of(pipe)).encoder)
    with torch.no_grad(), record(pipe, keep=encoder) as recording:
        pipe(list(prompts), generator=generators(range(len(prompts))), **run)
    return recording


def _ways(recording: Recording, costs: ReuseCosts, of_predictions: ReuseCosts | None, count: int) -> dict[str, Method]:
    schedules = {"uniform": KeySchedule.uniform(costs.num_steps, count)} | _derived(costs, count) | rules(recording, count)
    methods = {rule: Method(keys, order=costs.order) for rule, keys in schedules.items()}
    # Without `measured_on`, so that this deliberate use does not warn.
    derived = replace(schedules["derived"], measured_on=None)
    methods["predictions, derived for features"] = Method(derived, reuse="prediction", order=costs.order)
    if of_predictions is not None:
        rivals = _derived(of_predictions, count)
        methods |= {
            f"predictions, {name} for them": Method(keys, reuse="prediction", order=costs.order) for name, keys in rivals.items()
        }
    return methods | {"fewer steps": Method(steps=count)}


def _derived(costs: ReuseCosts, count: int) -> dict[str, KeySchedule]:
    return {"derived": derive_schedule(costs, count), "derived (errors unsquared)": derive_schedule(costs, count, power=1)}


def _row(images: pd.DataFrame, count: int, rule: str, ours: str) -> dict[str, float]:
    found = images[images["method"] == f"{count} {rule}"]
    low, high = interval(found["mse"], mean_psnr)
    near = {
        "psnr": mean_psnr(found["mse"]),
        "psnr_low": low,
        "psnr_high": high,
        "typical": typical_psnr(found["psnr"]),
        "worst": found["psnr"].min(),
        "images": len(found),
    }
    ahead = paired_difference(images, f"{count} {ours}", f"{count} {rule}")
    return near | {"ahead": ahead["difference"], "ahead_low": ahead["low"], "ahead_high": ahead["high"]}


def main(
    output: Output,
    count: Captions = 32,
    seeds: Seeds = 4,
    keys: Keys = None,
    threads: Threads = 2,
    jobs: Jobs = None,
    store: Kept = RULES_STORE,
) -> None:  # fmt: skip
    """Compare rules with derived keys on the embedded pipeline (DDIM, 50 steps, guidance 5), with everything reused."""
    torch.set_num_threads(threads)
    table = compare_rules(
        load_pipeline(), embedded_costs(), held_out_prompts(count), of_predictions=embedded_costs("prediction"), counts=keys or (9, 17),
        seeds=range(seeds), n_jobs=jobs, store=store, guidance_scale=EMBEDDED_GUIDANCE,
    )  # fmt: skip
    write_ways(table, output)


if __name__ == "__main__":
    typer.run(main)
