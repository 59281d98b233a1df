"""One block of encoder propagation: which calls of the denoiser are evaluated, and which are answered with what was decoded ahead.

- `Decoding`: the state of the block
- `Counts`: what was evaluated in the block
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .callers import is_called_by
from .cautions import check_finite, check_not_deepcached, check_rows_stay_apart, warn_of_another_run
from .conditions import Conditions, repeat_rows
from .extrapolation import HELD_FEATURES, Extrapolation, History
from .features import HeldFeatures, Pass
from .ranks import Ranks, alike, looked_at
from .residuals import HeldResiduals
from .runs import Run, RunTracker, time_step_value
from .schedule import KeySchedule
from .split import (
    CONDITIONS,
    HELD_RESIDUALS,
    Split,
    controlnet_of,
    denoiser_of,
    frames_of,
    sample_argument,
)
from .steering import Steered

# What is held between key steps, and the paper's names for it (Table 14). With all up blocks held the prediction is the key
# step's, whatever the encoder does, so the paper's "decoder" and "encoder and decoder" propagation give the same pictures.
HELD = ("encoder", "decoder", "prediction")


@dataclass
class Counts:
    """What was evaluated in the block, over all its runs.

    `encoder_calls`: evaluations of the encoder (and bottleneck). `decoder_calls`: steps that were decoded; several may share a
    forward. `forward_calls`: calls of the denoiser's own forward. `controlnet_calls`: evaluations of the ControlNet.
    `runs`: runs begun. `steps`: denoiser calls of the pipeline that were answered; fewer than `runs` times the schedule's steps
    if a run ended early.
    """

    encoder_calls: int = 0
    decoder_calls: int = 0
    forward_calls: int = 0
    controlnet_calls: int = 0
    runs: int = 0
    steps: int = 0


class Decoding:
    """The state of one `encoder_propagation` block."""

    def __init__(
        self,
        pipe: Any,
        schedule: KeySchedule,
        split: Split,
        *,
        what: str = "encoder",
        extrapolation: Extrapolation = HELD_FEATURES,
        parallel: bool,
        max_rows: int | None,
        ranks: Ranks | None = None,
    ) -> None:
        self.pipe, self.schedule, self.what, self.parallel, self.max_rows = pipe, schedule, what, parallel, max_rows
        self.split, self.extrapolation, self.ranks = split, extrapolation, ranks or Ranks()
        self.model = denoiser_of(pipe)
        self.sample_name = sample_argument(self.model)
        self.signature = inspect.signature(type(self.model).forward)
        self.tracker = RunTracker(pipe)
        self.use(schedule)
        self.counts = Counts()
        self.positional: tuple[str, ...] = ()  # arguments that the coming call gives by position
        self.known: Mapping[int, Any] = {}  # step -> prediction that is given instead of being evaluated (calibration)
        self.controlnet = controlnet_of(pipe)
        self.residuals = HeldResiduals(self.tracker, schedule)
        holds_decoder = what == "decoder"
        self.features = HeldFeatures(
            split.entries if holds_decoder else tuple(split.encoder),
            frozenset() if holds_decoder else split.passing,
            extrapolation,
        )
        self.predictions = History(extrapolation)
        self.forget()

    def forget(self) -> None:
        """Drops all that belongs to a run."""
        self.forget_keys()
        self.ahead: dict[int, Any] = {}  # step -> prediction that is known already
        self.conditions: Conditions | None = None  # of the last key step
        self.key_step = -1
        self.steered: Steered | None = None

    def forget_keys(self) -> None:
        """Drops what was seen at key steps."""
        self.features.forget()
        self.predictions.clear()

    def call_denoiser(self, inner: Callable, args: tuple, kwargs: dict) -> Any:
        """The pipeline's call of the denoiser: one prediction, evaluated now or before. Calls of other pipelines are none of ours."""
        if not is_called_by(self.pipe):
            return inner(*args, **kwargs)
        arguments = self.signature.bind(self.model, *args, **kwargs).arguments
        arguments.pop("self")
        self.positional = tuple(arguments)[: len(args)]
        arguments |= arguments.pop("kwargs", {})
        sample, timestep = arguments[self.sample_name], arguments["timestep"]
        _, is_new = self.tracker.current(timestep)
        if is_new:
            self.begin_run(sample)
        run, step, _ = self.tracker.advance(timestep)
        check_finite(sample, step, timestep)
        difference = self.difference(run, step, timestep, arguments)
        if step in self.known:
            prediction = own(self.known[step])
        elif step in self.ahead and difference is None:
            prediction = self.ahead.pop(step)
        else:
            prediction = self.evaluate(inner, run, step, arguments, difference)
        self.counts.steps += 1
        return prediction

    def use(self, schedule: KeySchedule) -> None:
        self.of_run = schedule
        self.group_of = {step: group for group in schedule.groups() for step in group}

    def begin_run(self, sample: Tensor) -> None:
        self.forget()
        run = self.tracker.run
        assert run is not None
        all_steps = run.num_steps if run.start is None else len(run.timesteps)
        if all_steps not in (None, self.schedule.num_steps):
            raise ValueError(
                f"the schedule is for {self.schedule.num_steps} steps, this run makes {all_steps} denoiser calls with "
                f"{type(self.pipe.scheduler).__name__}; use schedule.rescaled({all_steps}), or call the pipeline with other steps"
            )
        if run.start is not None and run.num_steps is not None:
            self.use(self.schedule.part(run.start, run.start + run.num_steps))
        warn_of_another_run(self.pipe, self.schedule, run.planned if run.start is None else None)
        check_rows_stay_apart(self.pipe, self.parallel)  # pipelines may install processors when they are called
        self.check_parts()
        self.check_ranks(sample)
        self.counts.runs += 1
        self.steered = Steered(self.model)

    def check_parts(self) -> None:
        """Raises RuntimeError where a part that our layer is on is no longer the pipeline's, or is DeepCache's."""
        check_not_deepcached(self.model)
        held = self.split.held(self.what)
        pairs = [("controlnet", self.controlnet, controlnet_of(self.pipe))]
        pairs += [(name, child, self.model.get_submodule(name)) for name, child in held.items()]
        replaced = next((name for name, ours, here in pairs if ours is not here), None)
        if replaced is not None:
            raise RuntimeError(
                f"{replaced!r} was replaced inside the encoder_propagation block; make the change before it, or leave it and enter again"
            )

    def check_ranks(self, sample: Tensor) -> None:
        if self.ranks.size > 1:
            self.ranks.check_same("schedule", str(self.schedule))
            self.ranks.check_same("latents", looked_at(sample), alike)

    def steering(self) -> list:
        return [] if self.steered is None else self.steered.now()

    def compared(self, arguments: dict) -> dict:
        # The residuals of a held ControlNet are ours already, and its own arguments are compared at its own call.
        names = CONDITIONS if self.controlnet is not None else CONDITIONS + HELD_RESIDUALS
        return {name: arguments[name] for name in names if arguments.get(name) is not None}

    def difference(self, run: Run, step: int, timestep: Any, arguments: dict) -> str | None:
        """What keeps this call from using what was evaluated at the last key step; None if nothing does."""
        if self.conditions is None:
            return "no key step came before it"
        if run.planned is not None and not run.is_at(timestep, step):
            return f"it comes at time-step {time_step_value(timestep)}, not at the planned one"
        rows = len(arguments[self.sample_name])
        return self.conditions.difference(rows=rows, arguments=self.compared(arguments), scales=self.steering())

    def evaluate(self, inner: Callable, run: Run, step: int, arguments: dict, difference: str | None) -> Any:
        """Evaluates the denoiser for this step, and ahead for later steps of its group as far as allowed."""
        if step >= self.of_run.num_steps:
            raise ValueError(f"the schedule is for {self.of_run.num_steps} steps, this run makes more denoiser calls")
        group = self.group_of[step]
        is_key = step == group.start
        if not is_key and difference is not None:
            if self.parallel and run.planned is not None:
                raise self.refusal(step, arguments, difference)
            is_key = True
        rows = len(arguments[self.sample_name])
        steps = range(step, step + self.steps_at_once(run, group, step, rows, is_key))
        mine = self.ranks.share(steps, is_key)
        now = self.coming_pass(run, group, steps, mine, arguments, is_key)
        if is_key:
            self.begin_group(step, rows, arguments, difference)
        with self.features.during(now):
            output = self.as_called(inner, self.expanded(run, mine, arguments, now))
            self.check_called()
        self.count(now)
        decoded = dict(zip(mine, _per_step(output[0], now.rows, now.times), strict=True))
        self.ahead = {at: _like(output, sample) for at, sample in self.ranks.gathered(steps, is_key, decoded).items()}
        if self.what == "prediction":
            self.ahead = self.predicted(run, range(step, group.stop), output)
        prediction = self.ahead.pop(step)
        if steps.stop == self.of_run.num_steps:
            self.forget_keys()
        return prediction

    def check_called(self) -> None:
        """Raises RuntimeError if the host's forward went round a held child: what it gave is not what was asked for then."""
        missing = next((name for name in self.split.held(self.what) if name not in self.features.called), None)
        if missing is not None:
            self.forget()
            raise RuntimeError(
                f"the forward of {type(self.model).__name__} did not call its {missing!r}, so nothing can be held there: it was compiled or "
                "traced as a whole, or another accelerator skips blocks; compile its blocks instead (pipe.unet.compile_repeated_blocks()), "
                "and switch the other accelerator off"
            )

    def as_called(self, inner: Callable, arguments: dict) -> Any:
        """The host's forward, called as the pipeline did: hooks of others (token merging's) look at what came by position."""
        named = dict(arguments)
        return inner(*[named.pop(name) for name in self.positional], **named)

    def begin_group(self, step: int, rows: int, arguments: dict, difference: str | None) -> None:
        if difference is not None or self.residuals.is_other:
            self.forget_keys()  # no line runs through features of other conditions
        self.key_step = step
        self.conditions = Conditions(rows, self.compared(arguments), self.steering())

    def predicted(self, run: Run, steps: range, output: Any) -> dict[int, Any]:
        """The predictions of a group from those of the last key steps: held, or extrapolated."""
        self.predictions.add(self.place(run, steps.start), output[0])
        at = {later: self.predictions.at([self.place(run, later)], self.predictions.values) for later in steps[1:]}
        return {steps.start: own(output)} | {later: _like(output, sample) for later, sample in at.items()}

    def place(self, run: Run, step: int) -> float:
        """Where a step lies on the axis of extrapolation."""
        if self.extrapolation.axis == "step":
            return float(step)
        return log_snr(self.pipe.scheduler, (run.timesteps if run.planned is None else run.planned)[step])

    def refusal(self, step: int, arguments: dict, difference: str) -> ValueError:
        return ValueError(
            f"step {step} (time-step {time_step_value(arguments['timestep'])}) cannot use what was decoded ahead at key step "
            f"{self.key_step}: {difference}. Make step {step} a key step, or use parallel_decoding=False"
        )

    def coming_pass(self, run: Run, group: range, steps: range, mine: Sequence[int], arguments: dict, is_key: bool) -> Pass:
        sample = arguments[self.sample_name]
        places = tuple(self.place(run, step) for step in mine)
        return Pass(
            len(sample), frames_of(self.model, sample), places, is_key, is_last_use=steps.stop == group.stop,
            is_written_to=arguments.get("down_intrablock_additional_residuals") is not None,
        )  # fmt: skip

    def steps_at_once(self, run: Run, group: range, step: int, rows: int, is_key: bool) -> int:
        if not self.parallel or run.planned is None:
            return 1
        if self.max_rows is None:
            return group.stop - step
        if self.max_rows < rows:
            raise ValueError(f"max_rows={self.max_rows} asked, but one step of this run has {rows} rows; accepted: {rows} or more")
        return min(group.stop - step, self.ranks.reach(self.max_rows // rows, is_key))

    def count(self, now: Pass) -> None:
        self.counts.forward_calls += 1
        self.counts.encoder_calls += now.is_key or self.what == "decoder"
        self.counts.decoder_calls += now.is_key if self.what == "decoder" else now.times

    def expanded(self, run: Run, steps: Sequence[int], arguments: dict, now: Pass) -> dict:
        """The arguments with the rows of all steps of a pass; the held residuals keep the rows of one, as the encoder does."""
        if now.times == 1 and self.ranks.size == 1:
            return arguments  # as the pipeline gave them; another rank's step has another time-step
        assert run.planned is not None
        sample = arguments[self.sample_name]
        unknown = arguments.keys() - {self.sample_name, "timestep", "return_dict", *CONDITIONS, *HELD_RESIDUALS}
        if unknown:
            raise TypeError(f"argument {sorted(unknown)[0]!r} is not known to parallel decoding; use parallel_decoding=False")
        names = [self.sample_name, *(name for name in CONDITIONS if name in arguments)]
        repeated = {name: repeat_rows(arguments[name], now.rows, now.times, name, now.frames) for name in names}
        # One by one: an index made of a list would be copied to the device, and the host would wait for it.
        time_steps = torch.stack([run.planned[step] for step in steps]).to(sample.device).repeat_interleave(now.rows)
        return arguments | repeated | {"timestep": time_steps}

    def call_controlnet(self, inner: Callable, args: tuple, kwargs: dict) -> Any:
        if not is_called_by(self.pipe):
            return inner(*args, **kwargs)
        residuals, evaluated = self.residuals.call(inner, args, kwargs)
        self.counts.controlnet_calls += evaluated
        return residuals


def own(output: Any) -> Any:
    """A copy of a prediction that is handed out more than once: nobody may write into another step's."""
    return _like(output, output[0].clone())


def _like(output: Any, sample: Tensor) -> Any:
    """A prediction in the host's own type."""
    return (sample,) if isinstance(output, tuple) else type(output)(sample=sample)


def log_snr(scheduler: Any, timestep: Any) -> float:
    """The logarithm of the signal-to-noise ratio at a time-step."""
    alphas = getattr(scheduler, "alphas_cumprod", None)
    if alphas is None:
        raise ValueError(f"axis='log_snr' asked, but {type(scheduler).__name__} has no alphas_cumprod; accepted: axis='step'")
    if float(scheduler.timesteps.min()) < 0:
        raise ValueError(
            f"axis='log_snr' asked, but {type(scheduler).__name__} has continuous time-steps here; accepted: axis='step'"
        )
    alpha = float(alphas[int(timestep)])
    return math.log(alpha / (1 - alpha))


def _per_step(sample: Tensor, rows: int, times: int) -> Sequence[Tensor]:
    """The sample of a forward over `times` steps as one sample per step."""
    return [sample] if times == 1 else sample.split(rows)
