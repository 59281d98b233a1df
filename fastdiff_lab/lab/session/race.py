"""A race at equal time: methods that take about as long as one accelerated run. Which comes nearest to the baseline?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from PIL import Image

from ...comparison.fidelity import fidelity
from ...key_schedule import KeySchedule
from ...propagation.config import PropagationConfig
from ...propagation.fit import PropagationFit
from ...sampling.methods import Method, Sampled
from .paired_run import Pair, PairRunner
from .prediction import Predictor
from .settings import Acceleration, Settings, keys_text


@dataclass(frozen=True)
class Finish:
    """What a method gave: `psnr` of the image to the baseline's, in dB, and the seconds up to the latents."""

    name: str
    seconds: float
    psnr: float
    image: Image.Image


class Race:
    """Race methods against an accelerated run; each runs once.

    >>> Race(PairRunner(pipe), predictor).run(settings, acceleration)[0].name  # doctest: +SKIP
    'yours, 9 keys'

    Beside it run as many derived keys, the paper's keys, and each fit for as many steps. Reused predictions and fewer steps get as
    many calls as take its time.
    """

    def __init__(self, runner: PairRunner, predictor: Predictor, fits: Sequence[PropagationFit] = ()) -> None:
        self.runner, self.predictor, self.fits = runner, predictor, tuple(fits)

    def run(
        self,
        settings: Settings,
        acceleration: Acceleration,
        report: Callable[[int, int], object] = lambda done, of: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> list[Finish]:
        """The accelerated run, the others, and the baseline. Raises Cancelled when asked to stop, and what the pipeline raises."""
        pair = self.runner.run(settings, acceleration, cancelled=cancelled)
        others = self.others(pair)
        drawn = {_label("yours", acceleration.schedule): pair.accelerated}
        for name, method in others.items():
            report(len(drawn), len(others) + 1)
            drawn[name] = self.runner.sample(settings, method, cancelled)
        drawn["the baseline"] = pair.baseline
        return [_finish(name, one, pair.baseline.images[0]) for name, one in drawn.items()]

    def others(self, pair: Pair) -> dict[str, Method]:
        """The methods beside the accelerated run of a pair, by name."""
        schedule, share = pair.acceleration.schedule, min(1.0, pair.accelerated.seconds / pair.baseline.seconds)
        calls = max(1, round(share * schedule.num_steps))
        steps = max(1, round(share * pair.settings.num_inference_steps))
        derived = self._best(pair.settings, schedule, len(schedule.keys), "encoder")
        rival = self._best(pair.settings, schedule, calls, "prediction")
        found = {
            _label("derived", derived): Method(derived),
            _label("prediction reused", rival): Method(rival, reuse="prediction"),
            f"fewer steps ({steps})": Method(steps=steps),
        }
        with suppress(ValueError):  # the paper has no keys for so few steps
            paper = KeySchedule.of_paper(schedule.num_steps)
            found[_label("the paper's", paper)] = Method(paper)
        for fit in self.fits:
            if fit.schedule.num_steps == schedule.num_steps:
                found[_label(f"fitted, {fit.reuse}", fit.schedule)] = Method(PropagationConfig.of_fit(fit))
        return found

    def _best(self, settings: Settings, schedule: KeySchedule, number: int, reuse: str) -> KeySchedule:
        found = self.predictor.best(settings, Acceleration(schedule, reuse=reuse), number)
        return replace(found, measured_on=None)  # what fits was looked up for these settings


def _label(name: str, schedule: KeySchedule) -> str:
    return f"{name}, {keys_text(len(schedule.keys))}"


def _finish(name: str, drawn: Sampled, reference: Image.Image) -> Finish:
    near = fidelity([drawn.images[0]], [reference]).iloc[0]
    return Finish(name, drawn.seconds, float(near["psnr"]), drawn.images[0])
