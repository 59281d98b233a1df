"""Measure what methods cost: seconds, memory, operations."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd
from torch import nn

from ..hooks.adapters import processors_kept
from ..hooks.denoiser import controlnet_of, denoiser_of
from ..hooks.device import begin_peak, device_of, peak_of
from ..hooks.flops import FlopCount, count_flops, total_flops
from ..sampling.methods import Method, first_arguments, one_image, sample
from ..sampling.rivals.deepcache import deepcache_flops
from ..sampling.rivals.token_merging import token_merging_flops

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


def of_one_image(
    pipe: DiffusionPipeline, ways: Mapping[str, Method], task: tuple[Any, int], repeats: int, options: dict[str, Any]
) -> pd.DataFrame:
    """Measure `seconds` (median) and `peak_bytes` (CUDA and XPU) of one image per method, in turns after one warm-up.

    >>> of_one_image(pipe, {"baseline": Method()}, ("a red ring on a blue background", 0), 3, {})  # doctest: +SKIP

    `task` is prompt and seed; `repeats` counts timed runs, 0 for none (NaN); `options` as for `sample`.
    """
    device = device_of(pipe)
    measured: dict[str, list[float]] = {name: [] for name in ways}
    peaks: dict[str, float] = dict.fromkeys(ways, float("nan"))
    for turn in range(repeats + 1 if repeats else 0):
        for name, method in ways.items():
            begin_peak(device)
            drawn = sample(pipe, method, [task[0]], [task[1]], **options)
            peaks[name] = peak_of(device)
            if turn:
                measured[name].append(drawn.seconds)
    seconds = pd.Series({name: statistics.median(values) if values else float("nan") for name, values in measured.items()})
    return pd.DataFrame({"seconds": seconds, "peak_bytes": pd.Series(peaks)})


def operations(
    pipe: DiffusionPipeline,
    ways: Mapping[str, Method],
    calls: pd.DataFrame,
    prompt: Any,
    options: Mapping[str, Any],
) -> pd.DataFrame:
    """Count `gflops` (2 per multiply-add) and `gmacs` of one image per method.

    >>> operations(pipe, methods, table.set_index("method"), prompt, {})["gflops"]  # doctest: +SKIP

    `calls` has encoder_calls and decoder_calls by method. Rivals are counted as they run, and a ControlNet with the encoder.
    """
    run = one_image(pipe, prompt, **options)
    arguments, reused = first_arguments(denoiser_of(pipe), run), controlnet_flops(pipe, run)
    counted = {
        flops_kind(method): flops_of_call(denoiser_of(pipe), arguments, method)
        for method in {flops_kind(method): method for method in ways.values()}.values()
    }
    of_call = {kind: replace(count, encoder=count.encoder + reused) for kind, count in counted.items()}
    each = calls[["encoder_calls", "decoder_calls"]]
    of_run = {name: of_call[flops_kind(method)].of_run(*each.loc[name]) / 1e9 for name, method in ways.items()}
    gflops = pd.Series(of_run)
    return pd.DataFrame({"gflops": gflops, "gmacs": gflops / 2})


def controlnet_flops(pipe: DiffusionPipeline, run: Callable[[], Any]) -> int:
    """Operations of one call of the pipeline's ControlNet, or 0. `run` calls the pipeline."""
    controlnet = controlnet_of(pipe)
    if controlnet is None:
        return 0
    with processors_kept(denoiser_of(pipe)):
        return total_flops(controlnet, first_arguments(controlnet, run))


def flops_kind(method: Method) -> tuple:
    """What the operations of a call depend on."""
    return method.deepcache is not None, method.encoder_blocks, method.token_merging


def flops_of_call(model: nn.Module, arguments: dict[str, Any], method: Method) -> FlopCount:
    """Operations of a denoiser call as the method makes it, with DeepCache or token merging switched on.

    >>> flops_of_call(pipe.unet, denoiser_arguments(pipe, prompt), Method(deepcache=3)).of_run(17, 50)  # doctest: +SKIP
    """
    if method.deepcache is not None:
        return deepcache_flops(model, arguments)
    if method.token_merging:
        return token_merging_flops(model, arguments, method.token_merging, method.encoder_blocks)
    return count_flops(model, arguments, method.encoder_blocks)
