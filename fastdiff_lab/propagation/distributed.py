"""One image on several devices: the steps of a group are decoded by all processes of a group, each its share.

- `Ranks(process_group)`: what the others decoded
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch.distributed as dist
from torch import Tensor

from .planner import PlannedPass, Share

_VALUES = 16  # of the latents, compared between ranks


class Ranks:
    """The processes that decode the steps of a group together; of None, this one alone.

    The encoder is replicated: every process evaluates it at each key step, and decodes the key step with it. The other steps of the
    group are shared out, and each prediction goes to all. So all processes run the same pipeline call, and all get the same image.
    """

    def __init__(self, process_group: dist.ProcessGroup | None = None) -> None:
        self.group = process_group
        self.share = Share() if process_group is None else Share(dist.get_rank(process_group), dist.get_world_size(process_group))

    @property
    def size(self) -> int:
        return self.share.size

    def gathered(self, planned: PlannedPass, decoded: dict[int, Tensor]) -> dict[int, Tensor]:
        """The predictions of all steps of a pass, from those that this process decoded and those of the others.

        `decoded`: step -> tensor (rows, channels, height, width). Raises RuntimeError if a process is gone or too late.
        """
        steps, is_key = planned.steps, planned.is_key
        shared = steps[1:] if is_key else steps
        if self.size == 1 or not shared:
            return decoded
        some = next(iter(decoded.values()))
        # Each process fills in its own steps and zeros elsewhere, so the sum over processes is the prediction itself, exactly.
        whole = some.new_zeros((len(shared), *some.shape))
        for step in self.share.alone(steps, is_key):
            whole[step - shared.start] = decoded[step]
        self.waiting("predictions", lambda: dist.all_reduce(whole, group=self.group))
        return {step: decoded[step] for step in steps[:1] if is_key} | dict(zip(shared, whole, strict=True))

    def check_same(self, what: str, mine: Any, same: Callable[[Any, Any], bool] = operator.eq) -> None:
        """Raises ValueError on every process if this value differs on one. Raises RuntimeError if one is gone or too late."""
        found: list[Any] = [None] * self.size
        self.waiting(what, lambda: dist.all_gather_object(found, mine, group=self.group))
        other = next((rank for rank, value in enumerate(found) if not same(value, found[0])), None)
        if other is not None:
            raise ValueError(
                f"rank 0 has {what} {_short(found[0])}, rank {other} has {_short(found[other])}; accepted: the same call of the same "
                "pipeline on every rank (prompt, seed, steps, schedule)"
            )

    def least(self, mine: int | None) -> int | None:
        """The least of all processes' numbers, None standing for no limit."""
        if self.size == 1:
            return mine
        found: list[Any] = [None] * self.size
        self.waiting("limits", lambda: dist.all_gather_object(found, mine, group=self.group))
        return min((number for number in found if number is not None), default=None)

    def waiting(self, what: str, talk: Callable[[], Any]) -> None:
        try:
            talk()
        except RuntimeError as error:
            raise RuntimeError(
                f"rank {self.share.rank} of {self.size} waited for the {what} of the others, and one is gone or too late "
                f"({str(error).splitlines()[0]}); start all ranks again"
            ) from error


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."


def looked_at(sample: Tensor) -> list[float]:
    """The shape and some values of the latents that a run begins with: other prompts, sizes or seeds on another rank show here."""
    values = sample.detach().flatten()
    return [*map(float, sample.shape), *values[:: max(1, len(values) // _VALUES)].float().tolist()]


def alike(one: list[float], other: list[float]) -> bool:
    """Whether two ranks look at the same latents; an encoder's kernels may round differently on two devices."""
    return len(one) == len(other) and all(math.isclose(a, b, rel_tol=1e-2, abs_tol=1e-2) for a, b in zip(one, other, strict=True))
