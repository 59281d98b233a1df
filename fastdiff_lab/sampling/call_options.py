"""Further arguments of a pipeline's call, checked once for all that call it, and shared out to batches of prompts.

- `call_options(pipe, options, count)`: checked, as `CallOptions`
- `CallOptions`: those alike for all pictures, and those of each prompt; `.of(places)` is what a batch is called with
- `own_guidance(pipe, given)`: the guidance scale of a run, the pipeline's own where none is given
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..hooks.denoiser import takes_several_pictures
from ..hooks.fingerprint import in_words
from ..inputs.plain_values import listed, number

OURS = ("num_inference_steps", "guidance_scale", "generator", "output_type", "return_dict")
TIME_STEPS = ("timesteps", "sigmas")  # the steps of one run, which other numbers of steps do not have
_SEVERAL = re.compile(r"num_\w+_per_prompt")
_TEXTS = re.compile(r"(negative_|source_)?prompt(_\d+)?")
_ROWS = re.compile(
    r"(negative_)?(pooled_)?prompt(_embeds)?(_attention_mask|_mask)?(_\d+)?|latents|image_latents|masked_image_latents"
)
_PICTURES = ("image", "mask_image", "control_image", "original_image")


@dataclass(frozen=True)
class CallOptions:
    """Checked arguments: `alike` for all pictures, `own` one mapping for each prompt (empty where nothing is its own).

    `words`: all of them as JSON holds them.
    """

    alike: dict[str, Any]
    own: tuple[dict[str, Any], ...]
    words: dict[str, Any]

    def of(self, places: Sequence[int]) -> dict[str, Any]:
        """What a batch of the prompts at these places is called with."""
        return in_a_batch(self.alike, [self.own[place] for place in places])


def call_options(
    pipe: Any, options: Mapping[str, Any] | None, count: int | None, asked: str = "comparison", *, told_apart: bool = True
) -> CallOptions:
    """The options of a pipeline's call, checked, and shared out to `count` prompts.

    >>> call_options(pipe, {"negative_prompt": ["grey", "blue"], "eta": 0.5}, 2).own  # doctest: +SKIP
    ({'negative_prompt': 'grey'}, {'negative_prompt': 'blue'})

    A list of texts or pictures, and rows of a tensor of embeddings or latents, belong to one prompt each; a single one to all.
    `count`: how many prompts there are; None: as many as the lists have. `asked`: what for, for the messages.
    `told_apart`: must results with other options be told from these?
    Raises ValueError for what the library gives itself, what the pipeline does not take and a list that has not one entry for each prompt;
    TypeError for what cannot be told from another of its kind, such as a function.
    """
    # None says nothing, unless the pipeline's own default is something else (I2VGen-XL's clip_skip).
    asked_for = {name: value for name, value in (options or {}).items() if value is not None or _default(pipe, name) is not None}
    given = {name: _plain(name, value) for name, value in asked_for.items()}
    _check_names(pipe, set(options or {}), given, asked)
    words = in_words(given) if told_apart else {}
    shared = {name: _shared(pipe, name, value) for name, value in given.items()}
    lengths = {name: len(values) for name, values in shared.items() if values is not None}
    count = max(lengths.values(), default=1) if count is None else count
    _check_lengths(lengths, count)
    alike = {name: value for name, value in given.items() if shared[name] is None}
    own = tuple({name: values[place] for name, values in shared.items() if values is not None} for place in range(count))
    return CallOptions(alike, own, words)


def _check_names(pipe: Any, names: set[str], given: Mapping[str, Any], asked: str) -> None:
    parameters = inspect.signature(pipe.__call__).parameters
    first = next(iter(parameters), "prompt")
    ours = sorted({*OURS, first} & names)
    if ours:
        raise ValueError(
            f"options with {', '.join(ours)} given; accepted: arguments of the pipeline that {asked} does not give it itself"
        )
    several = next((name for name in given if _SEVERAL.fullmatch(name) and given[name] != 1), None)
    if several is not None:
        raise ValueError(
            f"options with {several}={given[several]!r} given; accepted: one picture for each prompt and seed, so more prompts or seeds"
        )
    named = [name for name, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD]
    # Diffusers' own pipelines look for old callbacks only among further names, and pass over all others.
    takes_any = len(named) < len(parameters) and not type(pipe).__module__.startswith("diffusers.")
    unknown = sorted(names - set(named))
    if unknown and not takes_any:
        raise ValueError(
            f"options with {', '.join(unknown)} given, which {type(pipe).__name__} does not take; accepted: {', '.join(named)}"
        )


def _check_lengths(lengths: Mapping[str, int], count: int) -> None:
    wrong = next((name for name, length in lengths.items() if length != count), None)
    if wrong is not None:
        raise ValueError(
            f"options with {wrong} of {lengths[wrong]} entries given for {count} prompts; accepted: one for all, or one for each prompt"
        )


def _plain(name: str, value: Any) -> Any:
    """Lists for whatever numpy or pandas hold texts, time-steps and pictures in; tensors and arrays of pixels stay."""
    is_text = _TEXTS.fullmatch(name) and not isinstance(value, str | Tensor)
    holds_pixels = isinstance(value, np.ndarray | Tensor) and value.ndim > 1
    if (is_text or name in TIME_STEPS) and not holds_pixels:
        return listed(name, value, "texts" if is_text else "numbers")
    if isinstance(value, np.generic):
        return value.item()
    return value


def _shared(pipe: Any, name: str, value: Any) -> list[Any] | None:
    """The values of the prompts; None for what is alike for all."""
    if _TEXTS.fullmatch(name) and isinstance(value, list):
        return value
    if name in _PICTURES and isinstance(value, list | tuple) and not takes_several_pictures(pipe):
        return None if len(value) == 1 else list(value)
    has_rows = isinstance(value, Tensor | np.ndarray) and (value.ndim >= 4 if name in _PICTURES else _ROWS.fullmatch(name))
    if has_rows and len(value) > 1 and not takes_several_pictures(pipe):
        return [value[place : place + 1] for place in range(len(value))]
    return None


def in_a_batch(alike: Mapping[str, Any], own: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The arguments of one call for some prompts: each prompt's own side by side, and single ones as often as the pipeline wants them.

    >>> in_a_batch({"negative_prompt": "grey", "eta": 0.5}, [{}, {}])
    {'negative_prompt': ['grey', 'grey'], 'eta': 0.5}
    """
    repeated = {name: _repeated(name, value, len(own)) for name, value in alike.items()}
    names = own[0] if own else {}
    return repeated | {name: _rows([each[name] for each in own]) for name in names}


def _repeated(name: str, value: Any, count: int) -> Any:
    """Diffusers repeats single pictures by itself; single texts and rows of numbers it does not."""
    if _TEXTS.fullmatch(name) and isinstance(value, str):
        return [value] * count
    if _ROWS.fullmatch(name) and isinstance(value, Tensor | np.ndarray) and len(value) == 1 < count:
        return _rows([value] * count)
    return value


def _rows(values: list[Any]) -> Any:
    """The values of some prompts as one: rows below one another, others in a list."""
    if isinstance(values[0], Tensor):
        return torch.cat(values)
    return np.concatenate(values) if isinstance(values[0], np.ndarray) else values


def without_time_steps(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options of an arm with other steps: time-steps that were given belong to the run they were given for.

    >>> without_time_steps({"timesteps": [900, 500], "eta": 0.5})
    {'eta': 0.5}
    """
    return {name: value for name, value in options.items() if name not in TIME_STEPS}


def own_guidance(pipe: Any, given: Any) -> float | None:
    """The guidance scale of a run as a number: the pipeline's own where none is given; None for a pipeline without one of this name.

    >>> own_guidance(pipe, None)  # doctest: +SKIP
    7.5

    Raises ValueError for what is no finite number.
    """
    if given is not None:
        return number("guidance_scale", given)
    default = _default(pipe, "guidance_scale")
    return float(default) if isinstance(default, int | float) else None


def _default(pipe: Any, name: str) -> Any:
    """The default of an argument of the pipeline's call; None for an argument that it does not have."""
    return getattr(inspect.signature(pipe.__call__).parameters.get(name), "default", None)


def takes_guidance(pipe: Any) -> bool:
    """Can the pipeline be called with a guidance scale under this name? Stable Video Diffusion has two of others."""
    parameters = inspect.signature(pipe.__call__).parameters
    return "guidance_scale" in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())
