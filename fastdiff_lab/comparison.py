"""What accelerated samplers cost and give, beside the untouched run.

- `compare(pipe, arms, prompts, ...)`: one row per arm
- `compare_pictures(pipe, arms, prompts, ...)`: one row per arm, prompt and seed, kept in a store as they come
- `with_costs(pipe, arms, pictures, ...)`: the first from the second
- `drawn(pipe, arms, tasks, ...)`: the results themselves
- `compare_tasks(pipe, arms, tasks, ...)`: the same for given pairs of prompt and seed
- `brief(table)`: the columns that are looked at first
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from .arm_costs import of_one_picture, operations
from .evaluation import Arm, denoiser_calls, sample
from .fingerprint import scheduler_config, steering, weights_digest
from .picture_table import REFERENCE, UNTOUCHED, Task, picture_rows, summarised
from .quality import Quality, quality_of
from .schedule import KeySchedule
from .split import denoiser_of
from .store import Result, Store
from .workers import WorkerLostError, in_workers

LOST_WORKERS = 3  # so many times in a row the workers may die without having finished anything


def default_arms(num_steps: int, arms: Mapping[str, KeySchedule | Arm], rivals: bool = True) -> dict[str, Arm]:
    """The given arms, after those that must stand beside them.

    Untouched; and with `rivals` uniform keys and as many plain steps for each number of keys, and the predictions held at the same keys.
    """
    wrong = next((name for name, arm in arms.items() if not isinstance(arm, KeySchedule | Arm)), None)
    if wrong is not None:
        raise TypeError(f"arm {wrong!r} is {arms[wrong]!r}; accepted: a KeySchedule or an Arm")
    given = {name: Arm(arm) if isinstance(arm, KeySchedule) else arm for name, arm in arms.items()}
    beside = {UNTOUCHED: Arm()}
    if not rivals:
        return beside | given
    schedules = {name: arm.schedule for name, arm in given.items() if arm.schedule is not None}
    for count in sorted({len(schedule.keys) for schedule in schedules.values()}):
        beside[f"uniform {count}"] = Arm(KeySchedule.uniform(num_steps, count))
        beside[f"plain {count} steps"] = Arm(steps=count)
    for name, schedule in schedules.items():
        # A rival on purpose: it does not carry what the keys were measured on, and so does not warn.
        held = Arm(replace(schedule, measured_on=None), what="prediction")
        if held not in (*beside.values(), *given.values()):
            beside[f"{name}, prediction held"] = held
    return beside | given


def _check_whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"{name}={value!r} asked; accepted: a whole number of {least} or more")


def compare(
    pipe: Any,
    arms: Mapping[str, KeySchedule | Arm],
    prompts: Sequence[str],
    *,
    seeds: Sequence[int] = (0,),
    num_inference_steps: int = 50,
    guidance_scale: float = 5.0,
    reference_steps: int | None = None,
    repeats: int = 3,
    batch: int = 16,
    n_jobs: int | None = None,
    store: str | Path | None = None,
    rivals: bool = True,
    metrics: Sequence[str] = (),
    metric_weights: str | Path | None = None,
    real_pictures: str | Path | None = None,
) -> pd.DataFrame:
    """Runs each arm on each prompt and seed, and says what it costs and how near it comes to the untouched run.

    >>> compare(pipe, {"paper": KeySchedule.paper(50)}, ["a red ring on a blue background"])  # doctest: +SKIP

    `arms`: name -> KeySchedule or `Arm`; the untouched run, uniform keys, as many plain steps, and the predictions held at the
    same keys are added, so that none is shown alone; with `rivals=False` the untouched run only.
    `reference_steps`: also compares with DDIM in so many steps (1,000: the converged run of the same seed), more than
    `num_inference_steps`; None leaves that out. `repeats`: timed runs of one picture per arm, after one that is not timed; the
    arms take turns; 0 for no timing. `batch`: pictures at once. `n_jobs`: worker processes (joblib; None: one, or what an
    enclosing `joblib.parallel_config` says; inside `joblib.parallel_config("dask")` the workers of the current Dask client draw).
    `store`: file that keeps each result as it comes: the same call goes on where a killed one stopped, and other arms are added
    to what is there. `metrics`: of "fid", "kid", "clip_score" and "lpips", with `metric_weights`, the folder of their weight files,
    and for fid and kid `real_pictures`, a folder of picture files (docs/quality.md says which); all of it is read before a picture is
    drawn, and measured again by each call.

    Returns one row per arm: evaluations per picture; GFLOPs (2 per multiply-add) and GMACs per picture; `seconds` (median, one
    picture, up to the latents), `ratio` to untouched and `peak_bytes` (CUDA only); `psnr` of the averaged error in dB, `ssim`,
    `latent_mse` to the untouched run, each with `_worst` and the ends of its 95 % bootstrap interval `_low`, `_high`; the same
    with `reference_` before; `clip_score` (0 to 100, to the prompt) and `lpips` (to the untouched picture) in the same way; `fid`, `kid`
    and `kid_std` between the arm's pictures and the real ones; and `prompt_accuracy` (share of pictures with all attributes right;
    NaN if the prompts are no captions of scenes). `pictures` is the sample size.
    """
    _check_whole("repeats", repeats, 0)  # before hours are spent on pictures
    denoiser_of(pipe)
    options: dict[str, Any] = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
    ways = default_arms(denoiser_calls(pipe, num_inference_steps), arms, rivals)
    pictures = compare_pictures(
        pipe, ways, prompts, seeds=seeds, reference_steps=reference_steps, batch=batch, n_jobs=n_jobs, store=store, rivals=False,
        metrics=metrics, metric_weights=metric_weights, real_pictures=real_pictures, **options,
    )  # fmt: skip
    return with_costs(pipe, ways, pictures, repeats=repeats, **options)


def with_costs(
    pipe: Any,
    arms: Mapping[str, Arm],
    pictures: pd.DataFrame,
    *,
    num_inference_steps: int = 50,
    guidance_scale: float = 5.0,
    repeats: int = 3,
) -> pd.DataFrame:
    """The table of `compare` from the pictures of `compare_pictures`: their summary, and what each arm costs, measured now.

    >>> with_costs(pipe, arms, compare_pictures(pipe, arms, prompts, rivals=False))  # doctest: +SKIP

    `arms`: each arm of `pictures` by its name. Other arguments and result as for `compare`.
    """
    _check_whole("repeats", repeats, 0)
    options: dict[str, Any] = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
    prompt, seed = str(pictures["prompt"].iloc[0]), int(pictures["seed"].iloc[0])
    quality = summarised(pictures)
    costs = of_one_picture(pipe, arms, (prompt, seed), repeats, options).assign(
        **operations(pipe, arms, quality, prompt, guidance_scale)
    )
    costs = costs.assign(ratio=costs.loc[UNTOUCHED, "seconds"] / costs["seconds"])[
        ["seconds", "ratio", "peak_bytes", "gflops", "gmacs"]
    ]
    calls = ["encoder_calls", "decoder_calls", "forward_calls"]
    return quality[calls].join(costs).join(quality.drop(columns=calls)).rename_axis("arm").reset_index()


def compare_pictures(
    pipe: Any,
    arms: Mapping[str, KeySchedule | Arm],
    prompts: Sequence[str],
    *,
    seeds: Sequence[int] = (0,),
    num_inference_steps: int = 50,
    guidance_scale: float = 5.0,
    reference_steps: int | None = None,
    batch: int = 16,
    n_jobs: int | None = None,
    store: str | Path | None = None,
    rivals: bool = True,
    metrics: Sequence[str] = (),
    metric_weights: str | Path | None = None,
    real_pictures: str | Path | None = None,
) -> pd.DataFrame:
    """Runs each arm on each prompt and seed; arguments as for `compare`.

    >>> compare_pictures(pipe, {"paper": KeySchedule.paper(50)}, prompts).groupby("arm")["psnr"].min()  # doctest: +SKIP

    Returns one row per arm, prompt and seed: evaluations, `mse`, `psnr`, `ssim`, `latent_mse` to the untouched run (and to the
    reference), the `metrics`, `prompt_accuracy`. `fid` and `kid` belong to all pictures of an arm, and stand in each of its rows.
    """
    if isinstance(prompts, str):
        raise TypeError(f"prompts={prompts!r} given; accepted: a list of texts, such as [{prompts!r}]")
    _check_whole("batch", batch, 1)
    if n_jobs is not None and n_jobs == 0:
        raise ValueError("n_jobs=0 asked; accepted: 1 or more, -1 for all cores, or None")
    for seed in seeds:
        _check_whole("seed", seed, 0)
    device = next(denoiser_of(pipe).parameters()).device  # raises for what is no pipeline
    tasks = [(prompt, seed) for prompt in prompts for seed in seeds]
    if not tasks:
        raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds given; accepted: at least one of each")
    if reference_steps is not None and not reference_steps > num_inference_steps:
        raise ValueError(
            f"reference_steps={reference_steps} asked; accepted: more than the {num_inference_steps} steps of the run, or None"
        )
    options: dict[str, Any] = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
    ways = default_arms(denoiser_calls(pipe, num_inference_steps), arms, rivals)
    if reference_steps is not None:
        ways = {REFERENCE: Arm(steps=reference_steps)} | ways
    quality = quality_of(metrics, metric_weights=metric_weights, real_pictures=real_pictures, pictures=len(tasks), device=device)
    return compare_tasks(pipe, ways, tasks, options, quality=quality, batch=batch, n_jobs=n_jobs, store=store)


def compare_tasks(
    pipe: Any,
    arms: Mapping[str, Arm],
    tasks: Sequence[Task],
    options: dict[str, Any],
    *,
    quality: Quality | None = None,
    batch: int = 16,
    n_jobs: int | None = None,
    store: str | Path | None = None,
) -> pd.DataFrame:
    """The table of `compare_pictures` for pairs of prompt and seed; pictures are read from the store and measured a few at a time.

    >>> compare_tasks(pipe, {"untouched": Arm()}, [("a red ring on a blue background", 0)], {"num_inference_steps": 5})  # doctest: +SKIP

    `arms`: with the untouched run; `quality`: of `quality_of`; other arguments as for `drawn`.
    """
    of = _settings(pipe, options)
    with Store(store) as kept:
        _run_missing(pipe, arms, tasks, of, options, batch, n_jobs, kept)
        return picture_rows(lambda name, part: kept.read(_key(of, arms[name], task) for task in part), list(arms), tasks, quality)


def drawn(
    pipe: Any,
    arms: Mapping[str, Arm],
    tasks: Sequence[Task],
    options: dict[str, Any],
    *,
    batch: int = 16,
    n_jobs: int | None = None,
    store: str | Path | None = None,
) -> dict[str, list[Result]]:
    """What each arm gives for each task (a prompt and a seed), from the store as far as it is there.

    >>> drawn(pipe, {"untouched": Arm()}, [("a red ring on a blue background", 0)], {"num_inference_steps": 5})  # doctest: +SKIP

    `options`: number of steps and guidance scale, as for `sample`; other arguments as for `compare`.
    """
    of = _settings(pipe, options)
    with Store(store) as kept:
        _run_missing(pipe, arms, tasks, of, options, batch, n_jobs, kept)
        return {name: kept.read(_key(of, arm, task) for task in tasks) for name, arm in arms.items()}


def _settings(pipe: Any, options: dict[str, Any]) -> str:
    """All that a result depends on beside arm, prompt and seed: weights and scales of adapters by fingerprints, the scheduler's config."""
    model = denoiser_of(pipe)
    device = str(next(model.parameters()).device.type)
    about = [type(pipe).__name__, type(pipe.scheduler).__name__, scheduler_config(pipe), options, device]
    return weights_digest(pipe) + steering(pipe) + json.dumps(about, sort_keys=True, default=str)


def _key(settings: str, arm: Arm, task: Task) -> str:
    text = json.dumps([settings, arm.about(), task], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _run_missing(
    pipe: Any, ways: Mapping[str, Arm], tasks: Sequence[Task], of: str, options: dict, batch: int, n_jobs: int | None, store: Store
) -> None:
    """Runs what the store does not hold, writing each batch as it comes; workers that die are replaced."""
    lost = 0
    with tqdm(desc="pictures", total=len(ways) * len(tasks), leave=False) as bar:
        while pending := list(_pending(ways, tasks, of, batch, store)):
            bar.update(bar.total - bar.n - sum(len(part) for _, part in pending))
            jobs = ((arm, part, [_key(of, arm, task) for task in part], options) for arm, part in pending)
            try:
                for results in in_workers(_run, pipe, jobs, n_jobs):
                    store.add(results)
                    bar.update(len(results))
                    lost = 0
            except WorkerLostError as loss:
                lost += 1
                if lost >= LOST_WORKERS:
                    raise WorkerLostError(
                        f"workers were killed {lost} times in a row before one had finished a batch of {batch}; perhaps memory is short: "
                        "give a smaller batch, or use fewer workers"
                    ) from loss
                warnings.warn("a worker process was killed; its pictures are drawn again", stacklevel=3)


def _pending(ways: Mapping[str, Arm], tasks: Sequence[Task], of: str, batch: int, store: Store) -> Iterator[tuple[Arm, list[Task]]]:
    done = store.keys()
    for arm in dict.fromkeys(ways.values()):  # equal arms under two names are run once
        left = [task for task in dict.fromkeys(tasks) if _key(of, arm, task) not in done]
        yield from ((arm, left[start : start + batch]) for start in range(0, len(left), batch))


def _run(pipe: Any, arm: Arm, tasks: list[Task], keys: list[str], options: dict[str, Any]) -> dict[str, Result]:
    prompts, seeds = zip(*tasks, strict=True)
    with torch.no_grad():
        drawn = sample(pipe, arm, prompts, seeds, **options)
    counts = asdict(drawn.counts)
    latents = drawn.latents.cpu()
    return {
        key: Result(latents[row].clone(), image, counts) for row, (key, image) in enumerate(zip(keys, drawn.images, strict=True))
    }


QUALITY = ("clip_score", "lpips", "fid", "kid")  # shown where they were asked
SHOWN = ("arm", "encoder_calls", "forward_calls", "gflops", "seconds", "ratio", "psnr", "psnr_worst", "ssim", "prompt_accuracy")


def brief(table: pd.DataFrame) -> pd.DataFrame:
    """The columns of `compare` that are looked at first; identical pictures are called identical.

    >>> brief(table).to_markdown(index=False)  # doctest: +SKIP
    """
    names = [*SHOWN, *(name for name in QUALITY if name in table)]
    digits = {
        "gflops": 1,
        "seconds": 3,
        "ratio": 2,
        "ssim": 3,
        "prompt_accuracy": 2,
        "clip_score": 2,
        "lpips": 3,
        "fid": 2,
        "kid": 4,
    }
    shown = table[names].round(digits)
    words = {name: ["identical" if np.isinf(value) else f"{value:.1f}" for value in table[name]] for name in ("psnr", "psnr_worst")}
    return shown.astype({"encoder_calls": int, "forward_calls": int}).assign(**words)
