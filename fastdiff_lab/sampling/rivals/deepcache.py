"""Accelerate a pipeline with DeepCache's own package (Ma et al., CVPR 2024), and count what it evaluates.

- `DeepCache`: the rival
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from ...hooks.denoiser import denoiser_of, split_denoiser
from ...hooks.flops import FlopCount, on_meta
from ...hooks.patching import is_compiled, replaced_call
from ...inputs.extras import extra
from ...inputs.plain_values import is_whole
from ...propagation.counts import Counts
from .rival import Rival


@dataclass(frozen=True)
class DeepCache(Rival):
    """Evaluate the whole UNet at every `interval`-th step, and only its outermost layers at the others.

    >>> with DeepCache(3)(pipe) as counts:  # doctest: +SKIP
    ...     image = pipe("a small red circle on a blue background", num_inference_steps=50).images[0]

    The counts' `encoder_calls` are the whole evaluations, in which the bottleneck ran.

    Args:
        interval: Steps between whole evaluations, 1 or more. The outermost branch is cached, as its authors recommend.

    Raises:
        ModuleNotFoundError: The package is not installed.
        ValueError: Another interval, or a denoiser that is no `pipe.unet` or is compiled.
    """

    interval: int
    goes_alone = True

    def __post_init__(self) -> None:
        if not is_whole(self.interval) or self.interval < 1:
            raise ValueError(f"deepcache={self.interval!r} asked; accepted: an interval, a whole number of 1 or more")

    @contextmanager
    def __call__(self, pipe: DiffusionPipeline) -> Iterator[Counts]:
        model = denoiser_of(pipe)
        if getattr(pipe, "unet", None) is not model:
            raise ValueError(f"DeepCache asked for a {type(model).__name__}; accepted: a pipeline whose denoiser is a UNet")
        if any(map(is_compiled, pipe.unet.modules())):
            raise ValueError(
                "DeepCache asked for a UNet with compiled blocks, which compile its wrappers again at every step; "
                "what it evaluates cannot be counted; accepted: a UNet that is not compiled"
            )
        counts = Counts()
        with ExitStack() as stack:
            _count_calls(stack, model, counts)
            stack.enter_context(_enabled(pipe, self.interval))
            yield counts

    def about(self) -> dict[str, Any]:
        return {"deepcache": self.interval}

    def needs(self) -> Any:
        return _helper()

    def share(self) -> float:
        return 1 / self.interval

    def flops(self, model: nn.Module, arguments: dict[str, Any], encoder_blocks: int | None = None) -> FlopCount:
        """Operations of a call: `decoder` for every call, `encoder` for what a whole one adds.

        DeepCache itself runs, on a copy of the model on the meta device. `arguments` are as for `count_flops`.
        """
        stand_in, shapes = on_meta(model, arguments)
        time_steps = torch.tensor([2, 1])
        pipe = SimpleNamespace(unet=stand_in, scheduler=SimpleNamespace(timesteps=time_steps))
        sample, others = shapes["sample"], {name: value for name, value in shapes.items() if name not in ("sample", "timestep")}
        counted = []
        with _enabled(pipe, len(time_steps)), torch.no_grad():
            for time_step in time_steps:
                with FlopCounterMode(display=False) as counter:
                    stand_in(sample, time_step, **others)
                counted.append(counter.get_total_flops())
        whole, cached = counted
        return FlopCount(whole - cached, cached, 0)


def _helper() -> Any:
    with extra("rivals", "a method with DeepCache"):
        from DeepCache import DeepCacheSDHelper
    return DeepCacheSDHelper


@contextmanager
def _enabled(pipe: Any, interval: int) -> Iterator[None]:
    """Switch DeepCache on, and afterwards remove also the `forward` attributes that its `disable` leaves behind."""
    helper = _helper()(pipe=pipe)
    before = [(module, vars(module).get("forward")) for module in pipe.unet.modules()]
    helper.set_params(cache_interval=interval, cache_branch_id=0)
    try:
        helper.enable()
        try:
            yield
        finally:
            helper.disable()
    finally:
        for module, forward in before:
            vars(module).pop("forward", None)
            if forward is not None:
                module.forward = forward


def _count_calls(stack: ExitStack, model: nn.Module, counts: Counts) -> None:
    def counting(inner):
        def call(*args, **kwargs):
            for name in ("decoder_calls", "forward_calls", "steps"):
                setattr(counts, name, getattr(counts, name) + 1)
            return inner(*args, **kwargs)

        return call

    def whole(module: nn.Module, args: tuple) -> None:
        counts.encoder_calls += 1

    counts.runs = 1
    stack.enter_context(replaced_call(model, counting))
    stack.callback(_inside_bottleneck(model).register_forward_pre_hook(whole).remove)


def _inside_bottleneck(model: nn.Module) -> nn.Module:
    """A layer below those that DeepCache replaces. It is called only if the bottleneck really runs."""
    bottleneck = split_denoiser(model).encoder["mid_block"]
    return next(module for module in bottleneck.modules() if not list(module.children()))
