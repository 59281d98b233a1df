"""The engine of encoder propagation: which calls of the denoiser are evaluated, and which are answered with what was decoded ahead.

- `PropagationEngine`: own call? -> run -> plan -> evaluate -> hand out
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from diffusers import DiffusionPipeline

from ..hooks.callers import is_called_by
from ..hooks.denoiser import controlnet_of, denoiser_of, split_denoiser
from ..hooks.denoiser_call import DenoiserCall
from ..hooks.denoiser_output import own, sample_of
from ..hooks.run_tracking import RunTracker
from .checks import check_attention_runs, check_length, check_parts, check_rows_stay_apart, warn_of_another_run
from .config import PropagationConfig
from .controlnet_cache import ReusedResiduals
from .counts import Counts, Usage
from .distributed import Ranks, alike, looked_at
from .evaluation import Evaluation
from .feature_cache import ReusedFeatures
from .lines import Lines
from .offsets import GroupOffsets, Offsets
from .reuse import REUSES
from .row_capacity import RowLimit
from .run_state import RunState


class PropagationEngine:
    """Answers the denoiser calls of a pipeline, from `apply_encoder_propagation` to its removal.

    Args:
        pipe: The pipeline that is accelerated.
        config: How.
        known: Step -> prediction that is given instead of being evaluated (calibration).
        limit: The most rows decoded at once, where several engines share what they learn; None for the config's.
        offsets: Sees and corrects the predictions of groups instead of the config's fit (fitting).
        lines: Those of the fit that is made (fitting).
    """

    def __init__(
        self,
        pipe: DiffusionPipeline,
        config: PropagationConfig,
        *,
        known: Mapping[int, Any] | None = None,
        limit: RowLimit | None = None,
        offsets: Offsets | None = None,
        lines: Lines = (),
    ) -> None:
        self.pipe, self.config, self.known, self.offsets = pipe, config, known or {}, offsets
        self.lines = lines if config.fit is None else config.fit.lines
        self.limit = RowLimit(config.max_rows) if limit is None else limit
        self.model, self.controlnet = denoiser_of(pipe), controlnet_of(pipe)
        self.split, self.ranks = split_denoiser(self.model, config.encoder_blocks), Ranks(config.process_group)
        self.reuse = REUSES[config.reuse]
        self.tracker = RunTracker(pipe)
        self.residuals = ReusedResiduals(self.controlnet, self.tracker, config.schedule)
        self.counts, self.usage = Counts(), Usage()
        self.run: RunState | None = None

    def features(self) -> ReusedFeatures | None:
        """The features of the run at hand."""
        run = self.run
        return None if run is None else run.reuse.features

    def call_denoiser(self, inner: Callable, args: tuple, kwargs: dict) -> Any:
        """The pipeline's call of the denoiser: one prediction, evaluated now or before. Calls of other pipelines are none of ours."""
        if not is_called_by(self.pipe):
            self.usage.others_calls += 1
            return inner(*args, **kwargs)
        self.usage.was_called = True
        check_parts(self.pipe, self.model, self.controlnet, self.split.encoder | self.split.decoder)  # also in mid-run
        call = DenoiserCall.of(self.model, args, kwargs)
        _, is_new = self.tracker.current(call.timestep)
        if is_new or self.run is None:
            self.begin_run(call)
        assert self.run is not None
        _, step, _ = self.tracker.advance(call.timestep)
        later = self.run.conditions.later
        later.check_finite(call.sample, step, call.timestep)
        prediction = self.prediction(self.run, step, call, inner)
        if self.run.is_last(step):
            later.check_finite(sample_of(prediction), step, call.timestep, "numbers", "predicts")
        self.end_step(self.run, step)
        return prediction

    def call_controlnet(self, inner: Callable, args: tuple, kwargs: dict) -> Any:
        """The pipeline's call of its ControlNet: residuals, evaluated at key steps only."""
        if not is_called_by(self.pipe):
            return inner(*args, **kwargs)
        residuals, evaluated = self.residuals.call(inner, args, kwargs)
        self.counts.controlnet_calls += evaluated
        return residuals

    def begin_run(self, call: DenoiserCall) -> None:
        """Checks what can be checked before anything is evaluated, and makes the run's state."""
        self.run = None
        run, schedule = self.tracker.run, self.config.schedule
        assert run is not None
        check_length(self.pipe, schedule, run.num_steps if run.start is None else len(run.timesteps))
        warn_of_another_run(self.pipe, self.config, run.planned if run.start is None else None)
        if self.config.fit is not None and run.start is not None:
            raise ValueError(
                f"a fit asked of {type(self.pipe).__name__}, which goes through its time-steps in several loops; leave it out"
            )
        # Pipelines may install processors when they are called.
        check_rows_stay_apart(self.pipe, self.split, self.config.is_parallel)
        check_attention_runs(self.model, self.config.reuse)
        if self.ranks.size > 1:
            self.ranks.check_same("schedule", str(schedule))
            self.ranks.check_same("latents", looked_at(call.sample), alike)
        self.counts.runs += 1
        if self.config.is_parallel:
            self.limit.begin_run(self.model, call.arguments, self.config.extrapolation, self.split)
            self.limit.fitting = self.ranks.least(self.limit.fitting)
        of_run = schedule if run.start is None else schedule.part(run.start, run.start + run.num_steps)
        offsets = self.offsets if self.config.fit is None else GroupOffsets(self.pipe, self.config.fit)
        self.run = RunState(self.pipe, self.config, of_run, run.planned, self.split, self.ranks.share, offsets, self.lines)

    def prediction(self, run: RunState, step: int, call: DenoiserCall, inner: Callable) -> Any:
        """The prediction of a step, which is evaluated unless it is known already."""
        difference = run.difference(step, call)
        if step in self.known:
            return own(self.known[step])
        if step not in run.ahead or difference is not None:
            self.evaluate(run, step, call, inner, difference)
        return run.hand_out(step)

    def evaluate(self, run: RunState, step: int, call: DenoiserCall, inner: Callable, difference: str | None) -> None:
        """Evaluates the denoiser for this step, and ahead for later steps of its group as far as allowed."""
        is_key = step in run.planner.keys
        if not is_key and difference is not None:
            if self.config.is_parallel or run.offsets is not None:
                raise run.conditions.refusal(step, call, difference)
            is_key, self.usage.why_key = True, difference
        if is_key:
            run.begin_group(step, call, is_other=difference is not None or self.residuals.is_other)
        try:
            run.ahead = self.ahead(run, step, Evaluation(run, step, call, inner, self.limit, self.counts), is_key)
        except BaseException:
            self.run = None  # what a broken pass left is used by no later step
            raise
        if run.offsets is not None:
            run.ahead = run.offsets.corrected(call, run.ahead)

    def ahead(self, run: RunState, step: int, evaluation: Evaluation, is_key: bool) -> dict[int, Any]:
        """Step -> prediction from this step on: those of one pass, or of the whole group, which a fit looks at together."""
        most = self.limit.steps_at_once(evaluation.call.rows) if self.config.is_parallel else 1
        found: dict[int, Any] = {}
        while True:
            planned = run.planner.coming(step + len(found), most, is_key and not found)
            output, decoded = evaluation.of(planned)
            found |= run.reuse.predictions(planned, run.place, output, self.ranks.gathered(planned, decoded))
            if run.is_last(planned.steps[-1]):
                run.reuse.clear()
            if run.offsets is None or step + len(found) == planned.group.stop:
                return found

    def end_step(self, run: RunState, step: int) -> None:
        self.counts.steps += 1
        self.usage.has_reused |= step != run.conditions.key_step
        is_last = run.is_last(step)
        if is_last:
            self.run = None
            self.counts.images_beyond_fit += run.offsets.images_beyond() if run.offsets is not None else 0
        run.conditions.end_step(step, is_last)

    def close(self) -> None:
        """Lets go of everything that belongs to a run, also where the traceback of an error still holds it."""
        if self.run is not None:
            self.run.reuse.clear()
        self.run = None
        self.tracker.forget()
        self.residuals.at_key = None
