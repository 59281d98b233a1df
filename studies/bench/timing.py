"""Time one run of a pipeline: seconds in all and in the denoiser, evaluations, memory.

- `timed_run(pipe, method, call, steps)`: the run
- `Timed`: its result
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from fastdiff_lab.hooks.denoiser import denoiser_of
from fastdiff_lab.hooks.device import synchronize
from fastdiff_lab.hooks.patching import replaced_call
from fastdiff_lab.sampling.methods import Method, as_method, generators
from fastdiff_lab.sampling.run_settings import RunSettings

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


@dataclass(frozen=True)
class Timed:
    """Seconds of pipeline and denoiser, evaluations, and on CUDA the peak bytes up to the end of each.

    `is_finite` says whether the last prediction is, on which the time of some kernels and a GPU's clocks depend.
    """

    seconds: float
    denoiser_seconds: float
    encoder_calls: int
    decoder_calls: int
    forward_calls: int
    peak_bytes: int | None = None
    denoiser_peak_bytes: int | None = None
    is_finite: bool = True


class Stopwatch:
    """Measure seconds inside the calls of a module, without making the host wait at each.

    >>> watch = Stopwatch(torch.device("cpu"))
    >>> with replaced_call(pipe.unet, watch.around):  # doctest: +SKIP
    ...     pipe("a red ring on a blue background")
    >>> watch.seconds()  # doctest: +SKIP
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.on_cuda = device, device.type == "cuda"
        self.marks: list[tuple[Any, Any]] = []
        self.peak_bytes: int | None = None
        self.last: Any = None  # output of the last call

    def mark(self) -> Any:
        if not self.on_cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def around(self, inner: Callable) -> Callable:
        def call(*args: Any, **kwargs: Any) -> Any:
            begun = self.mark()
            output = inner(*args, **kwargs)
            self.marks.append((begun, self.mark()))
            self.last = output
            if self.on_cuda:
                self.peak_bytes = torch.cuda.max_memory_allocated(self.device)  # the allocator's own count, without waiting
            return output

        return call

    def seconds(self) -> float:
        """Seconds of all calls, which the device must have finished."""
        return sum(a.elapsed_time(b) / 1000 if self.on_cuda else b - a for a, b in self.marks)


@torch.no_grad()
def timed_run(pipe: DiffusionPipeline, method: Method, call: dict[str, Any], num_inference_steps: int) -> Timed:
    """Time one call of the pipeline by a method, from the text to the images.

    >>> timed_run(pipe, Method(KeySchedule.paper(50)), {"prompt": "a red ring on a blue background"}, 50).seconds  # doctest: +SKIP

    `call` has the arguments of the call without steps and noise.
    """
    model = denoiser_of(pipe)
    device = next(model.parameters()).device
    watch = Stopwatch(device)
    on_cuda = device.type == "cuda"
    with as_method(pipe, method, RunSettings(num_inference_steps)) as (counts, run), replaced_call(model, watch.around):
        if on_cuda:
            torch.cuda.reset_peak_memory_stats(device)
        synchronize(device)
        started = time.perf_counter()
        pipe(**call, **run.arguments(), generator=generators([0])[0])
        synchronize(device)
        seconds = time.perf_counter() - started
    peak = torch.cuda.max_memory_allocated(device) if on_cuda else None
    is_finite = bool(torch.isfinite(watch.last[0]).all())
    return Timed(
        seconds, watch.seconds(), counts.encoder_calls, counts.decoder_calls, counts.forward_calls, peak, watch.peak_bytes, is_finite
    )  # fmt: skip
