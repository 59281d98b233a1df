"""What accelerated samplers cost and give, beside the untouched run.

- `compare(pipe, arms, prompts, ...)`: one row per arm
- `compare_pictures(pipe, arms, prompts, ...)`: one row per arm, prompt and seed, kept in a store as they come
- `with_costs(pipe, arms, pictures, ...)`: the first from the second
- `compare_tasks(pipe, arms, tasks, ...)`: the same for given pairs of prompt and seed
- `brief(table)`: the columns that are looked at first
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..hooks.denoiser import denoiser_of
from ..hooks.fingerprint import in_words
from ..inputs.extras import extra
from ..inputs.plain_values import is_whole, plain, prompts_of, seeds_of, whole
from ..key_schedule import KeySchedule
from ..propagation.checks import check_is_one_run, check_prompts
from ..sampling.call_options import call_options, own_guidance
from ..sampling.methods import Arm, denoiser_calls
from .costs import of_one_picture, operations
from .render import Task, draw_missing
from .result_store import Store
from .tables import REFERENCE, UNTOUCHED, picture_rows, summarised

if TYPE_CHECKING:
    from distributed import Client

    from .image_quality.scores import Quality


def default_arms(num_steps: int, arms: Mapping[str, KeySchedule | Arm], rivals: bool = True) -> dict[str, Arm]:
    """The given arms, after those that must stand beside them.

    Untouched; and with `rivals` uniform keys and as many plain steps for each number of keys, and the predictions held at the same keys.
    `num_steps`: denoiser calls of a whole run; schedules for fewer belong to a run that begins later (image-to-image), as do its rivals.
    """
    wrong = next((name for name, arm in arms.items() if not isinstance(arm, KeySchedule | Arm)), None)
    if wrong is not None:
        raise TypeError(f"arm {wrong!r} is {arms[wrong]!r}; accepted: a KeySchedule or an Arm")
    given = {name: Arm(arm) if isinstance(arm, KeySchedule) else arm for name, arm in arms.items()}
    beside = {UNTOUCHED: Arm()}
    if not rivals:
        return beside | given
    schedules = {name: arm.schedule for name, arm in given.items() if arm.schedule is not None}
    made = next((schedule.num_steps for schedule in schedules.values()), num_steps)
    for count in sorted({len(schedule.keys) for schedule in schedules.values()}):
        beside[f"uniform {count}"] = Arm(KeySchedule.uniform(made, count))
        beside[f"plain {count} steps"] = Arm(steps=round(count * num_steps / made))
    for name, schedule in schedules.items():
        # A rival on purpose: it does not carry what the keys were measured on, and so does not warn.
        held = Arm(replace(schedule, measured_on=None), what="prediction")
        if held not in (*beside.values(), *given.values()):
            beside[f"{name}, prediction held"] = held
    return beside | given


def compare(
    pipe: Any,
    arms: Mapping[str, KeySchedule | Arm],
    prompts: Sequence[Any],
    *,
    seeds: Sequence[int] = (0,),
    num_inference_steps: int = 50,
    guidance_scale: float | None = None,
    options: Mapping[str, Any] | None = None,
    reference_steps: int | None = None,
    repeats: int = 3,
    batch: int = 16,
    n_jobs: int | Client | None = None,
    store: str | Path | None = None,
    rivals: bool = True,
    metrics: Sequence[str] = (),
    metric_weights: str | Path | None = None,
    real_pictures: str | Path | None = None,
) -> pd.DataFrame:
    """Runs each arm on each prompt and seed, and says what it costs and how near it comes to the untouched run.

    >>> compare(pipe, {"paper": KeySchedule.paper(50)}, ["a red ring on a blue background"])  # doctest: +SKIP

    `arms`: name -> KeySchedule or `Arm`; the untouched run, uniform keys, as many plain steps, and the predictions held at the
    same keys are added, so that none is shown alone; with `rivals=False` the untouched run only. `prompts`: texts, class labels for
    DiTPipeline, PIL pictures for Stable Video Diffusion. `guidance_scale`: None for the pipeline's own. `options`: further arguments of the
    pipeline, alike for all pictures (a ControlNet's `image`, `num_frames` of a video, whose frames count as one picture, one above the
    other), or a list with one for each prompt (`negative_prompt`, `image`). Time-steps among them are those of the untouched run and of
    schedules; arms with other `steps` are evenly spaced from the same first one.
    `reference_steps`: also compares with DDIM in so many steps (1,000: the converged run of the same seed), more than
    `num_inference_steps`; None leaves that out. `repeats`: timed runs of one picture per arm, after one that is not timed; the
    arms take turns; 0 for no timing. `batch`: pictures at once. `n_jobs`: worker processes on this machine (None: this one;
    -1: one a core), or a Dask client, whose workers draw.
    `store`: file that keeps each result as it comes: the same call goes on where a killed one stopped, and other arms are added
    to what is there. `metrics`: of "fid", "kid", "clip_score" and "lpips", with `metric_weights`, the folder of their weight files,
    and for fid and kid `real_pictures`, a folder of picture files (docs/quality.md says which); all of it is read before a picture is
    drawn, and measured again by each call.

    Returns one row per arm: evaluations per picture; GFLOPs (2 per multiply-add) and GMACs per picture; `seconds` (median, one
    picture, up to the latents; of the whole call for pixels), `ratio` to untouched and `peak_bytes` (CUDA only); `psnr` of
    the averaged error in dB, `ssim`, `latent_mse` to the untouched run, each with `_worst` and the ends of its 95 % bootstrap interval
    `_low`, `_high`; `psnr_typical`, the mean of the pictures' PSNR (identical ones count as 100 dB), which a few that flip move
    less; all of these with `reference_` before; `clip_score` (0 to 100, to the prompt) and `lpips` (to the untouched picture), with worst
    and interval; `fid`, `kid` and `kid_std` between the arm's pictures and the real ones; and `prompt_accuracy` (share of pictures with
    all attributes right; NaN if the prompts are no captions of scenes). The embedded pipeline was taught one object in a picture only: its
    captions of two, half of `held_out_prompts`, count as wrong in every arm. `pictures` is the sample size.

    Raises TypeError or ValueError for prompts, options or a pipeline that cannot be compared, before anything is drawn; and what
    `encoder_propagation` raises when an arm runs.
    """
    repeats = whole("repeats", repeats, 0)  # before hours are spent on pictures
    denoiser_of(pipe)
    prompts, num_inference_steps = prompts_of(prompts), plain(num_inference_steps)
    of_run: dict[str, Any] = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale, "options": options}
    given = call_options(pipe, options, len(prompts))
    ways = default_arms(denoiser_calls(pipe, num_inference_steps, given.alike), arms, rivals)
    pictures = compare_pictures(
        pipe, ways, prompts, seeds=seeds, reference_steps=reference_steps, batch=batch, n_jobs=n_jobs, store=store, rivals=False,
        metrics=metrics, metric_weights=metric_weights, real_pictures=real_pictures, **of_run,
    )  # fmt: skip
    return with_costs(pipe, ways, pictures, prompt=prompts[0], repeats=repeats, **of_run)


def _of_run(pipe: Any, num_inference_steps: int, guidance_scale: float | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """What `sample` is given; without further options what it was before there were any, so that stores find their pictures."""
    guidance = own_guidance(pipe, guidance_scale)
    return {"num_inference_steps": whole("num_inference_steps", num_inference_steps, 1), "guidance_scale": guidance} | (
        {"options": dict(options)} if options else {}
    )


def with_costs(
    pipe: Any,
    arms: Mapping[str, Arm],
    pictures: pd.DataFrame,
    *,
    prompt: Any = None,
    num_inference_steps: int = 50,
    guidance_scale: float | None = None,
    options: Mapping[str, Any] | None = None,
    repeats: int = 3,
) -> pd.DataFrame:
    """The table of `compare` from the pictures of `compare_pictures`: their summary, and what each arm costs, measured now.

    >>> with_costs(pipe, arms, compare_pictures(pipe, arms, prompts, rivals=False))  # doctest: +SKIP

    `arms`: each arm of `pictures` by its name. `prompt`: what is timed; None: the first of `pictures` (where prompts are
    pictures themselves, give one). `options`: of lists with one for each prompt, the first is timed. Other
    arguments and result as for `compare`.
    """
    repeats = whole("repeats", repeats, 0)
    of_run = _of_run(pipe, num_inference_steps, guidance_scale, call_options(pipe, options, None).of([0]))
    seed = int(pictures["seed"].iloc[0])
    prompt = in_words(pictures["prompt"].iloc[0]) if prompt is None else prompt
    quality = summarised(pictures)
    costs = of_one_picture(pipe, arms, (prompt, seed), repeats, of_run).assign(**operations(pipe, arms, quality, prompt, of_run))
    costs = costs.assign(ratio=costs.loc[UNTOUCHED, "seconds"] / costs["seconds"])[
        ["seconds", "ratio", "peak_bytes", "gflops", "gmacs"]
    ]
    calls = ["encoder_calls", "decoder_calls", "forward_calls"]
    return quality[calls].join(costs).join(quality.drop(columns=calls)).rename_axis("arm").reset_index()


def compare_pictures(
    pipe: Any,
    arms: Mapping[str, KeySchedule | Arm],
    prompts: Sequence[Any],
    *,
    seeds: Sequence[int] = (0,),
    num_inference_steps: int = 50,
    guidance_scale: float | None = None,
    options: Mapping[str, Any] | None = None,
    reference_steps: int | None = None,
    batch: int = 16,
    n_jobs: int | Client | None = None,
    store: str | Path | None = None,
    rivals: bool = True,
    metrics: Sequence[str] = (),
    metric_weights: str | Path | None = None,
    real_pictures: str | Path | None = None,
) -> pd.DataFrame:
    """Runs each arm on each prompt and seed; arguments as for `compare`.

    >>> compare_pictures(pipe, {"paper": KeySchedule.paper(50)}, prompts).groupby("arm")["psnr"].min()  # doctest: +SKIP

    Returns one row per arm, prompt and seed (a picture that is a prompt stands as a digest): evaluations, `mse`, `psnr`, `ssim`,
    `latent_mse` to the untouched run (and to the reference), the `metrics`, `prompt_accuracy`. `fid` and `kid` belong to all pictures of
    an arm, and stand in each of its rows.
    """
    prompts, seeds, batch = prompts_of(prompts), seeds_of(seeds, least=0), whole("batch", batch, 1)
    num_inference_steps, reference_steps = plain(num_inference_steps), plain(reference_steps)
    check_prompts(pipe, prompts)
    check_is_one_run(pipe, guidance_scale, "comparison")
    _check_metrics(pipe, metrics, prompts)
    if n_jobs == 0 or not (n_jobs is None or is_whole(n_jobs) or hasattr(n_jobs, "scatter")):
        raise ValueError(f"n_jobs={n_jobs!r} asked; accepted: 1 or more, -1 for all cores, None, or a Dask client")
    device = next(denoiser_of(pipe).parameters()).device  # raises for what is no pipeline
    given = call_options(pipe, options, len(prompts))
    tasks = [Task(prompt, seed, own) for prompt, own in zip(prompts, given.own, strict=True) for seed in seeds]
    of_run = _of_run(pipe, num_inference_steps, guidance_scale, given.alike)
    ways = default_arms(denoiser_calls(pipe, num_inference_steps, given.alike), arms, rivals)
    if reference_steps is not None:
        ways = _with_reference(ways, reference_steps, num_inference_steps)
    quality = _quality(metrics, metric_weights, real_pictures, pictures=len(tasks), device=device)
    return compare_tasks(pipe, ways, tasks, of_run, quality=quality, batch=batch, n_jobs=n_jobs, store=store)


def _quality(metrics: Sequence[str], weights: str | Path | None, real: str | Path | None, **options: Any) -> Quality | None:
    """The networks of metrics; without them torchmetrics is not needed, which the extra `quality` brings."""
    if not metrics and weights is None and real is None:
        return None
    with extra("quality", f"metrics={metrics!r}"):
        from .image_quality.scores import quality_of
    return quality_of(metrics, metric_weights=weights, real_pictures=real, **options)


def _with_reference(ways: dict[str, Arm], reference_steps: int, num_inference_steps: int) -> dict[str, Arm]:
    if not is_whole(reference_steps) or not reference_steps > num_inference_steps:
        raise ValueError(
            f"reference_steps={reference_steps!r} asked; accepted: more than the {num_inference_steps} steps of the run, or None"
        )
    return {REFERENCE: Arm(steps=reference_steps)} | ways


def _check_metrics(pipe: Any, metrics: Sequence[str], prompts: Sequence[Any]) -> None:
    if "clip_score" in metrics and not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError("metrics clip_score asked of prompts that are no texts; accepted: fid, kid, lpips, or texts")
    if metrics and hasattr(pipe, "video_processor"):
        raise ValueError(
            f"metrics {', '.join(metrics)} asked of {type(pipe).__name__}, which draws videos; accepted: no metrics, which are of pictures"
        )


def compare_tasks(
    pipe: Any,
    arms: Mapping[str, Arm],
    tasks: Sequence[tuple],
    options: dict[str, Any],
    *,
    quality: Quality | None = None,
    batch: int = 16,
    n_jobs: int | Client | None = None,
    store: str | Path | None = None,
) -> pd.DataFrame:
    """The table of `compare_pictures` for pairs of prompt and seed; pictures are read from the store and measured a few at a time.

    >>> compare_tasks(pipe, {"untouched": Arm()}, [("a red ring on a blue background", 0)], {"num_inference_steps": 5})  # doctest: +SKIP

    `arms`: with the untouched run; `quality`: of `quality_of`; other arguments as for `drawn`. Raises ValueError without the untouched run.
    """
    if UNTOUCHED not in arms:
        raise ValueError(f"arms {', '.join(arms)} given; accepted: {UNTOUCHED!r} among them, which the others are compared to")
    wanted = [Task(*task) for task in tasks]
    with Store(store) as kept:
        read = draw_missing(pipe, arms, wanted, options, kept, batch=batch, n_jobs=n_jobs)
        return picture_rows(lambda name, part: read(arms[name], part), list(arms), wanted, quality)


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
