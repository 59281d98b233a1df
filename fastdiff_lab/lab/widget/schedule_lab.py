"""The interactive lab: tune a schedule with the mouse and see its cost and error."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd

from ...calibration.reuse_costs import ReuseCosts
from ...hooks.fingerprint import differences
from ...key_schedule import KeySchedule
from ...recording.recording import Recording
from ..session.history import History
from ..session.paired_run import Pair, PairRunner
from ..session.prediction import Prediction, Predictor
from ..session.settings import Acceleration, Settings, scheduler_for, seen_with
from . import fields, views
from .fallback import lab_page, with_fallback
from .messages import answer
from .page_traits import LabTraits
from .running import Running
from .session_files import save_runs, save_schedule

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


PROMPT = "a large red star at the left on a blue background"
FIRST_SHARE = 0.18  # share of keys to begin with, as in the paper: 9 of 50
BY_HAND = "set by hand in the lab"


class ScheduleLab(LabTraits):
    """The lab's widget; see `schedule_lab`. Everything on the page is a trait, so that a saved notebook shows the last state."""

    def __init__(
        self,
        pipe: DiffusionPipeline,
        *,
        costs: ReuseCosts | Sequence[ReuseCosts] | None,
        recording: Recording | None,
        settings: Settings,
        preview_every: int,
    ) -> None:
        self._predictor = Predictor(pipe, costs, settings)
        settings = self._beginning_with(pipe, settings)
        self._runner = PairRunner(pipe, preview_every=preview_every, judged=self._predictor.embedded)
        self._runs, self._recording = History(), recording
        self._running = Running(self, self._runner, self._runs)
        self._settings = settings
        self._options: dict[str, Any] = {"reuse": "encoder", "order": 0, "prior_noise": 0.0, "prior_start": 0.5}
        self._known: dict[KeySchedule, KeySchedule] = {}  # schedules by keys, with their source and measured_on
        self._schedule = KeySchedule(1, (0,))
        super().__init__()
        self.fields = fields.lab_fields(type(pipe.scheduler).__name__)
        self.form = fields.values(settings, self._options)
        self.num_steps = self._predictor.steps(settings)
        self._take(self._with_keys(max(1, round(self.num_steps * FIRST_SHARE))))
        self.observe(self._on_form, "form")
        self.observe(self._on_keys, "key_steps")
        self.on_msg(lambda widget, content, buffers: answer(self, content))

    @property
    def schedule(self) -> KeySchedule:
        """The key steps. Setting them moves the strip, and the field *Steps* for a schedule of other steps."""
        return self._schedule

    @schedule.setter
    def schedule(self, schedule: KeySchedule) -> None:
        if not isinstance(schedule, KeySchedule):
            raise TypeError(f"schedule={schedule!r} given; accepted: a KeySchedule, such as KeySchedule.paper(50)")
        self._fit_steps(schedule)
        self._take(schedule)

    @property
    def settings(self) -> Settings:
        """Prompt, seed, steps, guidance and scheduler. Setting them fills the form."""
        return self._settings

    @settings.setter
    def settings(self, settings: Settings) -> None:
        self.form = fields.values(settings, self._options)

    @property
    def acceleration(self) -> Acceleration:
        """The key steps with what is reused between them, and how."""
        return Acceleration(self._schedule, **self._options)

    @acceleration.setter
    def acceleration(self, acceleration: Acceleration) -> None:
        self.form = {**self.form, **{name: getattr(acceleration, name) for name in fields.OF_ACCELERATION}}
        self.schedule = acceleration.schedule

    @property
    def history(self) -> pd.DataFrame:
        """One row per run, with everything that was set, predicted and measured."""
        return self._runs.table()

    def predict(self) -> Prediction:
        """Predict the cost and error of the current settings."""
        return self._predictor.predict(self._settings, self.acceleration)

    def start(self) -> None:
        """Start a run and return at once. Raises RuntimeError while another one lasts, ValueError for a wrong setting."""
        if self.form_error:
            raise ValueError(f"nothing is run while a setting is wrong: {self.form_error}")
        self._running.start(self._settings, self.acceleration, self.predict())

    def run(self) -> Pair:
        """Run and wait; an interrupt cancels. Raises what the pipeline raises."""
        self.start()
        return self._running.result()

    def cancel(self) -> None:
        """Ask the run to stop, which it does within one denoiser call."""
        self._running.worker.cancel()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the end of the run; return whether it came in time."""
        return self._running.worker.wait(seconds)

    def measure_ceiling(self) -> None:
        """Start timing both halves of the denoiser, for the time ceiling, and return at once."""
        self._running.measure(self._predictor.halves, self._settings, self.refresh)

    def save(self, path: str = "schedule.json") -> None:
        """Write the schedule as JSON. Raises ValueError for a path without .json, or a file that is no schedule."""
        self.said = f"Saved to {save_schedule(self._schedule, path).resolve()}"

    def export(self, path: str = "runs.csv") -> None:
        """Write the runs as CSV. Raises ValueError for a path without .csv, or a file that holds no runs."""
        self.said = f"{len(self.rows)} runs written to {save_runs(self._runs, path).resolve()}"

    def use_preset(self, name: str) -> None:
        """Take the "paper", "uniform" or "derived" keys; the last two with the current number of keys."""
        ways = {"paper": lambda: KeySchedule.of_paper(self.num_steps), "derived": lambda: self._with_keys(len(self._schedule.keys)),
                "uniform": lambda: KeySchedule.uniform(self.num_steps, len(self._schedule.keys))}  # fmt: skip
        if name not in ways:
            raise ValueError(f"preset {name!r} asked; accepted: {', '.join(ways)}")
        self._take(ways[name]())

    def use_num_keys(self, number: int) -> None:
        """Take the derived schedule with about so many keys, or uniform keys if nothing was measured."""
        self._take(self._with_keys(number))

    def restore(self, run: int) -> None:
        """Take the settings and key steps of a run of the history, by its number."""
        if not isinstance(run, int) or not 1 <= run <= len(self._runs.pairs):
            raise ValueError(f"run {run!r} asked; accepted: 1 to {len(self._runs.pairs)}")
        pair = self._runs.pairs[run - 1]
        self.settings, self.acceleration = pair.settings, pair.acceleration

    def clear(self) -> None:
        self._runs.clear()
        self.rows, self.chosen, self.said = [], [], ""

    def page(self) -> str:
        """The state as HTML that needs neither kernel nor widgets."""
        pair = self._runs.pairs[-1] if self._runs.pairs else None
        return lab_page(self._schedule, self.prediction, self.profiles["cost"], pair, self.history)

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        return with_fallback(super()._repr_mimebundle_(**kwargs), self.page())

    def _take(self, schedule: KeySchedule) -> None:
        """Make a schedule the current one, with its source and measurements."""
        self._known[schedule] = schedule
        self._schedule = schedule
        self.num_steps = schedule.num_steps
        self.key_steps = list(schedule.keys)
        self.refresh()

    def _on_keys(self, change: Any) -> None:
        if tuple(change["new"]) == self._schedule.keys:
            return
        try:
            schedule = KeySchedule(self.num_steps, tuple(change["new"]), BY_HAND)
        except (ValueError, TypeError) as error:
            self.tell(error)
            self.key_steps = list(self._schedule.keys)
            return
        self._schedule = self._known.get(schedule, schedule)
        self.refresh()

    def _on_form(self, change: Any) -> None:
        try:
            settings, options = fields.parsed(change["new"])
            steps = self._predictor.steps(settings)
            Acceleration(self._schedule, **options)
        except (ValueError, TypeError) as error:
            self.form_error = str(error)
            return
        self._settings, self._options, self.form_error = settings, options, ""
        self._take(self._schedule if steps == self.num_steps else self._respread(steps))

    def _with_keys(self, number: Any) -> KeySchedule:
        number = min(max(1, number if isinstance(number, int) else len(self._schedule.keys)), self.num_steps)
        costs = self._predictor.fitting(self._settings, self.acceleration).costs
        if costs is None:
            return KeySchedule.uniform(self.num_steps, number)
        schedules = self._predictor.front(costs)["schedule"]
        return schedules[max(number, int(schedules.index.min()))]

    def _respread(self, steps: int) -> KeySchedule:
        keys = len(self._schedule.keys)
        return self._schedule.rescaled(steps) if keys <= steps else KeySchedule.uniform(steps, steps)

    def _fit_steps(self, schedule: KeySchedule) -> None:
        """Set the steps to those of a schedule. Raises ValueError if no run of this scheduler makes so many calls."""
        if schedule.num_steps == self.num_steps:
            return
        asked = replace(self._settings, num_inference_steps=schedule.num_steps)
        if self._predictor.steps(asked) != schedule.num_steps:
            raise ValueError(
                f"the schedule is for {schedule.num_steps} steps; a run with scheduler {self._settings.scheduler!r} makes "
                f"{self._predictor.steps(asked)} for {schedule.num_steps} requested ones; choose another scheduler first"
            )
        self.settings = asked

    def refresh(self) -> None:
        """Update everything that depends on keys and settings, well within 100 ms, without a run."""
        self.problem = {}  # it belongs to other keys or settings
        prediction = self.predict()
        costs = self._predictor.fitting(self._settings, self.acceleration).costs
        shown = views.cards(prediction)
        elsewhere = "" if costs is None else self._measured_elsewhere()
        self.prediction = shown | {"note": f"{shown['note']} {elsewhere}".strip()}
        self.profiles = views.profiles(prediction, self._schedule, self._recording)
        self.front = views.front(self._predictor, costs, self._schedule)
        self.presets = views.presets(self._schedule, costs is not None)
        self.schedule_text = f"{self._schedule} — {self._schedule.source or 'no source given'}"
        self.time_steps = self._predictor.time_steps(self._settings)

    def _beginning_with(self, pipe: DiffusionPipeline, settings: Settings) -> Settings:
        """The settings with a guidance scale: as asked, as in the first costs, or the pipeline's own."""
        measured = self._predictor.given[0].measured_on.get("guidance_scale") if self._predictor.given else None
        asked = settings.guidance_scale if settings.guidance_scale is not None else measured
        return replace(settings, guidance_scale=asked).on(pipe)

    def _measured_elsewhere(self) -> str:
        """A sentence for a schedule that was derived from other measurements."""
        measured_on = self._schedule.measured_on
        if measured_on is None:
            return ""
        here = seen_with(self._runner.pipe, scheduler_for(self._runner.own, self._settings.scheduler))
        use = {name: self._options[name] for name in ("reuse", "order")}
        found = differences(measured_on, here, guidance_scale=self._settings.guidance_scale, **use)
        return f"These keys were derived for something else: {'; '.join(found)}." if found else ""


def schedule_lab(
    pipe: DiffusionPipeline,
    *,
    costs: ReuseCosts | Sequence[ReuseCosts] | None = None,
    recording: Recording | None = None,
    prompt: str = PROMPT,
    num_inference_steps: int = 50,
    guidance_scale: float | None = None,
    preview_every: int = 5,
) -> ScheduleLab:
    """Tune the key steps of a text-to-image pipeline with the mouse, and see at once their cost and error.

    >>> lab = schedule_lab(fl.load_pipeline())  # doctest: +SKIP
    >>> lab  # shows it; and from code:  # doctest: +SKIP
    >>> lab.schedule = fl.KeySchedule.paper(50); lab.run(); lab.history  # doctest: +SKIP

    Args:
        pipe: A diffusers pipeline. Nothing else may call it during a run; afterwards it is as before.
        costs: From `calibrate`, one or several, for predictions; None for those of the embedded pipeline.
        recording: From `record`, to show the measured change above the strip.
        prompt: To begin with; so are `num_inference_steps` and `guidance_scale`, by default that of the costs.
        preview_every: Steps between intermediate images; 0 for none, since a large autoencoder takes its time.

    Raises:
        ValueError: A setting out of range.
        TypeError: A pipeline without a denoiser.
    """
    settings = Settings(prompt, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale)
    return ScheduleLab(pipe, costs=costs, recording=recording, settings=settings, preview_every=preview_every)
