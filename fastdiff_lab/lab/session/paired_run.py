"""Run a schedule beside the baseline, with progress, previews and a way to cancel."""

from __future__ import annotations

import math
import time
from collections import OrderedDict
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from PIL import Image
from torch import Tensor

from ...comparison.fidelity import fidelity
from ...hooks.device import synchronize
from ...hooks.exclusive_use import kept_to_this_thread
from ...hooks.fingerprint import pipeline_digest, scheduler_config, steering
from ...propagation.prior_noise import prior_noise_injection
from ...sampling.finite_values import check_latents
from ...sampling.methods import Method, Sampled, decode, denoiser_calls, sample
from ...shapes.judge import prompt_accuracy
from ...shapes.text import without_punctuation
from .images import small
from .settings import Acceleration, Settings, scheduler_for, using
from .watching import Cancelled, watched

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline


BASELINE, ACCELERATED = "baseline", "accelerated"
KEPT_BASELINES = 32


@dataclass(frozen=True)
class Progress:
    """Where a run is: `side` is "baseline" or "accelerated"; `image` is the clean one predicted after `step` steps, if any."""

    side: str
    step: int
    steps: int
    image: Image.Image | None = None


Film = dict[int, Image.Image]  # step -> the clean image that was predicted then, small; the last is the image itself


@dataclass(frozen=True)
class Pair:
    """A baseline and an accelerated run of the same settings.

    `latent_error` is the root mean square difference of the final latents. `psnr` is in dB, infinite for identical images.
    `prompt_right` says for each of the two whether the judge finds every attribute of the prompt; None if it cannot judge.
    `baseline_was_known` says that the baseline was not run again. `films` has the clean images that each predicted on its way.
    """

    settings: Settings
    acceleration: Acceleration
    baseline: Sampled
    accelerated: Sampled
    latent_error: float
    psnr: float
    ssim: float
    prompt_right: dict[str, bool] | None
    baseline_was_known: bool
    films: dict[str, Film]

    @property
    def images(self) -> dict[str, Image.Image]:
        return {BASELINE: self.baseline.images[0], ACCELERATED: self.accelerated.images[0]}


class PairRunner:
    """Run pairs on a text-to-image pipeline, which is as before after each.

    >>> PairRunner(pipe).run(Settings("a red ring on a blue background"), Acceleration(KeySchedule.paper(50))).psnr  # doctest: +SKIP

    While a run lasts, calls of the pipeline from elsewhere are refused.

    Args:
        preview_every: Steps between previews, 0 for none. Previews change neither result nor seconds.
        judged: Whether the judge can read the pipeline's images.
    """

    def __init__(self, pipe: DiffusionPipeline, *, preview_every: int = 5, judged: bool = False) -> None:
        self.pipe, self.preview_every, self.judged = pipe, preview_every, judged
        self.own = pipe.scheduler
        self.baselines: OrderedDict[Any, tuple[Sampled, Film]] = OrderedDict()

    def run(
        self,
        settings: Settings,
        acceleration: Acceleration,
        report: Callable[[Progress], object] = lambda progress: None,
        cancelled: Callable[[], bool] = lambda: False,
    ) -> Pair:
        """Run the schedule beside the baseline.

        Raises Cancelled when asked to stop, RuntimeError if another thread uses the pipeline, and what the pipeline raises.
        """
        settings = settings.on(self.pipe)
        with (
            kept_to_this_thread(self.pipe, f"the lab's run of {settings.prompt[:80]!r}"),
            using(self.pipe, scheduler_for(self.own, settings.scheduler)),
        ):
            draw = _Drawing(self.pipe, settings, self.preview_every, report, cancelled)
            known, (baseline, film) = self._baseline(settings, draw)
            report(Progress(BASELINE, draw.steps, draw.steps, baseline.images[0]))
            accelerated, other = draw.accelerated(acceleration)
        report(Progress(ACCELERATED, draw.steps, draw.steps, accelerated.images[0]))
        pair = self._judged(settings, acceleration, baseline, accelerated, known)
        return replace(pair, films={BASELINE: film, ACCELERATED: other})

    def sample(self, settings: Settings, method: Method, cancelled: Callable[[], bool] = lambda: False) -> Sampled:
        """Run another method with the same settings. Raises what `run` raises."""
        settings = settings.on(self.pipe)
        with ExitStack() as stack:
            stack.enter_context(kept_to_this_thread(self.pipe, f"the lab's race with {settings.prompt[:80]!r}"))
            stack.enter_context(using(self.pipe, scheduler_for(self.own, settings.scheduler)))
            stack.enter_context(watched(self.pipe, lambda latents, clean: None, cancelled))
            return sample(self.pipe, method, [settings.prompt], [settings.seed], **settings.options)

    def _baseline(self, settings: Settings, draw: _Drawing) -> tuple[bool, tuple[Sampled, Film]]:
        # Each part of the pipeline may have changed.
        key = (settings, pipeline_digest(self.pipe), steering(self.pipe), str(scheduler_config(self.pipe)))
        known = key in self.baselines
        if not known:
            self.baselines[key] = draw.baseline()
            while len(self.baselines) > KEPT_BASELINES:
                self.baselines.popitem(last=False)
        return known, self.baselines[key]

    def _judged(self, settings: Settings, acceleration: Acceleration, baseline: Sampled, accelerated: Sampled, known: bool) -> Pair:
        for side, drawn in ((BASELINE, baseline), (ACCELERATED, accelerated)):
            check_latents(drawn.latents.cpu(), [(settings.prompt, settings.seed)], side)
        near = fidelity(accelerated.images, baseline.images).iloc[0]
        difference = (accelerated.latents.float() - baseline.latents.float()).square().mean()
        right = None
        if self.judged:
            right = _prompt_right({BASELINE: baseline.images[0], ACCELERATED: accelerated.images[0]}, settings.prompt)
        return Pair(
            settings, acceleration, baseline, accelerated, math.sqrt(float(difference)), float(near["psnr"]), float(near["ssim"]),
            right, known, {},
        )  # fmt: skip


class _Drawing:
    """Make the runs of one pair."""

    def __init__(
        self,
        pipe: DiffusionPipeline,
        settings: Settings,
        preview_every: int,
        report: Callable[[Progress], object],
        cancelled: Callable[[], bool],
    ) -> None:
        self.pipe, self.settings, self.preview_every, self.report, self.cancelled = pipe, settings, preview_every, report, cancelled
        self.steps = denoiser_calls(pipe, settings.num_inference_steps)

    def baseline(self) -> tuple[Sampled, Film]:
        return self._watched(BASELINE, Method())

    def accelerated(self, acceleration: Acceleration) -> tuple[Sampled, Film]:
        schedule = replace(acceleration.schedule, measured_on=None)  # the lab itself tells this
        with ExitStack() as stack:
            if acceleration.prior_noise:
                noise = prior_noise_injection(self.pipe, weight=acceleration.prior_noise, below=acceleration.prior_start)
                stack.enter_context(noise)
            return self._watched(ACCELERATED, Method(schedule, reuse=acceleration.reuse, order=acceleration.order))

    def _watched(self, side: str, method: Method) -> tuple[Sampled, Film]:
        spent, step = 0.0, 0
        film: Film = {}

        def seen(latents: Tensor, clean: Callable[[], Tensor]) -> None:
            nonlocal spent, step
            step += 1
            synchronize(latents.device)
            started = time.perf_counter()
            shown = self.preview_every and step % self.preview_every == 0 and step < self.steps
            image = decode(self.pipe, clean()[:1])[0] if shown else None
            if image is not None:
                film[step] = small(image)
            self.report(Progress(side, step, self.steps, image))
            spent += time.perf_counter() - started

        self.report(Progress(side, 0, self.steps))
        with watched(self.pipe, seen, self.cancelled):
            drawn = sample(self.pipe, method, [self.settings.prompt], [self.settings.seed], **self.settings.options)
        if self.cancelled():
            raise Cancelled
        if {step, drawn.counts.steps} != {self.steps}:
            raise RuntimeError(
                f"the {side} run made {drawn.counts.steps} denoiser calls and {step} scheduler steps, {self.steps} were asked; "
                "something else used the pipeline meanwhile, so nothing of it is kept"
            )
        return replace(drawn, seconds=drawn.seconds - spent), film | {self.steps: small(drawn.images[0])}


def _prompt_right(images: dict[str, Image.Image], prompt: str) -> dict[str, bool] | None:
    try:
        right = prompt_accuracy(list(images.values()), [without_punctuation(prompt)] * len(images))["all"]
    except (ValueError, FileNotFoundError):  # not a caption of a scene
        return None
    return dict(zip(images, map(bool, right), strict=True))
