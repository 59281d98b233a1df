"""What is looked at when a run begins, and at its calls: refusals, and warnings where propagation does no good.

- `check_length`, `check_parts`, `check_rows_stay_apart`, `check_attention_runs`,
  `check_is_one_run`, `check_prompts`: refusals
- `guidance_of(pipe)`: the guidance scale of the run at hand
- `time_steps_in_words(timesteps)`: as measurements say on which time-steps they were made
- `warn_of_another_run`, `warn_of_few_steps`, `warn_of_rounding`: warnings
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor, nn

from ..hooks.adapters import attention_store, row_mixing
from ..hooks.denoiser import Split, controlnet_of, denoiser_of, several_runs
from ..hooks.private_api import free_init_of, guidance_scale_of
from ..key_schedule import KeySchedule
from .config import PropagationConfig

FEW_STEPS = 4  # or fewer; the paper finds its method poor at 5 (section 5)
FEW_STEP_SCHEDULERS = ("LCMScheduler", "TCDScheduler", "CMStochasticIterativeScheduler")


# Of the largest value: what another order of rows may change by rounding.
_ROUNDING = {torch.float64: 1e-6, torch.float32: 1e-3}
_NO_GOOD = {"schedule": "its keys need not be good here", "fit": "it need not correct anything here"}
_SAME_GUIDANCE = 0.01  # relative: in bfloat16, 2.7 is 2.703


def guidance_of(pipe: DiffusionPipeline) -> float | None:
    """The guidance scale of the run that the pipeline makes, or made last; None if it does not tell.

    >>> guidance_of(pipe)  # doctest: +SKIP
    5.0
    """
    used = guidance_scale_of(pipe)
    # Stable Video Diffusion's is a tensor that grows from frame to frame: it is named by the last frame's.
    return used.max().item() if isinstance(used, Tensor) else used


def _warn_of_other_guidance(pipe: DiffusionPipeline, config: PropagationConfig) -> None:
    """Warns where the schedule or the fit was measured with another guidance scale than the run has."""
    measured, used = config.measured_on.get("guidance_scale"), guidance_of(pipe)
    if measured is None or used is None:
        return
    # A file from elsewhere may hold a text here, or a number that no float can.
    is_number = isinstance(measured, int | float) and abs(measured) < 1e9
    if not (is_number and math.isclose(measured, used, rel_tol=_SAME_GUIDANCE)):
        warnings.warn(
            f"this {config.measured} was measured with guidance scale {str(measured)[:80]}, this run has {used}; {_NO_GOOD[config.measured]}",
            stacklevel=4,
        )


def check_length(pipe: DiffusionPipeline, schedule: KeySchedule, calls: int) -> None:
    """Raises ValueError where a run makes another number of denoiser calls than the schedule is for."""
    if calls == schedule.num_steps:
        return
    if several_runs(pipe) == "free_init" and free_init_of(pipe)[1]:
        raise ValueError(
            f"{type(pipe).__name__} makes runs of different lengths in one call (FreeInit with use_fast_sampling), which no one schedule "
            "fits; accepted: enable_free_init(use_fast_sampling=False)"
        )
    raise ValueError(
        f"the schedule is for {schedule.num_steps} steps, this run has {calls} time-steps with {type(pipe.scheduler).__name__}; use "
        f"schedule.rescaled({calls}), or call the pipeline with other steps. A call with runs of different lengths is not supported"
    )


def is_near(found: Tensor, expected: Tensor) -> bool:
    """Are two results of the same arithmetic in another order of rows equal, but for rounding?"""
    most = float((found - expected).abs().max()) / max(float(expected.abs().max()), 1e-12)
    return most <= _ROUNDING.get(expected.dtype, 0.05)


def time_steps_in_words(timesteps: Iterable[Any]) -> str:
    """Time-steps as a text.

    >>> time_steps_in_words([981, 500.25])
    '981,500.25'
    """
    return ",".join(f"{float(timestep):.5g}" for timestep in timesteps)


def warn_of_another_run(pipe: DiffusionPipeline, config: PropagationConfig, planned: Tensor | None) -> None:
    """Warns where the schedule was measured on a run of another kind. `planned`: the time-steps of this one, where they are known."""
    _warn_of_other_guidance(pipe, config)
    _warn_of_other_time_steps(pipe, config, planned)


def _warn_of_other_time_steps(pipe: DiffusionPipeline, config: PropagationConfig, planned: Tensor | None) -> None:
    """Warns where the schedule was measured on other time-steps than the run visits, with the same scheduler."""
    on = config.measured_on
    if planned is None or "time_steps" not in on or on.get("scheduler") != type(pipe.scheduler).__name__:
        return
    used = time_steps_in_words(planned.tolist())
    if used != on["time_steps"]:
        warnings.warn(
            f"this {config.measured} was measured on time-steps {str(on['time_steps'])[:40]}..., this run has {used[:40]}...; "
            f"{_NO_GOOD[config.measured]}",
            stacklevel=4,
        )


def warn_of_few_steps(pipe: DiffusionPipeline, schedule: KeySchedule, stacklevel: int) -> None:
    """Warns where nothing is gained: a model of few steps changes its features at each."""
    kind = type(getattr(pipe, "scheduler", None)).__name__
    few = schedule.num_steps <= FEW_STEPS or kind in FEW_STEP_SCHEDULERS
    if few and len(schedule.keys) < schedule.num_steps:
        warnings.warn(
            f"this run has {schedule.num_steps} steps with {kind}: models of few steps (LCM, Turbo) change their features at each, so "
            "nothing is gained by reusing them; sample without encoder propagation",
            stacklevel=stacklevel,
        )


def warn_of_rounding(model: nn.Module, asked: str, lost: str) -> None:
    """Warns where the model runs in bfloat16, whose numbers have 8 bits.

    `asked`: what for. `lost`: what goes wrong.
    """
    if next(model.parameters()).dtype == torch.bfloat16:
        warnings.warn(f"{asked} asked in bfloat16: {lost}; take float32 or float16 for it (pipe.to(torch.float32))", stacklevel=3)


def check_rows_stay_apart(pipe: DiffusionPipeline, split: Split, parallel: bool) -> None:
    """Raises ValueError where the steps that parallel decoding puts into one batch would mix."""
    mixing = row_mixing(pipe, split) if parallel else None
    if mixing is not None:
        raise ValueError(f"{mixing} mixes the rows of a batch, so steps cannot share one; use parallel_decoding=False")


def check_attention_runs(model: nn.Module, reuse: str) -> None:
    """Raises ValueError where a pipeline reads attention maps of every step, and none are made between keys."""
    store = None if reuse == "encoder" else attention_store(model)
    if store is not None:
        raise ValueError(
            f"{store} stores attention maps for the pipeline at every step, but with reuse={reuse!r} little or no attention runs between "
            "keys; accepted: reuse='encoder' with parallel_decoding=False"
        )


def check_not_deepcached(model: nn.Module) -> None:
    """Raises RuntimeError where DeepCache's own package has put its forward in the place of the model's."""
    if getattr(vars(model).get("forward"), "__module__", "").startswith("DeepCache"):
        raise RuntimeError(
            f"DeepCache is switched on for this {type(model).__name__}, and both at once are neither; call its helper's disable() first"
        )


def check_parts(
    pipe: DiffusionPipeline, denoiser: nn.Module, controlnet: nn.Module | None, children: Mapping[str, nn.Module]
) -> None:
    """Raises RuntimeError where a part that our layer is on is no longer the pipeline's, or is DeepCache's."""
    check_not_deepcached(denoiser)
    pairs = [("denoiser", denoiser, denoiser_of(pipe)), ("controlnet", controlnet, controlnet_of(pipe))]
    pairs += [(name, child, denoiser.get_submodule(name)) for name, child in children.items()]
    replaced = next((name for name, ours, here in pairs if ours is not here), None)
    if replaced is not None:
        raise RuntimeError(
            f"{replaced!r} was replaced inside the encoder_propagation block; make the change before it, or leave it and enter again"
        )


def check_is_one_run(pipe: DiffusionPipeline, guidance_scale: float | None, asked: str) -> None:
    """Raises ValueError for a pipeline whose call is not one run for a list of prompts with this guidance scale.

    `asked`: what for, "calibration" or "comparison".
    """
    kind, loop = type(pipe).__name__, several_runs(pipe)
    if loop is not None:
        raise ValueError(
            f"{asked} asked of {kind}, which goes through its time-steps several times in one call ({loop}). No step has one cost "
            "then; accepted: a pipeline with one run in each call, such as the text-to-image pipeline of the same denoiser"
        )
    parameters = inspect.signature(pipe.__call__).parameters
    if next(iter(parameters)) == "batch_size":
        raise ValueError(
            f"{asked} asked of {kind}, which is called with a number of images; accepted: a pipeline that is called with a list of "
            "prompts, images or class labels"
        )
    any_name = any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values())
    if guidance_scale is not None and not any_name and "guidance_scale" not in parameters:
        others = [name for name in parameters if "guidance" in name and "rescale" not in name]
        raise ValueError(
            f"guidance_scale={guidance_scale} asked of {kind}, which takes none; accepted: guidance_scale=None"
            + (f", with {' and '.join(others)} in pipe_kwargs" if others else "")
        )


def check_prompts(pipe: DiffusionPipeline, prompts: Sequence[Any]) -> None:
    """Raises TypeError for a prompt that the pipeline is not called with: a text, a class label or an image."""
    takes_images = next(iter(inspect.signature(pipe.__call__).parameters)) == "image"
    kinds, words = ((Image.Image,), "PIL images") if takes_images else ((str, int), "texts, or class labels as whole numbers")
    other = [prompt for prompt in prompts if isinstance(prompt, bool) or not isinstance(prompt, kinds)]
    if other:
        raise TypeError(
            f"prompt {other[0]!r} given to {type(pipe).__name__}; accepted: {words}; what is the same for all goes into pipe_kwargs"
        )
