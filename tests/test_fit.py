"""Law 13: a fit moves each group to the baseline's latents, and does nothing where there is nothing to move."""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import replace
from functools import cache

import pytest
import torch
from laws import CLOSE, distance
from models import SCHEDULERS, denoiser_calls, state
from prompted import Embeddings
from short_suite import long_but
from systems import ROWS

import fastdiff_lab as fl
from fastdiff_lab import KeySchedule
from fastdiff_lab.propagation.fit import columns_of

STEPS = 7
PROMPTS = ["1", "2", "3"]


def drawn(pipe, prompts=PROMPTS, steps=STEPS, guidance=5.0):
    generator = [torch.Generator().manual_seed(seed) for seed in range(len(prompts))]
    return pipe(prompts, generator=generator, num_inference_steps=steps, guidance_scale=guidance).images


def steps_of(name):
    return 4 if name in ("heun", "kdpm2", "pndm") else STEPS


def schedule_of(name):
    """Groups of one, of several, and of more than two steps: with no key before, with one, and with two."""
    calls = denoiser_calls(Embeddings(name), steps_of(name))
    return KeySchedule(calls, (0, 1, 3, calls - 2))


def fit_of(name="ddim", **options):
    return _fit_of(name, tuple(options.items()))


@cache
def _fit_of(name, options):
    pipe = Embeddings(name)
    return fl.fit_propagation(
        pipe, schedule_of(name), PROMPTS, num_inference_steps=steps_of(name), guidance_scale=5.0, **dict(options)
    )


def accelerated(name="ddim", fit=None, prompts=PROMPTS, **options):
    fit = fit_of(name) if fit is None else fit
    pipe = Embeddings(name)
    with fl.encoder_propagation(pipe, fit.schedule, fit=fit, reuse=fit.reuse, order=fit.order, **options) as counts:
        return drawn(pipe, prompts, steps_of(name)), counts


def without(fit, name="ddim"):
    pipe = Embeddings(name)
    with fl.encoder_propagation(pipe, fit.schedule, reuse=fit.reuse, order=fit.order):
        return drawn(pipe, steps=steps_of(name))


@pytest.mark.parametrize("name", long_but(["dpm-solver++"], SCHEDULERS))
def test_the_scalars_are_the_best_ones(name):
    """Real runs with any scalar of the last group moved are further from the baseline: for every scheduler, of one image."""
    pipe, schedule = Embeddings(name), schedule_of(name)
    baseline = drawn(pipe, ["1"], steps_of(name))
    before = state(pipe)
    fit = fl.fit_propagation(pipe, schedule, ["1"], num_inference_steps=steps_of(name), guidance_scale=5.0)
    assert state(pipe) == before and torch.equal(drawn(pipe, ["1"], steps_of(name)), baseline)

    def error(coefficients):
        moved = replace(fit, coefficients=coefficients, bounds=(1e9,) * 4)
        return float((accelerated(name, moved, ["1"])[0] - baseline).square().sum())

    best = error(fit.coefficients)
    *others, last = fit.coefficients
    assert best < error((*others, (0.0,) * len(last)))
    for place in range(len(last)):
        if last[place] == 0:  # nothing is ahead where all steps of a group have one time-step
            continue
        for way in (-0.01, 0.01):
            moved = tuple(value + way * (i == place) for i, value in enumerate(last))
            assert best < error((*others, moved)) * (1 + 1e-5)  # the ridge


def without_offsets(fit):
    return replace(fit, coefficients=tuple((0.0,) * len(group) for group in fit.coefficients))


@pytest.mark.parametrize("options", long_but([{}, {"reuse": "prediction"}], [{}, {"reuse": "prediction"}, {"order": 2}]))
def test_a_fit_of_zeros_is_no_fit(options):
    fit = fit_of(**options)
    assert torch.equal(accelerated(fit=without_offsets(fit))[0], without(fit))
    assert distance(accelerated(fit=fit)[0], without(fit)) > 1e-3


def test_lines_through_the_last_two_keys_are_order_1():
    fit = fit_of(order=1)
    keys, steps = fit.schedule.keys, fit.schedule.num_steps
    last = [[key for key in keys if key <= step] for step in range(steps)]
    slopes = [(step - seen[-1]) / (seen[-1] - seen[-2]) if len(seen) > 1 else 0.0 for step, seen in enumerate(last)]
    lagrange = replace(without_offsets(fit), lines=tuple((name, tuple((1.0, slope) for slope in slopes)) for name, _ in fit.lines))
    assert distance(accelerated(fit=lagrange)[0], without(fit)) < CLOSE


def features_of_the_baseline():
    """Name -> what enters the decoder at each step, seen by torch's own hooks."""
    pipe, found = Embeddings(), defaultdict(list)
    for place, block in enumerate(pipe.unet.up_blocks):

        def see(_, args, kwargs, place=place):
            if place == 0:
                found["up_blocks.0 hidden_states"].append(kwargs["hidden_states"].clone())
            for i, skip in enumerate(kwargs["res_hidden_states_tuple"]):
                found[f"up_blocks.{place} res_hidden_states_tuple {i}"].append(skip.clone())

        block.register_forward_pre_hook(see, with_kwargs=True)
    drawn(pipe)
    for block in pipe.unet.up_blocks:
        block._forward_pre_hooks.clear()
    return found


def test_lines_are_the_best_ones():
    """A moved scalar of any feature and step brings the feature no nearer to the baseline's."""
    features, lines = features_of_the_baseline(), fit_of(order=1).lines
    assert features.keys() == dict(lines).keys()
    for name, steps in lines:
        of_steps = features[name]
        for step, (share, along) in enumerate(steps):
            seen = [key for key in schedule_of("ddim").keys if key <= step]
            older = of_steps[seen[-2]] if len(seen) > 1 else of_steps[seen[-1]]
            newest, true = of_steps[seen[-1]], of_steps[step]

            def error(a, b, newest=newest, older=older, true=true):
                return float((a * newest + b * (newest - older) - true).double().square().sum())

            best = error(share, along)
            assert best <= min(error(share + 1e-2, along), error(share - 1e-2, along))
            assert best <= min(error(share, along + 1e-2), error(share, along - 1e-2))


def test_with_every_step_a_key_a_fit_changes_nothing():
    schedule = KeySchedule(STEPS, range(STEPS))
    fit = fl.fit_propagation(Embeddings(), schedule, PROMPTS, num_inference_steps=STEPS, guidance_scale=5.0)
    assert fit.coefficients == ((),) * STEPS
    assert torch.equal(accelerated(fit=fit)[0], drawn(Embeddings()))


@pytest.mark.parametrize("name", long_but(["dpm-solver++"], SCHEDULERS))
def test_serial_is_parallel_with_a_fit(name):
    parallel, counts = accelerated(name)
    assert counts.encoder_calls == counts.forward_calls == 4
    serial, counts = accelerated(name, parallel_decoding=False)
    assert counts.encoder_calls == 4 and counts.forward_calls == counts.decoder_calls == fit_of(name).schedule.num_steps
    assert distance(serial, parallel) < CLOSE
    assert distance(accelerated(name, max_rows=12)[0], parallel) < CLOSE


def test_serial_is_parallel_on_lines():
    fit = fit_of(order=1)
    parallel, _ = accelerated(fit=fit)
    assert distance(accelerated(fit=fit, parallel_decoding=False)[0], parallel) < CLOSE
    assert distance(accelerated(fit=fit, max_rows=12)[0], parallel) < CLOSE


@pytest.mark.parametrize("options", long_but([{"order": 1}], [{}, {"reuse": "prediction"}, {"order": 1}]))
def test_a_fit_comes_nearer_on_what_it_was_fitted_on(options):
    fit, baseline = fit_of(**options), drawn(Embeddings())
    assert distance(accelerated(fit=fit)[0], baseline) < 0.8 * distance(without(fit), baseline)


@pytest.mark.long
def test_batches_give_the_same_fit():
    at_once, in_parts = fit_of(), fit_of(batch_size=2)
    for one, other in zip(at_once.coefficients, in_parts.coefficients, strict=True):
        assert one == pytest.approx(other, abs=1e-6)


def test_known_tensors_have_names():
    assert columns_of(KeySchedule(9, (0, 1, 3, 5)), "encoder")[1] == ("latent", "key", "older 1", "ahead")
    assert columns_of(KeySchedule(9, (0, 1, 3, 5)), "encoder")[3] == ("latent", "key", "older 1", "older 2", "missed", "ahead")
    assert columns_of(KeySchedule(4, (0, 2)), "prediction", blocks=2)[1] == (
        "latent", "key, block 0", "key, block 1", "older 1, block 0", "older 1, block 1"
    )  # fmt: skip


def test_keys_are_moved_by_the_fitted_error():
    pipe, start, prompts = Embeddings(), KeySchedule(STEPS, (0, 1, 3)), PROMPTS[:1]
    options = {"num_inference_steps": STEPS, "guidance_scale": 5.0}
    found = fl.refine_schedule(pipe, start, prompts, runs=3, fit=True, **options)
    baseline = drawn(pipe, prompts)

    def error(schedule):
        fit = fl.fit_propagation(pipe, schedule, prompts, **options)
        return float((accelerated(fit=fit, prompts=prompts)[0] - baseline).square().mean())

    assert error(found) <= error(start) and ("fitted runs" in found.source or "none came nearer" in found.source)


def test_compare_takes_a_fit():
    options = {"num_inference_steps": 5, "repeats": 0, "rivals": False, "guidance_scale": 5.0}
    pipe, prompts, schedule = ROWS["dit"].build(), [3], KeySchedule(5, (0, 1))
    fit = fl.fit_propagation(pipe, schedule, prompts, num_inference_steps=5, guidance_scale=5.0)
    table = fl.compare(pipe, {"held": schedule, "fitted": fit}, prompts, **options).set_index("method")
    assert table.loc["fitted", "latent_mse"] < table.loc["held", "latent_mse"]
    assert table.loc["fitted", "encoder_calls"] == table.loc["held", "encoder_calls"] == 2


# ---- what is told, and what is refused


def test_an_offset_beyond_what_was_seen_is_shortened_and_told():
    fit = fit_of()
    _, counts = accelerated()
    assert counts.images_beyond_fit == 0
    tight = replace(fit, bounds=tuple(bound / 2 for bound in fit.bounds))
    shorter, counts = accelerated(fit=tight)
    assert 1 <= counts.images_beyond_fit <= len(PROMPTS)
    assert distance(shorter, accelerated()[0]) > 1e-6


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"schedule": KeySchedule(STEPS, (0, 4))}, "the fit was made with schedule 0,1,3,5 of 7, and 0,4 of 7 is asked"),
        ({"reuse": "prediction"}, "the fit was made with reuse encoder, and prediction is asked; use the fit's own, or fit anew"),
        ({"order": 1}, "the fit was made with order 0, and 1 is asked"),
        ({"fit": "fit.json"}, "fit='fit.json' given; accepted: a PropagationFit"),
        ({"encoder_blocks": 2}, "a fit asked with .*encoder_blocks=2; accepted with a fit: order=0, 1 or 2"),
        ({"order": fl.Extrapolation(0, damping=0.5)}, "a fit asked with Extrapolation.*accepted with a fit: order=0, 1 or 2"),
    ],
)
def test_a_fit_for_something_else_is_refused(options, words):
    pipe = Embeddings()
    before = state(pipe)
    options = {"schedule": schedule_of("ddim"), "fit": fit_of()} | options
    with pytest.raises((TypeError, ValueError), match=words):
        with fl.encoder_propagation(pipe, options.pop("schedule"), **options):
            pass
    assert state(pipe) == before


def test_another_guidance_scale_or_kind_of_guidance():
    pipe, fit = Embeddings(), fit_of()
    with pytest.warns(UserWarning, match="this fit was measured with guidance scale 5.0, this run has 3.0; it need not correct"):
        with fl.encoder_propagation(pipe, fit.schedule, fit=fit):
            drawn(pipe, guidance=3.0)
    several = replace(
        fit, coefficients=((), *((0.0,) * len(names) for names in columns_of(fit.schedule, "encoder", 2)[1:])), blocks=2
    )
    with pytest.raises(ValueError, match="the fit is for 2 predictions in a step, this run has 1"):
        accelerated(fit=several)


def test_another_pipeline_is_told():
    pipe, fit = Embeddings("euler"), fit_of()
    with pytest.warns(UserWarning, match="this fit was measured on something else: scheduler DDIMScheduler, here Euler.*fit anew"):
        with fl.encoder_propagation(pipe, fit.schedule, fit=fit):
            drawn(pipe)


def test_lines_of_another_model_are_refused():
    fit = fit_of(order=1)
    other = replace(fit, lines=tuple((name.replace("up_blocks", "blocks"), steps) for name, steps in fit.lines))
    with pytest.raises(
        ValueError, match="no line for 'up_blocks.0 hidden_states', which enters this decoder; accepted: blocks.0 hid"
    ):
        accelerated(fit=other)


def test_a_scheduler_that_clips_is_refused():
    pipe = Embeddings()
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, clip_sample=True, clip_sample_range=0.5)
    with pytest.raises(
        ValueError, match="a fit asked with DDIMScheduler, whose steps are not linear here .clip_sample, thresholding"
    ):
        fl.fit_propagation(pipe, schedule_of("ddim"), PROMPTS, num_inference_steps=STEPS, guidance_scale=5.0)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"reuse": "decoder"}, "`reuse` must be one of encoder, prediction, got 'decoder'"),
        ({"order": fl.Extrapolation(1, damping=0.5)}, "`order` must be an int from 0 to 2, got Extrapolation"),
        ({"schedule": KeySchedule(STEPS + 2, (0, 1))}, "the run makes 7 denoiser calls and 7 scheduler steps; accepted: 9 of each"),
        ({"schedule": KeySchedule(STEPS - 2, (0, 1))}, "the schedule is for 5 steps, this run has 7 time-steps"),
        ({"prompts": []}, "0 prompts given"),
        ({"seeds": [1]}, "1 seeds given for 3 prompts"),
        ({"batch_size": 0}, "`batch_size` must be a positive int"),
    ],
)
def test_a_fit_that_cannot_be_made_is_refused(options, words):
    pipe = Embeddings()
    before = state(pipe)[:2]
    options = {"schedule": schedule_of("ddim"), "prompts": PROMPTS, "num_inference_steps": STEPS, "guidance_scale": 5.0} | options
    with pytest.raises(ValueError, match=words):
        fl.fit_propagation(pipe, options.pop("schedule"), options.pop("prompts"), **options)
    assert state(pipe)[:2] == before


def test_ctrl_c_leaves_the_pipeline_as_it_was():
    pipe, calls = Embeddings(), []
    baseline = drawn(pipe)
    before = state(pipe)

    def interrupt(*_):
        calls.append(1)
        if len(calls) == STEPS + 3:
            raise KeyboardInterrupt

    handle = pipe.unet.conv_in.register_forward_pre_hook(interrupt)
    with pytest.raises(KeyboardInterrupt):
        fl.fit_propagation(pipe, schedule_of("ddim"), PROMPTS, num_inference_steps=STEPS, guidance_scale=5.0)
    handle.remove()
    assert state(pipe) == before and torch.equal(drawn(pipe), baseline)


# ---- files


@pytest.mark.parametrize("options", [{}, {"order": 1}])
def test_a_fit_survives_its_file(tmp_path, options):
    fit = fit_of(**options)
    fit.save(tmp_path / "fit.json")
    found = fl.PropagationFit.load(tmp_path / "fit.json")
    assert found == fit and found.measured_on == fit.measured_on and found.about == fit.about
    assert found.measured_on["guidance_scale"] == 5.0 and found.about["prompts"] == PROMPTS
    assert torch.equal(accelerated(fit=found)[0], accelerated(fit=fit)[0])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"coefficients": [[], [1.0], [1.0], [1.0]]},
            "coefficients of .0, 1, 1, 1. known tensors and 4 bounds given; accepted for 0,1,3,5",
        ),
        ({"coefficients": "none"}, "accepted: for each group a list of numbers"),
        ({"coefficients": [[], ["a"] * 4, [0] * 6, [0] * 6]}, "coefficients"),
        ({"bounds": [0.0, -1.0, 1.0, 1.0]}, "bounds"),
        ({"bounds": [0.0, float("nan"), 1.0, 1.0]}, "bounds"),
        ({"reuse": "decoder"}, "`reuse` must be one of encoder, prediction"),
        ({"order": 7}, "`order` must be an int from 0 to 2"),
        ({"blocks": 10**9}, "`blocks` must be an int from 1 to 4"),
        ({"schedule": {}}, "is no fastdiff_lab.KeySchedule"),
        ({"schedule": [0]}, "schedule=.0. given; accepted: names with values"),
        ({"more": 1}, "field 'more' is unknown"),
        ({"version": 2}, "has version '2' of fastdiff_lab.PropagationFit; accepted: 1"),
        ({"lines": "none"}, "lines='none' given; accepted: for each feature its name"),
        (
            {"lines": [["up_blocks.0 hidden_states", [[1.0, 0.0]]]]},
            "accepted: for each feature its name, and two numbers for each step",
        ),
        ({"lines": [["a", [[1.0, float("inf")]] * STEPS]]}, "lines"),
        ({"lines": [["a", [[1.0, 0.0]] * STEPS]]}, "1 lines given with reuse='encoder' and order=0; accepted: none"),
        ({"order": 1}, "0 lines given with reuse='encoder' and order=1; accepted: one for each feature"),
        ({"schema": "fastdiff_lab.KeySchedule"}, "is no fastdiff_lab.PropagationFit"),
    ],
)
def test_broken_and_foreign_files_are_refused(tmp_path, change, words):
    place = tmp_path / "fit.json"
    place.write_text(json.dumps(json.loads(fit_of().to_json()) | change))
    with pytest.raises(ValueError, match=f"fit.json.*{words}"):
        fl.PropagationFit.load(place)


def test_no_file_and_half_a_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"fit.json does not exist; accepted: a fastdiff_lab.PropagationFit file"):
        fl.PropagationFit.load(tmp_path / "fit.json")
    (tmp_path / "fit.json").write_text(fit_of().to_json()[:50])
    with pytest.raises(ValueError, match="fit.json is no JSON"):
        fl.PropagationFit.load(tmp_path / "fit.json")
