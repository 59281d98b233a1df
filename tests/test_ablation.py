"""The ablation's tables, measured on few steps."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch
from systems.stable_diffusion import drawing_small

import fastdiff_lab as fl
from fastdiff_lab.calibration.replay import Call, seen
from fastdiff_lab.sampling.run_settings import RunSettings
from fastdiff_lab.shapes.data import calibration_scenes, held_out_scenes
from studies.ablation import extrapolations, predicted_and_real, random_schedules, stability, transfer
from studies.averages import compare_averages
from studies.fit_ablation import WITHOUT, ablation
from studies.fitted_costs import _Spans, fitted_costs
from studies.key_rules import compare_rules, rules
from studies.kinds_of_steps import fronts, gains
from studies.published_keys import OPTIMISED, compare_published, noise_levels, published_keys

PROMPTS = [scene.caption() for scene in calibration_scenes(4)]
STEPS = {"num_inference_steps": 8, "guidance_scale": 5.0}
MEASURED = pytest.mark.long  # by many runs


@pytest.fixture(scope="module")
def pipe():
    """A tiny one that draws tiny images: how the tables are made does not depend on it."""
    return drawing_small()


@pytest.fixture(scope="module")
def costs(pipe):
    with torch.no_grad():
        return fl.calibrate(pipe, PROMPTS[:2], order=1, max_span=4, **STEPS)


def test_scenes_to_calibrate_on_are_never_reported_on():
    assert not set(PROMPTS) & {scene.caption() for scene in held_out_scenes(4, objects=1)}
    assert [len(scene.things) for scene in calibration_scenes(4)] == [1, 2, 1, 2]


@MEASURED
def test_every_way_of_extrapolating_is_measured(pipe):
    table = extrapolations(
        pipe, {"even": fl.KeySchedule.uniform(6, 3)}, PROMPTS[:2], **STEPS | {"num_inference_steps": 6}
    ).set_index(["reuse", "extrapolation"])
    features = table.loc["encoder"]
    assert len(features) == 8 and len(table.loc["prediction"]) == 6
    assert (table["typical"] <= table["latent_mse"]).all() and (table["latent_mse"] <= table["worst"]).all()
    assert features["latent_mse"].nunique() > 5
    # One more set of features, and two for order 2.
    more = features["peak_bytes"] - features.loc["reused", "peak_bytes"]
    assert 0 < more["order 1"] < more["order 2"]


def test_random_schedules_are_the_same_each_time():
    first, again = (list(random_schedules(50, 20, 12)) for _ in range(2))
    assert first == again and len(set(first)) > 15
    assert all(len(group) <= 12 for schedule in first for group in schedule.groups())


@MEASURED
def test_predicted_beside_real_errors(pipe, costs):
    table = predicted_and_real(pipe, costs, PROMPTS[:2], count=3, **STEPS)
    assert len(table) == 3 * 2 * 2 and np.isfinite(table[["predicted", "real"]].to_numpy()).all()
    # A sum of norms is never below the root of the sum of their squares.
    wide = table.pivot(index=["schedule", "image"], columns="power", values="predicted")
    assert (wide[1] >= wide[2] - 1e-9).all()


@MEASURED
def test_one_group_alone_is_predicted_as_it_is(pipe, costs):
    """A schedule with one group longer than a step: prediction and reality are the same run, but for the sensitivity between probes."""
    from fastdiff_lab.calibration.derive import group_costs
    from fastdiff_lab.calibration.refine import final_errors
    from fastdiff_lab.calibration.replay import Call, seen

    schedule = fl.KeySchedule(8, [0, 1, 2, 3, 4])  # the last group ends with the run, where the sensitivity is 1
    trajectory = seen(pipe, Call(tuple(PROMPTS[:2]), (0, 1), STEPS), 8)
    real = final_errors(pipe, trajectory, schedule, order=1).numpy() * trajectory.samples[0][0].numel()
    predicted = [sum(group_costs(costs.subset([place]), schedule)) for place in (0, 1)]
    assert np.allclose(real, predicted, rtol=1e-3)


@MEASURED
def test_stability_over_images(costs):
    table = stability(costs, 4, sizes=(1, 2, 16))
    assert table["images"].tolist() == [1, 1, 2]
    assert (table["predicted_error"] >= table["best"] - 1e-6).all()
    assert table.loc[2, "moved"] == 0 and table.loc[2, "predicted_error"] == pytest.approx(table.loc[2, "best"])


@MEASURED
def test_transfer_between_settings(costs):
    table = transfer({"one": costs.subset([0]), "other": costs.subset([1])}, 4).set_index(["derived_at", "used_at"])
    assert len(table) == 4 and (table["predicted_error"] >= table["best"] - 1e-6).all()
    for own in (("one", "one"), ("other", "other")):
        assert table.loc[own, "moved"] == 0 and table.loc[own, "predicted_error"] == pytest.approx(table.loc[own, "best"])
    assert table.loc[("one", "other"), "schedule"] == table.loc[("one", "one"), "schedule"]


@MEASURED
def test_keys_for_the_mean_and_the_median_image(pipe):
    given = {reuse: fl.calibrate(pipe, PROMPTS[:2], max_span=4, reuse=reuse, **STEPS) for reuse in ("encoder", "prediction")}
    new = [scene.caption() for scene in held_out_scenes(2, objects=1)]
    table = compare_averages(pipe, given, PROMPTS[:2], new, counts=(3,), **STEPS).set_index("rule")
    kinds = {f"{kind}, {average}" for kind in ("features", "predictions") for average in ("mean", "median")}
    assert set(table.index) == {"fewer steps", *kinds, *(f"{kind}, fitted" for kind in kinds)}
    assert (table["images"] == 2).all() and table["psnr"].nunique() > 4
    again = compare_averages(pipe, given, PROMPTS[:2], new, counts=(3,), **STEPS).set_index("rule")
    pd.testing.assert_frame_equal(again, table)
    with pytest.raises(ValueError, match="asked both to fit on and to compare on"):
        compare_averages(pipe, given, new, new, counts=(3,), **STEPS)
    with pytest.raises(ValueError, match="a prompt of this comparison; accepted: prompts that calibration has not seen"):
        compare_averages(pipe, given, new, PROMPTS[:2], counts=(3,), **STEPS)


def test_rules_need_one_recording_and_give_as_many_keys(pipe):
    with fl.record(pipe, keep=["down_blocks.0", "mid_block"]) as recording:
        pipe(PROMPTS[:2], generator=[torch.Generator().manual_seed(seed) for seed in (0, 1)], **STEPS)
    for count in (1, 3, 8):
        found = rules(recording, count)
        assert {len(keys.keys) for keys in found.values()} == {count} and all(keys.num_steps == 8 for keys in found.values())
    with pytest.raises(ValueError, match="9"):
        rules(recording, 9)
    recording.features.clear()
    with pytest.raises(ValueError, match="this recording kept no features"):
        rules(recording, 2)


@MEASURED
def test_rules_beside_derived_keys(pipe, costs):
    new = [scene.caption() for scene in held_out_scenes(2)]
    table = compare_rules(pipe, costs, new, counts=(3,), **STEPS).set_index("rule")
    assert list(table.index[:2]) == ["uniform", "derived"] and len(table) == 9 and (table["images"] == 2).all()
    assert (
        (table["order"] == 1).all() and (table["psnr_low"] <= table["psnr"]).all() and (table["psnr"] <= table["psnr_high"]).all()
    )
    assert table.loc["derived", "ahead"] == 0
    # Pooled over the same images, the difference is that of the two methods.
    assert np.allclose(table.loc["derived", "psnr"] - table["psnr"], table["ahead"])
    with pytest.raises(ValueError, match="prompts that calibration has not seen"):
        compare_rules(pipe, costs, PROMPTS[:1], counts=(3,), **STEPS)
    with pytest.raises(ValueError, match="8 keys of 8 steps asked; accepted: fewer keys than steps"):
        compare_rules(pipe, costs, new, counts=(3, 8), **STEPS)
    with pytest.raises(ValueError, match="the costs for .* are of runs of 8 steps, this one makes 9 denoiser calls"):
        compare_rules(pipe, costs, new, counts=(3,), num_inference_steps=9)


def test_published_time_steps_are_found_again_among_all_of_training(embedded):
    """With a step for every time-step of training, the keys are the ones that Align Your Steps was published with."""
    from diffusers.schedulers import AysSchedules

    levels = noise_levels(embedded.scheduler, 999)
    keys = published_keys(levels, len(OPTIMISED))["Align Your Steps"].keys
    found = 999 - np.array(keys)  # DDIM's time-steps, from 999 down to 1
    assert np.abs(found - AysSchedules["StableDiffusionTimesteps"]).max() <= 2


def test_published_keys_are_as_many_as_asked_and_denser_where_they_say(embedded):
    before = embedded.scheduler.timesteps
    levels = noise_levels(embedded.scheduler, 50)
    assert embedded.scheduler.timesteps is before
    assert levels.shape == (51,) and (np.diff(levels) < 0).all()
    for count in (1, 2, 9, 49, 50):
        assert {len(keys.keys) for keys in published_keys(levels, count).values()} == {count}
    assert np.array_equal(published_keys(np.geomspace(10, 0.1, 9), 8)["uniform log-SNR"].keys, range(8))
    last = {rule: keys.keys[-3] for rule, keys in published_keys(levels, 9).items()}
    assert last["Align Your Steps"] < last["Karras"] < last["uniform log-SNR"]
    with pytest.raises(ValueError, match="`num_keys` must be an int from 1 to 50 .the steps., got 51"):
        published_keys(levels, 51)


@MEASURED
def test_published_keys_beside_derived_ones(pipe):
    with torch.no_grad():
        costs, of_predictions = (
            fl.calibrate(pipe, PROMPTS[:2], reuse=reuse, max_span=4, **STEPS) for reuse in ("encoder", "prediction")
        )
    new = [scene.caption() for scene in held_out_scenes(2)]
    table = compare_published(pipe, costs, new, of_predictions=of_predictions, counts=(3,), **STEPS)
    assert len(table) == 12 and table["rule"].is_unique and (table["images"] == 2).all()
    assert table.set_index("rule").loc["predictions, derived for features", "ahead"] == 0


@MEASURED
def test_what_makes_a_fit(pipe):
    new = [scene.caption() for count in (1, 2) for scene in held_out_scenes(1, objects=count)]
    few = {"images": (1,), "guidances": (2.0,), "schedulers": ("euler",)}
    own, keys = pipe.scheduler, fl.KeySchedule(8, (0, 1, 4))
    table = ablation(pipe, keys, calibration_scenes(4), new, **few, **STEPS).set_index(["question", "rule"])
    assert pipe.scheduler is own and not table.index.has_duplicates
    known = table.loc["known tensors", "psnr"]
    assert set(known.index) == {"reused", "fitted", *(f"without {name}" for name in WITHOUT)} and known.nunique() > 5
    assert (table.loc["guidance 2", "psnr"] != table.loc["seeds", "psnr"].loc[["reused", "fitted"]]).all()
    assert {question for question, _ in table.index} == {
        "images", "known tensors", "seeds", "order", "guidance 2", "captions of 1 objects", "captions of 2 objects", "scheduler euler",
    }  # fmt: skip


@MEASURED
def test_costs_that_know_of_a_fit(pipe):
    costs = fl.calibrate(pipe, PROMPTS[:2], max_span=4, **STEPS)
    found = fitted_costs(pipe, costs)
    share = found.displacement / costs.displacement
    assert share[..., 2:].nan_to_num(0.5).max() < 1 and share[..., 2:].nan_to_num(0.5).min() > 0
    run = RunSettings(8, 5.0).on(pipe, 2, "a fit")
    spans = _Spans(pipe, seen(pipe, Call(tuple(PROMPTS[:2]), (0, 1), run.arguments()), 8), 4)
    spans.decode(3)
    for length in (2, 3, 4):  # the closed form of DDIM is what real runs measured
        missing, _ = spans.missing(3, length)
        ratio = missing.norm(dim=1) / costs.displacement[:, 0, 3, length].double()
        assert ratio == pytest.approx(np.ones(2) * float(ratio[0]), rel=1e-3) and float(ratio[0]) == pytest.approx(1, rel=1e-3)


def test_mixed_kinds_are_never_worse_than_one_alone():
    generator = np.random.default_rng(0)
    errors = {kind: np.cumsum(generator.random((9, 5)), axis=1) for kind in ("features", "predictions")}
    for found in errors.values():
        found[:, 0], found[:, 1] = np.inf, 0.0
    seconds = {"features": 1 + np.arange(5.0), "predictions": np.full(5, 2.0)}
    prices = np.logspace(-3, 3, 20)
    table = fronts(errors, seconds, prices)
    for price in prices:
        best = {kinds: (found["error"] + price * found["seconds"]).min() for kinds, found in table.groupby("kinds")}
        assert best["features and predictions"] <= min(best["features"], best["predictions"]) + 1e-9
    assert (gains(table, 1024)["gain_db"] > -1e-6).any()
