"""Train one model in several processes that average their gradients.

- `Team`: this process among them
- `in_processes(count, folder, work, ...)`: run `work(...)` in so many processes of one thread each

Most layers here are small: on a small CPU, two processes do twice the steps of one with two threads.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn


class Team:
    """This process among those that train together, or alone.

    >>> Team().size
    1
    """

    def __init__(self) -> None:
        together = dist.is_available() and dist.is_initialized()
        self.rank: int = dist.get_rank() if together else 0
        self.size: int = dist.get_world_size() if together else 1

    @property
    def leads(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def draw(self, step: int) -> int:
        """A number for each step of each process, to draw a batch from."""
        return step * self.size + self.rank

    def average_gradients(self, model: nn.Module) -> None:
        """Give every process the mean of all gradients."""
        if self.size == 1:
            return
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        together = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(together)
        parts = (together / self.size).split([gradient.numel() for gradient in gradients])
        for gradient, part in zip(gradients, parts, strict=True):
            gradient.copy_(part.view_as(gradient))

    def as_the_leader(self, value: float) -> float:
        """The leader's value, so that all end and follow the learning rate together."""
        if self.size == 1:
            return value
        shared = torch.tensor([value], dtype=torch.float64)
        dist.broadcast(shared, src=0)
        return float(shared)


def in_processes(count: int, folder: Path, work: Callable[..., Any], *arguments: Any) -> None:
    """Run `work(*arguments)` in `count` processes that form a team; `folder` holds their meeting file."""
    meeting = folder / "team"
    meeting.unlink(missing_ok=True)
    try:
        torch.multiprocessing.spawn(_member, (count, meeting, work, arguments), nprocs=count)
    finally:
        meeting.unlink(missing_ok=True)


def _member(rank: int, count: int, meeting: Path, work: Callable[..., Any], arguments: tuple) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=meeting.absolute().as_uri(), rank=rank, world_size=count)
    try:
        work(*arguments)
    finally:
        dist.destroy_process_group()
