"""Run a pipeline by one method, and see what that gives and costs.

- `Method`: one method
- `sample(pipe, method, prompts, seeds, ...)`, `run_method(pipe, method, prompts, seeds, run)`: images, latents and counts of it
- `as_method(pipe, method, run)`: accelerate the pipeline inside a `with` block
- `denoiser_calls`, `denoiser_arguments`, `first_arguments`: the denoiser calls of a run
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor, nn

from ..hooks.adapters import processors_kept
from ..hooks.callers import is_called_by
from ..hooks.denoiser import denoiser_of
from ..hooks.denoiser_call import arguments_of
from ..hooks.device import device_of, synchronize
from ..hooks.exclusive_use import kept_to_this_thread
from ..hooks.guided_rows import by_image
from ..hooks.patching import replaced_call
from ..inputs.plain_values import number, plain, seeds_of
from ..key_schedule import KeySchedule
from ..propagation.config import PropagationConfig
from ..propagation.counts import Counts
from ..propagation.encoder_propagation import encoder_propagation
from ..propagation.handle import check_not_accelerated
from ..propagation.prior_noise import prior_noise_injection
from .batches import one_decoded_at_a_time
from .output_image import as_image, gives_latents, watched_run
from .rivals.deepcache import DeepCache
from .rivals.rival import OwnRival, Rival
from .rivals.token_merging import TokenMerging
from .run_settings import RunSettings
from .silence import no_bars
from .step_counts import SchedulerRefusesError, scheduler_with_steps

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from .rivals.rival import Around


# What results of the baseline are stored under, in files that users have.
_BASELINE = {
    "schedule": None, "reuse": "encoder", "order": 0, "parallel_decoding": True, "max_rows": None, "encoder_blocks": None, "deepcache": None,
}  # fmt: skip


@dataclass(frozen=True, init=False)
class Method:
    """One method of sampling. `Method()` is the baseline.

    >>> Method(KeySchedule.uniform(50, 9), order=1).about()["schedule"]
    '0,6,11,17,22,28,33,39,44 of 50'
    >>> half = Method(around=lambda pipe: torch.autocast(pipe.device.type, torch.bfloat16), name="bfloat16")

    Args:
        schedule: Encoder propagation with these key steps, or a `PropagationConfig`.
        prior_noise: The weight, as in `prior_noise_injection`; 0 for none.
        steps: Instead of a schedule, so many steps, evenly spaced from about the baseline's first time-step.
            More steps than the baseline's are DDIM from the first training time-step on, which converges to the exact solution.
        deepcache: Instead of a schedule, DeepCache with this interval, 1 or more.
        token_merging: Share of tokens merged by tomesd, at most 0.75; 0 for none. Not with DeepCache.
        around: A rival of your own: a `Rival`, or a function of the pipeline that gives a context manager, in which it is accelerated.
            It may yield `Counts` of what was evaluated; if not, each denoiser call counts as evaluated whole.
        name: What results of `around` are stored under. Give another one when the function changes.
        options: Of `encoder_propagation`: `reuse`, `order`, `parallel_decoding`, `max_rows`, `encoder_blocks`.

    Raises:
        TypeError: Options without a schedule or unknown ones, or an `around` that is no function.
        ValueError: Several methods at once, or a value out of range.
    """

    propagation: PropagationConfig | None
    prior_noise: float
    steps: int | None
    rivals: tuple[Rival, ...]

    def __init__(
        self,
        schedule: KeySchedule | PropagationConfig | None = None,
        *,
        prior_noise: float = 0.0,
        steps: int | None = None,
        deepcache: int | None = None,
        token_merging: float = 0.0,
        around: Around | None = None,
        name: str | None = None,
        **options: Any,
    ) -> None:
        given: dict[str, Any] = {  # also numpy's numbers
            "propagation": _propagation(schedule, {name: plain(value) for name, value in options.items()}),
            "prior_noise": number("prior_noise", prior_noise),
            "steps": plain(steps),
            "rivals": _rivals(plain(deepcache), number("token_merging", token_merging), around, name),
        }
        for field, value in given.items():
            object.__setattr__(self, field, value)
        if schedule is not None and steps is not None:
            raise ValueError("a method has a schedule or another number of steps, not both; make two methods")
        alone = next((rival for rival in self.rivals if rival.goes_alone), None)
        if alone is not None and (len(self.rivals) > 1 or schedule is not None or steps is not None):
            raise ValueError(
                f"a method has {type(alone).__name__} or a schedule or another number of steps or another rival, not two of them; "
                "make two methods"
            )

    @property
    def schedule(self) -> KeySchedule | None:
        """The key steps; None for a method without encoder propagation."""
        return None if self.propagation is None else self.propagation.schedule

    def about(self) -> dict[str, Any]:
        """The method as text and numbers, with the schedule in its text form. Results are stored under them."""
        found = _BASELINE | {"prior_noise": self.prior_noise, "steps": self.steps}
        for part in (self.propagation, *self.rivals):
            found |= part.about() if part is not None else {}
        return found

    def layers(self) -> list[Around]:
        """What accelerates a pipeline: functions of it that give context managers, in the order in which they are entered."""
        ours = [partial(encoder_propagation, schedule=self.propagation)] if self.propagation is not None else []
        noise = [partial(prior_noise_injection, weight=self.prior_noise)] if self.prior_noise else []
        return [*self.rivals, *ours, *noise]


def _propagation(schedule: KeySchedule | PropagationConfig | None, options: dict[str, Any]) -> PropagationConfig | None:
    accepted = set(PropagationConfig.__dataclass_fields__) - {"schedule"}
    wrong = next((name for name in options if schedule is None or name not in accepted), None)
    if wrong is not None:
        raise TypeError(
            f"a method with {wrong}={options[wrong]!r}{' and no schedule' if schedule is None else ''} asked; accepted: a schedule, with "
            f"{', '.join(sorted(accepted))}; or steps, prior_noise, deepcache, token_merging, around and name"
        )
    return None if schedule is None else PropagationConfig.of(schedule, **options)


def _rivals(deepcache: int | None, token_merging: float, around: Around | None, name: str | None) -> tuple[Rival, ...]:
    if name is not None and around is None:
        raise TypeError(f"name={name!r} given without `around`; accepted: both, or neither")
    return (
        *([] if deepcache is None else [DeepCache(deepcache)]),
        *([TokenMerging(token_merging)] if token_merging else []),
        *([] if around is None else [around if isinstance(around, Rival) else OwnRival(around, name)]),
    )


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
def as_method(pipe: DiffusionPipeline, method: Method, run: RunSettings) -> Iterator[tuple[Counts, RunSettings]]:
    """Accelerate the pipeline inside the block; yield counts and the settings to call it with.

    >>> with as_method(pipe, Method(steps=9), RunSettings(50)) as (counts, run):  # doctest: +SKIP
    ...     pipe("a red ring on a blue background", **run.arguments())

    `run` has the settings of the baseline. Fewer steps begin at its first time-step.
    """
    check_not_accelerated(pipe)
    scheduler = pipe.scheduler
    with ExitStack() as stack:
        stack.enter_context(kept_to_this_thread(pipe, "another run"))
        if method.steps is not None:
            pipe.scheduler = scheduler_with_steps(scheduler, method.steps, run.num_inference_steps, run.times)
            stack.callback(setattr, pipe, "scheduler", scheduler)
            run = run.with_steps(method.steps)
        with suppress(SchedulerRefusesError):  # a pipeline may make its scheduler take them by further options
            run.denoiser_calls(pipe)
        counts = _counts([stack.enter_context(layer(pipe)) for layer in method.layers()])
        counts = stack.enter_context(_counted(pipe)) if counts is None else counts
        stack.enter_context(processors_kept(denoiser_of(pipe), after_errors_only=True))
        yield counts, run


def _counts(yielded: Sequence[Any]) -> Counts | None:
    """What the layers of a method count, if one does."""
    found = [one for one in yielded if isinstance(one, Counts)]
    if len(found) > 1:
        raise ValueError(
            f"a method of {len(found)} parts that count asked; accepted: one part that yields Counts; make several methods"
        )
    return found[0] if found else None


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
        RuntimeError: The pipeline is accelerated, or another thread uses it.
    """
    run = RunSettings(num_inference_steps, guidance_scale, pipe_kwargs).on(pipe, len(prompts))
    return run_method(pipe, method, prompts, seeds, run.of(range(len(prompts))))


def run_method(pipe: DiffusionPipeline, method: Method, prompts: Sequence[Any], seeds: Sequence[int], run: RunSettings) -> Sampled:
    """Do what `sample` does, with settings of one call: those that `RunSettings.of` gives."""
    wait = partial(synchronize, device_of(pipe))
    with as_method(pipe, method, run) as (counts, run), watched_run(pipe, wait) as (seen, watching), no_bars(pipe):
        call = watching | run.arguments() | {"output_type": "pil"}
        started = time.perf_counter()
        with one_decoded_at_a_time(pipe):
            drawn = pipe(list(prompts), generator=generators(seeds), **call)[0]
        seconds = seen.stop() - started
    rows = seen.latents if gives_latents(pipe) and len(seen.latents) == len(prompts) else by_image(pipe, seen.latents, len(prompts))
    return Sampled([as_image(one) for one in drawn], rows, counts, seconds)


@contextmanager
def _counted(pipe: DiffusionPipeline) -> Iterator[Counts]:
    """Count the calls of the denoiser, each of which evaluates all of it."""
    counts = Counts(runs=1)

    def counting(inner):
        def call(*args, **kwargs):
            output = inner(*args, **kwargs)
            if is_called_by(pipe):
                for name in ("encoder_calls", "decoder_calls", "forward_calls", "steps"):
                    setattr(counts, name, getattr(counts, name) + 1)
            return output

        return call

    with replaced_call(denoiser_of(pipe), counting):
        yield counts


@torch.no_grad()
def decode(pipe: DiffusionPipeline, latents: Tensor) -> list[Image.Image]:
    """Decode latents that a pipeline gave into images.

    >>> decode(pipe, pipe(prompt, output_type="latent").images)  # doctest: +SKIP

    Args:
        pipe: A pipeline with an autoencoder, `pipe.vae`.
        latents: Shape (images, channels, height, width), as `output_type="latent"` gives them.

    Returns:
        A PIL image for each.
    """
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
    with kept_to_this_thread(pipe, "a look at its arguments"):
        return first_arguments(denoiser_of(pipe), one_image(pipe, prompt, RunSettings(1, guidance_scale)))


def one_image(pipe: DiffusionPipeline, prompt: Any, run: RunSettings) -> Callable[[], Any]:
    """Prepare a call of the pipeline for one image, to look at what it calls.

    >>> call = one_image(pipe, prompt, RunSettings(pipe_kwargs={"image": edges}))  # doctest: +SKIP
    >>> first_arguments(pipe.controlnet, call)["sample"].shape  # doctest: +SKIP
    torch.Size([2, 4, 64, 64])

    `prompt` is a text, or a class label for DiTPipeline.
    """

    def call() -> Any:
        with no_bars(pipe):
            return pipe([prompt], generator=generators([0]), **run.arguments())

    return call


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


def denoiser_calls(pipe: DiffusionPipeline, num_inference_steps: int) -> int:
    """Count the denoiser calls of a text-to-image run. Some schedulers make more calls than steps.

    >>> denoiser_calls(pipe, 10)  # doctest: +SKIP
    10

    Raises ValueError for steps that the scheduler cannot place.
    """
    return RunSettings(num_inference_steps).denoiser_calls(pipe)
