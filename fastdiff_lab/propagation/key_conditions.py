"""Under what a key step was evaluated: no later step uses what it left under anything else.

- `KeyConditions`: of the last key step of a run
"""

from __future__ import annotations

from torch import nn

from ..hooks.adapters import Steered
from ..hooks.denoiser_call import DenoiserCall
from ..hooks.denoiser_classes import REUSED_RESIDUALS, conditions_of
from ..hooks.device import read_checks
from ..hooks.run_tracking import time_step_value
from .call_conditions import Conditions
from .deferred import Later


class KeyConditions:
    """The conditions of the last key step of a run: text and other arguments, rows, adapters and weights.

    `holds_controlnet`: the ControlNet's residuals are reused too; its own arguments are compared at its own call.
    """

    def __init__(self, model: nn.Module, holds_controlnet: bool) -> None:
        self.compared = conditions_of(model) + (() if holds_controlnet else REUSED_RESIDUALS)
        self.steered, self.later = Steered(model), Later()
        self.key_step = -1
        self.conditions: Conditions | None = None

    def begin_group(self, step: int, call: DenoiserCall) -> None:
        """From this key step on, its conditions count. Raises ValueError if weights were written over since the one before."""
        self.steered.values.at_key(self.key_step, step)
        self.key_step = step
        self.conditions = Conditions(call.rows, call.given(self.compared), self.steered.now())

    def difference(self, step: int, call: DenoiserCall) -> str | None:
        """What keeps a call from using what the last key step left, in words; None if nothing does."""
        if self.conditions is None:
            return "no key step came before it"
        return self.conditions.difference(
            rows=call.rows, arguments=call.given(self.compared), scales=self.steered.now(), later=self.later, step=step
        )

    def refusal(self, step: int, call: DenoiserCall, difference: str) -> ValueError:
        return ValueError(
            f"step {step} (time-step {time_step_value(call.timestep)}) cannot use what was decoded ahead at key step "
            f"{self.key_step}: {difference}. Make step {step} a key step, or use parallel_decoding=False"
        )

    def end_step(self, step: int, is_last: bool) -> None:
        """After a step. Raises ValueError after the last one if a step used what was left under other conditions after all."""
        if step != self.key_step:
            self.steered.values.between_keys()
        if is_last:
            read_checks([*self.steered.values.at_end(self.key_step, step + 1), *self.later.at_end()])
