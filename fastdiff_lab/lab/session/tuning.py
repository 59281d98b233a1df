"""What is tuned in a session: settings and key steps, with undo."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from ...key_schedule import KeySchedule
from .prediction import Predictor
from .settings import Acceleration, Settings
from .undo import Undo

FIRST_SHARE = 0.18  # share of keys to begin with, as in the paper: 9 of 50
FIRST_OPTIONS: dict[str, Any] = {"reuse": "encoder", "order": 0, "prior_noise": 0.0, "prior_start": 0.5}
BY_HAND = "set by hand in the lab"


@dataclass(frozen=True)
class Tuned:
    """Settings, options and key steps of the next run.

    `chosen` is the schedule that was chosen last; other numbers of steps spread it. `cleared` runs are shown no more.
    """

    settings: Settings
    schedule: KeySchedule
    chosen: KeySchedule
    options: Mapping[str, Any] = field(default_factory=FIRST_OPTIONS.copy)
    cleared: int = 0

    @property
    def acceleration(self) -> Acceleration:
        return Acceleration(self.schedule, **self.options)

    def with_schedule(self, schedule: KeySchedule) -> Tuned:
        return replace(self, schedule=schedule, chosen=schedule)


class Tuning:
    """The tuned values of a session, each change of which can be undone.

    >>> tuning = Tuning(predictor, Settings("a red ring on a blue background"))  # doctest: +SKIP
    >>> tuning.use_num_keys(5); tuning.undo.undo(); len(tuning.now.schedule.keys)  # doctest: +SKIP
    9

    `gesture` numbers what a user does in one go, such as a drag; it is undone as one.
    """

    def __init__(self, predictor: Predictor, settings: Settings) -> None:
        self.predictor = predictor
        steps = predictor.steps(settings)
        whole = Acceleration(KeySchedule.uniform(steps, steps), **FIRST_OPTIONS)
        schedule = predictor.best(settings, whole, max(1, round(steps * FIRST_SHARE)))
        self.undo = Undo(Tuned(settings, schedule, schedule))
        self.known = {schedule: schedule}  # by keys, each with its source and measured_on

    @property
    def now(self) -> Tuned:
        return self.undo.now

    def set_keys(self, keys: tuple[int, ...], gesture: int | None = None) -> None:
        """Take key steps set by hand. Raises ValueError or TypeError for what are none."""
        schedule = KeySchedule(self.now.schedule.num_steps, keys, BY_HAND)
        self.undo.change(self.now.with_schedule(self.known.get(schedule, schedule)), gesture)

    def set_schedule(self, schedule: KeySchedule) -> None:
        """Take a schedule, and its number of steps. Raises ValueError if no run of this scheduler makes so many calls."""
        self.undo.change(replace(self.now, settings=self._with_steps_of(schedule)).with_schedule(self._remembered(schedule)))

    def set_run(self, settings: Settings, acceleration: Acceleration) -> None:
        """Take all of a run."""
        options = {name: getattr(acceleration, name) for name in FIRST_OPTIONS}
        tuned = replace(self.now, settings=settings, options=options)
        self.undo.change(tuned.with_schedule(self._remembered(acceleration.schedule)))

    def set_form(self, settings: Settings, options: Mapping[str, Any]) -> None:
        """Take settings and options. Another number of steps spreads the schedule that was chosen last, and back again."""
        steps, chosen = self.predictor.steps(settings), self.now.chosen
        schedule = self.now.schedule if steps == self.now.schedule.num_steps else _spread(chosen, steps)
        self.undo.change(replace(self.now, settings=settings, options=dict(options), schedule=schedule))

    def use_preset(self, name: str) -> None:
        """Take the "paper", "uniform" or "derived" keys; the last two with the current number of keys."""
        steps, number = self.now.schedule.num_steps, len(self.now.schedule.keys)
        ways = {"paper": lambda: KeySchedule.of_paper(steps), "derived": lambda: self._with_keys(number),
                "uniform": lambda: KeySchedule.uniform(steps, number)}  # fmt: skip
        if name not in ways:
            raise ValueError(f"preset {name!r} asked; accepted: {', '.join(ways)}")
        self.undo.change(self.now.with_schedule(self._remembered(ways[name]())))

    def use_num_keys(self, number: Any, gesture: int | None = None) -> None:
        """Take the derived schedule with about so many keys, or uniform keys if nothing was measured."""
        self.undo.change(self.now.with_schedule(self._remembered(self._with_keys(number))), gesture)

    def clear(self, runs: int) -> None:
        """Show the first runs no more."""
        self.undo.change(replace(self.now, cleared=runs))

    def _remembered(self, schedule: KeySchedule) -> KeySchedule:
        self.known[schedule] = schedule
        return schedule

    def _with_keys(self, number: Any) -> KeySchedule:
        steps = self.now.schedule.num_steps
        number = min(max(1, number if isinstance(number, int) else len(self.now.schedule.keys)), steps)
        return self.predictor.best(self.now.settings, self.now.acceleration, number)

    def _with_steps_of(self, schedule: KeySchedule) -> Settings:
        settings = self.now.settings
        if schedule.num_steps == self.now.schedule.num_steps:
            return settings
        asked = replace(settings, num_inference_steps=schedule.num_steps)
        calls = self.predictor.steps(asked)
        if calls != schedule.num_steps:
            raise ValueError(
                f"the schedule is for {schedule.num_steps} steps; a run with scheduler {settings.scheduler!r} makes {calls} for "
                f"{schedule.num_steps} requested ones; choose another scheduler first"
            )
        return asked


def _spread(chosen: KeySchedule, steps: int) -> KeySchedule:
    if chosen.num_steps == steps:
        return chosen
    return chosen.rescaled(steps) if len(chosen.keys) <= steps else KeySchedule.uniform(steps, steps)
