"""How a pipeline is run: steps, guidance scale, further arguments of its call.

- `RunSettings`
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from diffusers import DiffusionPipeline

from ..hooks.fingerprint import in_words
from ..inputs.plain_values import is_whole, number, plain
from .call_options import TIME_STEPS, divided, in_a_batch, own_guidance
from .step_counts import calls_of, most_steps


@dataclass(frozen=True)
class RunSettings:
    """How a pipeline is run, checked once.

    >>> RunSettings(50, 7.5, {"height": 64}).arguments()
    {'num_inference_steps': 50, 'guidance_scale': 7.5, 'height': 64}

    Args:
        num_inference_steps: As the pipeline takes it, 1 or more.
        guidance_scale: None for the pipeline's own.
        pipe_kwargs: Further arguments of the call, one for all prompts or a list with one for each.
        own: Of these, the arguments of each prompt alone, as `on` finds them.

    Raises:
        ValueError: Another number of steps, or a guidance scale that is no finite number.
    """

    num_inference_steps: int = 50
    guidance_scale: float | None = None
    pipe_kwargs: Mapping[str, Any] | None = None
    own: tuple[Mapping[str, Any], ...] = ()

    def __post_init__(self) -> None:
        steps = plain(self.num_inference_steps)
        if not is_whole(steps) or steps < 1:
            raise ValueError(f"{steps!r} steps asked; accepted: a whole number of 1 or more")
        object.__setattr__(self, "num_inference_steps", steps)
        if self.guidance_scale is not None:
            object.__setattr__(self, "guidance_scale", number("guidance_scale", self.guidance_scale))

    def on(self, pipe: DiffusionPipeline, count: int | None = None, asked: str | None = None) -> RunSettings:
        """The settings for `count` prompts on a pipeline, with its own guidance scale where none was given.

        Arguments and errors as for `divided`. With `asked`, also raises TypeError for a function among the arguments: results of two
        could not be told apart.
        """
        given, own = divided(pipe, self.further, count, asked or "sample")
        if asked is not None:
            in_words(given)
        return replace(self, guidance_scale=own_guidance(pipe, self.guidance_scale), pipe_kwargs=given, own=own)

    @property
    def further(self) -> Mapping[str, Any]:
        return self.pipe_kwargs or {}

    @property
    def shared(self) -> RunSettings:
        """The settings without what belongs to single prompts."""
        return replace(self, pipe_kwargs=_without(self.further, self.own[0] if self.own else ()), own=())

    def of(self, places: Sequence[int]) -> RunSettings:
        """The settings of one call with the prompts at these places."""
        return replace(self, pipe_kwargs=in_a_batch(self.shared.further, [self.own[place] for place in places]), own=())

    def with_steps(self, num_inference_steps: int) -> RunSettings:
        """The settings with other steps. Time-steps belong to the number that they were given with, and go."""
        return replace(self, num_inference_steps=num_inference_steps, pipe_kwargs=_without(self.further, TIME_STEPS))

    @property
    def times(self) -> dict[str, Any]:
        """The time-steps or sigmas that were given.

        >>> RunSettings(pipe_kwargs={"timesteps": [900, 500], "eta": 0.5}).times
        {'timesteps': [900, 500]}
        """
        return {name: value for name, value in self.further.items() if name in TIME_STEPS and value is not None}

    @property
    def words(self) -> dict[str, Any]:
        """The further arguments as JSON. Raises TypeError for one that cannot be told from others, such as a function."""
        return in_words(self.further)

    def arguments(self) -> dict[str, Any]:
        """The arguments of a call beside prompts and seeds. A guidance scale of None is left out."""
        guidance = {} if self.guidance_scale is None else {"guidance_scale": self.guidance_scale}
        return {"num_inference_steps": self.num_inference_steps, **guidance, **self.further}

    def denoiser_calls(self, pipe: DiffusionPipeline) -> int:
        """Count the denoiser calls of a text-to-image run, given time-steps instead of the number of steps where there are some.

        Raises ValueError for steps that the scheduler cannot place.
        """
        steps, scheduler = self.num_inference_steps, pipe.scheduler
        calls = calls_of(scheduler, steps, self.times)
        if calls is None:
            trained, most = scheduler.config.get("num_train_timesteps"), most_steps(scheduler, steps)
            raise ValueError(
                f"{steps} steps asked of {type(scheduler).__name__}, which chooses among {trained} training time-steps; "
                f"accepted: {'none' if most is None else f'a whole number from 1 to {most}'}"
            )
        return calls


def _without(options: Mapping[str, Any], names: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name not in names}
