"""The interactive lab: tune a schedule with the mouse and see its cost and error."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pandas as pd

from ...calibration.reuse_costs import ReuseCosts
from ...hooks.fingerprint import differences
from ...inputs.plain_values import whole_number
from ...key_schedule import KeySchedule
from ...propagation.fit import PropagationFit
from ...recording.recording import Recording
from ..session.history import History
from ..session.paired_run import Pair, PairRunner
from ..session.prediction import Prediction, Predictor
from ..session.prompts import prompt_note
from ..session.race import Race
from ..session.settings import Acceleration, Settings, scheduler_for, seen_with
from ..session.sharing import Shared, as_shared, gallery
from ..session.tuning import FIRST_OPTIONS, Tuned, Tuning
from . import fields, views
from .fallback import display_both, lab_page, with_fallback
from .messages import answer
from .page_traits import LabTraits
from .running import Running
from .session_files import save_runs, save_schedule, save_shared

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


MOST_SEEDS = 16  # of one run
PROMPT = "a large red star at the left on a blue background"


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
        fits: Sequence[PropagationFit],
    ) -> None:
        self._predictor = Predictor(pipe, costs, settings)
        self._runner = PairRunner(pipe, preview_every=preview_every, judged=self._predictor.embedded)
        self._tuning = Tuning(self._predictor, _beginning(self._predictor, settings))
        self._runs, self._recording = History(), recording
        self._running = Running(self, self._runner, self._runs)
        self._race = Race(self._runner, self._predictor, fits)
        super().__init__(name=uuid4().hex)  # explorers follow it by that
        self.fields = fields.lab_fields(type(pipe.scheduler).__name__, of_scenes=self._predictor.embedded)
        self._show()
        self.observe(self._on_form, "form")
        self.observe(self._on_keys, "key_steps")
        self.on_msg(lambda widget, content, buffers: answer(self, content))

    @property
    def schedule(self) -> KeySchedule:
        """The key steps. Setting them moves the strip, and the field *Steps* for a schedule of other steps."""
        return self._now.schedule

    @schedule.setter
    def schedule(self, schedule: KeySchedule) -> None:
        if not isinstance(schedule, KeySchedule):
            raise TypeError(f"schedule={schedule!r} given; accepted: a KeySchedule, such as KeySchedule.paper(50)")
        self._tune(lambda: self._tuning.set_schedule(schedule))

    @property
    def settings(self) -> Settings:
        """Prompt, seed, steps, guidance and scheduler. Setting them fills the form."""
        return self._now.settings

    @settings.setter
    def settings(self, settings: Settings) -> None:
        self.form = fields.values(settings, self._now.options)

    @property
    def acceleration(self) -> Acceleration:
        """The key steps with what is reused between them, and how."""
        return self._now.acceleration

    @acceleration.setter
    def acceleration(self, acceleration: Acceleration) -> None:
        self.form = {**self.form, **{name: getattr(acceleration, name) for name in FIRST_OPTIONS}}
        self.schedule = acceleration.schedule

    @property
    def history(self) -> pd.DataFrame:
        """One row per run, with everything that was set, predicted and measured."""
        return self._runs.table(self.cleared)

    @property
    def is_running(self) -> bool:
        """Whether a run or a timing is being made."""
        return self._running.worker.is_running

    def predict(self) -> Prediction:
        """Predict the cost and error of the current settings."""
        return self._predictor.predict(self.settings, self.acceleration)

    def start(self, seeds: int = 1) -> None:
        """Start a run of each of so many seeds, from that of the settings on, and return at once.

        Raises RuntimeError while the pipeline is in use, ValueError for a wrong setting.
        """
        self._check_form()
        self._running.start(self.settings, self.acceleration, self.predict(), whole_number("seeds", seeds, 1, MOST_SEEDS))

    def run(self, seeds: int = 1) -> Pair:
        """Run and wait; an interrupt cancels. Raises what the pipeline raises. Of several seeds the last pair is the first one's."""
        self.start(seeds)
        return self._running.result()

    def cancel(self) -> None:
        """Ask the run to stop, which it does within one denoiser call."""
        self._running.worker.cancel()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the end of the run; return whether it came in time."""
        return self._running.worker.wait(seconds)

    def measure_ceiling(self) -> None:
        """Start timing both halves of the denoiser, for the time ceiling, and return at once."""
        self._running.measure(self._predictor.halves, self.settings, self.refresh)

    def start_race(self) -> None:
        """Start a race of methods that take the time of these key steps, and return at once. Raises what `start` raises."""
        self._check_form()
        self._running.race(self._race, self.settings, self.acceleration)

    def save(self, path: str = "schedule.json", *, replace: bool = False) -> None:
        """Write the schedule as JSON. Raises ValueError for a path without .json, or a file that is no schedule.

        Raises FileExistsError for a file that is there, unless `replace`.
        """
        self.said = {"where": "files", "text": f"Saved to {save_schedule(self.schedule, path, replace).resolve()}"}

    def share(self, path: str = "tuned.json", *, replace: bool = False) -> None:
        """Write settings, key steps and the PSNR of their run as JSON for others' labs. Raises what `save` raises."""
        text = as_shared(self.settings, self.acceleration, self._runs.psnr_of(self.settings, self.acceleration))
        self.said = {"where": "files", "text": f"Shared in {save_shared(text, path, replace).resolve()}"}

    def take(self, shared: Shared) -> None:
        """Take the settings and key steps that someone shared."""
        self._tune(lambda: self._tuning.set_run(shared.settings, shared.acceleration))

    def show_gallery(self, folder: str = "gallery") -> None:
        """Show what is shared in a folder. Raises FileNotFoundError without it."""
        self.gallery = gallery(Path(folder))
        self.said = {"where": "files", "text": f"{len(self.gallery)} shared files in {folder}"}

    def export(self, path: str = "runs.csv", *, replace: bool = False) -> None:
        """Write the runs as CSV. Raises ValueError for a path without .csv, or a file that holds no runs.

        Raises FileExistsError for a file that is there, unless `replace`.
        """
        target = save_runs(self._runs, path, replace, self.cleared).resolve()
        self.said = {"where": "runs", "text": f"{len(self.history)} runs written to {target}"}

    def use_preset(self, name: str) -> None:
        """Take the "paper", "uniform" or "derived" keys; the last two with the current number of keys."""
        self._tune(lambda: self._tuning.use_preset(name))

    def use_num_keys(self, number: int, gesture: int | None = None) -> None:
        """Take the derived schedule with about so many keys, or uniform keys if nothing was measured."""
        self._tune(lambda: self._tuning.use_num_keys(number, gesture))

    def restore(self, run: int) -> None:
        """Take the settings and key steps of a run of the history, by its number."""
        if not isinstance(run, int) or not 1 <= run <= len(self._runs.pairs):
            raise ValueError(f"run {run!r} asked; accepted: 1 to {len(self._runs.pairs)}")
        pair = self._runs.pairs[run - 1]
        self._tune(lambda: self._tuning.set_run(pair.settings, pair.acceleration))

    def clear(self) -> None:
        """Show the runs so far no more, until this is undone."""
        self._tune(lambda: self._tuning.clear(len(self._runs.rows)))

    def undo(self) -> None:
        """Take back the last change of keys, settings or the list of runs; a wrong setting first."""
        self._tune(lambda: None if self.form_error else self._tuning.undo.undo())

    def redo(self) -> None:
        """Make the change again that was undone last."""
        self._tune(self._tuning.undo.redo)

    def page(self) -> str:
        """The state as HTML that needs neither kernel nor widgets."""
        return lab_page(
            self.schedule, self.prediction, self.profiles["cost"], self._runs.pairs[-1] if len(self.history) else None, self.history
        )

    def _repr_mimebundle_(self, **kwargs: Any) -> Any:
        return with_fallback(super()._repr_mimebundle_(**kwargs), self.page())

    def _ipython_display_(self) -> None:
        display_both(super()._repr_mimebundle_(), self.page())

    @property
    def _now(self) -> Tuned:
        return self._tuning.now

    def _tune(self, change: Callable[[], object]) -> None:
        change()
        self._show()

    def _on_keys(self, change: Any) -> None:
        if tuple(change["new"]) == self.schedule.keys:
            return
        try:
            self._tuning.set_keys(tuple(change["new"]), self.gesture or None)
        except (ValueError, TypeError) as error:
            self.key_steps = list(self.schedule.keys)
            self.tell(error, where="keys")
            return
        self._show()

    def _on_form(self, change: Any) -> None:
        try:
            settings, options = fields.parsed(change["new"])
            with fields.field_at_fault("prompt"):
                prompt_note(self._runner.pipe, settings.prompt)
            if not self.form_error and (settings, options) == (self.settings, self._now.options):
                return
            with fields.field_at_fault("steps"):
                self._tuning.set_form(settings, options)
        except fields.WrongFieldError as error:
            self.form_error, self.can_undo = {"field": error.field, "message": str(error)}, True
            return
        self._show()

    def _show(self) -> None:
        """Write what is tuned to the page."""
        now, self.form_error = self._now, {}
        self.form = fields.values(now.settings, now.options)
        self.form_note = prompt_note(self._runner.pipe, now.settings.prompt)
        self.num_steps, self.key_steps = now.schedule.num_steps, list(now.schedule.keys)
        self.cleared = now.cleared
        self.can_undo, self.can_redo = self._tuning.undo.can_undo, self._tuning.undo.can_redo
        self.refresh()

    def refresh(self) -> None:
        """Update everything that depends on keys and settings, well within 100 ms, without a run."""
        self.problem = {}  # it belongs to other keys or settings
        self.out_of_date = self._running.shown not in (None, (self.settings, self.acceleration))
        prediction = self.predict()
        costs = self._predictor.fitting(self.settings, self.acceleration).costs
        shown = views.cards(prediction)
        elsewhere = "" if costs is None else _measured_elsewhere(self._runner, self._now)
        self.prediction = shown | {"note": f"{shown['note']} {elsewhere}".strip()}
        self.profiles = views.profiles(prediction, self.schedule, self._recording)
        self.front = views.front(self._predictor, costs, self.schedule)
        self.presets = views.presets(self.schedule, costs is not None)
        self.schedule_text = f"{self.schedule} — {self.schedule.source or 'no source given'}"
        self.time_steps = self._predictor.time_steps(self.settings)

    def _check_form(self) -> None:
        if self.form_error:
            raise ValueError(f"nothing is run while a setting is wrong: {self.form_error['message']}")


def _measured_elsewhere(runner: PairRunner, now: Tuned) -> str:
    """A sentence for a schedule that was derived from other measurements."""
    if now.schedule.measured_on is None:
        return ""
    here = seen_with(runner.pipe, scheduler_for(runner.own, now.settings.scheduler))
    use = {name: now.options[name] for name in ("reuse", "order")}
    found = differences(now.schedule.measured_on, here, guidance_scale=now.settings.guidance_scale, **use)
    return f"These keys were derived for something else: {'; '.join(found)}." if found else ""


def _beginning(predictor: Predictor, settings: Settings) -> Settings:
    """The settings with a guidance scale: as asked, as in the first costs, or the pipeline's own."""
    measured = predictor.given[0].measured_on.get("guidance_scale") if predictor.given else None
    asked = settings.guidance_scale if settings.guidance_scale is not None else measured
    return replace(settings, guidance_scale=asked).on(predictor.pipe)


def schedule_lab(
    pipe: DiffusionPipeline,
    *,
    costs: ReuseCosts | Sequence[ReuseCosts] | None = None,
    recording: Recording | None = None,
    prompt: str = PROMPT,
    num_inference_steps: int = 50,
    guidance_scale: float | None = None,
    preview_every: int = 5,
    fits: Sequence[PropagationFit] = (),
) -> ScheduleLab:
    """Tune the key steps of a text-to-image pipeline with the mouse, and see at once their cost and error.

    >>> lab = schedule_lab(fl.load_pipeline())  # doctest: +SKIP
    >>> lab  # shows it; and from code:  # doctest: +SKIP
    >>> lab.schedule = fl.KeySchedule.paper(50); lab.run(); lab.history  # doctest: +SKIP

    Args:
        pipe: A diffusers pipeline. During a run, calls of it from elsewhere are refused; afterwards it is as before.
        costs: From `calibrate`, one or several, for predictions; None for those of the embedded pipeline.
        recording: From `record`, to show the measured change above the strip.
        prompt: To begin with; so are `num_inference_steps` and `guidance_scale`, by default that of the costs.
        preview_every: Steps between intermediate images; 0 for none, since a large autoencoder takes its time.
        fits: From `fit_propagation`, to race with.

    Raises:
        ValueError: A setting out of range.
        TypeError: A pipeline without a denoiser.
        RuntimeError: A pipeline that is in use, such as by the run of another lab.
    """
    settings = Settings(prompt, num_inference_steps=num_inference_steps, guidance_scale=guidance_scale)
    lab = ScheduleLab(pipe, costs=costs, recording=recording, settings=settings, preview_every=preview_every, fits=fits)
    gc.collect()  # a third of a second while it opens, and not at a click
    return lab
