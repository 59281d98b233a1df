"""One run of the pipeline: made when it begins, dropped when it ends.

- `RunState`: its plan, and what its key steps left for the steps after them
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from diffusers import DiffusionPipeline
from torch import Tensor, nn

from ..hooks.denoiser import Split, controlnet_of, denoiser_of
from ..hooks.denoiser_call import DenoiserCall
from ..hooks.foreign_parts import foreign_parts
from ..key_schedule import KeySchedule
from .config import PropagationConfig
from .key_conditions import KeyConditions
from .lines import Lines
from .offsets import Offsets
from .planner import BatchPlanner, Share
from .reuse import REUSES, EncoderReuse


@dataclass
class RunState:
    """The plan of a run, and what its key steps left for the steps after them.

    Args:
        pipe: The pipeline that makes the run.
        config: How it is accelerated.
        schedule: The key steps of this run; a part of the config's where a pipeline makes several loops.
        time_steps: Those that the run visits, shape (steps,).
        split: Encoder and decoder of its denoiser.
        share: The part of each pass that this process decodes.
        offsets: Corrects the predictions of its groups; None without a fit.
        lines: A fit's, for the features between keys; none for those of the config.
    """

    pipe: DiffusionPipeline
    config: PropagationConfig
    schedule: KeySchedule
    time_steps: Tensor
    split: Split
    share: Share
    offsets: Offsets | None = None
    lines: Lines = ()
    reuse: EncoderReuse = field(init=False)
    planner: BatchPlanner = field(init=False)
    conditions: KeyConditions = field(init=False)
    ahead: dict[int, Any] = field(default_factory=dict, init=False)  # step -> prediction that is known already
    unproven: dict[str, list[Any]] = field(default_factory=dict, init=False)  # what may mix rows, until that is checked

    def __post_init__(self) -> None:
        self.reuse = REUSES[self.config.reuse](self.split, self.config.extrapolation, self.lines)
        self.planner = BatchPlanner(self.schedule, self.share)
        self.conditions = KeyConditions(denoiser_of(self.pipe), controlnet_of(self.pipe) is not None)
        if self.config.is_parallel:
            self.unproven = foreign_parts(denoiser_of(self.pipe), self.split)

    @property
    def children(self) -> dict[str, nn.Module]:
        """The children whose outputs are reused."""
        return self.reuse.children(self.split)

    def is_last(self, step: int) -> bool:
        return step == self.schedule.num_steps - 1

    def place(self, step: int) -> float:
        """Where a step lies on the axis of extrapolation."""
        return self.config.extrapolation.place(step, self.pipe.scheduler, self.time_steps[step])

    def difference(self, step: int, call: DenoiserCall) -> str | None:
        """What keeps this call from using what was evaluated at the last key step; None if nothing does."""
        if self.config.extrapolation.order == 0 and step in self.planner.keys:
            return None  # nothing of the key step before is used here
        return self.conditions.difference(step, call)

    def begin_group(self, step: int, call: DenoiserCall, is_other: bool) -> None:
        """At a key step. `is_other`: its conditions are other than those of the key step before."""
        self.conditions.begin_group(step, call)
        if is_other:
            self.reuse.clear()  # no line runs through features of other conditions

    def hand_out(self, step: int) -> Any:
        """The prediction of a step, which is known by now: the only way out of a run."""
        return self.ahead.pop(step)
