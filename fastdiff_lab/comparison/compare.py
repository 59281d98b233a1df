"""Measure what methods cost, and how near they come to the baseline.

- `compare(pipe, methods, prompts, ...)`: one row per method
- `compare_images(pipe, methods, prompts, ...)`: one row per method, prompt and seed, stored as they come
- `with_costs(pipe, methods, images, ...)`: the first from the second
- `compare_tasks(pipe, methods, tasks, ...)`: the same for given pairs of prompt and seed
- `brief(table)`: the columns to look at first
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
from ..inputs.plain_values import is_whole, plain, prompts_of, seeds_of, whole_number
from ..key_schedule import KeySchedule
from ..propagation.checks import check_is_one_run, check_prompts
from ..propagation.config import PropagationConfig
from ..propagation.fit import PropagationFit
from ..sampling.methods import Method
from ..sampling.run_settings import RunSettings
from .costs import of_one_image, operations
from .render import Task, draw_missing
from .result_store import Store
from .tables import BASELINE, REFERENCE, image_rows, summarised

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from distributed import Client

    from ..sampling.rivals.rival import Around
    from .image_quality.scores import Quality

    Asked = KeySchedule | PropagationFit | Method | Around


def default_methods(num_steps: int, methods: Mapping[str, Asked], rivals: bool = True) -> dict[str, Method]:
    """Add the baseline to the given methods, and with `rivals` what must stand beside each number of keys.

    The rivals are uniform keys, as many steps, and the prediction reused at the same keys.
    `num_steps` counts the denoiser calls of a whole run. A schedule for fewer belongs to image-to-image, and so do its rivals.
    """
    given = {name: _as_method(name, method) for name, method in methods.items()}
    beside = {BASELINE: Method()}
    if not rivals:
        return beside | given
    schedules = {name: method.schedule for name, method in given.items() if method.schedule is not None}
    made = next((schedule.num_steps for schedule in schedules.values()), num_steps)
    for count in sorted({len(schedule.keys) for schedule in schedules.values()}):
        beside[f"uniform {count}"] = Method(KeySchedule.uniform(made, count))
        beside[f"fewer steps ({count})"] = Method(steps=round(count * num_steps / made))
    for name, schedule in schedules.items():
        # Without `measured_on`, so that this deliberate use does not warn.
        reused = Method(replace(schedule, measured_on=None), reuse="prediction")
        if reused not in (*beside.values(), *given.values()):
            beside[f"{name}, prediction reused"] = reused
    return beside | given


def _as_method(name: str, given: Any) -> Method:
    if not (isinstance(given, KeySchedule | PropagationFit | Method) or callable(given)):
        raise TypeError(
            f"method {name!r} is {given!r}; accepted: a KeySchedule, a PropagationFit or a Method, or a function as Method(around=...) "
            "takes it"
        )
    given = Method(PropagationConfig.of_fit(given)) if isinstance(given, PropagationFit) else given
    return given if isinstance(given, Method) else Method(given) if isinstance(given, KeySchedule) else Method(around=given)


def compare(
    pipe: DiffusionPipeline,
    methods: Mapping[str, Asked],
    prompts: Sequence[Any],
    *,
    seeds: Sequence[int] = (0,),
    num_inference_steps: int = 50,
    guidance_scale: float | None = None,
    pipe_kwargs: Mapping[str, Any] | None = None,
    reference_steps: int | None = None,
    repeats: int = 3,
    batch_size: int = 16,
    n_jobs: int | Client | None = None,
    store: str | Path | None = None,
    rivals: bool = True,
    metrics: Sequence[str] = (),
    metric_weights: str | Path | None = None,
    real_images: str | Path | None = None,
) -> pd.DataFrame:
    """Measure what each method costs and how near it comes to the baseline.

    >>> from fastdiff_lab.pipelines import load_pipeline
    >>> methods, prompts = {"two keys": KeySchedule(5, (0, 2))}, ["a red ring on a blue background"]
    >>> table = compare(load_pipeline(), methods, prompts, num_inference_steps=5, repeats=0, rivals=False)
    >>> table["encoder_calls"].tolist()
    [5.0, 2.0]

    Args:
        methods: Name -> KeySchedule, PropagationFit or `Method`, or a function as `Method(around=...)` takes it.
            The baseline is added, and with `rivals` uniform keys, fewer steps, and the prediction reused at the same keys.
        prompts: Texts; class labels for DiTPipeline, PIL images for Stable Video Diffusion.
        seeds: Each prompt is run with each seed.
        num_inference_steps: As the pipeline takes it.
        guidance_scale: None for the pipeline's own.
        pipe_kwargs: Further arguments of the pipeline, one for all images or a list with one for each prompt.
            The frames of a video count as one image, one above the other.
        reference_steps: Compare also with DDIM in so many steps, such as 1,000; None for no reference.
        repeats: Timed runs of one image per method, after one that is not timed; 0 for none.
        batch_size: Images at once.
        n_jobs: Worker processes on this machine; None for this process, -1 for one per core. Or a Dask client, whose workers draw.
        store: A file that keeps each result. The same call resumes from it.
        metrics: Any of "fid", "kid", "clip_score" and "lpips", measured anew by each call.
        metric_weights: Folder of their weight files (docs/quality.md).
        real_images: Folder of real images, for FID and KID.

    Returns:
        One row per method; `images` is the sample size.
        Costs per image: evaluations; `gflops` (2 per multiply-add), `gmacs`; `seconds` (median, up to the latents),
        `ratio` to the baseline, `peak_bytes` (devices only).
        Fidelity to the baseline: `psnr` of the averaged error in dB, `ssim`, `latent_mse`, each with `_worst` and a 95 %
        bootstrap interval `_low`, `_high`; `psnr_typical`, the mean over images, with identical ones as 100 dB.
        The same to the reference, with `reference_` before. The metrics.
        `prompt_accuracy`: the share of images with all attributes right, NaN for prompts that are no captions of scenes.

    Raises:
        TypeError: Prompts, options or a pipeline that cannot be compared.
        ValueError: The same, or a value out of range; both before anything is drawn.
    """
    repeats = whole_number("repeats", repeats, 0)  # before hours of drawing
    denoiser_of(pipe)
    prompts = prompts_of(prompts)
    asked: dict[str, Any] = {
        "num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale, "pipe_kwargs": pipe_kwargs,
    }  # fmt: skip
    run = RunSettings(**asked).on(pipe, len(prompts), "comparison")
    ways = default_methods(run.denoiser_calls(pipe), methods, rivals)
    images = compare_images(
        pipe, ways, prompts, seeds=seeds, reference_steps=reference_steps, batch_size=batch_size, n_jobs=n_jobs, store=store, rivals=False,
        metrics=metrics, metric_weights=metric_weights, real_images=real_images, **asked,
    )  # fmt: skip
    return with_costs(pipe, ways, images, prompt=prompts[0], repeats=repeats, **asked)


def with_costs(
    pipe: DiffusionPipeline,
    methods: Mapping[str, Method],
    images: pd.DataFrame,
    *,
    prompt: Any = None,
    num_inference_steps: int = 50,
    guidance_scale: float | None = None,
    pipe_kwargs: Mapping[str, Any] | None = None,
    repeats: int = 3,
) -> pd.DataFrame:
    """Summarise the table of `compare_images`, and measure now what each method costs.

    >>> with_costs(pipe, methods, compare_images(pipe, methods, prompts, rivals=False))  # doctest: +SKIP

    Args:
        methods: Each method of `images` by its name.
        prompt: What is timed; None for the first of `images`. Give one if prompts are images.
        pipe_kwargs: As for `compare`, like the other arguments. From lists, the first entry is timed.

    Returns:
        The table of `compare`.
    """
    repeats = whole_number("repeats", repeats, 0)
    run = RunSettings(num_inference_steps, guidance_scale, pipe_kwargs).on(pipe).of([0])
    seed = int(images["seed"].iloc[0])
    prompt = in_words(images["prompt"].iloc[0]) if prompt is None else prompt
    quality = summarised(images)
    costs = of_one_image(pipe, methods, (prompt, seed), repeats, run).assign(**operations(pipe, methods, quality, prompt, run))
    costs = costs.assign(ratio=costs.loc[BASELINE, "seconds"] / costs["seconds"])[
        ["seconds", "ratio", "peak_bytes", "gflops", "gmacs"]
    ]
    calls = ["encoder_calls", "decoder_calls", "forward_calls"]
    return quality[calls].join(costs).join(quality.drop(columns=calls)).rename_axis("method").reset_index()


def compare_images(
    pipe: DiffusionPipeline,
    methods: Mapping[str, Asked],
    prompts: Sequence[Any],
    *,
    seeds: Sequence[int] = (0,),
    num_inference_steps: int = 50,
    guidance_scale: float | None = None,
    pipe_kwargs: Mapping[str, Any] | None = None,
    reference_steps: int | None = None,
    batch_size: int = 16,
    n_jobs: int | Client | None = None,
    store: str | Path | None = None,
    rivals: bool = True,
    metrics: Sequence[str] = (),
    metric_weights: str | Path | None = None,
    real_images: str | Path | None = None,
) -> pd.DataFrame:
    """Run each method on each prompt and seed; arguments as for `compare`.

    >>> compare_images(pipe, {"paper": KeySchedule.paper(50)}, prompts).groupby("method")["psnr"].min()  # doctest: +SKIP

    Returns:
        One row per method, prompt and seed: evaluations, `mse`, `psnr`, `ssim` and `latent_mse` to the baseline and to the
        reference, metrics, `prompt_accuracy`. A prompt that is an image stands as a digest.
        `fid` and `kid` belong to all images of a method, and stand in each of its rows.
    """
    prompts, seeds, batch_size = prompts_of(prompts), seeds_of(seeds, least=0), whole_number("batch_size", batch_size, 1)
    check_prompts(pipe, prompts)
    check_is_one_run(pipe, guidance_scale, "comparison")
    _check_metrics(pipe, metrics, prompts)
    if n_jobs == 0 or not (n_jobs is None or is_whole(n_jobs) or hasattr(n_jobs, "scatter")):
        raise ValueError(f"n_jobs={n_jobs!r} asked; accepted: 1 or more, -1 for all cores, None, or a Dask client")
    device = next(denoiser_of(pipe).parameters()).device  # raises unless this is a pipeline
    run = RunSettings(num_inference_steps, guidance_scale, pipe_kwargs).on(pipe, len(prompts), "comparison")
    tasks = [Task(prompt, seed, own) for prompt, own in zip(prompts, run.own, strict=True) for seed in seeds]
    ways = default_methods(run.denoiser_calls(pipe), methods, rivals)
    if reference_steps is not None:
        ways = _with_reference(ways, plain(reference_steps), run.num_inference_steps)
    quality = _quality(metrics, metric_weights, real_images, images=len(tasks), device=device)
    return compare_tasks(pipe, ways, tasks, run.shared, quality=quality, batch_size=batch_size, n_jobs=n_jobs, store=store)


def _quality(metrics: Sequence[str], weights: str | Path | None, real: str | Path | None, **options: Any) -> Quality | None:
    """The networks of metrics; without them torchmetrics is not needed, which the extra `quality` brings."""
    if not metrics and weights is None and real is None:
        return None
    with extra("quality", f"metrics={metrics!r}"):
        from .image_quality.scores import quality_of
    return quality_of(metrics, metric_weights=weights, real_images=real, **options)


def _with_reference(ways: dict[str, Method], reference_steps: int, num_inference_steps: int) -> dict[str, Method]:
    if not is_whole(reference_steps) or not reference_steps > num_inference_steps:
        raise ValueError(
            f"reference_steps={reference_steps!r} asked; accepted: more than the {num_inference_steps} steps of the run, or None"
        )
    return {REFERENCE: Method(steps=reference_steps)} | ways


def _check_metrics(pipe: DiffusionPipeline, metrics: Sequence[str], prompts: Sequence[Any]) -> None:
    if "clip_score" in metrics and not all(isinstance(prompt, str) for prompt in prompts):
        raise ValueError("metrics clip_score asked of prompts that are no texts; accepted: fid, kid, lpips, or texts")
    if metrics and hasattr(pipe, "video_processor"):
        raise ValueError(
            f"metrics {', '.join(metrics)} asked of {type(pipe).__name__}, which draws videos; metrics judge images; accepted: no metrics"
        )


def compare_tasks(
    pipe: DiffusionPipeline,
    methods: Mapping[str, Method],
    tasks: Sequence[tuple],
    run: RunSettings,
    *,
    quality: Quality | None = None,
    batch_size: int = 16,
    n_jobs: int | Client | None = None,
    store: str | Path | None = None,
) -> pd.DataFrame:
    """Make the table of `compare_images` for given pairs of prompt and seed.

    >>> compare_tasks(pipe, {"baseline": Method()}, [("a red ring on a blue background", 0)], RunSettings(5))  # doctest: +SKIP

    `quality` comes from `quality_of`; other arguments as for `drawn`. Raises ValueError without the baseline among the methods.
    """
    if BASELINE not in methods:
        raise ValueError(f"methods {', '.join(methods)} given; accepted: {BASELINE!r} among them, which the others are compared to")
    wanted = [Task(*task) for task in tasks]
    with Store(store) as kept:
        read = draw_missing(pipe, methods, wanted, run, kept, batch_size=batch_size, n_jobs=n_jobs)
        return image_rows(lambda name, part: read(methods[name], part), list(methods), wanted, quality)


QUALITY = ("clip_score", "lpips", "fid", "kid")  # the default of `columns`
SHOWN = ("method", "encoder_calls", "forward_calls", "gflops", "seconds", "ratio", "psnr", "psnr_worst", "ssim", "prompt_accuracy")


def brief(table: pd.DataFrame) -> pd.DataFrame:
    """The columns of `compare` to look at first. Identical images are called identical.

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
