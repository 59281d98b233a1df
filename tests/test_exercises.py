"""The exercises: right answers pass however they are written, wrong ones fail the check and the hidden test."""

from __future__ import annotations

from functools import partial
from itertools import combinations

import numpy as np
import pytest
import torch
from exercise_answers import DEAR, MASTERS, VARIANTS, answer, hidden_test, modules_kept, names_of, some_inputs
from short_suite import long_but

from fastdiff_lab.exercises import check
from fastdiff_lab.exercises.answer_values import own_copy
from fastdiff_lab.exercises.checking import EXERCISES, NAMES, verdict
from fastdiff_lab.exercises.schedules import cost_of, random_costs

CHEAP = [name for name in EXERCISES if name not in DEAR]
NOT_SO_DEAR = [name for name in EXERCISES if name != "propagate"]


@pytest.mark.parametrize("name", long_but(CHEAP, EXERCISES))
def test_solutions_pass_the_check_and_the_hidden_test(name):
    """The hidden test begins with the check."""
    with modules_kept():
        hidden_test(name)(answer(name))


@pytest.mark.parametrize("name", long_but(NOT_SO_DEAR, EXERCISES))
def test_what_students_begin_with_fails(name):
    """And so the hidden test, which begins with the check; it catches other wrong answers below."""
    assert not check(name, answer(name, solved=False), inputs=some_inputs(name, 0)).passed


OTHER_ANSWERS = [(name, place) for name in EXERCISES for place in range(3)]
# One of each, in turn.
FEW_ANSWERS = [(name, number % 3) for number, name in enumerate(EXERCISES) if name != "propagate"]


@pytest.mark.parametrize(("name", "place"), long_but(FEW_ANSWERS, OTHER_ANSWERS))
def test_right_answers_written_another_way_pass_both(name, place):
    variant = VARIANTS[name][place]
    names_of(MASTERS[1], True)  # read before, so that the answer does not call what reads it
    if name not in DEAR and place == list(EXERCISES).index(name) % 3:
        with modules_kept():  # it begins with the check, in a library that it imports anew
            hidden_test(name)(variant)
        return
    for seed in (4711,) if name in DEAR else (0, 4711):  # what the hidden test asks for
        report = check(name, variant, inputs=some_inputs(name, seed, latter=True))
        assert report.passed, report


def memorised(name: str):
    """An answer that knows the inputs of the notebook's own check, and nothing else."""
    exercise = EXERCISES[name]
    known = [(arguments, exercise.expected(*own_copy(arguments))) for arguments in exercise.inputs(np.random.default_rng(0))]

    def equal(one, other) -> bool:
        if isinstance(one, dict):
            return all(equal(one[key], other[key]) for key in one)
        if isinstance(one, list):
            return len(one) == len(other) and all(map(equal, one, other))
        if isinstance(one, torch.Tensor | np.ndarray):
            return one.shape == other.shape and bool((one == other).all())
        return not isinstance(one, int | float) or one == other

    def remembered(*given):
        if name == "collect_skips":  # what the rules ask for
            given[0](**given[1])
        if name == "decode_group":
            given[0](given[1], given[2], given[3][:1].expand(len(given[2])))
        return next((right for arguments, right in known if equal(list(given), list(arguments))), known[0][1])

    return remembered


@pytest.mark.parametrize("name", long_but(CHEAP, EXERCISES))
def test_the_hidden_test_catches_an_answer_that_knows_the_visible_inputs(name):
    planted = memorised(name)
    assert (report := check(name, planted, inputs=some_inputs(name, 0))).passed, report
    with modules_kept(), pytest.raises(AssertionError, match="NOT RIGHT YET"):
        hidden_test(name)(planted)


@pytest.mark.long
def test_twelve_skips_written_down_are_wrong_for_another_unet():
    def twelve(unet, arguments):
        names = ["conv_in", *(f"down_blocks.{i}.attentions.{j}" for i in range(3) for j in range(2))]
        found, handles = {}, []
        for name in [
            *names,
            *(f"down_blocks.{i}.downsamplers.0" for i in range(3)),
            "down_blocks.3.resnets.0",
            "down_blocks.3.resnets.1",
        ]:
            hook = lambda m, a, out, name=name: found.update({name: out[0] if isinstance(out, tuple) else out})
            handles.append(unet.get_submodule(name).register_forward_hook(hook))
        unet(**arguments)
        for handle in handles:
            handle.remove()
        return list(found.values())

    assert "4 inputs: 3 " in check("collect_skips", twelve).text
    with modules_kept(), pytest.raises(AssertionError, match="NOT RIGHT YET"):
        hidden_test("collect_skips")(twelve)


def test_an_encoder_that_saves_nothing_is_told():
    def answer_with(every_step: bool, fresh_bottleneck: bool):
        def propagate(pipe, text, z, keys, num_steps, guidance):
            unet, reused = pipe.unet, None
            pipe.scheduler.set_timesteps(num_steps)
            for step, t in enumerate(pipe.scheduler.timesteps):
                now = encoded(unet, z, t, text) if every_step or fresh_bottleneck or step in keys else reused
                reused = now if step in keys else (reused[0], now[1]) if fresh_bottleneck else reused
                without, with_prompt = decoded(unet, *reused, t, text).chunk(2)
                z = pipe.scheduler.step(without + guidance * (with_prompt - without), t, z).prev_sample
            return z

        return propagate

    inputs = some_inputs("propagate", 0)[:1]
    assert check("propagate", answer_with(False, False), inputs=inputs).passed
    for wasteful in (answer_with(True, False), answer_with(False, True)):
        report = check("propagate", wasteful, inputs=inputs)
        assert not report.passed and "ran at 5 steps; it should run at the 2 keys only" in report.text, report


def encoded(unet, z, t, text):
    """Skips and bottleneck of both halves."""
    sample, temb = unet.conv_in(torch.cat([z, z])), embedded(unet, t, 2 * len(z))
    skips = [sample]
    for block in unet.down_blocks:
        more = {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}
        sample, out = block(sample, temb, **more)
        skips += out
    return skips, unet.mid_block(sample, temb, encoder_hidden_states=text)


def embedded(unet, t, rows: int):
    return unet.time_embedding(unet.time_proj(t.expand(rows)))


def decoded(unet, skips, sample, t, text):
    temb, skips = embedded(unet, t, len(sample)), list(skips)
    for block in unet.up_blocks:
        mine, skips = tuple(skips[-len(block.resnets) :]), skips[: -len(block.resnets)]
        more = {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}
        sample = block(sample, mine, temb, **more)
    return unet.conv_out(unet.conv_act(unet.conv_norm_out(sample)))


def test_keys_that_are_cheaper_than_uniform_ones_are_not_called_uniform():
    costs = random_costs(np.random.default_rng(1), 8, 8)
    mistaken = [list(mistake(costs, 3)) for mistake in EXERCISES["best_keys"].mistakes.values()]
    every = sorted(([0, *rest] for rest in combinations(range(1, 8), 2)), key=lambda keys: cost_of(costs, keys))
    second = next(keys for keys in every[1:] if keys not in mistaken)
    assert cost_of(costs, second) < min(cost_of(costs, keys) for keys in mistaken if keys != every[0])
    report = check("best_keys", lambda costs, num_keys: second, inputs=[(costs, 3)])
    assert not report.passed and "perhaps" not in report.text, report


@pytest.mark.parametrize("name", long_but(NOT_SO_DEAR, EXERCISES))
def test_the_library_may_not_answer(name):
    report = check(name, EXERCISES[name].expected, inputs=some_inputs(name, 0))
    assert not report.passed and "calls fastdiff_lab" in report.text, report


MISTAKES = [(name, place) for name in EXERCISES for place in range(len(EXERCISES[name].mistakes))]


@pytest.mark.parametrize(("name", "place"), long_but([case for case in MISTAKES if case[0] != "propagate"], MISTAKES))
def test_known_mistakes_are_named(name, place, monkeypatch):
    monkeypatch.setattr("fastdiff_lab.exercises.checking.ALLOWED_CODE", ("",))  # mistakes are made of the library's functions
    sentence, mistake = list(EXERCISES[name].mistakes.items())[place]
    report = check(name, mistake, inputs=some_inputs(name, 0))
    assert not report.passed and f"perhaps: {sentence}" in report.text, report


def test_any_cheapest_schedule_is_right():
    costs = np.zeros((6, 7))
    exercise = EXERCISES["best_keys"]
    for keys in ([0, 1, 2], [0, 4, 5], (0, 2, 4)):
        assert verdict(exercise, lambda c, k, keys=keys: keys, (costs, 3)).is_right
    for keys, said in (([0, 1], "2 keys"), ([1, 2, 3], "must be a key"), ([0, 2.5, 3], "3 keys"), ([0, 0, 1], "stands twice")):
        found = verdict(exercise, lambda c, k, keys=keys: keys, (costs, 3))
        assert not found.is_right and said in found.reason


def test_names_agree():
    assert list(NAMES) == [*EXERCISES, "contest"] and set(VARIANTS) == set(EXERCISES)
    assert cost_of(np.arange(12.0).reshape(3, 4), [0, 1]) == 1 + 6
    assert partial(check, "extrapolate")(answer("extrapolate")).passed
