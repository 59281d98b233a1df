"""What a system is: one row of docs/systems.md, and all that its tests need."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

PAPERS, USERS = "The paper's systems", "Asked for by users"
Change = Callable[[Any, dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True)
class System:
    """A pipeline class at a tiny size, what must matter to it, and what encoder propagation does with it.

    `build`: makes the pipeline. `call`: its arguments, but for the generator.
    `features`: what the row is about -> a change of pipeline or arguments that must change the output.
    `calls`: denoiser calls of each run of one call of the pipeline. `keys`: the key steps of the tests.
    `runs`: the first and the last but one of the scheduler's time-steps in each run, where there are several; then `calls` counts time-steps.
    `parallel`: may the steps of a group share a batch? `close`: how near serial and parallel must come.
    `paper`: the system's name in the paper's key lists, `paper_steps`: for how many steps.
    `by_hand`: is there a forward split by hand for its denoiser, in oracle.py?
    `group`: the heading of the table that it stands in.
    `size`: its full-size denoiser, in studies/architectures.py. `note`: what a user should know.
    """

    name: str
    title: str
    build: Callable[[], Any]
    call: Mapping[str, Any]
    features: Mapping[str, Change]
    calls: int = 6
    keys: tuple[int, ...] = (0, 2)
    parallel: bool = True
    close: float = 1e-10
    paper: str | None = None
    paper_steps: int = 50
    size: str | None = None
    note: str = ""
    controlnets: int = 0
    options: Mapping[str, Any] = field(default_factory=dict)
    runs: tuple[tuple[int, int], ...] = ()
    group: str = USERS
    by_hand: bool = True

    @property
    def keys_of_runs(self) -> list[tuple[int, tuple[int, ...]]]:
        """For each run: its number of steps, and which of them are key steps in the tests."""
        runs = self.runs or ((0, self.calls),)
        return [(stop - start, (0, *(key - start for key in self.keys if start < key < stop))) for start, stop in runs]


@dataclass(frozen=True)
class Given:
    """The call with other arguments; the pipeline stays as it is."""

    changes: Mapping[str, Any]

    def __call__(self, pipe: Any, call: dict[str, Any]) -> dict[str, Any]:
        return call | self.changes


def given(**changes: Any) -> Change:
    """The call with other arguments."""
    return Given(changes)


def done(change: Callable[[Any], object]) -> Change:
    """The same call after something was done to the pipeline."""

    def apply(pipe: Any, call: dict[str, Any]) -> dict[str, Any]:
        change(pipe)
        return call

    return apply


def as_tensor(value: Any) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, list):
        return torch.stack([as_tensor(inner) for inner in value])
    return torch.from_numpy(np.array(value))


def output(pipe: Any, call: Mapping[str, Any]) -> Tensor:
    """The latents or images that the pipeline gives, always from the same seed."""
    return as_tensor(pipe(**call, generator=torch.Generator().manual_seed(3))[0])


def of(system: System, pipe: Any) -> Tensor:
    return output(pipe, system.call)
