"""One call of a denoiser: its arguments by name, with the rows of one or of several steps.

- `DenoiserCall`: binds what a pipeline gives, repeats its rows, and calls the host as it was called
- `arguments_of(model, args, kwargs)`: the arguments of any module's call, by name
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .batch_rows import repeat_rows
from .denoiser_classes import REUSED_RESIDUALS, conditions_of, frames_of, sample_argument


@functools.cache
def _signature(forward: Callable) -> inspect.Signature:
    return inspect.signature(forward)


def arguments_of(model: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `model(*args, **kwargs)` by the names of its forward; those of a `**kwargs` stand among the others.

    >>> arguments_of(torch.nn.Linear(2, 2), (1,), {})
    {'input': 1}
    """
    found = dict(_signature(type(model).forward).bind(model, *args, **kwargs).arguments)
    found.pop("self")
    more = found.pop("kwargs", {})
    return found | more


@dataclass(frozen=True)
class DenoiserCall:
    """A call of a denoiser.

    >>> call = DenoiserCall.of(pipe.unet, (sample, timestep), {"encoder_hidden_states": text})  # doctest: +SKIP
    >>> call.rows, call.frames  # doctest: +SKIP
    (2, 1)

    `arguments`: by the names of the model's forward. `positional`: the names of those that came by position.
    """

    model: nn.Module
    arguments: Mapping[str, Any]
    positional: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: nn.Module, args: tuple, kwargs: Mapping[str, Any]) -> DenoiserCall:
        """The call `model(*args, **kwargs)`."""
        arguments = arguments_of(model, args, kwargs)
        return cls(model, arguments, tuple(arguments)[: len(args)])

    @property
    def sample(self) -> Tensor:
        return self.arguments[sample_argument(self.model)]

    @property
    def timestep(self) -> Any:
        return self.arguments["timestep"]

    @property
    def rows(self) -> int:
        return len(self.sample)

    @property
    def frames(self) -> int:
        """Rows of a feature for each row of the sample."""
        return frames_of(self.model, self.sample)

    def given(self, names: Sequence[str]) -> dict[str, Any]:
        """Those of the named arguments that came with the call and are not None."""
        return {name: self.arguments[name] for name in names if self.arguments.get(name) is not None}

    def invoked(self, inner: Callable) -> Any:
        """What the host's forward gives, called as the pipeline called it: hooks of others look at what came by position.

        Lists are its own, since it takes T2I-Adapter's apart.
        """
        named = {name: list(value) if isinstance(value, list) else value for name, value in self.arguments.items()}
        return inner(*[named.pop(name) for name in self.positional], **named)

    def of_steps(self, time_steps: Sequence[Tensor]) -> DenoiserCall:
        """The same call with the rows of a step for each time-step; reused residuals keep the rows of one, as the encoder does.

        Raises TypeError for an argument of which it is not known how to repeat it.
        """
        with_rows = {sample_argument(self.model), *conditions_of(self.model)}
        unknown = self.arguments.keys() - {"timestep", "return_dict", *with_rows, *REUSED_RESIDUALS}
        if unknown:
            raise TypeError(f"argument {sorted(unknown)[0]!r} is not known to parallel decoding; use parallel_decoding=False")
        rows, times, frames = self.rows, len(time_steps), self.frames
        repeated = {n: repeat_rows(value, rows, times, n, frames) for n, value in self.arguments.items() if n in with_rows}
        # One by one: an index made of a list would be copied to the device, and the host would wait for it.
        of_time = torch.stack(list(time_steps)).to(self.sample.device, _number_of(self.timestep)).repeat_interleave(rows)
        return replace(self, arguments={**self.arguments, **repeated, "timestep": of_time})


def _number_of(timestep: Any) -> torch.dtype | None:
    """The kind of number that a call's time-step is: DreamLite rounds its to the latents', which may be bfloat16."""
    return timestep.dtype if isinstance(timestep, Tensor) else None
