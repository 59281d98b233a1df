"""The exercises: right answers pass however they are written, wrong ones are told why, and what students get is what the masters say."""

from __future__ import annotations

import json
import re
import sys
from contextlib import contextmanager
from functools import cache, partial
from itertools import combinations, pairwise
from pathlib import Path

import nbformat
import numpy as np
import pytest
import torch
from systems import ROWS

import fastdiff_lab as fl
from fastdiff_lab.calibration.reuse_costs import ReuseCosts
from fastdiff_lab.exercises import ContestEntry, check, contest, figures, show
from fastdiff_lab.exercises.answer_values import as_arrays, described, own_copy, same
from fastdiff_lab.exercises.checking import EXERCISES, NAMES, verdict
from fastdiff_lab.exercises.exercise import nearness
from fastdiff_lab.exercises.hooks_and_features import _hooks, pipeline
from fastdiff_lab.exercises.schedules import cost_of, random_costs
from fastdiff_lab.exercises.sheets import generate, questions, read_master, solution, student, with_solution, without_solution

FOLDER = Path(__file__).parent.parent / "notebooks" / "exercises"
MASTERS = sorted((FOLDER / "masters").glob("*.py"))
SHEETS = pytest.mark.parametrize("path", MASTERS, ids=lambda path: path.stem)
FUNCTIONS = pytest.mark.parametrize("name", list(EXERCISES))


DEAR = ("collect_skips", "propagate")  # their inputs are calls and runs of a UNet


def some_inputs(name: str, seed: int, latter: bool = False) -> list[tuple] | None:
    """All inputs of an exercise, and the first or latter half of those of a dear one."""
    given = list(EXERCISES[name].inputs(np.random.default_rng(seed)))
    half = len(given) // 2
    return given if name not in DEAR else given[half:] if latter else given[:half]


@pytest.fixture(scope="module", autouse=True)
def _short_runs_in_pictures():
    """Features of a run of 26 steps are drawn instead of 50."""
    figures._recording.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        for draw in ("relative_change", "step_similarity", "extrapolate"):
            patch.setitem(figures.DRAWN, draw, partial(in_short, figures.DRAWN[draw]))
        yield
    figures._recording.cache_clear()


def in_short(draw, answer):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "STEPS", 26)
        return draw(answer)


@cache
def names_of(path: Path, solved: bool) -> dict:
    """What a sheet's cells define, solved or as students get it, without its checks and pictures."""
    notebook = (solution if solved else student)(read_master(path))
    space: dict = {}
    for cell in notebook.cells:
        if cell.cell_type == "code" and not cell.source.startswith(("check(", "show(")):
            exec(cell.source, space)
    return space


def answer(name: str, solved: bool = True):
    """The answer to an exercise: the solution's, or what students begin with."""
    path = next(path for path in MASTERS for question in questions(read_master(path)) if question.name == name)
    return names_of(path, solved)["entry" if name == contest.NAME else name]


def hidden_test(name: str):
    """The hidden test of an exercise, as a function of an answer, with a seed of its own."""
    (source,) = [test for path in MASTERS for q in questions(read_master(path)) if q.name == name for test in q.tests]
    seeded, count = re.subn(r"GRADING_SEED = \d+", "GRADING_SEED = 4711", source)
    space: dict = {}
    exec(seeded, space)
    assert count == 1
    run = next(value for key, value in space.items() if key.startswith("test_"))
    return lambda given: run({"entry" if name == contest.NAME else name: given})


@contextmanager
def modules_kept():
    """Hidden tests import the library anew; the other tests go on with theirs."""
    ours = {name: module for name, module in sys.modules.items() if name.split(".")[0] == "fastdiff_lab"}
    try:
        yield
    finally:
        for name in [name for name in sys.modules if name.split(".")[0] == "fastdiff_lab"]:
            del sys.modules[name]
        sys.modules.update(ours)


# ---- right answers


@FUNCTIONS
def test_solutions_pass_the_check_and_the_hidden_test(name):
    """The hidden test begins with the check."""
    with modules_kept():
        hidden_test(name)(answer(name))


@FUNCTIONS
def test_what_students_begin_with_fails_both(name):
    begun = answer(name, solved=False)
    assert not check(name, begun, inputs=some_inputs(name, 0)).passed
    if name not in DEAR:  # their hidden tests catch another wrong answer below
        with modules_kept(), pytest.raises(AssertionError, match="NOT RIGHT YET"):
            hidden_test(name)(begun)


def skips_by_handles(unet, arguments):
    """A dictionary by block instead of a list, and hooks taken away in `finally`."""
    found = {}
    handles = [unet.conv_in.register_forward_hook(lambda m, a, out: found.__setitem__("conv_in", out))]
    for i, block in enumerate(unet.down_blocks):
        handles.append(block.register_forward_hook(lambda m, a, out, i=i: found.update({(i, k): s for k, s in enumerate(out[1])})))
    try:
        unet(**arguments)
    finally:
        for handle in handles:
            handle.remove()
    return found


def skips_by_layers(unet, arguments):
    """The last layer of each turn inside the down blocks instead of the blocks."""
    found, handles = [], []
    layers = [unet.conv_in]
    for block in unet.down_blocks:
        layers += list(getattr(block, "attentions", block.resnets)) + list(block.downsamplers or [])
    for layer in layers:
        handles.append(layer.register_forward_hook(lambda m, a, out: found.append(out[0] if isinstance(out, tuple) else out)))
    unet(**arguments)
    for handle in handles:
        handle.remove()
    return tuple(found)


def skips_from_the_decoder(unet, arguments):
    """What the up blocks are given, turned round."""
    found, handles = [], []
    for block in unet.up_blocks:
        hook = lambda m, a, kw: found.extend(reversed(kw["res_hidden_states_tuple"])) or None
        handles.append(block.register_forward_pre_hook(hook, with_kwargs=True))
    unet(**arguments)
    for handle in handles:
        handle.remove()
    return [skip.numpy() for skip in reversed(found)]


def propagate_in_two_calls(pipe, text, z, keys, num_steps, guidance):
    """Each half of guidance in a call of its own."""
    space = names_of(MASTERS[1], True)
    embed, encode, decode = space["embed"], space["encode"], space["decode"]
    pipe.scheduler.set_timesteps(num_steps)
    half, held = len(text) // 2, {}
    for step, t in enumerate(pipe.scheduler.timesteps):
        noise = []
        for part in (text[:half], text[half:]):
            now = embed(pipe.unet, t, z)
            if step in set(keys):
                held[len(noise)] = encode(pipe.unet, z, now, part)
            noise.append(decode(pipe.unet, *held[len(noise)], now, part))
        z = pipe.scheduler.step(noise[0] + guidance * (noise[1] - noise[0]), t, z, return_dict=False)[0]
    return z


def propagate_by_groups(pipe, text, z, keys, num_steps, guidance):
    """A loop over groups, then over their steps."""
    space = names_of(MASTERS[1], True)
    pipe.scheduler.set_timesteps(num_steps)
    times = pipe.scheduler.timesteps
    for begin, end in zip(keys, [*keys[1:], num_steps], strict=True):
        rows = z.repeat(2, 1, 1, 1)
        skips, hidden = space["encode"](pipe.unet, rows, space["embed"](pipe.unet, times[begin], rows), text)
        for t in times[begin:end]:
            empty, prompted = space["decode"](pipe.unet, skips, hidden, space["embed"](pipe.unet, t, rows), text).chunk(2)
            z = pipe.scheduler.step(torch.lerp(empty, prompted, guidance), t, z).prev_sample
    return z


def propagate_in_numbers(*given):
    """The same latents as a nested list."""
    return propagate_by_groups(*given).tolist()


def rows_each_repeated(decode, features, text, time_steps, guidance):
    """Each row n times, instead of the block of rows n times."""
    n, rows = len(time_steps), len(text)
    batch = [feature.repeat_interleave(n, 0) for feature in features]
    out = decode(batch, text.repeat_interleave(n, 0), time_steps.repeat(rows)).unflatten(0, (rows, n)).transpose(0, 1)
    return out[:, : rows // 2] + guidance * (out[:, rows // 2 :] - out[:, : rows // 2])


def rows_by_halves(decode, features, text, time_steps, guidance):
    """All steps of the empty half first, as the paper's code sorts them."""
    n, half = len(time_steps), len(text) // 2
    tile = lambda x: torch.cat([torch.cat([part] * n) for part in (x[:half], x[half:])])
    out = decode([tile(feature) for feature in features], tile(text), time_steps.repeat_interleave(half).repeat(2))
    unguided, guided = (part.reshape(n, half, *part.shape[1:]) for part in out.split(n * half))
    return ((1 - guidance) * unguided + guidance * guided).numpy()


def rows_in_a_list(decode, features, text, time_steps, guidance):
    """Stacked by hand, given as a list of steps; time-steps as a column."""
    n = len(time_steps)
    out = decode([torch.cat([f] * n) for f in features], torch.cat([text] * n), torch.stack([time_steps] * len(text), 1).flatten())
    parts = [block.chunk(2) for block in out.chunk(n)]
    return [empty + guidance * (prompted - empty) for empty, prompted in parts]


def best_by_recursion(costs, num_keys):
    """From the end, with memory."""
    steps, lengths = costs.shape

    @cache
    def rest(begin, groups):
        if groups == 0:
            return (0.0, ()) if begin == steps else (np.inf, ())
        tails = [
            (costs[begin, n] + (later := rest(begin + n, groups - 1))[0], later[1]) for n in range(1, lengths) if begin + n <= steps
        ]
        cost, keys = min(tails, default=(np.inf, ()))
        return cost, (begin, *keys)

    return rest(0, num_keys)[1]


def best_by_matrices(c, k):
    """Min-plus products, and the way back."""
    steps = len(c)
    full = np.full((steps + 1, steps + 1), np.inf)
    for i in range(steps):
        for length in range(1, c.shape[1]):
            if i + length <= steps:
                full[i, i + length] = c[i, length]
    reach = [np.where(np.arange(steps + 1) == 0, 0.0, np.inf)]
    for _ in range(k):
        reach.append((reach[-1][:, None] + full).min(axis=0))
    end, keys = steps, []
    for before in reversed(reach[:-1]):
        end = int((before + full[:, end]).argmin())
        keys.append(end)
    return torch.tensor(keys[::-1])


class BestByPaths:
    """A callable object; all cheapest paths are carried along."""

    def __call__(self, costs, count):
        paths = {0: (0.0, [])}
        for _ in range(count):
            longer = {}
            for at, (cost, keys) in paths.items():
                for n in range(1, min(costs.shape[1], len(costs) - at + 1)):
                    candidate = (cost + costs[at, n], [*keys, at])
                    if candidate[0] < longer.get(at + n, (np.inf,))[0]:
                        longer[at + n] = candidate
            paths = longer
        return np.array(paths[len(costs)][1])


def changes_in_a_loop(f):
    return [float(torch.linalg.vector_norm(b - a) / torch.linalg.vector_norm(a)) for a, b in pairwise(f)]


def changes_in_numpy(x):
    x = x.numpy().reshape(len(x), -1).astype(float)
    return np.sqrt(((x[1:] - x[:-1]) ** 2).sum(1) / (x[:-1] ** 2).sum(1))


VARIANTS = {
    "relative_change": [changes_in_a_loop, changes_in_numpy, lambda f: f.diff(dim=0).flatten(1).norm(dim=1) / f[:-1].flatten(1).norm(dim=1)],
    "collect_skips": [skips_by_handles, skips_by_layers, skips_from_the_decoder],
    "step_similarity": [
        lambda f: torch.cosine_similarity(f.flatten(1)[:, None], f.flatten(1)[None], dim=-1),
        lambda x: [[float((a * b).sum() / (a.norm() * b.norm())) for b in x] for a in x],
        lambda f: (lambda u: np.einsum("id,jd->ij", u, u))(f.flatten(1).double().div(f.flatten(1).double().norm(dim=1)[:, None]).numpy()),
    ],
    "key_of_each_step": [
        lambda n, k: [x for a, b in zip(k, [*k[1:], n], strict=True) for x in [a] * (b - a)],
        lambda steps, keys: np.asarray(keys)[np.searchsorted(keys, np.arange(steps), side="right") - 1],
        lambda a, b: torch.tensor([group.start for group in fl.KeySchedule(a, tuple(b)).groups() for _ in group]),
    ],
    "propagate": [propagate_in_two_calls, propagate_by_groups, propagate_in_numbers],
    "decode_group": [rows_each_repeated, rows_by_halves, rows_in_a_list],
    "flop_ceiling": [
        lambda e, d, r, n, k: 1 / (1 - (n - k) * e / (n * (e + d + r))),
        lambda encoder, decoder, rest, steps, keys: np.float64(encoder + decoder + rest) / (encoder * keys / steps + decoder + rest),
        lambda *x: torch.tensor(x[3] * sum(x[:3]), dtype=torch.float64) / (x[3] * sum(x[:3]) - (x[3] - x[4]) * x[0]),
    ],
    "schedule_cost": [
        lambda c, k: sum(c[a, b - a] for a, b in zip(k, [*k, len(c)][1:], strict=True)),
        lambda costs, keys: costs[keys, np.diff([*keys, len(costs)])].sum(),
        lambda c, k: torch.tensor([float(c[a][n]) for a, n in zip(k, np.diff(np.append(k, len(c))), strict=True)], dtype=torch.float64).sum(),
    ],
    "best_keys": [best_by_recursion, best_by_matrices, BestByPaths()],
    "extrapolate": [
        lambda a, b, s, t, x: torch.lerp(a, b, (x - s) / (t - s)),
        lambda before, last, i, j, k: before * ((j - k) / (j - i)) + last * ((k - i) / (j - i)),
        lambda p, q, i, j, k: (p.numpy() + (q.numpy() - p.numpy()) / (j - i) * (k - i)).tolist(),
    ],
}  # fmt: skip


@pytest.mark.parametrize(("name", "place"), [(name, place) for name in EXERCISES for place in range(3)])
def test_right_answers_written_another_way_pass_both(name, place):
    variant = VARIANTS[name][place]
    names_of(MASTERS[1], True)  # read before, so that the answer does not call what reads it
    if name in DEAR:
        report = check(name, variant, inputs=some_inputs(name, 4711, latter=True))
        assert report.passed, report
        return
    with modules_kept():  # the hidden test begins with the check
        hidden_test(name)(variant)


# ---- wrong answers


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


@FUNCTIONS
def test_the_hidden_test_catches_an_answer_that_knows_the_visible_inputs(name):
    planted = memorised(name)
    assert (report := check(name, planted, inputs=some_inputs(name, 0))).passed, report
    with modules_kept(), pytest.raises(AssertionError, match="NOT RIGHT YET"):
        hidden_test(name)(planted)


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
            unet, held = pipe.unet, None
            pipe.scheduler.set_timesteps(num_steps)
            for step, t in enumerate(pipe.scheduler.timesteps):
                now = encoded(unet, z, t, text) if every_step or fresh_bottleneck or step in keys else held
                held = now if step in keys else (held[0], now[1]) if fresh_bottleneck else held
                without, with_prompt = decoded(unet, *held, t, text).chunk(2)
                z = pipe.scheduler.step(without + guidance * (with_prompt - without), t, z).prev_sample
            return z

        return propagate

    inputs = some_inputs("propagate", 0)
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


def test_damping_without_a_line_is_refused():
    with pytest.raises(ValueError, match=r"damping=0\.2 asked with order 0, which holds features"):
        ContestEntry(fl.KeySchedule.uniform(50, 7), damping=0.2)


@FUNCTIONS
def test_the_library_may_not_answer(name):
    report = check(name, EXERCISES[name].expected, inputs=some_inputs(name, 0))
    assert not report.passed and "calls fastdiff_lab" in report.text, report


@pytest.mark.parametrize(("name", "place"), [(name, place) for name in EXERCISES for place in range(len(EXERCISES[name].mistakes))])
def test_known_mistakes_are_named(name, place, monkeypatch):
    monkeypatch.setattr("fastdiff_lab.exercises.checking.ALLOWED_CODE", ("",))  # mistakes are made of the library's functions
    sentence, mistake = list(EXERCISES[name].mistakes.items())[place]
    report = check(name, mistake, inputs=some_inputs(name, 0))
    assert not report.passed and f"perhaps: {sentence}" in report.text, report


def test_the_report_says_what_was_passed_found_and_expected():
    report = check("extrapolate", lambda before, last, *steps: last * 2)
    assert re.search(r"given: before=tensor \(3,\) = \[.*key_before=0, key_last=2, step=3\n  wrong value: found \[", repr(report))
    assert "expected [" in report.text and "largest difference" in report.text


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (lambda f: None, "nothing returned"),
        (lambda f: "0.5", "wrong type"),
        (lambda f: {1, "a"}, "wrong type"),
        (lambda f: torch.zeros(3).to_sparse(), "wrong type"),
        (lambda f: 1j * np.ones(4), "wrong type"),
        (lambda f: f[1:], "wrong shape"),
        (lambda f: torch.full((len(f) - 1,), torch.nan), "wrong value"),
        (lambda f: f.no_such_thing, "raised"),
        (lambda f, g: f, "raised"),
    ],
)
def test_what_is_wrong_has_a_name(given, kind):
    assert f"  {kind}: " in check("relative_change", given).text


def test_an_exception_is_shown_with_its_line_and_the_input():
    def broken(features):
        return features.norm(dim=7)  # here

    text = check("relative_change", broken).text
    assert "given: features=tensor (5, 4, 3, 3)" in text and "IndexError" in text and "return features.norm(dim=7)  # here" in text


def test_writing_into_an_input_is_told():
    def writes(features):
        right = changes_in_numpy(features.clone())
        features += 1
        return right

    assert "changed its input: the result is right, but your function wrote into features" in check("relative_change", writes).text


def test_a_stopped_answer_names_its_input():
    def endless(features):
        raise KeyboardInterrupt

    assert "1 interrupted" in check("relative_change", endless).text


def test_hooks_left_behind_are_told_and_taken_away():
    before = _hooks(pipeline().unet)

    def forgetful(unet, arguments):
        unet.conv_in.register_forward_hook(lambda *_: None)
        unet(**arguments)
        return []

    assert "left 1 hooks on the UNet" in check("collect_skips", forgetful).text
    show("collect_skips", forgetful)
    assert _hooks(pipeline().unet) == before


def test_a_value_instead_of_a_function_is_told():
    assert "hand over the function itself" in check("relative_change", torch.zeros(3)).text
    assert "A ContestEntry is wanted, found KeySchedule" in check("contest", fl.KeySchedule.uniform(50, 7)).text


def test_unknown_exercises_are_refused():
    for asked in (check, show):
        with pytest.raises(ValueError, match="no exercise is called 'skips'; there are: relative_change"):
            asked("skips", None)


def test_rows_that_do_not_fit_are_told():
    text = check("decode_group", lambda decode, f, text, t, g: decode(f, text, t)).text
    assert "decode got [2, 2, 2] rows of features, 2 of text and 4 time-steps; accepted: as many of each" in text


def test_any_cheapest_schedule_is_right():
    costs = np.zeros((6, 7))
    exercise = EXERCISES["best_keys"]
    for keys in ([0, 1, 2], [0, 4, 5], (0, 2, 4)):
        assert verdict(exercise, lambda c, k, keys=keys: keys, (costs, 3)).is_right
    for keys, said in (([0, 1], "2 keys"), ([1, 2, 3], "must be a key"), ([0, 2.5, 3], "3 keys"), ([0, 0, 1], "stands twice")):
        found = verdict(exercise, lambda c, k, keys=keys: keys, (costs, 3))
        assert not found.is_right and said in found.reason


# ---- values


def test_numbers_are_read_from_any_wrapping():
    for wrapped in (
        [1, 2],
        (1.0, 2),
        torch.tensor([1, 2]),
        np.array([1, 2]),
        range(1, 3),
        {"a": 1, "b": 2},
        {1, 2},
        [torch.tensor(1), 2],
    ):
        assert as_arrays(wrapped).tolist() == [1.0, 2.0]
    assert [part.shape for part in as_arrays([torch.zeros(2), torch.zeros(3, 1)])] == [(2,), (3, 1)]
    assert as_arrays("text") is None and as_arrays([None]) is None and as_arrays(object()) is None


def test_copies_are_equal_and_independent():
    given = (torch.zeros(2), [np.zeros(1), {"a": torch.ones(1)}], 3)
    copied = own_copy(given)
    assert same(copied, given)
    copied[1][1]["a"] += 1
    assert not same(copied, given)
    assert described([torch.zeros(2, 3), torch.zeros(1)]) == "list of 2: tensor (2, 3), tensor (1,) = [0]"


def test_nearness_tells_exact_from_close():
    assert nearness([1.0, np.inf], [1.0, np.inf]).kind == "exact"
    assert nearness([1.0 + 1e-6, np.inf], [1.0, np.inf]).kind == "close"
    assert nearness([1.0 + 1e-6], [1.0]).kind == "close" and nearness([1.1], [1.0]).kind == "wrong value"


# ---- pictures


@FUNCTIONS
def test_answers_are_drawn_with_words_for_those_who_do_not_see(name):
    assert show(name, answer(name)).data.startswith('<img alt="')


@FUNCTIONS
def test_what_cannot_be_drawn_is_told(name):
    told = show(name, lambda *given: "<b>").data
    assert told.startswith("<p>Nothing to draw yet: ") and "<b>" not in told


# ---- the contest


def test_an_entry_survives_its_file(tmp_path):
    entry = ContestEntry(fl.KeySchedule.uniform(50, 7), order=1, damping=0.25, axis="log_snr", parts="skips", prior_noise=0.003)
    entry.save(tmp_path / "entry.json")
    assert ContestEntry.load(tmp_path / "entry.json") == entry == ContestEntry.from_json(entry.to_json())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schedule": "0-7 of 50"}, "at most 7 encoder calls; 0-7 of 50 has 50 steps and makes 8 calls"),
        ({"schedule": "0-5 of 20"}, "has 20 steps"),
        ({"schedule": 3}, "cannot read '3' as a key schedule"),
        ({"order": 1.0}, "order='1.0' given; accepted: 0, 1 or 2"),
        ({"order": 3}, "`order` must be an int from 0 to 2, got 3"),
        ({"prior_noise": float("nan")}, "prior_noise=nan asked; accepted: a number from 0 to 1"),
        ({"picture": "cached.png"}, "accepted: schedule, and of"),
        ({"version": 2}, "has version '2'"),
        ({"schema": "x"}, "is no fastdiff_lab.ContestEntry"),
    ],
)
def test_broken_entries_are_refused_and_do_not_stop_the_others(tmp_path, change, said):
    good = ContestEntry(fl.KeySchedule.uniform(50, 7))
    good.save(tmp_path / "good.json")
    (tmp_path / "bad\x1b[2J.json").write_text(json.dumps({**json.loads(good.to_json()), **change}))
    entries, refused = contest.read_entries(tmp_path)
    assert entries == {"good": good} and said in refused["bad?[2J"] and "\x1b" not in refused["bad?[2J"]


def test_the_hidden_test_of_the_contest_reads_what_is_handed_in_and_nothing_else():
    class Forged:
        """Seven keys to look at, eight to draw with."""

        schedule = fl.KeySchedule.uniform(50, 7)

        def to_json(self):
            good = json.loads(ContestEntry(self.schedule).to_json())
            return json.dumps({**good, "schedule": "0-7 of 50"})

        def arm(self):
            return fl.Arm()

    assert "A ContestEntry is wanted" in check("contest", Forged()).text
    with modules_kept(), pytest.raises(ValueError, match="makes 8 calls"):
        hidden_test("contest")(Forged())


def test_a_schedule_must_be_a_schedule():
    with pytest.raises(TypeError, match=r"schedule='\[0, 7\]' given; accepted: a KeySchedule of 50 steps"):
        ContestEntry([0, 7])


def test_captions_follow_from_the_seed():
    one, same_again, other = (contest.drawn_tasks(seed, 5) for seed in (3, 3, 4))
    assert one == same_again != other and len(dict(one)) == 5


def costs_of(steps: int) -> ReuseCosts:
    """Made-up costs of reuse."""
    displacement = torch.rand(1, 1, steps, steps + 1, generator=torch.Generator().manual_seed(0))
    return ReuseCosts(displacement, (0,), torch.ones(1, steps + 1), {"order": 0})


def test_the_leaderboard_counts_what_the_library_evaluates(monkeypatch):
    monkeypatch.setattr(contest, "NUM_STEPS", 20)
    monkeypatch.setattr(contest, "embedded_costs", lambda: costs_of(20))
    entries = {
        "early": ContestEntry(fl.KeySchedule(20, (0, 1, 2, 3, 4, 5, 6))),
        "few": ContestEntry(fl.KeySchedule(20, (0, 8)), order=1),
    }
    board = contest.leaderboard(entries, seed=5, pictures=1, pipe=ROWS["sd"].build()).set_index("entry")
    assert board["encoder_calls"].to_dict() == {"early": 7, "few": 2, **dict.fromkeys(contest.well_known(), 7)}
    assert (board["decoder_calls"] == 20).all() and board["score"].is_monotonic_decreasing
    assert board["handed in"].to_dict() == {name: name in entries for name in board.index}
    assert board["score"].between(0, contest.BEST_PSNR).all()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: contest.leaderboard({}, seed=-1), "seed=-1 asked; accepted: a whole number of 0 or more"),
        (lambda: contest.leaderboard({}, seed=1, pictures=0), "pictures=0 asked; accepted: a whole number of 1 or more"),
        (lambda: contest.leaderboard({"derived": ContestEntry(fl.KeySchedule(50, (0,)))}, seed=1), "an entry is called 'derived'"),
    ],
)
def test_what_the_leaderboard_refuses(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_a_folder_without_entries_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no entries in"):
        contest.read_entries(tmp_path)


@pytest.mark.long
def test_the_check_of_the_contest_passes_what_is_no_worse_than_the_weakest(monkeypatch):
    monkeypatch.setattr(contest, "PRACTICE", 1)
    contest.practice.cache_clear()
    assert check("contest", answer("contest")).passed
    assert not check("contest", answer("contest", solved=False)).passed
    derived = fl.derive_schedule(fl.embedded_costs(), 7)
    variants = [  # the schedules beside it, written another way
        ContestEntry(fl.KeySchedule(50, (0, 7, 14, 21, 29, 36, 43))),
        ContestEntry(fl.KeySchedule.parse(str(derived)), order=1, damping=0),
        ContestEntry.from_json(ContestEntry(fl.KeySchedule.paper(20).rescaled(50)).to_json()),
    ]
    for entry in variants:
        assert check("contest", entry).passed, check("contest", entry)
    assert show("contest", answer("contest")).data.startswith('<img alt="Pictures of')
    contest.practice.cache_clear()


# ---- the sheets


def test_every_exercise_stands_in_a_master_and_each_is_complete():
    masters = [read_master(path) for path in MASTERS]
    assert [question.name for master in masters for question in questions(master)] == [*list(EXERCISES), contest.NAME]
    for master in masters:
        texts = [
            cell.source
            for cell in master.cells
            if cell.cell_type == "markdown" and cell.source.startswith("## ") and "Difficulty" in cell.source
        ]
        assert len(texts) == len(questions(master))
        for text in texts:
            assert re.search(r"Difficulty [●○]{5} · importance [●○]{5} · \d+ minutes · \d points?", text) and "**Goal**: " in text
        for question in questions(master):
            assert len(question.solutions) == len(question.tests) == 1 and "hidden: true" in question.tests[0]


@SHEETS
def test_student_and_solution_notebooks_are_those_of_the_master(path):
    master = read_master(path)
    assert (FOLDER / f"{path.stem}.ipynb").read_text() == nbformat.writes(student(master)) + "\n"
    committed = nbformat.read(FOLDER / "solutions" / f"{path.stem}.ipynb", as_version=4)
    assert [(c.id, c.cell_type, c.source) for c in committed.cells] == [
        (c.id, c.cell_type, c.source) for c in solution(master).cells
    ]


@SHEETS
def test_students_see_no_answer_but_folded_and_no_hidden_test(path):
    notebook = student(read_master(path))
    nbformat.validate(notebook)
    text = nbformat.writes(notebook)
    assert "SOLUTION" not in text and "GRADING_SEED" not in text and "BEGIN" not in text and "PROMPT" not in text
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    for question in questions(read_master(path)):
        assert question.prompts[0] in code and question.solutions[0] not in code
        folded = [cell.source for cell in notebook.cells if question.solutions[0] in cell.source]
        assert len(folded) == 1 and folded[0].startswith("<details>\n<summary>Answer</summary>")
    hints = [cell for cell in notebook.cells if cell.source.startswith("<details>\n<summary>Hint</summary>")]
    assert len(hints) == len(questions(read_master(path)))


@SHEETS
def test_committed_solutions_ran_and_all_their_checks_say_right(path):
    notebook = nbformat.read(FOLDER / "solutions" / f"{path.stem}.ipynb", as_version=4)
    nbformat.validate(notebook)
    outputs = {cell.source: cell.outputs for cell in notebook.cells if cell.cell_type == "code"}
    said = [output.data["text/plain"] for source, found in outputs.items() if source.startswith("check(") for output in found]
    assert len(said) == len(questions(read_master(path))) and all(": right. " in text for text in said)
    drawn = [output.data["text/html"] for source, found in outputs.items() if source.startswith("show(") for output in found]
    assert len(drawn) == len(said) and all(text.startswith('<img alt="') for text in drawn)
    assert all(output.get("name") != "stderr" for found in outputs.values() for output in found)
    assert sum("load_pipeline(" in source for source in outputs) == 1


def test_regions_become_gaps_or_prompts():
    cell = "def f():\n    # BEGIN SOLUTION\n    return 1\n    # END SOLUTION"
    assert without_solution(cell) == "def f():\n    ..." and with_solution(cell) == "def f():\n    return 1"
    prompted = '# BEGIN SOLUTION NO PROMPT\nx = 1\n# END SOLUTION\n""" # BEGIN PROMPT\nx = 0\n""" # END PROMPT'
    assert without_solution(prompted) == "x = 0" and with_solution(prompted) == "x = 1"


def test_masters_must_be_there_and_closed(tmp_path):
    with pytest.raises(FileNotFoundError, match="no masters in"):
        generate(tmp_path)
    (tmp_path / "open.py").write_text("# %% [raw]\n# # BEGIN QUESTION\n# name: a\n# points: 1\n\n# %%\n1\n")
    with pytest.raises(ValueError, match=r"open.py: a block of the master is not closed; accepted: an END cell"):
        read_master(tmp_path / "open.py")


def test_names_agree():
    assert list(NAMES) == [*EXERCISES, "contest"] and set(VARIANTS) == set(EXERCISES)
    assert cost_of(np.arange(12.0).reshape(3, 4), [0, 1]) == 1 + 6
    assert partial(check, "extrapolate")(answer("extrapolate")).passed
