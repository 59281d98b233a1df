"""Check further arguments of a pipeline's call, and divide them among prompts.

- `divided(pipe, pipe_kwargs, count)`: the checked arguments, and those of each prompt
- `in_a_batch(alike, own)`: the arguments of one call for some prompts
- `own_guidance(pipe, given)`: the guidance scale of a run, by default the pipeline's own
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor

from ..hooks.denoiser import takes_several_images
from ..inputs.plain_values import listed, number

OURS = ("num_inference_steps", "guidance_scale", "generator", "output_type", "return_dict")
TIME_STEPS = ("timesteps", "sigmas")  # belong to one number of steps
_SEVERAL = re.compile(r"num_\w+_per_prompt")
_TEXTS = re.compile(r"(negative_|source_)?prompt(_\d+)?")
_ROWS = re.compile(
    r"(negative_)?(pooled_)?prompt(_embeds)?(_attention_mask|_mask)?(_\d+)?|latents|image_latents|masked_image_latents"
)
_IMAGES = ("image", "mask_image", "control_image", "original_image")


def divided(
    pipe: DiffusionPipeline, pipe_kwargs: Mapping[str, Any], count: int | None = None, asked: str = "comparison"
) -> tuple[dict[str, Any], tuple[dict[str, Any], ...]]:
    """Check the options of a pipeline's call, and divide them among `count` prompts.

    >>> divided(pipe, {"negative_prompt": ["grey", "blue"], "eta": 0.5}, 2)[1]  # doctest: +SKIP
    ({'negative_prompt': 'grey'}, {'negative_prompt': 'blue'})

    Lists of texts or images and tensors of embeddings or latents have one entry for each prompt. A single value is for all.

    Args:
        count: The number of prompts; None for the length of the lists.
        asked: What the call is for, in messages.

    Returns:
        The options as plain values, and those of each prompt alone.

    Raises:
        ValueError: An option that the library gives itself or the pipeline does not take, or a list of another length.
    """
    # None is the default, except where the pipeline's own default is another (I2VGen-XL's clip_skip).
    asked_for = {name: value for name, value in pipe_kwargs.items() if value is not None or _default(pipe, name) is not None}
    given = {name: _plain(name, value) for name, value in asked_for.items()}
    _check_names(pipe, set(pipe_kwargs), given, asked)
    each = {name: values for name, value in given.items() if (values := _of_prompts(pipe, name, value)) is not None}
    lengths = {name: len(values) for name, values in each.items()}
    count = max(lengths.values(), default=1) if count is None else count
    _check_lengths(lengths, count)
    return given, tuple({name: values[place] for name, values in each.items()} for place in range(count))


def _check_names(pipe: DiffusionPipeline, names: set[str], given: Mapping[str, Any], asked: str) -> None:
    parameters = inspect.signature(pipe.__call__).parameters
    first = next(iter(parameters), "prompt")
    ours = sorted({*OURS, first} & names)
    if ours:
        raise ValueError(
            f"pipe_kwargs with {', '.join(ours)} given; accepted: arguments of the pipeline that {asked} does not give it itself"
        )
    several = next((name for name in given if _SEVERAL.fullmatch(name) and given[name] != 1), None)
    if several is not None:
        raise ValueError(
            f"pipe_kwargs with {several}={given[several]!r} given; accepted: one image for each prompt and seed, so more prompts or seeds"
        )
    named = [name for name, parameter in parameters.items() if parameter.kind is not parameter.VAR_KEYWORD]
    # Diffusers' own pipelines ignore further names, except old callbacks.
    takes_any = len(named) < len(parameters) and not type(pipe).__module__.startswith("diffusers.")
    unknown = sorted(names - set(named))
    if unknown and not takes_any:
        raise ValueError(
            f"pipe_kwargs with {', '.join(unknown)} given, which {type(pipe).__name__} does not take; accepted: {', '.join(named)}"
        )


def _check_lengths(lengths: Mapping[str, int], count: int) -> None:
    wrong = next((name for name, length in lengths.items() if length != count), None)
    if wrong is not None:
        raise ValueError(
            f"pipe_kwargs with {wrong} of {lengths[wrong]} entries given for {count} prompts; accepted: one for all, or one for each prompt"
        )


def _plain(name: str, value: Any) -> Any:
    """Convert texts and time-steps from numpy or pandas to lists. Tensors and arrays of pixels stay."""
    is_text = _TEXTS.fullmatch(name) and not isinstance(value, str | Tensor)
    holds_pixels = isinstance(value, np.ndarray | Tensor) and value.ndim > 1
    if (is_text or name in TIME_STEPS) and not holds_pixels:
        return listed(name, value, "texts" if is_text else "numbers")
    if isinstance(value, np.generic):
        return value.item()
    return value


def _of_prompts(pipe: DiffusionPipeline, name: str, value: Any) -> list[Any] | None:
    """The values of the prompts, or None if one value is for all."""
    if _TEXTS.fullmatch(name) and isinstance(value, list):
        return value
    if name in _IMAGES and isinstance(value, list | tuple) and not takes_several_images(pipe):
        return None if len(value) == 1 else list(value)
    has_rows = isinstance(value, Tensor | np.ndarray) and (value.ndim >= 4 if name in _IMAGES else _ROWS.fullmatch(name))
    if has_rows and len(value) > 1 and not takes_several_images(pipe):
        return [value[place : place + 1] for place in range(len(value))]
    return None


def in_a_batch(alike: Mapping[str, Any], own: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Join the arguments of some prompts into one call.

    >>> in_a_batch({"negative_prompt": "grey", "eta": 0.5}, [{}, {}])
    {'negative_prompt': ['grey', 'grey'], 'eta': 0.5}
    """
    repeated = {name: _repeated(name, value, len(own)) for name, value in alike.items()}
    names = own[0] if own else {}
    return repeated | {name: _rows([each[name] for each in own]) for name in names}


def _repeated(name: str, value: Any, count: int) -> Any:
    """Repeat single texts and rows of numbers, which diffusers does not repeat by itself."""
    if _TEXTS.fullmatch(name) and isinstance(value, str):
        return [value] * count
    if _ROWS.fullmatch(name) and isinstance(value, Tensor | np.ndarray) and len(value) == 1 < count:
        return _rows([value] * count)
    return value


def _rows(values: list[Any]) -> Any:
    """Join the values of some prompts: tensors and arrays by rows, others in a list."""
    if isinstance(values[0], Tensor):
        return torch.cat(values)
    return np.concatenate(values) if isinstance(values[0], np.ndarray) else values


def own_guidance(pipe: DiffusionPipeline, given: Any) -> float | None:
    """The guidance scale of a run; by default the pipeline's own, None if it has no such argument.

    >>> own_guidance(pipe, None)  # doctest: +SKIP
    7.5
    """
    if given is not None:
        return number("guidance_scale", given)
    default = _default(pipe, "guidance_scale")
    return float(default) if isinstance(default, int | float) else None


def _default(pipe: DiffusionPipeline, name: str) -> Any:
    """The default of an argument of the pipeline's call, or None."""
    return getattr(inspect.signature(pipe.__call__).parameters.get(name), "default", None)


def takes_guidance(pipe: DiffusionPipeline) -> bool:
    """Whether the pipeline takes `guidance_scale`. Stable Video Diffusion takes two others."""
    parameters = inspect.signature(pipe.__call__).parameters
    return "guidance_scale" in parameters or any(one.kind is one.VAR_KEYWORD for one in parameters.values())
