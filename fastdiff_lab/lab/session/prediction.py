"""Predict the cost and the error of a schedule, without running it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any

import pandas as pd

from ...calibration.derive import group_costs, schedule_front
from ...calibration.reuse_costs import ReuseCosts
from ...hooks.denoiser import denoiser_of
from ...hooks.fingerprint import differences, identity
from ...hooks.flops import FlopCount, count_flops
from ...key_schedule import KeySchedule
from ...pipelines import embedded_costs
from ...sampling.call_options import own_guidance
from ...sampling.methods import denoiser_arguments, denoiser_calls
from .ceiling import TimedHalves
from .settings import Acceleration, Settings, scheduler_for, seen_with

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


SHIPPED = ("ddim-50", "dpm-solver++-20")
RANKS = "a sum of single groups, averaged over the measured images: it ranks schedules, a single image may lose ten times as much"
NOTHING = "No prediction: nothing was measured on this pipeline. schedule_lab(pipe, costs=fl.calibrate(pipe, prompts)) predicts."
TRUST = (
    f"Predicted error: {RANKS} (notebook 06).",
    f"Predicted error: {RANKS}. With order 1 errors act on one another: it is too small where groups are long (notebook 06).",
)


@dataclass(frozen=True)
class Fit:
    """The reuse costs that fit the settings, or None; and why, in a sentence."""

    costs: ReuseCosts | None
    note: str


@dataclass(frozen=True)
class Prediction:
    """The calls, operations and predicted error of a run with a schedule.

    Args:
        error: Root mean square error of a value of the final latents, whose spread is about 1; None if no costs fit.
        groups: Each group's part of it; NaN for a length that was not measured.
        note: How far to trust the error, in a sentence.
        gflops: 2 per multiply-add; None if they cannot be counted. `baseline_gflops` are the baseline's.
        flop_ceiling: The speed-up if time were operations.
        time_ceiling: The speed-up by the time of each half; None until it was measured.
    """

    steps: int
    encoder_calls: int
    forward_calls: int
    error: float | None
    groups: tuple[float, ...]
    note: str
    gflops: float | None
    baseline_gflops: float | None
    flop_ceiling: float | None
    time_ceiling: float | None


def is_embedded(pipe: DiffusionPipeline) -> bool:
    """Whether the weights are those of the shipped costs."""
    return identity(pipe)["weights"] == embedded_costs().measured_on["weights"]


class Predictor:
    """Predict for one pipeline. Everything slow is done once, here.

    >>> Predictor(fl.load_pipeline()).predict(Settings("a red ring"), Acceleration(KeySchedule.paper(50))).flop_ceiling  # doctest: +SKIP

    `costs` come from `calibrate`, one or several; None for those of the embedded pipeline, if this is it.
    """

    def __init__(self, pipe: DiffusionPipeline, costs: ReuseCosts | Sequence[ReuseCosts] | None, settings: Settings) -> None:
        self.pipe, self.own, self.embedded = pipe, pipe.scheduler, is_embedded(pipe)
        self.halves = TimedHalves()
        self.given = (costs,) if isinstance(costs, ReuseCosts) else tuple(costs or ())
        if costs is None and self.embedded:
            self.given = tuple(embedded_costs(*way) for way in product(("encoder", "prediction"), (0, 1), SHIPPED))
        self._fronts: dict[int, pd.DataFrame] = {}
        self._uniform: dict[int, dict[int, float]] = {}
        self._fit = lru_cache(maxsize=256)(self._fit_of)
        self._calls = lru_cache(maxsize=256)(self._calls_of)
        self.values, self.operations = self._counted(settings)

    def _counted(self, settings: Settings) -> tuple[int, dict[bool, FlopCount | None]]:
        """Values in an image's latents, and the operations of a call with and without guidance."""
        given = {guided: denoiser_arguments(self.pipe, settings.prompt, 5.0 if guided else 0.0) for guided in (True, False)}
        samples = {guided: next(iter(arguments.values())) for guided, arguments in given.items()}
        count = _flops(self.pipe, given[True])
        share = len(samples[False]) / len(samples[True])  # operations grow with the rows
        alone = None if count is None else FlopCount(*(round(share * part) for part in (count.encoder, count.decoder, count.rest)))
        return samples[True][0].numel(), {True: count, False: alone}

    def steps(self, settings: Settings) -> int:
        """The number of denoiser calls of the run."""
        return self._calls(settings.scheduler, settings.num_inference_steps)

    def _calls_of(self, scheduler: str, steps: int) -> int:
        return denoiser_calls(seen_with(self.pipe, scheduler_for(self.own, scheduler)), steps)

    def time_steps(self, settings: Settings) -> list[float]:
        """The time-step of each step."""
        scheduler = _copy(scheduler_for(self.own, settings.scheduler))
        scheduler.set_timesteps(settings.num_inference_steps)
        return [float(value) for value in scheduler.timesteps]

    def fitting(self, settings: Settings, acceleration: Acceleration) -> Fit:
        """The costs that were measured on this pipeline with these settings, or why there are none."""
        return self._fit(
            settings.scheduler,
            settings.num_inference_steps,
            own_guidance(self.pipe, settings.guidance_scale),
            acceleration.reuse,
            acceleration.order,
        )

    def _fit_of(self, scheduler: str, steps: int, guidance: float | None, reuse: str, order: int) -> Fit:
        if not self.given:
            return Fit(None, NOTHING)
        here, calls = seen_with(self.pipe, scheduler_for(self.own, scheduler)), self._calls(scheduler, steps)
        found: list[list[str]] = []
        for costs in self.given:
            other = _in_words(differences(costs.measured_on, here, reuse=reuse, order=order, guidance_scale=guidance))
            other += [f"{costs.num_steps} steps, here {calls}"] if costs.num_steps != calls else []
            if not other:
                return Fit(costs, TRUST[order])
            found.append(other)
        _, nearest = min((len(words), words) for words in found)
        return Fit(None, f"No prediction: the nearest reuse costs were measured with {'; '.join(nearest)}.")

    def front(self, costs: ReuseCosts) -> pd.DataFrame:
        """The best schedule for every number of keys and its `error` per value of the latents, computed once."""
        place = self._place(costs)
        if place not in self._fronts:
            front = schedule_front(costs).set_index("num_keys")
            self._fronts[place] = front.assign(error=front["predicted_error"] / math.sqrt(self.values))
        return self._fronts[place]

    def best(self, settings: Settings, acceleration: Acceleration, number: int) -> KeySchedule:
        """The derived schedule with about so many keys, or a uniform one if nothing was measured with these settings."""
        costs = self.fitting(settings, acceleration).costs
        if costs is None:
            return KeySchedule.uniform(acceleration.schedule.num_steps, number)
        schedules = self.front(costs)["schedule"]
        return schedules[max(number, int(schedules.index.min()))]

    def uniform(self, costs: ReuseCosts) -> dict[int, float]:
        """The error of uniform keys for every measured number of keys, computed once."""
        place = self._place(costs)
        if place not in self._uniform:
            errors = {keys: self.error(costs, KeySchedule.uniform(costs.num_steps, keys)) for keys in range(1, costs.num_steps + 1)}
            self._uniform[place] = {keys: error for keys, error in errors.items() if error is not None}
        return self._uniform[place]

    def _place(self, costs: ReuseCosts) -> int:
        return next(place for place, given in enumerate(self.given) if given is costs)

    def group_errors(self, costs: ReuseCosts, schedule: KeySchedule) -> tuple[float, ...]:
        """The error of each group, per value of the latents; NaN where not measured."""
        squares = group_costs(costs, schedule)
        return tuple(math.sqrt(square / self.values) if math.isfinite(square) else math.nan for square in squares)

    def error(self, costs: ReuseCosts, schedule: KeySchedule) -> float | None:
        """Root mean square error of a value of the latents, or None for a group longer than was measured."""
        total = math.hypot(*self.group_errors(costs, schedule))
        return total if math.isfinite(total) else None

    def predict(self, settings: Settings, acceleration: Acceleration) -> Prediction:
        """Predict a run, well within 100 ms."""
        schedule, steps = acceleration.schedule, self.steps(settings)
        fit, keys = self.fitting(settings, acceleration), len(acceleration.schedule.keys)
        groups = self.group_errors(fit.costs, schedule) if fit.costs is not None else ()
        total = math.hypot(*groups) if groups else math.nan
        note = fit.note if fit.costs is None or math.isfinite(total) else _unmeasured(fit.costs, schedule, groups)
        count = self.operations[settings.is_guided]
        decoded = keys if acceleration.reuse == "prediction" else steps
        gflops = None if count is None else count.of_run(keys, decoded) / 1e9
        whole = None if count is None else count.of_run(steps, steps) / 1e9
        return Prediction(
            steps, keys, keys, total if math.isfinite(total) else None, groups, note, gflops, whole,
            None if gflops is None or whole is None else whole / gflops, self.halves.ceiling(settings, acceleration),
        )  # fmt: skip


def _copy(scheduler: Any) -> Any:
    return type(scheduler).from_config(scheduler.config)


def _in_words(other: list[str]) -> list[str]:
    """Name differences, without the fingerprint of a scheduler's settings."""
    kinds = [words for words in other if not words.startswith("scheduler settings")]
    has_kind = any(words.startswith("scheduler ") for words in kinds)
    return kinds if has_kind or len(kinds) == len(other) else [*kinds, "other settings of the scheduler"]


def _unmeasured(costs: ReuseCosts, schedule: KeySchedule, errors: tuple[float, ...]) -> str:
    """Why a schedule has no prediction: a group is too long, or the gap before its key was not measured."""
    place, group = next((place, group) for place, group in enumerate(schedule.groups()) if math.isnan(errors[place]))
    if len(group) > costs.max_span:
        return f"No prediction: groups of more than {costs.max_span} steps were not measured."
    return f"No prediction: extrapolating from key steps {schedule.keys[place - 1]} and {group.start} was not measured; move one of them."


def _flops(pipe: DiffusionPipeline, arguments: dict[str, Any]) -> FlopCount | None:
    try:
        return count_flops(denoiser_of(pipe), arguments)
    except (NotImplementedError, RuntimeError, TypeError):  # the meta device cannot run everything
        return None
