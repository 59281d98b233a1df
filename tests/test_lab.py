"""The lab without its widgets: predictions, watched runs, pairs, history, and the worker."""

from __future__ import annotations

import asyncio
import copy
import math
import signal
import threading
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from models import state
from short_suite import long_but

import fastdiff_lab as fl
from fastdiff_lab import KeySchedule
from fastdiff_lab.calibration.derive import group_costs
from fastdiff_lab.calibration.reuse_costs import ReuseCosts
from fastdiff_lab.comparison.architectures import FULL_SIZE, full_size
from fastdiff_lab.hooks.clean_estimate import clean_estimate
from fastdiff_lab.hooks.flops import count_flops
from fastdiff_lab.lab.session.background_job import Worker
from fastdiff_lab.lab.session.ceiling import SIZES, TimedHalves
from fastdiff_lab.lab.session.history import COLUMNS, History
from fastdiff_lab.lab.session.images import data_address, difference
from fastdiff_lab.lab.session.paired_run import ACCELERATED, BASELINE, PairRunner
from fastdiff_lab.lab.session.prediction import Predictor
from fastdiff_lab.lab.session.race import Race
from fastdiff_lab.lab.session.settings import Acceleration, Settings, scheduler_for
from fastdiff_lab.lab.session.watching import Cancelled, watched
from fastdiff_lab.propagation.config import PropagationConfig
from fastdiff_lab.sampling.methods import Method, denoiser_arguments, sample

PROMPT = "a large red star at the left on a white background"
SHORT = Settings(PROMPT, num_inference_steps=8)


@pytest.fixture(scope="module")
def pipe(embedded):
    return embedded


@pytest.fixture(scope="module")
def predictor(pipe):
    return Predictor(pipe, None, Settings(PROMPT, guidance_scale=5.0))


# ---------------------------------------------------------------------------------------------------- values


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"prompt": " "}, "prompt=' ' asked; accepted: a text with words in it"),
        ({"seed": -1}, "`seed` must be an int from 0 to 4294967295, got -1"),
        ({"seed": True}, "got True"),
        ({"num_inference_steps": 0}, "`steps` must be an int from 1 to 1000, got 0"),
        ({"num_inference_steps": 2.5}, "got 2.5"),
        ({"guidance_scale": math.inf}, "`guidance_scale` must be a number from 0 to 100, got inf"),
        ({"guidance_scale": "5"}, "got '5'"),
        ({"scheduler": "fast"}, "`scheduler` must be one of own, ddim, .*, got 'fast'"),
    ],
)
def test_settings_say_what_is_accepted(wrong, message):
    with pytest.raises(ValueError, match=message):
        Settings(**{"prompt": PROMPT, **wrong})


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"reuse": "decoder"}, "reuse='decoder' with order=0 asked; accepted: encoder or prediction, with order 0 or 1"),
        ({"order": 2}, "with order=2 asked"),
        ({"prior_noise": 2}, "`prior_noise` must be a number from 0 to 1, got 2"),
        ({"prior_start": -0.1}, "`prior_start` must be a number from 0 to 1, got -0.1"),
    ],
)
def test_accelerations_say_what_is_accepted(wrong, message):
    with pytest.raises(ValueError, match=message):
        Acceleration(KeySchedule.paper(50), **wrong)


# ---------------------------------------------------------------------------------------------------- predictions


@pytest.mark.parametrize("order", [0, 1])
@pytest.mark.parametrize("keys", [7, 13])
def test_the_parts_of_a_derived_schedule_add_up_to_its_cost(order, keys):
    costs = fl.embedded_costs(order=order)
    front = fl.schedule_front(costs).set_index("num_keys")
    assert sum(group_costs(costs, front.loc[keys, "schedule"])) == pytest.approx(front.loc[keys, "cost"])


def test_groups_that_were_not_measured_cost_infinitely_much_and_single_steps_nothing():
    costs = ReuseCosts(torch.ones(1, 1, 4, 3), (0,), torch.ones(1, 5), {"order": 0})
    assert group_costs(costs, KeySchedule(4, (0, 1))) == (0.0, math.inf)
    assert group_costs(costs, KeySchedule(4, (0, 2, 3))) == (1.0, 0.0, 0.0)
    with pytest.raises(ValueError, match="a schedule for 5 steps given; accepted: 4 steps, as were measured"):
        group_costs(costs, KeySchedule(5, (0,)))


@pytest.mark.long
def test_operations_without_guidance_are_half_of_those_with(pipe, predictor):
    count = count_flops(pipe.unet, denoiser_arguments(pipe, PROMPT, 0.0))
    assert predictor.operations[False] == count and predictor.operations[True].total == 2 * count.total


def test_no_schedule_is_predicted_better_than_the_derived_one(predictor):
    costs = predictor.fitting(Settings(PROMPT, guidance_scale=5.0), Acceleration(KeySchedule.paper(50))).costs
    best = predictor.front(costs)["error"][9]
    assert predictor.error(costs, predictor.front(costs)["schedule"][9]) == pytest.approx(best)
    assert predictor.error(costs, KeySchedule.paper(50)) > best and predictor.uniform(costs)[9] > best


@pytest.mark.parametrize("reuse", long_but(("encoder",), ("encoder", "prediction")))
def test_what_is_predicted_is_what_a_run_counts(reuse, pipe, predictor):
    settings = Settings(PROMPT, num_inference_steps=20, guidance_scale=5.0, scheduler="dpm-solver++")
    acceleration = Acceleration(KeySchedule.paper(20), reuse=reuse)
    prediction = predictor.predict(settings, acceleration)
    counts = PairRunner(pipe, preview_every=0).run(settings, acceleration).accelerated.counts
    assert (prediction.encoder_calls, prediction.forward_calls) == (counts.encoder_calls, counts.forward_calls)
    count = predictor.operations[True]
    assert prediction.gflops == pytest.approx(count.of_run(counts.encoder_calls, counts.decoder_calls) / 1e9)
    assert prediction.error > 0 and prediction.flop_ceiling > 1


@pytest.mark.parametrize(
    ("settings", "acceleration", "words"),
    [
        ({"guidance_scale": 7.5}, {}, "guidance scale 5.0, here 7.5"),
        ({"num_inference_steps": 30}, {}, "50 steps, here 30"),
        ({"scheduler": "euler"}, {}, "scheduler DDIMScheduler, here EulerDiscreteScheduler"),
    ],
)
def test_where_no_costs_fit_there_is_a_sentence_and_no_number(predictor, settings, acceleration, words):
    given = Settings(PROMPT, **{"guidance_scale": 5.0, **settings})
    schedule = KeySchedule.uniform(predictor.steps(given), 9)
    prediction = predictor.predict(given, Acceleration(schedule, **acceleration))
    assert prediction.error is None and prediction.groups == () and words in prediction.note
    assert prediction.flop_ceiling == pytest.approx(1.37, abs=0.05) or given.num_inference_steps != 50


def test_groups_longer_than_was_measured_are_not_predicted(predictor):
    prediction = predictor.predict(Settings(PROMPT, guidance_scale=5.0), Acceleration(KeySchedule(50, (0, 10))))
    assert prediction.error is None and "groups of more than 25 steps were not measured" in prediction.note
    assert math.isnan(prediction.groups[1]) and prediction.groups[0] > 0


def test_a_gap_between_keys_that_was_not_measured_is_named(predictor):
    prediction = predictor.predict(Settings(PROMPT, guidance_scale=5.0), Acceleration(KeySchedule.uniform(50, 17), order=1))
    assert prediction.error is None and "extrapolating from key steps 0 and 3 was not measured" in prediction.note


def test_costs_of_another_model_are_not_used(pipe):
    costs = fl.embedded_costs()
    other = ReuseCosts(costs.displacement, costs.gaps, costs.sensitivity, {**costs.measured_on, "weights": "0" * 16})
    fit = Predictor(pipe, other, Settings(PROMPT, guidance_scale=5.0)).fitting(
        Settings(PROMPT, guidance_scale=5.0), Acceleration(KeySchedule.paper(50))
    )
    assert fit.costs is None and "weights 0000000000000000" in fit.note


def test_the_time_ceiling_is_interpolated_between_the_sizes_that_were_timed():
    halves = TimedHalves()
    acceleration = Acceleration(KeySchedule(12, (0, 6)))
    assert halves.ceiling(Settings(PROMPT, guidance_scale=5.0), acceleration) is None
    halves.known[True] = 1.0, {size: 2.0 * size for size in SIZES}  # decoding in parallel gains nothing
    assert halves.ceiling(Settings(PROMPT, guidance_scale=5.0), acceleration) == pytest.approx(36 / 26)
    longer = Acceleration(KeySchedule(32, (0,)))
    assert halves.ceiling(Settings(PROMPT, guidance_scale=5.0), longer) == pytest.approx(96 / 65)
    assert halves.ceiling(Settings(PROMPT, guidance_scale=1), acceleration) is None
    assert halves.ceiling(Settings(PROMPT, guidance_scale=5.0), Acceleration(KeySchedule(12, (0, 6)), reuse="prediction")) == 6


def test_measuring_the_ceiling_leaves_the_pipeline_and_can_be_cancelled(pipe, monkeypatch):
    monkeypatch.setattr("fastdiff_lab.lab.session.ceiling.SIZES", (1, 2))
    denoiser_arguments(pipe, PROMPT)  # a pipeline remembers its last call's options
    before, halves, seen = state(pipe), TimedHalves(), []
    halves.measure(pipe, SHORT, lambda done, of: seen.append((done, of)))
    assert seen[-1] == (1, 2) and min(halves.known[True][1].values()) > 0
    with pytest.raises(Cancelled):
        halves.measure(pipe, SHORT, cancelled=lambda: True)
    assert state(pipe) == before


# ---------------------------------------------------------------------------------------------------- watched runs


def test_watching_sees_every_step_and_changes_nothing(pipe):
    method = Method(KeySchedule(8, (0, 3)))
    plain, before, seen = sample(pipe, method, [PROMPT], [0], **SHORT.options), state(pipe), []
    with watched(pipe, lambda latents, clean: seen.append(latents.clone()), lambda: False):
        again = sample(pipe, method, [PROMPT], [0], **SHORT.options)
    assert len(seen) == 8 and torch.equal(again.latents, plain.latents) and torch.equal(seen[-1], plain.latents)
    assert state(pipe) == before


@pytest.mark.parametrize("step", [1, 11])
def test_a_run_is_cancelled_within_one_denoiser_call_also_inside_a_group_of_15(pipe, step):
    """The second group has 15 steps, which are decoded by one forward; the cancel comes after one of its steps."""
    before, schedule, seen = state(pipe), KeySchedule(16, (0, 1)), []
    counts = None
    with pytest.raises(Cancelled):
        with watched(pipe, lambda latents, clean: seen.append(1), lambda: len(seen) >= step):
            with fl.encoder_propagation(pipe, schedule) as counts:
                pipe(PROMPT, num_inference_steps=16)
    assert len(seen) == step and counts.forward_calls <= 2
    assert state(pipe) == before


def test_a_cancel_before_the_first_call_evaluates_nothing(pipe):
    with pytest.raises(Cancelled):
        with (
            watched(pipe, lambda latents, clean: None, lambda: True),
            fl.encoder_propagation(pipe, KeySchedule.uniform(5, 2)) as counts,
        ):
            pipe(PROMPT, num_inference_steps=5)
    assert counts.forward_calls <= 1 and counts.steps <= 1


KINDS = [("own", "epsilon"), ("own", "v_prediction"), ("own", "sample"), ("euler", "epsilon"), ("euler", "v_prediction")]


@pytest.mark.parametrize(("scheduler", "kind"), long_but(KINDS, [*KINDS, ("dpm-solver++", "epsilon"), ("pndm", "v_prediction")]))
def test_the_clean_latents_are_those_of_the_scheduler_and_of_the_definition(pipe, scheduler, kind):
    ours = scheduler_for(pipe.scheduler, scheduler)
    ours = type(ours).from_config(ours.config, prediction_type=kind)
    ours.set_timesteps(8)
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(1, 4, 6, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    for step, timestep in enumerate(ours.timesteps[:3]):
        in_sigma_space = scheduler == "euler"
        sigma = float(ours.sigmas[step]) if in_sigma_space else float((1 / ours.alphas_cumprod[int(timestep)] - 1) ** 0.5)
        signal = 1 / math.sqrt(sigma**2 + 1)
        sample = (clean + sigma * noise) * (1 if in_sigma_space else signal)
        prediction = {"epsilon": noise, "sample": clean, "v_prediction": signal * (noise - sigma * clean)}[kind]
        found = clean_estimate(ours, prediction, timestep, sample)
        ours.step(prediction, timestep, sample)
        torch.testing.assert_close(found(), clean, rtol=1e-6, atol=1e-5)


@pytest.fixture(scope="module")
def unwatched(pipe):
    return PairRunner(pipe, preview_every=0)


WITH_NOISE = {"order": 1, "prior_noise": 0.01, "prior_start": 0.9}


@pytest.mark.parametrize("acceleration", long_but([WITH_NOISE], [{}, {"reuse": "prediction"}, WITH_NOISE]), ids=str)
def test_previews_change_no_bit(pipe, unwatched, acceleration):
    settings = Settings(PROMPT, num_inference_steps=5)
    given = Acceleration(KeySchedule(5, (0, 1, 3)), **acceleration)
    plain, shown = unwatched.run(settings, given), []
    previewed = PairRunner(pipe, preview_every=1).run(settings, given, shown.append)
    for side in ("baseline", "accelerated"):
        assert torch.equal(getattr(plain, side).latents, getattr(previewed, side).latents)
        assert getattr(plain, side).images[0].tobytes() == getattr(previewed, side).images[0].tobytes()
    assert list(previewed.films[BASELINE]) == [1, 2, 3, 4, 5]
    assert previewed.films[ACCELERATED][5].tobytes() == previewed.accelerated.images[0].tobytes()
    images = [progress for progress in shown if progress.image is not None]
    assert {progress.side for progress in images} == {BASELINE, ACCELERATED} and len(images) == 2 * 5
    assert [progress.step for progress in shown if progress.side == ACCELERATED] == [*range(6), 5]


def test_prior_noise_starts_where_it_was_asked_to(pipe):
    runner, settings = PairRunner(pipe, preview_every=0), Settings(PROMPT, num_inference_steps=5)
    schedule = KeySchedule.uniform(5, 2)
    none, early, late = (
        runner.run(settings, Acceleration(schedule, prior_noise=weight, prior_start=start)).accelerated.latents
        for weight, start in ((0.0, 0.5), (0.01, 1.0), (0.01, 0.0))
    )
    assert torch.equal(none, late) and not torch.equal(none, early)


def test_the_baseline_is_made_once_for_each_prompt_seed_and_settings(pipe):
    settings = Settings(PROMPT, num_inference_steps=2)
    runner, schedule = PairRunner(pipe, preview_every=0), KeySchedule(2, (0, 1))
    first = runner.run(settings, Acceleration(schedule))
    second = runner.run(settings, Acceleration(schedule, order=1))
    assert not first.baseline_was_known and second.baseline_was_known and second.baseline is first.baseline
    for other in (
        Settings(PROMPT, seed=1, num_inference_steps=2),
        Settings("a small white ring on a red background", num_inference_steps=2),
        Settings(PROMPT, num_inference_steps=2, guidance_scale=3),
        Settings(PROMPT, num_inference_steps=2, scheduler="euler"),
    ):
        assert not runner.run(other, Acceleration(schedule)).baseline_was_known


def test_a_baseline_of_another_decoder_is_not_shown(pipe, monkeypatch):
    settings, given = Settings(PROMPT, num_inference_steps=2), Acceleration(KeySchedule(2, (0, 1)))
    runner = PairRunner(pipe, preview_every=0)
    first = runner.run(settings, given)
    other = copy.deepcopy(pipe.vae)
    with torch.no_grad():
        for parameter in other.decoder.parameters():
            parameter.mul_(0.5)
    monkeypatch.setattr(pipe, "vae", other)
    second = runner.run(settings, given)
    assert not second.baseline_was_known and second.baseline.images[0].tobytes() != first.baseline.images[0].tobytes()


def test_a_pair_says_how_near_it_comes_and_the_pipeline_is_as_before(pipe):
    denoiser_arguments(pipe, PROMPT)  # a pipeline remembers its last call's options
    before = state(pipe)
    settings = Settings(PROMPT, num_inference_steps=5, scheduler="euler")
    judge = PairRunner(pipe, judged=True)
    same = judge.run(settings, Acceleration(KeySchedule(5, tuple(range(5)))))
    assert same.psnr == math.inf and same.ssim == pytest.approx(1) and same.latent_error == 0
    other = judge.run(settings, Acceleration(KeySchedule(5, (0,))))
    assert other.psnr < 40 and other.latent_error > 0 and set(other.prompt_right) == {BASELINE, ACCELERATED}
    assert PairRunner(pipe).run(Settings(PROMPT, num_inference_steps=5), Acceleration(KeySchedule(5, (0,)))).prompt_right is None
    assert state(pipe) == before and type(pipe.scheduler).__name__ == "DDIMScheduler"


def test_a_cancelled_pair_leaves_the_pipeline_and_keeps_no_half_baseline(pipe):
    before, runner, seen = state(pipe), PairRunner(pipe), []
    with pytest.raises(Cancelled):
        runner.run(SHORT, Acceleration(KeySchedule(8, (0,))), seen.append, lambda: len(seen) > 4)
    assert not runner.baselines and state(pipe) == before
    expected = sample(pipe, Method(), [PROMPT], [0], **SHORT.options).latents
    assert torch.equal(runner.run(SHORT, Acceleration(KeySchedule(8, (0,)))).baseline.latents, expected)


@pytest.mark.long
def test_a_race_is_run_by_methods_that_take_the_time_of_the_accelerated_run(pipe, predictor):
    runner, before = PairRunner(pipe, preview_every=0), state(pipe)
    settings, acceleration = Settings(PROMPT, num_inference_steps=12, guidance_scale=5.0), Acceleration(KeySchedule(12, (0, 2, 6)))
    fit = fl.fit_propagation(pipe, acceleration.schedule, [PROMPT], num_inference_steps=12, guidance_scale=5.0)
    race, seen = Race(runner, predictor, [fit]), []
    pair = runner.run(settings, acceleration)
    timed = replace(pair, baseline=replace(pair.baseline, seconds=4.0), accelerated=replace(pair.accelerated, seconds=1.0))
    others = race.others(timed)
    paper = f"the paper's, {len(KeySchedule.of_paper(12).keys)} keys"
    names = ["derived, 3 keys", "prediction reused, 3 keys", "fewer steps (3)", paper, "fitted, encoder, 3 keys"]
    assert list(others) == names
    assert others["fewer steps (3)"] == Method(steps=3) and others["prediction reused, 3 keys"].propagation.reuse == "prediction"
    assert others["fitted, encoder, 3 keys"].propagation.fit == fit
    finishes = race.run(settings, acceleration, lambda done, of: seen.append((done, of)))
    assert finishes[0].name == "yours, 3 keys" and finishes[0].image.tobytes() == pair.accelerated.images[0].tobytes()
    assert finishes[-1].name == "the baseline" and finishes[-1].psnr == math.inf and seen[-1] == (5, 6) and len(finishes) == 7
    alone = sample(pipe, Method(PropagationConfig.of_fit(fit)), [PROMPT], [0], **settings.options)
    assert finishes[-2].image.tobytes() == alone.images[0].tobytes() and state(pipe)[0] == before[0]
    with pytest.raises(Cancelled):
        race.run(settings, acceleration, cancelled=lambda: len(seen) > 7, report=lambda done, of: seen.append((done, of)))


# ---------------------------------------------------------------------------------------------------- history and images


def test_the_history_is_a_table_and_a_file(pipe, predictor, tmp_path):
    history, acceleration = History(), Acceleration(KeySchedule.uniform(8, 3), prior_noise=0.003)
    assert list(history.table().columns) == list(COLUMNS) and history.table().empty
    history.add(PairRunner(pipe, judged=True).run(SHORT, acceleration), predictor.predict(SHORT, acceleration))
    history.save(tmp_path / "runs.csv")
    read = pd.read_csv(tmp_path / "runs.csv")
    assert list(read.columns) == list(COLUMNS) and read.loc[0, "schedule"] == "0,3,5 of 8" and read.loc[0, "prior_noise"] == 0.003
    assert read.loc[0, "psnr"] == pytest.approx(history.table().loc[0, "psnr"]) and np.isnan(read.loc[0, "predicted_error"])


def test_a_difference_is_black_where_images_are_equal():
    from PIL import Image

    grey, lighter = (Image.new("RGB", (600, 600), (level, level, level)) for level in (10, 12))
    assert difference(grey, grey).getextrema() == ((0, 0),) * 3 and difference(lighter, grey).getextrema() == ((8, 8),) * 3
    assert data_address(grey).startswith("data:image/png;base64,") and grey.size == (600, 600)


# ---------------------------------------------------------------------------------------------------- the worker


def test_one_job_at_a_time_that_can_be_cancelled():
    worker, begun, said = Worker(), threading.Event(), []

    def job(cancelled):
        begun.set()
        while not cancelled():
            begun.wait(0.001)
        said.append("stopped")

    assert worker.wait() and not worker.is_running
    worker.start(job)
    begun.wait(10)
    with pytest.raises(RuntimeError, match="a run is being made already; cancel it, or wait for its end"):
        worker.start(job)
    assert not worker.wait(0.01) and worker.is_running
    worker.cancel()
    assert worker.wait(10) and said == ["stopped"]
    worker.start(lambda cancelled: said.append(cancelled()))
    assert worker.wait(10) and said == ["stopped", False]


def test_an_interrupt_of_an_idle_kernel_cancels_the_work_and_one_of_a_cell_does_not():
    begun, said = threading.Event(), []

    def job(cancelled):
        begun.set()
        while not cancelled():
            begun.wait(0.001)
        said.append("stopped")

    async def kernel():
        worker = Worker()
        worker.start(job)
        while signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            await asyncio.sleep(0.01)
        kept = signal.signal(signal.SIGINT, signal.default_int_handler)  # as ipykernel does around a cell
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.signal(signal.SIGINT, kept)
        assert worker.is_running
        signal.raise_signal(signal.SIGINT)
        assert worker.wait(10) and said == ["stopped"]
        while signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            await asyncio.sleep(0.01)

    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # as ipykernel does
    try:
        asyncio.run(asyncio.wait_for(kernel(), 60))
    finally:
        signal.signal(signal.SIGINT, before)


# ---------------------------------------------------------------------------------------------------- full size


@pytest.mark.parametrize(
    ("name", "millions", "share"),
    [
        ("sd-1.5", 859.5, 0.325),
        pytest.param("sdxl", 2567.5, 0.434, marks=pytest.mark.long),
        pytest.param("sd-1.5 with ControlNet", 859.5, 0.501, marks=pytest.mark.long),
        pytest.param("text-to-video-1.7b", 1411.2, 0.379, marks=pytest.mark.long),
    ],
)
def test_full_size_architectures_have_the_published_sizes_and_no_memory(name, millions, share):
    system = full_size(name)
    count = system.count
    assert system.parameters / 1e6 == pytest.approx(millions, abs=0.1)
    assert count.encoder / count.total == pytest.approx(share, abs=0.002)
    assert all(parameter.is_meta for parameter in system.model.parameters())


def test_an_unknown_architecture_says_which_there_are():
    with pytest.raises(ValueError, match="full-size architecture 'dalle' asked; there are: " + ", ".join(FULL_SIZE)):
        full_size("dalle")
