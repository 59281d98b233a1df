"""The cases of a benchmark: pipeline, scheduler and steps, precision, images at once, and how kernels run.

- `Case`: one such combination
- `MODES`: how the denoiser's kernels run
- `prepared(case, device)`: its pipeline, ready to be timed
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch._dynamo
from torch import nn

from fastdiff_lab.hooks.denoiser import controlnet_of, denoiser_of, split_denoiser
from fastdiff_lab.pipelines import SCHEDULERS, with_settings_of

from .full_pipelines import FULL_PIPELINES, full_pipeline

EAGER, CHANNELS_LAST, COMPILED = MODES = ("eager", "channels-last", "compiled")
GRAPHS = 64  # of one function; beyond torch's limit of 8 nothing is compiled, but a class has more blocks times group sizes


@dataclass(frozen=True)
class Case:
    """One pipeline to be timed.

    Args:
        system: One of `FULL_PIPELINES`.
        pixels: Side of an image.
        scheduler: One of `SCHEDULERS`.
        steps: Requested, 10 or more.
        batch_size: Prompts at once, 1 or more.
        dtype: As in `load_pipeline`.
        mode: One of `MODES`.

    Raises:
        ValueError: Another value.
    """

    system: str
    pixels: int
    scheduler: str = "ddim"
    steps: int = 50
    dtype: str = "float32"
    batch_size: int = 1
    mode: str = EAGER

    def __post_init__(self) -> None:
        if self.system not in FULL_PIPELINES:
            raise ValueError(f"pipeline {self.system!r} asked; there are: {', '.join(FULL_PIPELINES)}")
        if self.scheduler not in SCHEDULERS:
            raise ValueError(f"scheduler={self.scheduler!r} asked; accepted: {', '.join(SCHEDULERS)}")
        if self.mode not in MODES:
            raise ValueError(f"mode={self.mode!r} asked; accepted: {', '.join(MODES)}")
        if self.steps < 10 or self.batch_size < 1 or self.pixels < 1:
            raise ValueError(
                f"{self.steps} steps, {self.batch_size} images at once, {self.pixels} pixels asked; accepted: 10 steps or more "
                "(the paper has 9 "
                "keys), 1 image or more, 1 pixel or more"
            )
        usual = FULL_PIPELINES[self.system]
        if usual.is_fixed and self.pixels != usual.pixels:
            raise ValueError(
                f"{self.system} with {self.pixels} pixels asked; accepted: {usual.pixels}, its pipeline draws no other size"
            )

    def __str__(self) -> str:
        return f"{self.system} {self.pixels} px, {self.scheduler} {self.steps}, {self.dtype}, batch {self.batch_size}, {self.mode}"

    @property
    def call(self) -> dict[str, Any]:
        """Arguments of a call of its pipeline, without steps and noise."""
        return FULL_PIPELINES[self.system].call(self.batch_size, self.pixels)


def prepared(case: Case, device: str) -> Any:
    """The case's pipeline on a device, with its scheduler and mode.

    >>> pipe = prepared(Case("embedded", 64, steps=20), "cpu")
    """
    pipe = full_pipeline(case.system, device=device, dtype=case.dtype)
    pipe.scheduler = with_settings_of(pipe.scheduler, case.scheduler)
    model = denoiser_of(pipe)
    if case.mode == CHANNELS_LAST:
        model.to(memory_format=torch.channels_last)
    if case.mode == COMPILED:
        compile_children(model)
        controlnet = controlnet_of(pipe)
        if controlnet is not None:
            controlnet.compile(dynamic=False)
    return pipe


def compile_children(model: nn.Module, **options: Any) -> None:
    """Compile each child of encoder and decoder by itself, so that encoder propagation can still replace it.

    >>> compile_children(pipe.unet)  # doctest: +SKIP

    There is a graph for each group size. One for all sizes (torch's default after the second) is slower, also for the baseline.
    `options` are those of `torch.compile`.
    """
    torch._dynamo.config.recompile_limit = max(GRAPHS, torch._dynamo.config.recompile_limit)
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # else some would silently run uncompiled
    split = split_denoiser(model)
    for child in (*split.encoder.values(), *split.decoder.values()):
        child.compile(dynamic=False, **options)
