"""Let a pipeline draw its own image, and catch the latents on the way.

- `watched_run(pipe, wait)`: the final latents of a run, and when they were there
- `gives_latents(pipe)`: whether its latents have one row per image
- `as_image(drawn)`: one image of what a pipeline drew for a prompt
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import Tensor, nn

from ..hooks.patching import replaced_method


@dataclass
class WatchedRun:
    """The last latents of a run, and when the device had them, in seconds of `time.perf_counter`."""

    wait: Callable[[], object]
    latents: Tensor = field(default_factory=lambda: torch.empty(0))
    known_at: float | None = None

    def seen(self, latents: Tensor) -> None:
        self.latents, self.known_at = latents, None

    def stop(self) -> float:
        """When the latents were there: now, or at the decoder's call after the last step."""
        if self.known_at is None:
            self.wait()
            self.known_at = time.perf_counter()
        return self.known_at


@contextmanager
def watched_run(pipe: DiffusionPipeline, wait: Callable[[], object]) -> Iterator[tuple[WatchedRun, dict[str, Any]]]:
    """Watch a run inside the block; yield what is seen, and the arguments that the call needs for it.

    >>> with watched_run(pipe, torch.cuda.synchronize) as (seen, arguments):  # doctest: +SKIP
    ...     images = pipe("a red ring on a blue background", **arguments)[0]

    `wait` waits until the device has finished.
    """
    run = WatchedRun(wait)

    def stepping(inner: Callable) -> Callable:
        def step(*args: Any, **kwargs: Any) -> Any:
            result = inner(*args, **kwargs)
            run.seen(result[0])
            return result

        return step

    def decoding(inner: Callable) -> Callable:
        def decode(*args: Any, **kwargs: Any) -> Any:
            run.stop()
            return inner(*args, **kwargs)

        return decode

    with ExitStack() as stack:
        stack.enter_context(replaced_method(pipe.scheduler, "step", stepping))
        for decoder in _decoders(pipe):
            stack.enter_context(replaced_method(decoder, "decode", decoding))
        yield run, _callback(pipe, run)


def _decoders(pipe: DiffusionPipeline) -> list[nn.Module]:
    parts = getattr(pipe, "components", {}).values()
    return [part for part in parts if isinstance(part, nn.Module) and hasattr(part, "decode")]


def gives_latents(pipe: DiffusionPipeline) -> bool:
    """Whether the pipeline's latents have one row per image. Those of video, of pixels and of other autoencoders have not."""
    return hasattr(pipe, "image_processor") and hasattr(pipe, "vae")


def _callback(pipe: DiffusionPipeline, run: WatchedRun) -> dict[str, Any]:
    """Pass a callback, because inpainting changes latents after the scheduler's step."""

    def told(pipe: DiffusionPipeline, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        run.seen(tensors["latents"])
        return {}

    takes_one = "callback_on_step_end" in inspect.signature(pipe.__call__).parameters
    return {"callback_on_step_end": told} if takes_one and gives_latents(pipe) else {}


def as_image(drawn: Any) -> Image.Image:
    """Return an image as it is, and stack a video's frames one above the other."""
    if isinstance(drawn, Image.Image):
        return drawn
    width, height = drawn[0].size
    whole = Image.new("RGB", (width, height * len(drawn)))
    for place, frame in enumerate(drawn):
        whole.paste(frame, (0, place * height))
    return whole
