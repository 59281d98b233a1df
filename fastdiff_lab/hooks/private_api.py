"""Every private API of torch, diffusers, accelerate and peft that the package uses; each has a test that fails when it is gone.

- torch: `CALL_SLOT`, `call_of`, `is_compiled_whole`, `unwrapped`, `submodule`, `part_tables`, `hook_tables`, `forward_hooks`,
  `global_forward_hooks`, `write_count`, `sum_of_write_counts`, `move_towards`; `TorchDispatchMode`, `tree_leaves`
- diffusers' classes that it does not export: `CacheMixin`, `GatedSelfAttentionDense`, `MultiControlNetUnionModel`
- diffusers' pipelines: `guidance_scale_of`, `num_time_steps_of`, `execution_device_of`, `free_init_of`, `PROGRESS_BAR`
- offloading: `take_off_offloading`, `weights_elsewhere`
- Python: `frames_of_threads`
- `SETTINGS_OF_FILES`, `LORA_STATE`: names of entries and attributes
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from types import FrameType
from typing import Any

import torch
from diffusers import DiffusionPipeline
from diffusers.models.attention import GatedSelfAttentionDense as GatedSelfAttentionDense
from diffusers.models.cache_utils import CacheMixin as CacheMixin
from diffusers.models.controlnets.multicontrolnet_union import MultiControlNetUnionModel as MultiControlNetUnionModel
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode as TorchDispatchMode
from torch.utils._pytree import tree_leaves as tree_leaves

# torch's own slot for what runs instead of a module's `_call_impl` (nn.Module.compile uses it). Being above `forward`, it
# leaves alone whatever offloading has put there, the host's hooks and a child that was compiled before.
CALL_SLOT = "_compiled_call_impl"
PROGRESS_BAR = "_progress_bar_config"  # an attribute of pipelines
SETTINGS_OF_FILES = ("_diffusers_version", "_use_default_values")  # entries of configs that say nothing of what they configure
LORA_STATE = ("scaling", "_disable_adapters", "_active_adapter", "merged_adapters")  # attributes of peft's layers


def frames_of_threads() -> dict[int, FrameType]:
    """What each thread is running, by its `ident`."""
    return sys._current_frames()


def call_of(module: nn.Module) -> Callable:
    """What `module(...)` calls."""
    return vars(module).get(CALL_SLOT) or module._call_impl


def is_compiled_whole(module: nn.Module) -> bool:
    """Is this what `torch.compile(module)` gives?"""
    return isinstance(module, torch._dynamo.OptimizedModule)


def unwrapped(module: Any) -> Any:
    """The module inside what `torch.compile(module)` gives; any other object as it is."""
    return getattr(module, "_orig_mod", module)


def submodule(module: nn.Module, name: str) -> nn.Module | None:
    """A child of that name, without asking `__getattr__`; None if there is none."""
    return module._modules.get(name)


def part_tables(module: nn.Module) -> tuple[dict[str, Any], ...]:
    """A module's own tables of children and of weights, by name."""
    return module._modules, module._parameters


def hook_tables(module: nn.Module) -> tuple[dict[int, Callable], ...]:
    """A module's own tables of hooks: before its forward, after it, and of its backward pass."""
    return module._forward_pre_hooks, module._forward_hooks, module._backward_hooks


def forward_hooks(module: nn.Module) -> list[Callable]:
    """The hooks that run before and after a module's forward."""
    return [hook for table in hook_tables(module)[:2] for hook in table.values()]


def global_forward_hooks() -> list[Callable]:
    """The hooks that run before and after the forward of every module."""
    tables = (nn.modules.module._global_forward_pre_hooks, nn.modules.module._global_forward_hooks)
    return [hook for table in tables for hook in table.values()]


def write_count(tensor: Tensor) -> int | None:
    """How many times a tensor was written to in place; None in inference mode, which does not count."""
    return None if tensor.is_inference() else tensor._version


def sum_of_write_counts(tensors: Iterable[Tensor]) -> int:
    """How many times tensors were written to in place, all together. Raises RuntimeError for one of inference mode."""
    return sum(map(attrgetter("_version"), tensors))


def move_towards(tensors: Iterable[Tensor], targets: Iterable[Tensor], share: float) -> None:
    """Moves each tensor in place by a share of its way to its target, all in one call."""
    torch._foreach_lerp_(list(tensors), list(targets), share)


def guidance_scale_of(pipe: DiffusionPipeline) -> Any:
    """The guidance scale of the run that a pipeline makes, or made last; None if it does not tell."""
    return getattr(pipe, "_guidance_scale", None)


def num_time_steps_of(pipe: DiffusionPipeline) -> Any:
    """How many time-steps a pipeline says that its run has; None if it does not tell."""
    return getattr(pipe, "_num_timesteps", None)


def execution_device_of(pipe: DiffusionPipeline) -> Any:
    """Where an offloaded pipeline computes; None if it does not tell."""
    return getattr(pipe, "_execution_device", None)


def free_init_of(pipe: DiffusionPipeline) -> tuple[int, bool]:
    """How many runs FreeInit makes in one call (1 without it), and whether they differ in length."""
    count = getattr(pipe, "_free_init_num_iters", None) or 1
    return count, bool(getattr(pipe, "_free_init_use_fast_sampling", False))


def take_off_offloading(module: nn.Module) -> None:
    """Takes from a copied module what offloading has put around its forward: it would bring weights that the copy has not."""
    own = vars(module)
    hooks = [own.pop(name, None) for name in ("_hf_hook", "_diffusers_hook")]
    if any(hook is not None for hook in hooks):
        own.pop("forward", None)


def weights_elsewhere(module: Any) -> Mapping[str, Tensor]:
    """The weights that sequential offloading keeps elsewhere for a module, by name."""
    return getattr(getattr(module, "_hf_hook", None), "weights_map", None) or {}
