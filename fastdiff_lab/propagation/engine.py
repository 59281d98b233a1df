"""One block of encoder propagation: which calls of the denoiser are evaluated, and which are answered with what was decoded ahead.

- `Decoding`: the state of the block
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..hooks.adapters import Steered, foreign_parts
from ..hooks.call_conditions import Conditions, repeated_arguments
from ..hooks.callers import is_called_by
from ..hooks.deferred import Later
from ..hooks.denoiser import (
    CONDITIONS,
    HELD_RESIDUALS,
    Split,
    controlnet_of,
    denoiser_of,
    frames_of,
    sample_argument,
)
from ..hooks.denoiser_output import as_given, own, per_step
from ..hooks.run_tracking import Run, RunTracker, time_step_value
from ..key_schedule import KeySchedule
from .checks import (
    check_finite,
    check_length,
    check_not_deepcached,
    check_rows_stay_apart,
    is_near,
    warn_of_another_run,
)
from .controlnet_cache import HeldResiduals
from .counts import Counts
from .distributed import Ranks, alike, looked_at
from .extrapolation import HELD_FEATURES, Extrapolation, History, log_snr
from .feature_cache import HeldFeatures, Pass
from .row_capacity import RowLimit

# What is held between key steps, and the paper's names for it (Table 14). With all up blocks held the prediction is the key
# step's, whatever the encoder does, so the paper's "decoder" and "encoder and decoder" propagation give the same pictures.
HELD = ("encoder", "decoder", "prediction")


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
        max_rows: int | RowLimit | None,
        ranks: Ranks | None = None,
    ) -> None:
        self.pipe, self.schedule, self.what, self.parallel = pipe, schedule, what, parallel
        self.limit = max_rows if isinstance(max_rows, RowLimit) else RowLimit(max_rows)
        self.split, self.extrapolation, self.ranks = split, extrapolation, ranks or Ranks()
        self.model = denoiser_of(pipe)
        self.sample_name = sample_argument(self.model)
        self.signature = inspect.signature(type(self.model).forward)
        self.tracker = RunTracker(pipe)
        self.use(schedule)
        self.counts = Counts()
        self.positional: tuple[str, ...] = ()  # arguments that the coming call gives by position
        self.reused = False  # has a step used what another one left?
        self.was_called = False
        self.others_calls = 0  # of other pipelines that share the denoiser
        self.unproven: tuple[str, ...] = ()  # what may mix the rows of a batch, until that is checked
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
        self.later = Later()
        self.steered: Steered | None = None
        self.why_key: str | None = None  # what made a step a key that is none in the schedule

    def forget_keys(self) -> None:
        """Drops what was seen at key steps."""
        self.features.forget()
        self.predictions.clear()

    def call_denoiser(self, inner: Callable, args: tuple, kwargs: dict) -> Any:
        """The pipeline's call of the denoiser: one prediction, evaluated now or before. Calls of other pipelines are none of ours."""
        if not is_called_by(self.pipe):
            self.others_calls += 1
            return inner(*args, **kwargs)
        self.was_called = True
        arguments = self.signature.bind(self.model, *args, **kwargs).arguments
        arguments.pop("self")
        self.positional = tuple(arguments)[: len(args)]
        arguments |= arguments.pop("kwargs", {})
        sample, timestep = arguments[self.sample_name], arguments["timestep"]
        _, is_new = self.tracker.current(timestep)
        if is_new:
            self.begin_run(sample)
            self.look_for_room(arguments)
        run, step, _ = self.tracker.advance(timestep)
        check_finite(sample, step, timestep)
        difference = self.difference(step, arguments)
        if step in self.known:
            prediction = own(self.known[step])
        elif step in self.ahead and difference is None:
            prediction = self.ahead.pop(step)
        else:
            prediction = self.evaluate(inner, run, step, arguments, difference)
        self.counts.steps += 1
        self.look_at_adapters(step)
        if run.num_steps == run.step:
            self.later.check()
        return prediction

    def look_at_adapters(self, step: int) -> None:
        assert self.steered is not None
        if step != self.key_step:
            self.reused = True
            self.steered.adapters.between_keys()
        if step == self.of_run.num_steps - 1:
            self.steered.adapters.at_key(self.key_step, step + 1)

    def use(self, schedule: KeySchedule) -> None:
        self.of_run = schedule
        self.group_of = {step: group for group in schedule.groups() for step in group}

    def begin_run(self, sample: Tensor) -> None:
        self.forget()
        run = self.tracker.run
        assert run is not None
        check_length(self.pipe, self.schedule, run.num_steps if run.start is None else len(run.timesteps))
        if run.start is not None:
            self.use(self.schedule.part(run.start, run.start + run.num_steps))
        warn_of_another_run(self.pipe, self.schedule, run.planned if run.start is None else None)
        check_rows_stay_apart(self.pipe, self.parallel)  # pipelines may install processors when they are called
        self.check_parts()
        self.check_ranks(sample)
        self.unproven = foreign_parts(self.split) if self.parallel else ()
        self.counts.runs += 1
        self.steered = Steered(self.model)

    def check_parts(self) -> None:
        """Raises RuntimeError where a part that our layer is on is no longer the pipeline's, or is DeepCache's."""
        check_not_deepcached(self.model)
        held = self.split.held(self.what)
        pairs = [("denoiser", self.model, denoiser_of(self.pipe)), ("controlnet", self.controlnet, controlnet_of(self.pipe))]
        pairs += [(name, child, self.model.get_submodule(name)) for name, child in held.items()]
        replaced = next((name for name, ours, here in pairs if ours is not here), None)
        if replaced is not None:
            raise RuntimeError(
                f"{replaced!r} was replaced inside the encoder_propagation block; make the change before it, or leave it and enter again"
            )

    def look_for_room(self, arguments: dict) -> None:
        if self.parallel:
            self.limit.begin_run(self.model, arguments, self.extrapolation, self.split)
            self.limit.fitting = self.ranks.least(self.limit.fitting)

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

    def difference(self, step: int, arguments: dict) -> str | None:
        """What keeps this call from using what was evaluated at the last key step; None if nothing does."""
        if self.conditions is None:
            return "no key step came before it"
        if self.extrapolation.order == 0 and step in self.of_run.keys:
            return None  # nothing of the key step before is used here
        rows = len(arguments[self.sample_name])
        return self.conditions.difference(
            rows=rows, arguments=self.compared(arguments), scales=self.steering(), later=self.later, step=step
        )

    def evaluate(self, inner: Callable, run: Run, step: int, arguments: dict, difference: str | None) -> Any:
        """Evaluates the denoiser for this step, and ahead for later steps of its group as far as allowed."""
        if step >= self.of_run.num_steps:
            raise ValueError(f"the schedule is for {self.of_run.num_steps} steps, this run makes more denoiser calls")
        group = self.group_of[step]
        is_key = step == group.start
        if not is_key and difference is not None:
            if self.parallel:
                raise self.refusal(step, arguments, difference)
            is_key, self.why_key = True, difference
        rows = len(arguments[self.sample_name])
        steps = range(step, step + self.steps_at_once(run, group, step, rows, is_key))
        mine = self.ranks.share(steps, is_key)
        if is_key:
            self.begin_group(step, rows, arguments, difference)
        output, decoded = self.decoded(inner, run, mine, arguments, is_key, is_end=steps.stop == group.stop)
        self.ahead = {at: as_given(output, sample) for at, sample in self.ranks.gathered(steps, is_key, decoded).items()}
        if self.what == "prediction":
            self.ahead = self.predicted(run, range(step, group.stop), output)
        prediction = self.ahead.pop(step)
        if steps.stop == self.of_run.num_steps:
            self.forget_keys()
        return prediction

    def decoded(
        self, inner: Callable, run: Run, steps: Sequence[int], arguments: dict, is_key: bool, is_end: bool
    ) -> tuple[Any, dict[int, Tensor]]:
        """What the host's forward gave, and step -> prediction: from one pass, or from several where memory has run out.

        `is_end`: no later step of the group is left.
        """
        found: dict[int, Tensor] = {}

        def attempt(part: Sequence[int], is_first: bool, is_last: bool) -> Any:
            return self.passed(inner, run, part, arguments, is_key and is_first, is_end and is_last)

        sample = arguments[self.sample_name]
        for part, output in self.limit.in_passes(steps, len(sample), sample.device, attempt):
            found |= zip(part, per_step(output[0], len(sample), len(part)), strict=True)
        if self.unproven and len(steps) > 1:
            self.prove(inner, run, {at: found[at] for at in (steps[0], steps[-1])}, arguments)
        if is_end:
            self.features.release()
        return output, found

    def passed(self, inner: Callable, run: Run, steps: Sequence[int], arguments: dict, is_key: bool, is_last: bool) -> Any:
        """The host's forward over the steps of a pass."""
        now = self.coming_pass(run, steps, arguments, is_key, is_last)
        with self.features.during(now):
            output = self.as_called(inner, self.expanded(run, steps, arguments, now))
            self.check_called()
        self.count(now)
        return output

    def prove(self, inner: Callable, run: Run, together: Mapping[int, Tensor], arguments: dict) -> None:
        """Decodes steps of a batch alone, once in a run, and raises ValueError if one differs: something mixes the rows."""
        names, self.unproven = ", ".join(self.unproven), ()
        for step, sample in together.items():
            alone = self.passed(inner, run, (step,), arguments, is_key=False, is_last=False)[0]
            if not is_near(sample, alone):
                self.forget()
                raise ValueError(
                    f"step {step} decoded alone differs from the same step in a batch with others, so {names} mixes the rows of a batch; "
                    "use parallel_decoding=False"
                )

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
        """The host's forward, called as the pipeline did: hooks of others (token merging's) look at what came by position.

        Lists are its own, since it takes T2I-Adapter's apart.
        """
        named = {name: list(value) if isinstance(value, list) else value for name, value in arguments.items()}
        return inner(*[named.pop(name) for name in self.positional], **named)

    def begin_group(self, step: int, rows: int, arguments: dict, difference: str | None) -> None:
        if self.steered is not None:
            self.steered.adapters.at_key(self.key_step, step)
        if difference is not None or self.residuals.is_other:
            self.forget_keys()  # no line runs through features of other conditions
        self.key_step = step
        self.conditions = Conditions(rows, self.compared(arguments), self.steering())

    def predicted(self, run: Run, steps: range, output: Any) -> dict[int, Any]:
        """The predictions of a group from those of the last key steps: held, or extrapolated."""
        self.predictions.add(self.place(run, steps.start), output[0])
        at = {later: self.predictions.at([self.place(run, later)], self.predictions.values) for later in steps[1:]}
        return {steps.start: own(output)} | {later: as_given(output, sample) for later, sample in at.items()}

    def place(self, run: Run, step: int) -> float:
        """Where a step lies on the axis of extrapolation."""
        if self.extrapolation.axis == "step":
            return float(step)
        return log_snr(self.pipe.scheduler, run.planned[step])

    def refusal(self, step: int, arguments: dict, difference: str) -> ValueError:
        return ValueError(
            f"step {step} (time-step {time_step_value(arguments['timestep'])}) cannot use what was decoded ahead at key step "
            f"{self.key_step}: {difference}. Make step {step} a key step, or use parallel_decoding=False"
        )

    def coming_pass(self, run: Run, steps: Sequence[int], arguments: dict, is_key: bool, is_last: bool) -> Pass:
        sample = arguments[self.sample_name]
        places = tuple(self.place(run, step) for step in steps)
        is_last_use = is_last and (is_key or len(steps) == 1)  # one of several steps may be tried again, with fewer
        return Pass(
            len(sample), frames_of(self.model, sample), places, is_key, is_last_use and not self.unproven,
            is_written_to=arguments.get("down_intrablock_additional_residuals") is not None,
        )  # fmt: skip

    def steps_at_once(self, run: Run, group: range, step: int, rows: int, is_key: bool) -> int:
        if not self.parallel:
            return 1
        asked, most = self.limit.asked, self.limit.rows
        if asked is not None and asked < rows:
            raise ValueError(f"max_rows={asked} asked, but one step of this run has {rows} rows; accepted: {rows} or more")
        left = group.stop - step
        return left if most is None else min(left, self.ranks.reach(max(1, most // rows), is_key))

    def count(self, now: Pass) -> None:
        self.counts.forward_calls += 1
        self.counts.encoder_calls += now.is_key or self.what == "decoder"
        self.counts.decoder_calls += now.is_key if self.what == "decoder" else now.times

    def expanded(self, run: Run, steps: Sequence[int], arguments: dict, now: Pass) -> dict:
        """The arguments with the rows of all steps of a pass; the held residuals keep the rows of one, as the encoder does."""
        if now.times == 1 and steps[0] == run.step - 1:
            return arguments  # as the pipeline gave them for its step; another rank decodes another one
        sample = arguments[self.sample_name]
        unknown = arguments.keys() - {self.sample_name, "timestep", "return_dict", *CONDITIONS, *HELD_RESIDUALS}
        if unknown:
            raise TypeError(f"argument {sorted(unknown)[0]!r} is not known to parallel decoding; use parallel_decoding=False")
        repeated = repeated_arguments(arguments, self.sample_name, now.rows, now.times, now.frames)
        # One by one: an index made of a list would be copied to the device, and the host would wait for it.
        time_steps = torch.stack([run.planned[step] for step in steps]).to(sample.device, _number_of(arguments["timestep"]))
        time_steps = time_steps.repeat_interleave(now.rows)
        return arguments | repeated | {"timestep": time_steps}

    def call_controlnet(self, inner: Callable, args: tuple, kwargs: dict) -> Any:
        if not is_called_by(self.pipe):
            return inner(*args, **kwargs)
        residuals, evaluated = self.residuals.call(inner, args, kwargs)
        self.counts.controlnet_calls += evaluated
        return residuals


def _number_of(timestep: Any) -> torch.dtype | None:
    """The kind of number that a call's time-step is: DreamLite rounds its to the latents', which may be bfloat16."""
    return timestep.dtype if isinstance(timestep, Tensor) else None
