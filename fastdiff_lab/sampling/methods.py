"""Run a pipeline by one method, and see what that gives and costs.

- `Method`: one method
- `sample(pipe, method, prompts, ...)`: images, latents and counts of one method
- `as_method(pipe, method, steps)`: accelerate the pipeline inside a `with` block
- `run_options(...)`: arguments of a call beside prompts and seeds
- `denoiser_calls`, `denoiser_arguments`, `first_arguments`: the denoiser calls of a run
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..hooks.adapters import processors_kept
from ..hooks.denoiser import denoiser_of
from ..hooks.denoiser_call import arguments_of
from ..hooks.device import device_of, synchronize
from ..hooks.guided_rows import by_image
from ..hooks.patching import replaced_call
from ..inputs.plain_values import is_whole, number, plain, seeds_of
from ..key_schedule import KeySchedule
from ..propagation.config import PropagationConfig
from ..propagation.counts import Counts
from ..propagation.encoder_propagation import encoder_propagation
from ..propagation.extrapolation import Extrapolation
from ..propagation.handle import check_not_accelerated
from ..propagation.prior_noise import prior_noise_injection
from .batches import one_decoded_at_a_time
from .call_options import TIME_STEPS, call_options, without_time_steps
from .output_image import as_image, gives_latents, watched_run
from .rivals.deepcache import check_interval, deepcache
from .rivals.token_merging import check_ratio, token_merging
from .silence import no_bars
from .step_counts import SchedulerRefusesError, calls_of, most_steps, scheduler_with_steps

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True)
class Method:
    """One method of sampling. `Method()` is the baseline.

    >>> Method(KeySchedule.uniform(50, 9), order=1).about()["schedule"]
    '0,6,11,17,22,28,33,39,44 of 50'

    Args:
        schedule: Encoder propagation with these key steps.
        reuse: As in `encoder_propagation`; so are `order`, `parallel_decoding`, `max_rows` and `encoder_blocks`.
        prior_noise: The weight, as in `prior_noise_injection`; 0 for none.
        steps: Instead of a schedule, so many steps, evenly spaced from about the baseline's first time-step.
            More steps than the baseline's are DDIM from the first training time-step on, which converges to the exact solution.
        deepcache: Instead of a schedule, DeepCache with this interval, 1 or more.
        token_merging: Share of tokens merged by tomesd, at most 0.75; 0 for none. Not with DeepCache.

    Raises:
        ValueError: Several methods at once, or a value out of range.
    """

    schedule: KeySchedule | None = None
    reuse: str = "encoder"
    order: int | Extrapolation = 0
    parallel_decoding: bool = True
    max_rows: int | None = None
    encoder_blocks: int | None = None
    prior_noise: float = 0.0
    steps: int | None = None
    deepcache: int | None = None
    token_merging: float = 0.0

    def __post_init__(self) -> None:
        for name in ("order", "max_rows", "encoder_blocks", "steps", "deepcache"):  # also numpy's numbers
            object.__setattr__(self, name, plain(getattr(self, name)))
        for name in ("prior_noise", "token_merging"):
            object.__setattr__(self, name, number(name, getattr(self, name)))
        if self.schedule is not None and self.steps is not None:
            raise ValueError("a method has a schedule or another number of steps, not both; make two methods")
        if self.deepcache is not None:
            check_interval(self.deepcache)
            if self.schedule is not None or self.steps is not None:
                raise ValueError(
                    "a method has DeepCache or a schedule or another number of steps, not two of them; make two methods"
                )
        if self.token_merging != 0:
            check_ratio(self.token_merging)
            if self.deepcache is not None:
                raise ValueError(
                    "a method has DeepCache or token merging, not both: nobody has tested them together; make two methods"
                )

    def about(self) -> dict[str, Any]:
        """List the fields as text and numbers, with the schedule in its text form."""
        found = asdict(self) | {"schedule": None if self.schedule is None else str(self.schedule)}
        # Results are stored under this text. Without token merging it stays as it was before there was any.
        return found if self.token_merging else {name: value for name, value in found.items() if name != "token_merging"}

    def propagation(self) -> PropagationConfig | None:
        """Say how encoder propagation accelerates the run; None for a method without it."""
        if self.schedule is None:
            return None
        return PropagationConfig(self.schedule, self.order, self.reuse, self.parallel_decoding, self.max_rows, self.encoder_blocks)


@dataclass
class Sampled:
    """What one method gave: a PIL image per prompt, latents (images, ...), counts, seconds.

    The frames of a video stand one above the other in its image.
    """

    images: list[Image.Image]
    latents: Tensor
    counts: Counts
    seconds: float


def generators(seeds: Sequence[int]) -> list[torch.Generator]:
    """One generator per image, so that results do not depend on the batch."""
    return [torch.Generator("cpu").manual_seed(seed) for seed in seeds_of(seeds)]


@contextmanager
def as_method(
    pipe: DiffusionPipeline, method: Method, num_inference_steps: int, pipe_kwargs: Mapping[str, Any] | None = None
) -> Iterator[tuple[Counts, int]]:
    """Accelerate the pipeline inside the block; yield counts and the steps to call it with.

    >>> with as_method(pipe, Method(steps=9), 50) as (counts, steps):  # doctest: +SKIP
    ...     pipe("a red ring on a blue background", num_inference_steps=steps)

    `pipe_kwargs` are further arguments of the baseline. Fewer steps begin at its first time-step.
    """
    check_not_accelerated(pipe)
    scheduler = pipe.scheduler
    with ExitStack() as stack:
        if method.steps is not None:
            pipe.scheduler = scheduler_with_steps(scheduler, method.steps, num_inference_steps, times_in(pipe_kwargs))
            stack.callback(setattr, pipe, "scheduler", scheduler)
        steps = num_inference_steps if method.steps is None else method.steps
        with suppress(SchedulerRefusesError):  # a pipeline may make its scheduler take them by further options
            denoiser_calls(pipe, steps, pipe_kwargs if method.steps is None else None)
        if method.token_merging:
            stack.enter_context(token_merging(pipe, method.token_merging))
        propagation = method.propagation()
        if propagation is not None:
            counts = stack.enter_context(encoder_propagation(pipe, propagation))
        else:
            counts = stack.enter_context(_counted(pipe) if method.deepcache is None else deepcache(pipe, method.deepcache))
        if method.prior_noise:
            stack.enter_context(prior_noise_injection(pipe, weight=method.prior_noise))
        stack.enter_context(processors_kept(denoiser_of(pipe), after_errors_only=True))
        yield counts, steps


def run_options(
    num_inference_steps: int, guidance_scale: float | None = None, pipe_kwargs: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Collect the arguments of a call beside prompts and seeds. A guidance scale of None is left out.

    >>> run_options(50, 7.5, {"height": 64})
    {'num_inference_steps': 50, 'guidance_scale': 7.5, 'height': 64}

    Raises ValueError unless the guidance scale is a finite number.
    """
    guidance = {} if guidance_scale is None else {"guidance_scale": number("guidance_scale", guidance_scale)}
    return {"num_inference_steps": num_inference_steps, **guidance, **(pipe_kwargs or {})}


def sample(
    pipe: DiffusionPipeline,
    method: Method,
    prompts: Sequence[Any],
    seeds: Sequence[int],
    *,
    num_inference_steps: int = 50,
    guidance_scale: float | None = None,
    pipe_kwargs: Mapping[str, Any] | None = None,
) -> Sampled:
    """Run one method on prompts and seeds, one seed per prompt, as one batch.

    >>> from fastdiff_lab.pipelines import load_pipeline
    >>> method, prompts = Method(KeySchedule.uniform(5, 2)), ["a red ring on a blue background"]
    >>> sample(load_pipeline(), method, prompts, seeds=[0], num_inference_steps=5).counts.encoder_calls
    2

    The pipeline draws its own image, with its safety checker or watermark. The seconds are those up to the latents.
    Without an autoencoder they are those of the whole call.

    Args:
        guidance_scale: None for the pipeline's own.
        pipe_kwargs: Further arguments of the pipeline, one for all prompts or a list with one for each.

    Raises:
        ValueError: Options or steps that the pipeline does not take.
    """
    given = call_options(pipe, pipe_kwargs, len(prompts), told_apart=False)
    chosen, num_inference_steps = given.of(range(len(prompts))), plain(num_inference_steps)
    call = run_options(num_inference_steps, guidance_scale, chosen if method.steps is None else without_time_steps(chosen))
    wait = partial(synchronize, device_of(pipe))
    with (
        as_method(pipe, method, num_inference_steps, chosen) as (counts, steps),
        watched_run(pipe, wait) as (seen, watching),
        no_bars(pipe),
    ):
        call = watching | call | {"num_inference_steps": steps, "output_type": "pil"}
        started = time.perf_counter()
        with one_decoded_at_a_time(pipe):
            drawn = pipe(list(prompts), generator=generators(seeds), **call)[0]
        seconds = seen.stop() - started
    rows = seen.latents if gives_latents(pipe) and len(seen.latents) == len(prompts) else by_image(pipe, seen.latents, len(prompts))
    return Sampled([as_image(one) for one in drawn], rows, counts, seconds)


@contextmanager
def _counted(pipe: DiffusionPipeline) -> Iterator[Counts]:
    """Count the calls of a run that is not accelerated."""
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
def decode(pipe: DiffusionPipeline, latents: Tensor) -> list[Image.Image]:
    """Decode latents that a pipeline gave into images."""
    vae, dtype = pipe.vae, pipe.vae.dtype
    latents = _as_decoded(vae.config, latents)
    # SDXL's autoencoder overflows in float16, and its config says so.
    in_float32 = dtype == torch.float16 and bool(getattr(vae.config, "force_upcast", False))
    try:
        if in_float32:
            vae.to(torch.float32)
        with one_decoded_at_a_time(pipe):
            decoded = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
    finally:
        if in_float32:
            vae.to(dtype)
    return pipe.image_processor.postprocess(decoded, output_type="pil")


def _as_decoded(config: Any, latents: Tensor) -> Tensor:
    """Scale latents as in the autoencoder's training."""
    mean, std = getattr(config, "latents_mean", None), getattr(config, "latents_std", None)
    if mean is None or std is None:
        return latents / config.scaling_factor
    mean, std = (torch.tensor(values).view(1, -1, 1, 1).to(latents) for values in (mean, std))
    return latents * std / config.scaling_factor + mean


def denoiser_arguments(pipe: DiffusionPipeline, prompt: Any, guidance_scale: float | None = None) -> dict[str, Any]:
    """The arguments of the denoiser's first call for one image."""
    return first_arguments(denoiser_of(pipe), one_image(pipe, prompt, num_inference_steps=1, guidance_scale=guidance_scale))


def one_image(
    pipe: DiffusionPipeline,
    prompt: Any,
    *,
    num_inference_steps: int = 50,
    guidance_scale: float | None = None,
    pipe_kwargs: Mapping[str, Any] | None = None,
) -> Callable[[], Any]:
    """Prepare a call of the pipeline for one image, to look at what it calls.

    >>> first_arguments(pipe.controlnet, one_image(pipe, prompt, pipe_kwargs={"image": edges}))["sample"].shape  # doctest: +SKIP
    torch.Size([2, 4, 64, 64])

    `prompt` is a text, or a class label for DiTPipeline. Other arguments as for `sample`.
    """
    given = call_options(pipe, pipe_kwargs, None, told_apart=False)  # the first prompt's, from lists
    call = run_options(num_inference_steps, guidance_scale, given.of([0]))

    def run() -> Any:
        with no_bars(pipe):
            return pipe([prompt], generator=generators([0]), **call)

    return run


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
            found.update(arguments_of(model, args, kwargs))
            raise Found

        return call

    with replaced_call(model, catch), suppress(Found), processors_kept(model):
        run()
    return {name: value for name, value in found.items() if value is not None}


def times_in(pipe_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Pick the time-steps or sigmas from the options of a call.

    >>> times_in({"timesteps": [900, 500], "eta": 0.5})
    {'timesteps': [900, 500]}
    """
    return {name: value for name, value in (pipe_kwargs or {}).items() if name in TIME_STEPS and value is not None}


def denoiser_calls(pipe: DiffusionPipeline, num_inference_steps: int, pipe_kwargs: Mapping[str, Any] | None = None) -> int:
    """Count the denoiser calls of a text-to-image run. Some schedulers make more calls than steps.

    >>> denoiser_calls(pipe, 10)  # doctest: +SKIP
    10

    Time-steps among the options count instead of the steps. Raises ValueError for steps that the scheduler cannot place.
    """
    if not is_whole(num_inference_steps) or num_inference_steps < 1:
        raise ValueError(f"{num_inference_steps!r} steps asked; accepted: a whole number of 1 or more")
    calls = calls_of(pipe.scheduler, num_inference_steps, times_in(pipe_kwargs))
    if calls is None:
        trained, most = pipe.scheduler.config.get("num_train_timesteps"), most_steps(pipe.scheduler, num_inference_steps)
        raise ValueError(
            f"{num_inference_steps} steps asked of {type(pipe.scheduler).__name__}, which chooses among {trained} training time-steps; "
            f"accepted: {'none' if most is None else f'a whole number from 1 to {most}'}"
        )
    return calls
