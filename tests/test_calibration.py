"""Calibration: each measured cost is what a real run with that one group reused gives."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from models import SCHEDULERS, denoiser_calls, state
from prompted import Embeddings
from safetensors.torch import save_file
from short_suite import long_but
from systems import ROWS

import fastdiff_lab as fl
from fastdiff_lab import KeySchedule
from fastdiff_lab.calibration.calibrate import Plan, _Measuring
from fastdiff_lab.calibration.replay import memory_of
from fastdiff_lab.calibration.reuse_costs import ReuseCosts
from fastdiff_lab.shapes.data import held_out_scenes

STEPS = 6
calibrate, refine_schedule = (partial(call, guidance_scale=5.0) for call in (fl.calibrate, fl.refine_schedule))
CAPTIONS = [scene.caption() for scene in held_out_scenes(1, objects=1)]


def drawn(pipe, num_steps=STEPS):
    generator = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    return pipe(["1", "2"], generator=generator, num_inference_steps=num_steps, guidance_scale=5.0).images


def steps_of(name: str) -> int:
    """As few as make five denoiser calls or more (some make more calls than steps), and one more where the sensitivity is probed."""
    return {"kdpm2": 3, "heun": 4, "pndm": 4}.get(name, STEPS if name in PROBED else 5)


PROBED = ("ddim", "dpm-solver++", "unipc", "pndm", "euler-ancestral")
SPANS = [*((name, 0) for name in SCHEDULERS), ("ddim", 1), ("dpm-solver++", 1), ("heun", 1)]
# Several states; features extrapolated.
FEW_SPANS = [("dpm-solver++", 0), ("ddim", 1)]


@pytest.mark.parametrize(("name", "order"), long_but(FEW_SPANS, SPANS))
def test_a_span_costs_what_a_real_run_loses(name, order):
    """For every scheduler: a span that ends with the run displaces the final latents exactly as the accelerated pipeline does.

    And where the sensitivity is probed, what is left of a displacement is exactly what a real run has in which all else are keys.
    """
    pipe, steps = Embeddings(name), steps_of(name)
    baseline = drawn(pipe, steps)
    before = state(pipe)
    costs = calibrate(pipe, ["1", "2"], num_inference_steps=steps, order=order, max_span=5)
    assert state(pipe) == before and torch.equal(drawn(pipe, steps), baseline)
    calls = denoiser_calls(pipe, steps)

    def lost(keys):
        with fl.encoder_propagation(pipe, KeySchedule(calls, keys), order=order):
            return (drawn(pipe, steps) - baseline).flatten(1).norm(dim=1)

    for key in (calls - 3, calls - 5):  # the longest span is one of five steps
        # Every step before is a key, so the key before lies one step back.
        measured = costs.displacement[:, costs.gaps.index(1 if order and key else 0), key, calls - key]
        found = lost(range(key + 1))
        assert found.min() > 1e-4
        assert torch.allclose(measured.double(), found, rtol=1e-4)
    if order == 0 and name in PROBED:
        ahead = memory_of(pipe.scheduler)
        probes = [(key, end) for _, key, end in Plan(calls, 5, 0).probes if end - key >= 2 and end + ahead < calls]
        for key, end in probes[:: len(probes) // 2]:
            predicted = torch.from_numpy(costs.errors()[:, 0, key, end - key])
            assert torch.allclose(predicted.double(), lost([step for step in range(calls) if not key < step < end]), rtol=1e-3)


def test_costs_of_predictions():
    pipe = Embeddings()
    baseline = drawn(pipe)
    costs = calibrate(pipe, ["1", "2"], num_inference_steps=STEPS, reuse="prediction")
    with fl.encoder_propagation(pipe, KeySchedule(STEPS, range(3)), reuse="prediction"):
        lost = (drawn(pipe) - baseline).flatten(1).norm(dim=1)
    assert torch.allclose(costs.displacement[:, 0, 2, 4].double(), lost, rtol=1e-4)


def test_batches_change_nothing():
    pipe = Embeddings()
    options = {"num_inference_steps": 3, "max_span": 2, "order": 1}
    one, two = (calibrate(pipe, ["1", "2"], batch_size=batch, **options) for batch in (1, 2))
    assert torch.allclose(one.displacement, two.displacement, rtol=1e-4, equal_nan=True)
    assert torch.allclose(one.sensitivity, two.sensitivity, rtol=1e-3)


@pytest.mark.long  # what a plan names and what is measured is compared where calibration is stopped, too
def test_from_measurement_to_an_accelerated_image(tmp_path, capsys):
    """As the README shows it."""
    pipe = ROWS["sd"].build()
    costs = fl.calibrate(pipe, CAPTIONS, num_inference_steps=6, guidance_scale=5.0, order=1, max_span=3)
    assert "denoiser calls" in capsys.readouterr().err
    schedule = fl.derive_schedule(costs, num_keys=3)
    schedule.save(tmp_path / "schedule.json")
    schedule = KeySchedule.load(tmp_path / "schedule.json")
    with fl.encoder_propagation(pipe, schedule, order=1) as counts:
        pipe(CAPTIONS[0], num_inference_steps=6, guidance_scale=5.0)
    assert counts.encoder_calls == 3
    assert not costs.sensitivity.isnan().any()
    # Every span that the plan names was measured, and no other.
    for key in range(5):
        for gap, end in Plan(6, 3, 1).spans(key):
            row = costs.displacement[:, costs.gaps.index(gap), key]
            assert not row[:, 1 : end - key + 1].isnan().any() and row[:, end - key + 1 :].isnan().all()


# ---- stopping, going on, budgets


class Stop(Exception):
    pass


def stopping_after(pipe, calls):
    left = [calls]

    def hook(*_):
        left[0] -= 1
        if left[0] < 0:
            raise Stop

    return pipe.unet.conv_in.register_forward_pre_hook(hook)


def watched_spans(patch):
    """What is measured from now on: image, gap, key and end of every span, and until where the run goes on after it."""
    seen, measure = [], _Measuring.displacements

    def watched(self, gap, key, end, until=None):
        seen.append((self.trajectory.call.prompts[0], gap, key, end, until))
        return measure(self, gap, key, end, until)

    patch.setattr(_Measuring, "displacements", watched)
    return seen


STOPPED = {"num_inference_steps": 5, "order": 1, "batch_size": 1}


def spans_left(costs):
    """What `costs` of two images still lack, in the order in which it is measured."""
    plan = Plan(5, 5, 1)
    for row, prompt in enumerate(("1", "2")):
        keys = [key for key in range(4) if costs is None or costs.displacement[row, :, key].isnan().all()]
        yield from ((prompt, gap, key, end, None) for key in keys for gap, end in plan.spans(key))
        if costs is None or costs.sensitivity[row].isnan().any():
            yield from ((prompt, *probe, 5) for probe in plan.probes)


@pytest.fixture(scope="module")
def whole():
    """What no one stopped."""
    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        seen = watched_spans(patch)
        costs = calibrate(Embeddings(), ["1", "2"], **STOPPED)
    assert seen == list(spans_left(None))
    return costs


@pytest.mark.parametrize(("after", "share"), long_but([(45, 0.4)], [(3, 1.0), (45, 0.4)]))
def test_a_stopped_calibration_goes_on(after, share, whole, tmp_path, monkeypatch):
    pipe, store = Embeddings(), tmp_path / "costs.safetensors"
    drawn(pipe, 1)  # a pipeline remembers its last call
    before, handle = state(pipe), stopping_after(pipe, after)
    with pytest.raises(Stop):
        calibrate(pipe, ["1", "2"], store=store, **STOPPED)
    handle.remove()
    assert state(pipe) == before
    left = list(spans_left(ReuseCosts.load(store) if store.exists() else None))
    seen = watched_spans(monkeypatch)
    again = calibrate(pipe, ["1", "2"], store=store, **STOPPED)
    # What was there was not measured again, and no more was lost than one key step's spans.
    assert seen == left and len(left) <= share * len(list(spans_left(None)))
    assert torch.equal(again.displacement.nan_to_num(-1), whole.displacement.nan_to_num(-1))
    assert torch.equal(again.sensitivity, whole.sensitivity)


def test_a_store_with_other_costs(tmp_path):
    pipe, store = Embeddings(), tmp_path / "costs.safetensors"
    calibrate(pipe, ["1"], num_inference_steps=3, store=store)
    before = store.read_bytes()
    for options in ({"order": 1}, {"guidance_scale": 3.0}, {"max_span": 2}, {"seeds": [4]}, {"pipe_kwargs": {"eta": 0.5}}):
        with pytest.raises(ValueError, match="holds other costs .*accepted: a new path"):
            calibrate(pipe, ["1"], num_inference_steps=3, store=store, **options)
    assert store.read_bytes() == before


def test_a_time_budget_shortens_the_spans(monkeypatch, capsys):
    pipe = Embeddings()
    monkeypatch.setattr(
        "fastdiff_lab.calibration.replay.Trajectory.seconds", property(lambda self: 6.0, lambda self, value: None), raising=False
    )
    full = Plan(6, 6, 0)
    costs = calibrate(pipe, ["1"], num_inference_steps=6, time_budget=float(full.forward_calls + full.decoder_calls // 2))
    assert 2 <= costs.max_span < 6
    assert "instead of 6, for the budget" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"time_budget=1 s asked, but spans of 2 steps already take about \d+ s"):
        calibrate(pipe, ["1"], num_inference_steps=6, time_budget=1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": []}, "0 prompts given; accepted: a list of one or more"),
        ({"order": 2}, "`order` must be an int from 0 to 1, got 2"),
        ({"reuse": "decoder"}, "`reuse` must be one of encoder, prediction, got 'decoder'"),
        ({"max_span": 1}, "`max_span` must be an int of 2 or more, got 1"),
        ({"batch_size": 0}, "`batch_size` must be a positive int, got 0"),
        ({"seeds": [1, 2]}, "2 seeds given for 1 prompts; accepted: one for each"),
        ({"num_inference_steps": 0}, "0 steps asked; accepted: a whole number of 1 or more"),
    ],
)
def test_bad_options(options, message):
    options = {"prompts": ["1"], "num_inference_steps": 4} | options
    with pytest.raises(ValueError, match=message):
        calibrate(Embeddings(), options.pop("prompts"), **options)


@pytest.mark.filterwarnings("ignore:this run has 4 steps")
def test_calibrating_inside_an_acceleration():
    pipe = Embeddings()
    with fl.encoder_propagation(pipe, KeySchedule(4, [0, 2])), pytest.raises(RuntimeError, match="accelerated already"):
        calibrate(pipe, ["1"], num_inference_steps=4)


def test_a_pipeline_that_skips_steps():
    """Image-to-image makes fewer calls than the scheduler has time-steps: said, not measured wrongly."""
    pipe = Embeddings()
    kind = type(pipe)

    class Shorter(kind):
        def __call__(self, *args, num_inference_steps, **options):
            return super().__call__(*args, num_inference_steps=num_inference_steps - 1, **options)

    pipe.__class__ = Shorter
    with pytest.raises(ValueError, match="the run makes 3 denoiser calls and 3 scheduler steps; accepted: 4 of each"):
        calibrate(pipe, ["1"], num_inference_steps=4)


# ---- the file


@pytest.fixture(scope="module")
def kept():
    with torch.no_grad():
        return calibrate(Embeddings(), ["1"], num_inference_steps=4, order=1)


def test_costs_survive_a_file(kept, tmp_path):
    kept.save(tmp_path / "costs.safetensors")
    again = ReuseCosts.load(tmp_path / "costs.safetensors")
    assert torch.equal(again.displacement.nan_to_num(-1), kept.displacement.nan_to_num(-1))
    assert torch.equal(again.sensitivity, kept.sensitivity)
    assert (again.gaps, again.measured_on, again.about) == (kept.gaps, kept.measured_on, kept.about)
    assert again.title() == "UNet2DConditionModel with DDIMScheduler, 4 steps, guidance 5.0, order 1"
    (tmp_path / "plain").touch()
    assert (tmp_path / "costs.safetensors").stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize("wrong", ["truncated", "foreign", "shape", "gaps", "large"])
def test_a_file_that_is_not_ours(wrong, kept, tmp_path, monkeypatch):
    path = tmp_path / "costs.safetensors"
    kept.save(path)
    match = "its header and its tensors do not belong together"
    if wrong == "truncated":
        path.write_bytes(path.read_bytes()[:-20])
        match = "is no whole file of reuse costs"
    elif wrong == "foreign":
        save_file({"a": torch.ones(1)}, path)
        match = "holds no reuse costs of version 2"
    elif wrong == "large":
        monkeypatch.setattr("fastdiff_lab.calibration.reuse_costs.MAX_BYTES", 10)
        match = "bytes; accepted: at most 10"
    else:
        header = {"schema": "fastdiff_lab.ReuseCosts", "version": 1, "gaps": [0], "measured_on": {"order": 0}, "about": {}}
        tensors = {"displacement": torch.ones(1, 1, 4, 5), "sensitivity": torch.ones(1, 4 if wrong == "shape" else 5)}
        save_file(tensors, path, metadata={"fastdiff_lab": json.dumps(header | ({"gaps": [9]} if wrong == "gaps" else {}))})
    with pytest.raises(ValueError, match=match):
        ReuseCosts.load(path)


# ---- using a schedule elsewhere


@pytest.mark.filterwarnings("ignore:the encoder_propagation block accelerated nothing")
def test_a_schedule_used_elsewhere_warns_with_both_names():
    pipe = Embeddings()
    schedule = fl.derive_schedule(calibrate(pipe, ["1"], num_inference_steps=STEPS, order=1, max_span=3), 3)
    with fl.encoder_propagation(pipe, schedule, order=1):
        drawn(pipe)
    with pytest.warns(UserWarning, match="measured on something else: order 1, here 0. Its keys need not be good here"):
        with fl.encoder_propagation(pipe, schedule):
            pass
    other = Embeddings("euler")
    with pytest.warns(UserWarning, match="scheduler DDIMScheduler, here EulerDiscreteScheduler"):
        with fl.encoder_propagation(other, schedule, order=1):
            pass
    for foreign in ('"five"', "1" + "0" * 400, "NaN"):
        text = KeySchedule(STEPS, [0, 2], measured_on={"guidance_scale": "here"}).to_json().replace('"here"', foreign)
        with pytest.warns(UserWarning, match="measured with guidance scale .*, this run has 3.0"):
            with fl.encoder_propagation(pipe, KeySchedule.from_json(text)):
                pipe(["1"], generator=[torch.Generator()], num_inference_steps=STEPS, guidance_scale=3.0)
    with pytest.warns(UserWarning, match="measured with guidance scale 5.0, this run has 3.0"):
        with fl.encoder_propagation(pipe, schedule, order=1):
            pipe(["1"], generator=[torch.Generator()], num_inference_steps=STEPS, guidance_scale=3.0)


# ---- refining


def test_refining_never_makes_it_worse_and_keeps_the_number_of_keys():
    pipe = Embeddings()
    baseline = drawn(pipe)
    start = KeySchedule(STEPS, [0, 3, 5])
    better = refine_schedule(pipe, start, ["1", "2"], num_inference_steps=STEPS, runs=10)
    assert len(better.keys) == 3 and "refined in" in better.source

    def error(schedule):
        with fl.encoder_propagation(pipe, schedule):
            return float((drawn(pipe) - baseline).square().mean())

    assert error(better) < error(start)
    same = refine_schedule(pipe, start, ["1", "2"], num_inference_steps=STEPS, runs=1)
    assert same == start and same.source.endswith("of 1 runs of refinement none came nearer") and "refined" not in same.source
    everything = KeySchedule(STEPS, range(STEPS))
    assert refine_schedule(pipe, everything, ["1"], num_inference_steps=STEPS) == everything


def test_an_interrupted_refinement_gives_the_best_so_far():
    pipe = Embeddings()
    count = [0]

    def interrupt(*_):
        count[0] += 1
        if count[0] == 3 * STEPS:
            raise KeyboardInterrupt

    handle = pipe.unet.conv_in.register_forward_pre_hook(interrupt)
    found = refine_schedule(pipe, KeySchedule(STEPS, [0, 1, 2]), ["1"], num_inference_steps=STEPS)
    handle.remove()
    assert len(found.keys) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runs": 0}, "`runs` must be a positive int, got 0"),
        ({"num_inference_steps": 5}, r"the schedule is for 6 steps, the run makes 5; use schedule.rescaled\(5\)"),
    ],
)
def test_bad_refinements(options, message):
    with pytest.raises(ValueError, match=message):
        fl.refine_schedule(Embeddings(), KeySchedule(STEPS, [0]), ["1"], **{"num_inference_steps": STEPS} | options)
