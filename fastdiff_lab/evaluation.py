"""One way of running a pipeline, and what it gives and costs.

- `Arm`: one way of running the pipeline
- `sample(pipe, arm, prompts, ...)`: pictures, latents and counts of one arm
- `as_arm(pipe, arm, steps)`: the pipeline runs as the arm does, while the block lasts
- `denoiser_calls`, `denoiser_arguments`, `first_arguments`: how often and with what a run calls the denoiser
"""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler
from PIL import Image
from torch import Tensor, nn

from .decoding import Counts
from .deepcache import check_interval, deepcache
from .extrapolation import Extrapolation
from .hooks import replaced_call
from .prior_noise import prior_noise_injection
from .propagation import encoder_propagation
from .schedule import KeySchedule
from .split import denoiser_of
from .steering import processors_kept
from .token_merging import check_ratio, token_merging


@dataclass(frozen=True)
class Arm:
    """One way of running the pipeline; `Arm()` is the untouched run.

    `schedule`: encoder propagation with these key steps. `what`, `order`, `parallel_decoding`, `max_rows`, `encoder_blocks`: as in
    `encoder_propagation`. `prior_noise`: as in `prior_noise_injection` (weight, 0 for none). `steps`: instead, the plain sampler
    with so many steps, evenly spaced from the time-step at which the untouched run begins (or near it, since they end at 0 or above);
    with more steps than that run, DDIM from the first training time-step on, which converges to the exact solution. `deepcache`: instead,
    DeepCache's own package with this interval (1 or more), which evaluates the whole denoiser at every such step. `token_merging`: with
    any but DeepCache, this share of the tokens merged away by tomesd, as in `token_merging` (at most 0.75; 0 for none).

    Raises ValueError for a schedule, other steps or DeepCache together, and for DeepCache with token merging.
    """

    schedule: KeySchedule | None = None
    what: str = "encoder"
    order: int | Extrapolation = 0
    parallel_decoding: bool = True
    max_rows: int | None = None
    encoder_blocks: int | None = None
    prior_noise: float = 0.0
    steps: int | None = None
    deepcache: int | None = None
    token_merging: float = 0.0

    def __post_init__(self) -> None:
        if self.schedule is not None and self.steps is not None:
            raise ValueError("an arm has a schedule or other plain steps, not both")
        if self.deepcache is not None:
            check_interval(self.deepcache)
            if self.schedule is not None or self.steps is not None:
                raise ValueError("an arm has DeepCache or a schedule or other plain steps, not two of them")
        if self.token_merging != 0:
            check_ratio(self.token_merging)
            if self.deepcache is not None:
                raise ValueError("an arm has DeepCache or token merging, not both: together they were not tested")

    def about(self) -> dict[str, Any]:
        """The arm's fields as text and numbers, with the schedule in its text form."""
        found = asdict(self) | {"schedule": None if self.schedule is None else str(self.schedule)}
        # Results are kept under this text: those from before arms could merge tokens are still found.
        return found if self.token_merging else {name: value for name, value in found.items() if name != "token_merging"}

    def propagation(self) -> dict[str, Any]:
        """The options of `encoder_propagation`."""
        names = ("what", "order", "parallel_decoding", "max_rows", "encoder_blocks")
        return {name: getattr(self, name) for name in names}


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


@contextmanager
def as_arm(pipe: Any, arm: Arm, num_inference_steps: int) -> Iterator[tuple[Counts, int]]:
    """While the block lasts, calls of the pipeline are runs of the arm; yields what is evaluated, and the steps to call it with.

    >>> with as_arm(pipe, Arm(steps=9), 50) as (counts, steps):  # doctest: +SKIP
    ...     pipe("a red ring on a blue background", num_inference_steps=steps)
    """
    scheduler = pipe.scheduler
    with ExitStack() as stack:
        if arm.steps is not None:
            pipe.scheduler = _plain(scheduler, arm.steps, num_inference_steps)
            stack.callback(setattr, pipe, "scheduler", scheduler)
        if arm.token_merging:
            stack.enter_context(token_merging(pipe, arm.token_merging))
        if arm.schedule is not None:
            counts = stack.enter_context(encoder_propagation(pipe, arm.schedule, **arm.propagation()))
        else:
            counts = stack.enter_context(_counted(pipe) if arm.deepcache is None else deepcache(pipe, arm.deepcache))
        if arm.prior_noise:
            stack.enter_context(prior_noise_injection(pipe, weight=arm.prior_noise))
        yield counts, num_inference_steps if arm.steps is None else arm.steps


def sample(
    pipe: Any, arm: Arm, prompts: Sequence[str], seeds: Sequence[int], *, num_inference_steps: int = 50, guidance_scale: float = 5.0
) -> Sampled:
    """Runs one arm on prompts and seeds (one seed per prompt), as one batch.

    >>> sample(pipe, Arm(KeySchedule.paper(50)), ["a red ring on a blue background"], [0]).counts.encoder_calls  # doctest: +SKIP
    9
    """
    if not math.isfinite(guidance_scale):
        raise ValueError(f"guidance_scale={guidance_scale!r} asked; accepted: a finite number")
    with as_arm(pipe, arm, num_inference_steps) as (counts, steps):
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


def _plain(scheduler: Any, steps: int, of: int) -> Any:
    """The scheduler for other plain steps: fewer begin at the same time-step as `of` steps do, so that z_T means the same.

    Nearly so where they would end below time-step 0, or so high that DDIM and PNDM leave noise in their result.
    """
    kind, config = type(scheduler), scheduler.config
    if steps > of:
        return DDIMScheduler.from_config(config, timestep_spacing="leading", steps_offset=0)

    def first(steps: int, **options: Any) -> float:
        probe = kind.from_config(config, **options)
        probe.set_timesteps(steps)
        return float(probe.timesteps[0])

    offset = round(first(of) - first(steps, timestep_spacing="leading", steps_offset=0))
    if not hasattr(scheduler, "sigmas"):  # with them, the last step always ends at 0
        offset = min(offset, config.num_train_timesteps // steps)
    return kind.from_config(config, timestep_spacing="leading", steps_offset=max(offset, 0))


@contextmanager
def _counted(pipe: Any) -> Iterator[Counts]:
    """Counts of a run that nothing accelerates: every call encodes and decodes."""
    counts = Counts(runs=1)

    def counting(inner):
        def call(*args, **kwargs):
            for name in ("encoder_calls", "decoder_calls", "forward_calls", "steps"):
                setattr(counts, name, getattr(counts, name) + 1)
            return inner(*args, **kwargs)

        return call

    with replaced_call(denoiser_of(pipe), counting):
        yield counts


@torch.no_grad()
def decode(pipe: Any, latents: Tensor) -> list[Image.Image]:
    """The pictures of latents that a pipeline gave."""
    vae, dtype = pipe.vae, pipe.vae.dtype
    # Some autoencoders (SDXL's) overflow in float16 and say so in their config.
    in_float32 = dtype == torch.float16 and bool(getattr(vae.config, "force_upcast", False))
    try:
        if in_float32:
            vae.to(torch.float32)
        decoded = vae.decode(latents.to(vae.dtype) / vae.config.scaling_factor, return_dict=False)[0]
    finally:
        if in_float32:
            vae.to(dtype)
    return pipe.image_processor.postprocess(decoded, output_type="pil")


def denoiser_arguments(pipe: Any, prompt: str, guidance_scale: float = 5.0) -> dict[str, Any]:
    """The arguments of the denoiser's first call for one picture."""
    options = {"num_inference_steps": 1, "guidance_scale": guidance_scale, "generator": generators([0])}
    return first_arguments(denoiser_of(pipe), lambda: pipe(prompt, **options))


def first_arguments(model: nn.Module, run: Callable[[], Any]) -> dict[str, Any]:
    """The arguments of the first call of a model in `run()`, which ends there.

    >>> first_arguments(pipe.unet, lambda: pipe("a red ring on a blue background"))["sample"].shape  # doctest: +SKIP
    torch.Size([2, 4, 16, 16])
    """
    found: dict[str, Any] = {}

    class Found(Exception):
        pass

    def catch(inner):
        def call(*args, **kwargs):
            found.update(inspect.signature(type(model).forward).bind(model, *args, **kwargs).arguments)
            raise Found

        return call

    with replaced_call(model, catch), suppress(Found), processors_kept(model):
        run()
    return {name: value for name, value in found.items() if name != "self" and value is not None}


def denoiser_calls(pipe: Any, num_inference_steps: int) -> int:
    """How many times a text-to-image run calls the denoiser: some schedulers make more calls than steps."""
    if not isinstance(num_inference_steps, int) or num_inference_steps < 1:
        raise ValueError(f"{num_inference_steps!r} steps asked; accepted: a whole number of 1 or more")
    scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config)
    scheduler.set_timesteps(num_inference_steps)
    return len(scheduler.timesteps)
