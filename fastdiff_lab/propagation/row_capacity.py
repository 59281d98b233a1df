"""How many rows of a group are decoded at once: as many as were asked, or as many as fit into memory.

- `RowLimit`: the limit of a block, lower once memory has run out
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn

from ..hooks.denoiser import Split, split_denoiser
from ..hooks.denoiser_classes import sample_argument
from ..hooks.device import free_bytes, is_out_of_memory, release_cache
from .extrapolation import Extrapolation
from .pass_bytes import bytes_once

Output = TypeVar("Output")
# Of the free memory: the rest is for the scheduler, for scratch memory inside operations and for gaps between tensors.
SHARE = 0.8


def _arriving(model: nn.Module, device: torch.device) -> int:
    """Bytes of the weights that offloading will bring to the device when the model is called."""
    return sum(p.nbytes for p in model.parameters() if p.device.type == "cpu") if device.type != "cpu" else 0


@dataclass
class RowLimit:
    """The most rows that are decoded at once in a block, or in all runs of a calibration.

    >>> RowLimit(asked=8).rows
    8

    `asked`: `max_rows` as it was given; with None it is, off the CPU, what fits into the memory that is free when a run begins.
    """

    asked: int | None = None
    fitting: int | None = field(default=None, init=False)  # rows; of the run at hand
    survived: int | None = field(default=None, init=False)  # rows; once memory has run out

    @property
    def rows(self) -> int | None:
        """Rows at most, as far as they are known beforehand; None for no limit."""
        return self.fitting if self.asked is None else self.asked

    def begin_run(
        self, model: nn.Module, arguments: Mapping[str, Any], extrapolation: Extrapolation, split: Split, images: int = 1
    ) -> None:
        """Looks how much memory is left, where nothing was asked and the device says it."""
        self.fitting = None
        sample = arguments[sample_argument(model)]
        free = free_bytes(sample.device) if self.asked is None else None
        if free is None:
            return
        needed = bytes_once(model, arguments, split, extrapolation)
        self.fitting = len(sample) * needed.steps(SHARE * (free - _arriving(model, sample.device)) / images)

    def bytes_told(
        self, model: nn.Module, arguments: Mapping[str, Any], steps: int, extrapolation: Extrapolation, images: int = 1
    ) -> int:
        """Beside the weights, what decoding so many steps at once needs under this limit, told before a run.

        `images`: how many calls like this one share the memory that is free.
        """
        split, rows = split_denoiser(model), len(arguments[sample_argument(model)])
        self.begin_run(model, arguments, extrapolation, split, images)
        fewer = steps if self.rows is None else max(1, min(steps, self.rows // rows))
        return bytes_once(model, arguments, split, extrapolation).of(fewer)

    def steps_at_once(self, rows: int) -> int | None:
        """How many steps, of so many rows each, may be decoded at once, 1 or more; None for no limit.

        Raises ValueError where not even one step fits into `max_rows` as it was given.
        """
        if self.asked is not None and self.asked < rows:
            raise ValueError(f"max_rows={self.asked} asked, but one step of this run has {rows} rows; accepted: {rows} or more")
        return None if self.rows is None else max(1, self.rows // rows)

    def steps_of(self, steps: int, rows: int) -> int:
        """How many of so many steps, of so many rows each, are decoded at once by this process."""
        return steps if self.survived is None else max(1, min(steps, self.survived // rows))

    def in_passes(
        self, steps: Sequence[int], rows: int, device: torch.device, attempt: Callable[[Sequence[int], bool, bool], Output]
    ) -> Iterator[tuple[Sequence[int], Output]]:
        """The steps, of so many rows each, with what `attempt(part, is_first, is_last)` gives: at once, or in parts once memory ran out.

        Where memory runs out with a single step, raises what `attempt` does.
        """
        left = list(steps)
        while left:
            part = left[: self.steps_of(len(left), rows)]
            found = _unless_full(attempt, part, rows, len(left) == len(steps), len(part) == len(left))
            if found is None:
                release_cache(device)
                self.halve(len(part), rows)
                continue
            yield part, found[0]
            left = left[len(part) :]

    def halve(self, steps: int, rows: int) -> None:
        """After memory ran out with so many steps, 2 or more, of so many rows each: half of them from now on, and a warning."""
        self.survived = (steps + 1) // 2 * rows
        warnings.warn(
            f"memory ran out while {steps * rows} rows were decoded at once; going on with {self.survived}. The images stay the same. "
            f"Give max_rows={self.survived} to begin with so many",
            stacklevel=2,
        )


def _unless_full(attempt: Callable, part: Sequence[int], rows: int, is_first: bool, is_last: bool) -> tuple[Any] | None:
    """What `attempt` gives; None if memory ran out and fewer steps may fit. With the error go its frames, and the tensors in them."""
    try:
        return (attempt(part, is_first, is_last),)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        if len(part) == 1:
            error.add_note(f"one step of {rows} rows does not fit; draw fewer images in one call")
            raise
        return None
