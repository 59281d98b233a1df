"""Measure what methods cost: seconds, memory, operations."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
from diffusers import DiffusionPipeline
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from ..hooks.adapters import processors_kept
from ..hooks.denoiser import controlnet_of, denoiser_of
from ..hooks.device import begin_peak, device_of, peak_of
from ..hooks.flops import FlopCount, count_flops, total_flops
from ..sampling.methods import Method, as_method, first_arguments, one_image, run_method
from ..sampling.run_settings import RunSettings


def of_one_image(
    pipe: DiffusionPipeline, ways: Mapping[str, Method], task: tuple[Any, int], repeats: int, run: RunSettings
) -> pd.DataFrame:
    """Measure `seconds` (median) and `peak_bytes` (CUDA and XPU) of one image per method, in turns after one warm-up.

    >>> of_one_image(pipe, {"baseline": Method()}, ("a red ring on a blue background", 0), 3, RunSettings())  # doctest: +SKIP

    `task` is prompt and seed; `repeats` counts timed runs, 0 for none (NaN).
    """
    if not repeats:
        return pd.DataFrame({"seconds": float("nan"), "peak_bytes": float("nan")}, index=[*ways])
    *_, table = timed_turns(pipe, ways, task, repeats, run)
    return table


def timed_turns(
    pipe: DiffusionPipeline, ways: Mapping[str, Method], task: tuple[Any, int], repeats: int, run: RunSettings
) -> Iterator[pd.DataFrame]:
    """Give the table of `of_one_image` after each turn; arguments as there.

    >>> for table in timed_turns(pipe, {"baseline": Method()}, (prompt, 0), 3, RunSettings()):  # doctest: +SKIP
    ...     table.to_csv("seconds.csv")
    """
    device = device_of(pipe)
    measured: dict[str, list[float]] = {name: [] for name in ways}
    peaks: dict[str, float] = {}
    for turn in range(repeats + 1):
        for name, method in ways.items():
            begin_peak(device)
            drawn = run_method(pipe, method, [task[0]], [task[1]], run)
            peaks[name] = peak_of(device)
            if turn:  # the first warms up
                measured[name].append(drawn.seconds)
        if turn:
            seconds = pd.Series({name: statistics.median(values) for name, values in measured.items()})
            yield pd.DataFrame({"seconds": seconds, "peak_bytes": pd.Series(peaks)})


def operations(
    pipe: DiffusionPipeline, ways: Mapping[str, Method], calls: pd.DataFrame, prompt: Any, run: RunSettings
) -> pd.DataFrame:
    """Count `gflops` (2 per multiply-add) and `gmacs` of one image per method.

    >>> operations(pipe, methods, table.set_index("method"), prompt, RunSettings())["gflops"]  # doctest: +SKIP

    `calls` has encoder_calls and decoder_calls by method. Rivals are counted as they run, and a ControlNet with the encoder.
    The operations of your own functions are those of one more run.
    """
    call = one_image(pipe, prompt, run)
    arguments, reused = first_arguments(denoiser_of(pipe), call), controlnet_flops(pipe, call)
    counted = {
        flops_kind(method): flops_of_call(denoiser_of(pipe), arguments, method)
        for method in {flops_kind(method): method for method in ways.values()}.values()
    }

    def of_run(name: str, method: Method) -> float:
        count, each = counted[flops_kind(method)], calls.loc[name, ["encoder_calls", "decoder_calls"]]
        if count is None:
            return flops_of_a_run(pipe, method, prompt, run)
        return replace(count, encoder=count.encoder + reused).of_run(*each)

    gflops = pd.Series({name: of_run(name, method) / 1e9 for name, method in ways.items()})
    return pd.DataFrame({"gflops": gflops, "gmacs": gflops / 2})


def flops_of_a_run(pipe: DiffusionPipeline, method: Method, prompt: Any, run: RunSettings) -> int:
    """Draw an image, and count the operations of the denoiser and the ControlNet meanwhile."""
    # CPU's own kernels of attention report no operations.
    with as_method(pipe, method, run) as (_, run), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        one_image(pipe, prompt, run)()
    names = {type(model).__name__ for model in (denoiser_of(pipe), controlnet_of(pipe))}
    return sum(sum(found.values()) for name, found in counter.get_flop_counts().items() if name in names)


def controlnet_flops(pipe: DiffusionPipeline, run: Callable[[], Any]) -> int:
    """Operations of one call of the pipeline's ControlNet, or 0. `run` calls the pipeline."""
    controlnet = controlnet_of(pipe)
    if controlnet is None:
        return 0
    with processors_kept(denoiser_of(pipe)):
        return total_flops(controlnet, first_arguments(controlnet, run))


def flops_kind(method: Method) -> tuple:
    """What the operations of a call depend on."""
    return method.rivals, None if method.propagation is None else method.propagation.encoder_blocks


def flops_of_call(model: nn.Module, arguments: dict[str, Any], method: Method) -> FlopCount | None:
    """Operations of a denoiser call as the method makes it, with its rivals switched on; None if only a run tells.

    >>> flops_of_call(pipe.unet, denoiser_arguments(pipe, prompt), Method(deepcache=3)).of_run(17, 50)  # doctest: +SKIP
    """
    rivals, blocks = flops_kind(method)
    counted = [rival.flops(model, arguments, blocks) for rival in rivals] or [count_flops(model, arguments, blocks)]
    return None if None in counted else counted[0]
