"""Watch a run step by step, and cancel it on request."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from torch import Tensor

from ...hooks.callers import is_called_by
from ...hooks.clean_estimate import clean_estimate
from ...hooks.denoiser import denoiser_of
from ...hooks.patching import replaced_call, replaced_method

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


OnStep = Callable[[Tensor, Callable[[], Tensor]], object]


class Cancelled(Exception):
    """The run was cancelled on request."""


@contextmanager
def watched(pipe: DiffusionPipeline, on_step: OnStep, cancelled: Callable[[], bool]) -> Iterator[None]:
    """Show `on_step` the latents after each step inside the block, and a function of the clean ones; ask `cancelled` around each.

    >>> with watched(pipe, lambda latents, clean: print(latents.std(), clean().std()), cancelled=event.is_set):  # doctest: +SKIP
    ...     pipe("a red ring on a blue background")

    Enter it before `encoder_propagation`. A run stops after the current denoiser call, or within a group at its next step.
    Raises Cancelled from the pipeline's call, and leaves the pipeline as it was.
    """

    def check() -> None:
        if cancelled():
            raise Cancelled

    def step(inner: Callable) -> Callable:
        scheduler = pipe.scheduler
        signature = inspect.signature(type(scheduler).step)  # something else may have put its own in the place of the method

        def call(*args: Any, **kwargs: Any) -> Any:
            check()
            given = signature.bind(scheduler, *args, **kwargs).arguments
            clean = clean_estimate(scheduler, given["model_output"], given["timestep"], given["sample"])
            output = inner(*args, **kwargs)
            on_step(output[0], clean)
            check()
            return output

        return call

    def denoise(inner: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            if is_called_by(pipe):
                check()
            return inner(*args, **kwargs)

        return call

    with ExitStack() as stack:
        stack.enter_context(replaced_method(pipe.scheduler, "step", step))
        stack.enter_context(replaced_call(denoiser_of(pipe), denoise))
        yield
