"""What is compared with encoder propagation: a function of a pipeline that gives a context manager.

- `Rival`: the function, with what tables and estimates need to know of it
- `OwnRival`: a function of the user's
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    from ...hooks.flops import FlopCount

    Around = Callable[[DiffusionPipeline], AbstractContextManager[object]]


class Rival(ABC):
    """A rival: called with a pipeline, it gives a context manager in which the pipeline is accelerated.

    That yields `Counts`, or anything else if each denoiser call evaluates the whole denoiser.
    """

    goes_alone = False  # not with a schedule, other steps or another rival

    @abstractmethod
    def __call__(self, pipe: DiffusionPipeline) -> AbstractContextManager[object]: ...

    @abstractmethod
    def about(self) -> dict[str, Any]:
        """The rival as text and numbers. Results are stored under them."""

    def needs(self) -> object:
        """The package that the rival needs. Raises ModuleNotFoundError without it."""
        return None

    def share(self) -> float:
        """About what part of the baseline's time a run takes, for the estimate before a comparison."""
        return 1.0

    def flops(self, model: nn.Module, arguments: dict[str, Any], encoder_blocks: int | None = None) -> FlopCount | None:
        """The operations of a denoiser call, or None if only a run tells."""
        return None


@dataclass(frozen=True)
class OwnRival(Rival):
    """A function of the user's, and the name that its results are stored under."""

    around: Around
    name: str | None = None

    def __post_init__(self) -> None:
        if not callable(self.around):
            raise TypeError(f"around={self.around!r} given; accepted: a function of a pipeline that gives a context manager")

    def __call__(self, pipe: DiffusionPipeline) -> AbstractContextManager[object]:
        return self.around(pipe)

    def about(self) -> dict[str, Any]:
        return {"around": self.name or f"{getattr(self.around, '__qualname__', 'function')} at {id(self.around):#x}"}
