"""Do the lab's long work in a thread, and show it on the page."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import replace

from ...hooks.exclusive_use import check_free
from ..session.background_job import Worker
from ..session.ceiling import TimedHalves
from ..session.history import History
from ..session.images import data_address
from ..session.paired_run import BASELINE, Pair, PairRunner, Progress
from ..session.prediction import Prediction
from ..session.race import Race
from ..session.settings import Acceleration, Settings, keys_text
from ..session.watching import Cancelled
from . import views
from .page_traits import LabTraits
from .run_row import RunRow

Asked = Callable[[], bool]  # whether the job should stop


class Running:
    """The lab's current work. It writes the traits of `page`, which may be read and drawn at any time."""

    def __init__(self, page: LabTraits, runner: PairRunner, runs: History) -> None:
        self.page, self.runner, self.runs = page, runner, runs
        self.worker = Worker()
        self.failure: BaseException | None = None
        self.shown: tuple[Settings, Acceleration] | None = None  # what the images on the page are of

    def start(self, settings: Settings, acceleration: Acceleration, prediction: Prediction, seeds: int = 1) -> None:
        """Start a run of each seed and return at once. Raises RuntimeError while the pipeline is in use, here or elsewhere."""

        def run(cancelled: Asked) -> str:
            for further in reversed(range(seeds)):  # the asked one last, whose images stay on the page
                pair = self.runner.run(replace(settings, seed=settings.seed + further), acceleration, self._show, cancelled)
                self._keep(pair, prediction)
            if seeds > 1:
                return self.runs.worst_of(seeds)
            return f"Run {len(self.runs.rows)}: {keys_text(len(acceleration.schedule.keys))}, {views.psnr_words(pair.psnr)}."

        self._work(run, "Running …")
        self.shown, self.page.out_of_date = (settings, acceleration), False

    def measure(self, halves: TimedHalves, settings: Settings, then: Callable[[], object]) -> None:
        """Start timing both halves of the denoiser and return at once."""

        def time(cancelled: Asked) -> str:
            halves.measure(self.runner.pipe, settings, self._show_timing, cancelled)
            then()
            return "The ceiling by time was measured."

        self._work(time, "Timing encoder and decoder …", where="prediction")

    def race(self, race: Race, settings: Settings, acceleration: Acceleration) -> None:
        """Start a race and return at once. Raises RuntimeError while the pipeline is in use, here or elsewhere."""

        def run(cancelled: Asked) -> str:
            finishes = race.run(settings, acceleration, self._show_race, cancelled)
            self.page.race = views.race(finishes)
            return "The race was run."

        self.page.race = {}
        self._work(run, "Race …", where="race")

    def _show_race(self, done: int, of: int) -> None:
        self.page.run_state = {"state": "running", "text": f"Race: {done} of {of} methods"}

    def result(self) -> Pair:
        """Wait for the run and return its result, or raise what stopped it."""
        self.worker.wait()
        if self.failure is not None:
            raise self.failure
        return self.runs.pairs[-1]

    def _work(self, job: Callable[[Asked], str], text: str, where: str = "run") -> None:
        def work(cancelled: Asked) -> None:
            self.failure = None
            self.page.problem, self.page.run_state = {}, {"state": "running", "text": text}
            try:
                self.page.run_state = {"state": "done", "text": job(cancelled)}
            except Cancelled as stop:
                self.failure = stop
                self.page.run_state = {"state": "cancelled", "text": "Cancelled; the pipeline is as before."}
            except BaseException as error:
                self.failure = error
                self.page.tell(error, traceback.format_exc(), where)
                self.page.run_state = {"state": "error", "text": "Stopped by an error."}

        if not self.worker.is_running:
            check_free(self.runner.pipe)
        self.worker.start(work)

    def _show(self, progress: Progress) -> None:
        page, side, step, steps = self.page, progress.side, progress.step, progress.steps
        words = f"step {step} of {steps}"
        if step == 0:  # remove what the last run left
            page.image_accelerated, page.image_difference, page.result = {}, {}, {}
            page.progress_accelerated, page.film = {}, {}
            if side == BASELINE:
                page.image_baseline = {}
        setattr(page, f"progress_{side}", {"step": step, "steps": steps, "text": words})
        if progress.image is not None:
            setattr(
                page,
                f"image_{side}",
                {"address": data_address(progress.image), "alt": f"{side} run: the clean image predicted after {words}"},
            )

    def _show_timing(self, done: int, of: int) -> None:
        self.page.run_state = {"state": "running", "text": f"Timing encoder and decoder: {done} of {of} group sizes"}

    def _keep(self, pair: Pair, prediction: Prediction) -> None:
        entry, page = self.runs.add(pair, prediction), self.page
        for name, image in views.images(pair).items():
            setattr(page, f"image_{name}", image)
        page.result, page.film = views.result(pair, prediction), views.film(pair)
        page.last_run = RunRow(row=views.row(entry, pair), before=page.last_run)
