"""What an accelerated sampler costs and gives, beside the untouched run.

- `compare(pipe, arms, prompts, ...)`: one row per arm
- `Arm`: one way of running the pipeline
- `sample(pipe, arm, prompts, ...)`: pictures and latents of one arm
"""

from __future__ import annotations

import inspect
import statistics
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from PIL import Image
from torch import Tensor
from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure
from tqdm import tqdm

from .decoding import Counts
from .flops import count_flops
from .hooks import replaced_call
from .prior_noise import prior_noise_injection
from .propagation import encoder_propagation
from .schedule import KeySchedule
from .shapes.judge import prompt_accuracy
from .split import denoiser_of


@dataclass(frozen=True)
class Arm:
    """One way of running the pipeline; `Arm()` is the untouched run.

    `schedule`: encoder propagation with these key steps. `parallel_decoding`, `prior_noise`: as in `encoder_propagation` and
    `prior_noise_injection` (weight, 0 for none). `steps`: instead, the plain sampler with so many steps, evenly spaced
    from the time-step at which the untouched run begins.
    """

    schedule: KeySchedule | None = None
    parallel_decoding: bool = True
    prior_noise: float = 0.0
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.schedule is not None and self.steps is not None:
            raise ValueError("an arm has a schedule or fewer plain steps, not both")


@dataclass
class Sampled:
    """What one arm gave: PIL pictures, latents (pictures, channels, height, width), evaluations, seconds."""

    images: list[Image.Image]
    latents: Tensor
    counts: Counts
    seconds: float


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One generator per picture, so that the batch it is drawn in changes nothing."""
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds]


def synchronize(device: torch.device) -> None:
    """Waits until the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def sample(
    pipe: Any, arm: Arm, prompts: Sequence[str], seeds: Sequence[int], *, num_inference_steps: int = 50, guidance_scale: float = 5.0
) -> Sampled:
    """Runs one arm on prompts and seeds (one seed per prompt), as one batch.

    >>> sample(pipe, Arm(KeySchedule.paper(50)), ["a red ring on a blue background"], [0]).counts.encoder_calls  # doctest: +SKIP
    9
    """
    steps = num_inference_steps if arm.steps is None else arm.steps
    scheduler = pipe.scheduler
    with ExitStack() as stack:
        if arm.steps is not None:
            pipe.scheduler = _from_the_same_start(scheduler, arm.steps, num_inference_steps)
            stack.callback(setattr, pipe, "scheduler", scheduler)
        counts = _count(pipe, stack) if arm.schedule is None else stack.enter_context(
            encoder_propagation(pipe, arm.schedule, parallel_decoding=arm.parallel_decoding)
        )  # fmt: skip
        if arm.prior_noise:
            stack.enter_context(prior_noise_injection(pipe, weight=arm.prior_noise))
        started = time.perf_counter()
        latents = pipe(
            list(prompts),
            num_inference_steps=steps,
            guidance_scale=guidance_scale,
            generator=generators(seeds),
            output_type="latent",
        ).images
        synchronize(latents.device)
        seconds = time.perf_counter() - started
    return Sampled(decode(pipe, latents), latents, counts, seconds)


def _from_the_same_start(scheduler: Any, steps: int, of: int) -> Any:
    """The scheduler for fewer plain steps that begin at the same time-step as `of` steps do, so that z_T means the same."""
    kind, config = type(scheduler), scheduler.config

    def first(steps: int, **options: Any) -> float:
        probe = kind.from_config(config, **options)
        probe.set_timesteps(steps)
        return float(probe.timesteps[0])

    offset = round(first(of) - first(steps, timestep_spacing="leading", steps_offset=0))
    if offset < 0:
        raise ValueError(f"{steps} plain steps asked beside {of}; accepted: as many or fewer")
    return kind.from_config(config, timestep_spacing="leading", steps_offset=offset)


def _count(pipe: Any, stack: ExitStack) -> Counts:
    """Counts of a run that nothing accelerates: every call encodes and decodes."""
    counts = Counts(runs=1)

    def counting(inner):
        def call(*args, **kwargs):
            for name in ("encoder_calls", "decoder_calls", "forward_calls", "steps"):
                setattr(counts, name, getattr(counts, name) + 1)
            return inner(*args, **kwargs)

        return call

    stack.enter_context(replaced_call(denoiser_of(pipe), counting))
    return counts


@torch.no_grad()
def decode(pipe: Any, latents: Tensor) -> list[Image.Image]:
    """The pictures of latents that a pipeline gave."""
    decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor, return_dict=False)[0]
    return pipe.image_processor.postprocess(decoded, output_type="pil")


def denoiser_arguments(pipe: Any, prompt: str, guidance_scale: float = 5.0) -> dict[str, Any]:
    """The arguments of the denoiser's first call for one picture."""
    model = denoiser_of(pipe)
    found: dict[str, Any] = {}

    class Found(Exception):
        pass

    def catch(inner):
        def call(*args, **kwargs):
            found.update(inspect.signature(type(model).forward).bind(model, *args, **kwargs).arguments)
            raise Found

        return call

    with replaced_call(model, catch), suppress(Found):
        pipe(prompt, num_inference_steps=1, guidance_scale=guidance_scale, generator=generators([0]))
    return {name: value for name, value in found.items() if name != "self" and value is not None}


def fidelity(images: Sequence[Image.Image], baseline: Sequence[Image.Image]) -> pd.DataFrame:
    """PSNR in dB (infinite for identical pictures) and SSIM of each picture to the baseline's."""
    rows = []
    for image, reference in zip(images, baseline, strict=True):
        a, b = (torch.from_numpy(np.asarray(i, dtype=np.float32) / 255).permute(2, 0, 1)[None] for i in (image, reference))
        rows.append({
            "mse": float((a - b).square().mean()),
            "psnr": float(peak_signal_noise_ratio(a, b, data_range=1.0)),
            "ssim": float(structural_similarity_index_measure(a, b, data_range=1.0)),
        })  # fmt: skip
    return pd.DataFrame(rows)


def mean_psnr(mse: pd.Series) -> float:
    """PSNR of the averaged squared error in dB: a mean of decibels would hide the worst pictures."""
    error = float(mse.mean())
    return float("inf") if error == 0 else -10 * float(np.log10(error))


def default_arms(num_steps: int, arms: Mapping[str, KeySchedule | Arm]) -> dict[str, Arm]:
    """The given arms, with those that must stand beside them: untouched, uniform keys and as many plain steps."""
    given = {name: Arm(arm) if isinstance(arm, KeySchedule) else arm for name, arm in arms.items()}
    beside = {"untouched": Arm()}
    for count in sorted({len(arm.schedule.keys) for arm in given.values() if arm.schedule is not None}):
        beside[f"uniform {count}"] = Arm(KeySchedule.uniform(num_steps, count))
        beside[f"plain {count} steps"] = Arm(steps=count)
    return beside | given


def compare(
    pipe: Any,
    arms: Mapping[str, KeySchedule | Arm],
    prompts: Sequence[str],
    *,
    seeds: Sequence[int] = (0,),
    num_inference_steps: int = 50,
    guidance_scale: float = 5.0,
    repeats: int = 3,
    batch: int = 16,
) -> pd.DataFrame:
    """Runs each arm on each prompt and seed, and says what it costs and how near it comes to the untouched run.

    >>> compare(pipe, {"paper": KeySchedule.paper(50)}, ["a red ring on a blue background"])  # doctest: +SKIP

    `arms`: name -> KeySchedule or `Arm`; the untouched run, uniform keys and as many plain steps are always added.
    `repeats`: timed runs of one picture per arm, after one that is not timed; the arms take turns. `batch`: pictures at once.

    Returns one row per arm: evaluations per picture, GFLOPs per picture (2 per multiply-add), `seconds` (median) and `ratio` to
    untouched, `psnr` (of the averaged error) and `psnr_worst` in dB, `ssim`, `ssim_worst`, and `prompt_accuracy` (share of
    pictures with all attributes right; NaN if the prompts are not captions of scenes).
    """
    if not prompts or not seeds:
        raise ValueError(f"{len(prompts)} prompts and {len(seeds)} seeds given; accepted: at least one of each")
    ways = default_arms(denoiser_calls(pipe, num_inference_steps), arms)
    options = {"num_inference_steps": num_inference_steps, "guidance_scale": guidance_scale}
    tasks = [(prompt, seed) for prompt in prompts for seed in seeds]
    drawn = {name: _draw(pipe, arm, tasks, batch, options) for name, arm in tqdm(ways.items(), desc="arms", leave=False)}
    seconds = _seconds(pipe, ways, tasks[0], repeats, options)
    flops = count_flops(denoiser_of(pipe), denoiser_arguments(pipe, prompts[0], guidance_scale))
    asked = [prompt for prompt, _ in tasks]
    rows = []
    for name in ways:
        images, counts = drawn[name]
        near = fidelity(images, drawn["untouched"][0])
        rows.append({
            "arm": name,
            "encoder_calls": counts.encoder_calls, "decoder_calls": counts.decoder_calls, "forward_calls": counts.forward_calls,
            "gflops": flops.of_run(counts.encoder_calls, counts.decoder_calls) / 1e9,
            "seconds": seconds[name], "ratio": seconds["untouched"] / seconds[name],
            "psnr": mean_psnr(near["mse"]), "psnr_worst": near["psnr"].min(),
            "ssim": near["ssim"].mean(), "ssim_worst": near["ssim"].min(),
            "prompt_accuracy": _accuracy(images, asked),
        })  # fmt: skip
    return pd.DataFrame(rows)


def denoiser_calls(pipe: Any, num_inference_steps: int) -> int:
    """How many times a text-to-image run calls the denoiser: some schedulers make more calls than steps."""
    if not isinstance(num_inference_steps, int) or num_inference_steps < 1:
        raise ValueError(f"{num_inference_steps!r} steps asked; accepted: a whole number of 1 or more")
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    scheduler.set_timesteps(num_inference_steps)
    return len(scheduler.timesteps)


def _draw(pipe: Any, arm: Arm, tasks: list[tuple[str, int]], batch: int, options: dict) -> tuple[list[Image.Image], Counts]:
    images: list[Image.Image] = []
    for start in range(0, len(tasks), batch):
        prompts, seeds = zip(*tasks[start : start + batch], strict=True)
        sampled = sample(pipe, arm, prompts, seeds, **options)
        images += sampled.images
    return images, sampled.counts


def _seconds(pipe: Any, ways: dict[str, Arm], task: tuple[str, int], repeats: int, options: dict) -> dict[str, float]:
    measured: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(repeats + 1):
        for name, arm in ways.items():
            seconds = sample(pipe, arm, [task[0]], [task[1]], **options).seconds
            if turn:
                measured[name].append(seconds)
    return {name: statistics.median(values) if values else float("nan") for name, values in measured.items()}


def _accuracy(images: list[Image.Image], prompts: list[str]) -> float:
    try:
        return float(prompt_accuracy(images, prompts)["all"].mean())
    except (ValueError, FileNotFoundError):
        return float("nan")
