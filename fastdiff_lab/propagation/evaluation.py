"""Evaluate the host's forward over steps of a group.

- `Evaluation`: of one call of the pipeline
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..hooks.denoiser_call import DenoiserCall
from ..hooks.denoiser_output import per_step, sample_of
from ..hooks.kept_state import KeptState
from .checks import is_near
from .counts import Counts
from .feature_cache import Pass
from .planner import PlannedPass
from .row_capacity import RowLimit
from .run_state import RunState


@dataclass
class Evaluation:
    """The host's forward over the steps of a planned pass, asked for by the call of its first step.

    Args:
        run: The run that the call belongs to.
        step: The step of the call.
        call: The call; the rows of other steps are made of its own.
        inner: What the call would have called.
        limit: How many rows are decoded at once.
        counts: Where evaluations are counted.
    """

    run: RunState
    step: int
    call: DenoiserCall
    inner: Callable
    limit: RowLimit
    counts: Counts

    def of(self, planned: PlannedPass) -> tuple[Any, dict[int, Tensor]]:
        """What the host's forward gave, and step -> sample: from one pass, or from several where memory has run out."""
        found: dict[int, Tensor] = {}

        def attempt(part: Sequence[int], is_first: bool, is_last: bool) -> Any:
            return self.forward(part, planned.is_key and is_first, planned.ends_group and is_last)

        rows = self.call.rows
        for part, output in self.limit.in_passes(planned.own, rows, self.call.sample.device, attempt):
            found |= zip(part, per_step(sample_of(output), rows, len(part)), strict=True)
        if self.run.unproven and len(planned.own) > 1:
            self.check_rows_stay_apart({step: found[step] for step in (planned.own[0], planned.own[-1])})
        if planned.ends_group:
            self.run.reuse.features.release()
        return output, found

    def forward(self, steps: Sequence[int], is_key: bool, is_last: bool) -> Any:
        """The host's forward over steps decoded in one batch. `is_last`: no later step of the group is left."""
        now = self.coming(steps, is_key, is_last)
        is_own = tuple(steps) == (self.step,)  # as the pipeline gave its arguments; another rank decodes another step
        with self.run.reuse.features.during(now):
            call = self.call if is_own else self.call.of_steps([self.run.time_steps[step] for step in steps])
            output = call.invoked(self.inner)
            self.check_called()
        encoded, decoded = self.run.reuse.evaluations(now)
        self.counts.forward_calls += 1
        self.counts.encoder_calls += encoded
        self.counts.decoder_calls += decoded
        return output

    def coming(self, steps: Sequence[int], is_key: bool, is_last: bool) -> Pass:
        places = tuple(self.run.place(step) for step in steps)
        is_tried_once = is_key or len(steps) == 1  # one of several steps may be tried again, with fewer
        return Pass(
            self.call.rows, self.call.frames, places, is_key, is_last and is_tried_once and not self.run.unproven,
            is_written_to=self.call.arguments.get("down_intrablock_additional_residuals") is not None,
        )  # fmt: skip

    def check_called(self) -> None:
        """Raises RuntimeError if the host's forward went round a reused child: what it gave is not what was asked for then."""
        missing = next((name for name in self.run.children if name not in self.run.reuse.features.called), None)
        if missing is not None:
            raise RuntimeError(
                f"the forward of {type(self.call.model).__name__} did not call its {missing!r}, so nothing can be reused there: it was "
                "compiled or traced as a whole, or another accelerator skips blocks; compile its blocks instead "
                "(pipe.unet.compile_repeated_blocks()), and switch the other accelerator off"
            )

    def check_rows_stay_apart(self, together: dict[int, Tensor]) -> None:
        """Decodes steps of a batch alone, once in a run.

        Raises ValueError if one differs: something mixes the rows. Warns of what keeps something from call to call.
        """
        parts, self.run.unproven = self.run.unproven, {}
        for step, sample in together.items():
            before = {name: KeptState(of_name) for name, of_name in parts.items()}
            alone = self.forward((step,), is_key=False, is_last=False)
            if not is_near(sample, sample_of(alone)):
                raise ValueError(
                    f"step {step} decoded alone differs from the same step in a batch with others: {', '.join(parts)} mixes the rows of a "
                    "batch; use parallel_decoding=False"
                )
        keeping = [name for name, state in before.items() if KeptState(parts[name]) != state]
        if keeping:
            _warn_of_collectors(keeping)


def _warn_of_collectors(names: list[str]) -> None:
    warnings.warn(
        f"{', '.join(names)} keeps something from call to call, and parallel decoding gives it the rows of several steps in one. What it "
        "collects or counts is not that of single steps. To check the rows, two steps were decoded twice; use parallel_decoding=False",
        stacklevel=2,
    )
