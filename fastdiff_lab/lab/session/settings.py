"""The settings of the lab's runs, as values that are checked once.

- `Settings`: what the baseline depends on
- `Acceleration`: what the accelerated run adds
- `keys_text(keys)`: a number of keys in words
- `scheduler_for(own, name)`, `seen_with(pipe, scheduler)`, `using(pipe, scheduler)`: a pipeline with another scheduler
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from ...hooks.denoiser import denoiser_of
from ...inputs.plain_values import choice, number, whole_number
from ...key_schedule import KeySchedule
from ...pipelines import SCHEDULERS, with_settings_of
from ...sampling.call_options import own_guidance

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


OWN = "own"  # the pipeline's own scheduler
MOST_STEPS = 1000
REUSED = ("encoder", "prediction")


def keys_text(keys: int) -> str:
    """A number of keys in words.

    >>> keys_text(1), keys_text(2)
    ('1 key', '2 keys')
    """
    return "1 key" if keys == 1 else f"{keys} keys"


@dataclass(frozen=True)
class Settings:
    """What the baseline depends on.

    >>> Settings("a red ring on a blue background", num_inference_steps=20, scheduler="dpm-solver++").seed
    0

    Args:
        prompt: What the pipeline is called with.
        seed: 0 or more.
        num_inference_steps: 1 to 1,000.
        guidance_scale: 0 to 100; None for the pipeline's own.
        scheduler: "own", or one of `pipelines.SCHEDULERS` with the pipeline's settings.

    Raises:
        ValueError: A value out of range.
    """

    prompt: str
    seed: int = 0
    num_inference_steps: int = 50
    guidance_scale: float | None = None
    scheduler: str = OWN

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            raise ValueError(f"prompt={self.prompt!r} asked; accepted: a text with words in it")
        choice("scheduler", self.scheduler, (OWN, *SCHEDULERS))
        object.__setattr__(self, "seed", whole_number("seed", self.seed, 0, 2**32 - 1))
        object.__setattr__(self, "num_inference_steps", whole_number("steps", self.num_inference_steps, 1, MOST_STEPS))
        if self.guidance_scale is not None:
            number("guidance_scale", self.guidance_scale, 0, 100)

    @property
    def is_guided(self) -> bool:
        """Whether a denoiser call also has rows without the prompt. Pipelines' own scales guide."""
        return self.guidance_scale is None or self.guidance_scale > 1

    def on(self, pipe: DiffusionPipeline) -> Settings:
        """The same settings with the guidance scale of a run of the pipeline."""
        return replace(self, guidance_scale=own_guidance(pipe, self.guidance_scale))

    @property
    def options(self) -> dict[str, Any]:
        """Options of `sample`."""
        return {"num_inference_steps": self.num_inference_steps, "guidance_scale": self.guidance_scale}


@dataclass(frozen=True)
class Acceleration:
    """What the accelerated run adds to the settings.

    >>> Acceleration(KeySchedule.paper(50), order=0).prior_noise
    0.0

    Args:
        schedule: The key steps.
        reuse: "encoder" reuses features; "prediction" reuses the whole prediction, the rival.
        order: 0 reuses, 1 extrapolates.
        prior_noise: Its weight, 0 to 1; 0 for none.
        prior_start: Share of the training time-steps below which it is injected, 0 to 1.

    Raises:
        ValueError: A value out of range.
    """

    schedule: KeySchedule
    reuse: str = "encoder"
    order: int = 0
    prior_noise: float = 0.0
    prior_start: float = 0.5

    def __post_init__(self) -> None:
        if self.reuse not in REUSED or self.order not in (0, 1):
            raise ValueError(
                f"reuse={self.reuse!r} with order={self.order!r} asked; accepted: {' or '.join(REUSED)}, with order 0 or 1"
            )
        number("prior_noise", self.prior_noise, 0, 1)
        number("prior_start", self.prior_start, 0, 1)


def scheduler_for(own: Any, name: str) -> Any:
    """The pipeline's own scheduler, or another made from its settings."""
    return own if name == OWN else with_settings_of(own, name)


def seen_with(pipe: DiffusionPipeline, scheduler: Any) -> SimpleNamespace:
    """A stand-in for the pipeline with another scheduler, enough for what needs no run."""
    model = denoiser_of(pipe)
    part = "unet" if getattr(pipe, "unet", None) is model else "transformer"
    return SimpleNamespace(**{part: model}, scheduler=scheduler)


@contextmanager
def using(pipe: DiffusionPipeline, scheduler: Any) -> Iterator[None]:
    """Give the pipeline this scheduler inside the block."""
    before, pipe.scheduler = pipe.scheduler, scheduler
    try:
        yield
    finally:
        pipe.scheduler = before
