"""A run that is watched: each step seen as it comes, and broken off when someone asks.

- `watched(pipe, on_step, cancelled)`: while the block lasts
- `Cancelled`: what breaks a run off
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor

from ...hooks.denoiser import denoiser_of
from ...hooks.patching import replaced_call, replaced_method


class Cancelled(Exception):
    """The run was broken off because someone asked for it."""


@contextmanager
def watched(pipe: Any, on_step: Callable[[Tensor], object], cancelled: Callable[[], bool]) -> Iterator[None]:
    """While the block lasts, `on_step` sees the latents after each step, and `cancelled` is asked around each.

    >>> with watched(pipe, lambda latents: print(latents.std()), cancelled=event.is_set):  # doctest: +SKIP
    ...     pipe("a red ring on a blue background")

    Enter it before `encoder_propagation`. Predictions that were decoded ahead need no call of the denoiser, but each still passes the
    scheduler: so a run stops after the call that is being evaluated, or within a group at its next step. Raises Cancelled from
    the pipeline's call; the pipeline is as it was afterwards.
    """

    def check() -> None:
        if cancelled():
            raise Cancelled

    def step(inner: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            check()
            output = inner(*args, **kwargs)
            on_step(output[0])
            check()
            return output

        return call

    def denoise(inner: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            check()
            return inner(*args, **kwargs)

        return call

    with ExitStack() as stack:
        stack.enter_context(replaced_method(pipe.scheduler, "step", step))
        stack.enter_context(replaced_call(denoiser_of(pipe), denoise))
        yield
