"""Estimate what a comparison will take, before it starts."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DiffusionPipeline
from torch import nn
from tqdm import tqdm

from ..hooks.denoiser import denoiser_of
from ..hooks.denoiser_classes import sample_argument
from ..hooks.device import device_of, synchronize
from ..hooks.flops import flops_once
from ..key_schedule import KeySchedule
from ..propagation.config import PropagationConfig
from ..propagation.row_capacity import RowLimit
from ..sampling.methods import Method


@dataclass(frozen=True)
class OneCall:
    """One denoiser call for one image: its seconds, and the decoder's share of them."""

    seconds: float
    decoder: float


def announce(
    pipe: DiffusionPipeline,
    arguments: Mapping[str, Any],
    pending: Sequence[tuple[Method, Sequence[Any]]],
    num_steps: int,
    processes: int = 1,
) -> None:
    """Print on stderr what drawing the pending images will take.

    >>> announce(pipe, denoiser_arguments(pipe, prompt), [(Method(), tasks)], num_steps=50)  # doctest: +SKIP

    `arguments` are those of a denoiser call for one image; `pending` has each method with the tasks of a batch.
    """
    if not pending:
        return
    model, given = denoiser_of(pipe), {name: value for name, value in arguments.items() if value is not None}
    call = _one_call(pipe, model, given)
    seconds = sum(len(tasks) * seconds_of(method, call, num_steps) for method, tasks in pending) / processes
    needed = max(bytes_of(method, model, given, len(tasks)) for method, tasks in pending)
    images = sum(len(tasks) for _, tasks in pending)
    tqdm.write(
        f"comparison: {images} images of {len({method for method, _ in pending})} methods, about {seconds:.0f} s and "
        f"{needed / 2**30:.1f} GiB "
        f"beside the weights{' in each process' if processes > 1 else ''}", file=sys.stderr,
    )  # fmt: skip


def _one_call(pipe: DiffusionPipeline, model: nn.Module, arguments: Mapping[str, Any]) -> OneCall:
    flops, device = flops_once(model, arguments), device_of(pipe)
    for _ in range(1 if device.type == "cpu" else 2):  # a device's first call chooses its kernels
        synchronize(device)
        started = time.perf_counter()
        with torch.no_grad():
            model(**{name: list(value) if isinstance(value, list) else value for name, value in arguments.items()})
        synchronize(device)
        seconds = time.perf_counter() - started
    return OneCall(seconds, (flops.decoder + flops.rest) / flops.total)


def seconds_of(method: Method, call: OneCall, num_steps: int) -> float:
    """Estimate the seconds of the denoiser for one image.

    >>> from fastdiff_lab import KeySchedule
    >>> seconds_of(Method(KeySchedule(50, range(10))), OneCall(0.1, decoder=0.5), 50)
    3.0
    """
    if method.propagation is not None:
        schedule = method.propagation.schedule
        keys, others = len(schedule.keys), schedule.num_steps - len(schedule.keys)
        return call.seconds * (keys + (0.0 if method.propagation.reuse == "prediction" else call.decoder * others))
    whole = call.seconds * (num_steps if method.steps is None else method.steps)
    return whole * math.prod(rival.share() for rival in method.rivals)


def bytes_of(method: Method, model: nn.Module, arguments: Mapping[str, Any], images: int) -> int:
    """Estimate the bytes that a batch needs beside the weights; `arguments` are those of one image."""
    rows = len(arguments[sample_argument(model)])
    config = method.propagation or PropagationConfig(KeySchedule(1, (0,)))  # the baseline: no step shares a forward
    longest = max(map(len, config.schedule.groups())) if config.is_parallel else 1
    limit = RowLimit(None if config.max_rows is None else max(rows, config.max_rows // images))
    return images * limit.bytes_told(model, arguments, longest, config.extrapolation, images)
