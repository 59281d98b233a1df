"""What users hand over: options of the pipeline, prompts and seeds of any kind, files of prompts."""

from __future__ import annotations

import itertools
import re

import numpy as np
import pandas as pd
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from models import state
from PIL import Image
from short_suite import long_but
from systems import ROWS, options_of

import fastdiff_lab as fl
from fastdiff_lab import KeySchedule, Method
from fastdiff_lab.calibration.refine import refine_derived
from fastdiff_lab.cli.parsing import prompt_lines
from fastdiff_lab.comparison import render
from fastdiff_lab.inputs.plain_values import choice, is_whole, listed, number, prompts_of, seeds_of, whole_number
from fastdiff_lab.sampling.methods import generators, sample
from fastdiff_lab.sampling.run_settings import RunSettings

TEXTS = ["a red circle", "a white ring", "a small black star"]
NEGATIVES = ["a large green cross", "a blue ring", "a white square"]
SIZE = {"height": 16, "width": 16}
SCHEDULE = KeySchedule(6, (0, 2, 4))
TIMES = [950, 800, 600, 400, 200, 50]
SIGMAS = [14.0, 6.0, 3.0, 1.5, 0.7, 0.2, 0.0]


def built():
    pipe = ROWS["sd"].build()
    pipe("a red circle", num_inference_steps=1, output_type="latent")  # a pipeline remembers its last call
    return pipe


@pytest.fixture(scope="module")
def pipe():
    """One for all tests, which leave it as it was: its operations and bytes are counted once."""
    with torch.no_grad():
        return built()


@pytest.fixture(scope="module")
def euler():
    with torch.no_grad():
        pipe = built()
    pipe.scheduler = EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    return pipe


def compare(pipe, prompts=TEXTS, **options):
    given = {"num_inference_steps": 6, "repeats": 0, "rivals": False} | options
    return fl.compare(pipe, {"mine": SCHEDULE}, prompts, **given).set_index("method")


def images(pipe, prompts=TEXTS, **options):
    return fl.compare_images(pipe, {"mine": SCHEDULE}, prompts, **{"num_inference_steps": 6, "rivals": False} | options)


def calibrate(pipe, prompts=TEXTS, **options):
    return fl.calibrate(pipe, prompts, **{"num_inference_steps": 6, "max_span": 2} | options)


def refine(pipe, prompts=TEXTS, **options):
    return fl.refine_schedule(pipe, SCHEDULE, prompts, **{"num_inference_steps": 6, "runs": 1} | options)


WAYS = {"compare": compare, "compare_images": images, "calibrate": calibrate, "refine_schedule": refine}


@pytest.mark.parametrize("way", WAYS)
def test_options_that_are_refused_alike(way, pipe):
    for options, message in (
        ({"guidance_scale": 9}, "pipe_kwargs with guidance_scale given; accepted: arguments of the pipeline that"),
        ({"generator": torch.Generator()}, "pipe_kwargs with generator given"),
        ({"generator": None}, "pipe_kwargs with generator given"),
        ({"num_inference_steps": 9}, "pipe_kwargs with num_inference_steps given"),
        ({"output_type": "pil", "return_dict": False}, "pipe_kwargs with output_type, return_dict given"),
        ({"prompt": "a red ring"}, "pipe_kwargs with prompt given"),
        (
            {"num_images_per_prompt": 2},
            "pipe_kwargs with num_images_per_prompt=2 given; accepted: one image for each prompt and seed",
        ),
        ({"hight": 64}, "pipe_kwargs with hight given, which StableDiffusionPipeline does not take; accepted: prompt, height"),
        (
            {"negative_prompt": NEGATIVES[:2]},
            "pipe_kwargs with negative_prompt of 2 entries given for 3 prompts; accepted: one for all, or",
        ),
        ({"negative_prompt": pd.Series(NEGATIVES[:1])}, "pipe_kwargs with negative_prompt of 1 entries given for 3 prompts"),
        ({"latents": torch.zeros(2, 4, 8, 8)}, "pipe_kwargs with latents of 2 entries given for 3 prompts"),
        (
            {"timesteps": TIMES},
            "pipe_kwargs with timesteps given, which DDIMScheduler does not take; accepted: none, or a scheduler",
        ),
        ({"sigmas": SIGMAS}, "pipe_kwargs with sigmas given, which DDIMScheduler does not take"),
    ):
        with pytest.raises(ValueError, match=message):
            WAYS[way](pipe, pipe_kwargs=options)
    with pytest.raises(TypeError, match="given among the pipeline's arguments; accepted: texts, numbers"):
        WAYS[way](pipe, pipe_kwargs={"callback_on_step_end": print})


def latents_drawn(monkeypatch, pipe, prompts, **options) -> torch.Tensor:
    """The latents of the baseline, in the order of the prompts, as `compare` drew them."""
    found = {}
    run = render._run

    def kept(pipe, method, tasks, keys, given):
        results = run(pipe, method, tasks, keys, given)
        found.update(
            {task.seed * 100 + prompts.index(task.prompt): results[key].latent for task, key in zip(tasks, keys, strict=True)}
        )
        return results

    with monkeypatch.context() as patched:
        patched.setattr(render, "_run", kept)
        fl.compare_images(pipe, {}, prompts, num_inference_steps=2, rivals=False, **options)
    return torch.stack([found[place] for place in sorted(found)])


def alone(pipe, **call) -> torch.Tensor:
    return pipe(**call, num_inference_steps=2, output_type="latent", generator=generators([0]))[0]


@pytest.fixture(scope="module")
def drawn_alone():
    """Without a negative prompt, with the first for all, and with one for each."""
    pipe = ROWS["sd"].build()
    with torch.no_grad():
        return [
            torch.cat([alone(pipe, prompt=prompt, **SIZE, **given) for prompt, given in zip(TEXTS, options, strict=True)])
            for options in ([{}] * 3, [{"negative_prompt": NEGATIVES[0]}] * 3, [{"negative_prompt": n} for n in NEGATIVES])
        ]


@pytest.mark.parametrize(("kind", "batch_size"), long_but([(pd.Series, 2)], [(str, 2), (list, 1), (tuple, 3), (pd.Series, 2)]))
def test_a_negative_prompt_for_all_or_for_each(kind, batch_size, pipe, drawn_alone, monkeypatch):
    given = NEGATIVES[0] if kind is str else kind(NEGATIVES)
    without, for_all, for_each = drawn_alone
    expected = for_all if kind is str else for_each
    found = latents_drawn(monkeypatch, pipe, TEXTS, pipe_kwargs=SIZE | {"negative_prompt": given}, batch_size=batch_size)
    assert torch.allclose(found, expected, atol=1e-9)
    assert not torch.allclose(expected, without, atol=1e-3)


ALL_OR_EACH = [
    ("controlnet", "image", False, 1), ("controlnet", "image", True, 2), ("sd-img2img", "image", False, 2), ("sd-img2img", "image", True, 1),
    ("sd", "latents", False, 1), ("sd", "latents", True, 2),
]  # fmt: skip
FEW_OF_THEM = [("controlnet", "image", True, 2)]


@pytest.mark.parametrize(("name", "option", "each", "batch_size"), long_but(FEW_OF_THEM, ALL_OR_EACH))
def test_images_for_all_or_for_each(name, option, each, batch_size, monkeypatch):
    pipe, given = ROWS[name].build(), {key: value for key, value in options_of(name).items() if key != "output_type"}
    shape = (1, 4, 8, 8) if option == "latents" else (1, 3, 16, 16)
    values = [torch.rand(shape, generator=torch.Generator().manual_seed(place), dtype=torch.float64) for place in range(2)]
    values = values if each else values[:1] * 2
    calls = [{"prompt": prompt, **given, option: value} for prompt, value in zip(TEXTS, values, strict=False)]
    expected = torch.cat([alone(pipe, **call) for call in calls])
    for handed in (torch.cat(values) if each else values[0], *([values] if each and option == "image" else [])):
        found = latents_drawn(monkeypatch, pipe, TEXTS[:2], pipe_kwargs=given | {option: handed}, batch_size=batch_size)
        assert torch.allclose(found, expected, atol=1e-9)


@pytest.mark.long
def test_an_image_prompt_is_alike_for_all(monkeypatch):
    pipe = ROWS["ip-adapter"].build()
    call = {"ip_adapter_image": torch.rand(1, 3, 16, 16, dtype=torch.float64), **SIZE}
    expected = torch.cat([alone(pipe, prompt=prompt, **call) for prompt in TEXTS[:2]])
    assert torch.allclose(latents_drawn(monkeypatch, pipe, TEXTS[:2], pipe_kwargs=call), expected, atol=1e-9)


@pytest.mark.long
def test_calibration_with_options_for_each(pipe):
    few = {"num_inference_steps": 3}
    together = calibrate(pipe, TEXTS[:2], seeds=[3, 4], pipe_kwargs=SIZE | {"negative_prompt": NEGATIVES[:2]}, batch_size=2, **few)
    for place in range(2):
        one = calibrate(pipe, [TEXTS[place]], seeds=[3 + place], pipe_kwargs=SIZE | {"negative_prompt": NEGATIVES[place]}, **few)
        assert torch.allclose(one.displacement[0], together.displacement[place], rtol=1e-4, atol=1e-7, equal_nan=True)
        assert torch.allclose(one.sensitivity[0], together.sensitivity[place], rtol=1e-3, atol=1e-6)


def test_refinement_wants_the_options_of_its_costs(pipe):
    options = SIZE | {"negative_prompt": tuple(NEGATIVES[:2])}
    costs = calibrate(pipe, TEXTS[:2], pipe_kwargs=options, num_inference_steps=3)
    schedule = fl.derive_schedule(costs, 2)
    assert len(refine_derived(pipe, costs, schedule, images=1, runs=2, pipe_kwargs=options).keys) == 2
    for other in (None, SIZE):
        with pytest.raises(ValueError, match="the costs were measured with pipe_kwargs .*, refinement is asked with"):
            refine_derived(pipe, costs, schedule, pipe_kwargs=other)


@pytest.mark.parametrize(("name", "values"), long_but([("timesteps", TIMES)], [("timesteps", TIMES), ("sigmas", SIGMAS)]))
def test_time_steps_stay_with_the_runs_that_they_are_for(name, values, euler):
    table = compare(euler, TEXTS[:1], rivals=True, reference_steps=8, pipe_kwargs=SIZE | {name: np.array(values)})
    assert table["forward_calls"].to_dict() == {
        "baseline": 6, "uniform 3": 3, "fewer steps (3)": 3, "mine, prediction reused": 3, "mine": 3,
    }  # fmt: skip
    assert np.isfinite(table.loc["fewer steps (3)", "psnr"]) and np.isfinite(table["reference_psnr"]).all()
    sample(euler, Method(), TEXTS[:1], [0], num_inference_steps=6, pipe_kwargs=SIZE | {name: values})
    first = float(euler.scheduler.timesteps[0])
    seen = []
    handle = euler.unet.register_forward_pre_hook(lambda module, args: seen.append(float(args[1])))
    sample(euler, Method(steps=3), TEXTS[:1], [0], num_inference_steps=6, pipe_kwargs=SIZE | {name: values})
    handle.remove()
    assert len(seen) == 3 and seen[0] == pytest.approx(first, abs=1) and min(seen) >= 0


def test_the_number_of_calls_follows_the_time_steps(euler):
    eight = [950, 900, 800, 700, 600, 400, 200, 50]
    assert RunSettings(6, pipe_kwargs={"timesteps": eight}).denoiser_calls(euler) == 8
    costs = calibrate(euler, TEXTS[:1], pipe_kwargs=SIZE | {"timesteps": eight})
    assert costs.num_steps == 8 and costs.measured_on["time_steps"] == "950,900,800,700,600,400,200,50"
    with pytest.raises(ValueError, match=r"the schedule is for 6 steps, the run makes 8; use schedule.rescaled\(8\)"):
        refine(euler, TEXTS[:1], pipe_kwargs=SIZE | {"timesteps": eight})


def test_schedules_say_which_time_steps_they_were_measured_on(euler, recwarn, tmp_path):
    given, own = (
        fl.derive_schedule(calibrate(euler, TEXTS[:1], pipe_kwargs=options), 3) for options in (SIZE | {"timesteps": TIMES}, SIZE)
    )
    given.save(tmp_path / "schedule.json")

    def use(schedule, **options):
        with fl.encoder_propagation(euler, schedule):
            euler(TEXTS[0], num_inference_steps=6, output_type="latent", **SIZE, **options)

    use(given, timesteps=TIMES)
    use(own)
    assert not [told for told in recwarn if "measured" in str(told.message)]
    for schedule, options in ((KeySchedule.load(tmp_path / "schedule.json"), {}), (own, {"timesteps": TIMES})):
        with pytest.warns(
            UserWarning, match="this schedule was measured on time-steps .*, this run has .*; its keys need not be good here"
        ):
            use(schedule, **options)


PROMPTS = {
    "list": list, "tuple": tuple, "array": np.array, "array of objects": lambda texts: np.array(texts, object), "column": pd.Series,
    "filtered column": lambda texts: pd.Series(["a grey dog", *texts], index=[7, 8, 9]).iloc[1:], "generator": iter,
    "texts of numpy": lambda texts: [np.str_(text) for text in texts],
}  # fmt: skip
SEEDS = {
    "list": list, "range": lambda seeds: range(len(seeds)), "array": np.array, "column": pd.Series, "tensor": torch.tensor, "generator": iter,
    "numbers of numpy": lambda seeds: [np.int64(seed) for seed in seeds],
}  # fmt: skip


FEW = {"num_inference_steps": 3, "pipe_kwargs": SIZE}


def test_the_pipelines_own_guidance_scale_is_stored(pipe):
    """Stable Diffusion's is 7.5, and nothing warns where its runs have it too."""
    costs = fl.calibrate(pipe, TEXTS[:1], **FEW)
    assert costs.measured_on["guidance_scale"] == 7.5
    with fl.encoder_propagation(pipe, fl.derive_schedule(costs, 3)):
        pipe(TEXTS[0], num_inference_steps=3, output_type="latent", **SIZE)


@pytest.mark.parametrize("prompts", ["generator", "filtered column"])
def test_refinement_takes_prompts_of_every_kind(prompts, pipe):
    """As comparison and calibration do, below: what can be read once only is read once."""
    schedule = fl.refine_schedule(pipe, KeySchedule(3, (0,)), PROMPTS[prompts](TEXTS[:2]), runs=1, **FEW)
    assert schedule.keys == (0,)


def test_prompts_and_seeds_of_all_kinds_are_the_same_texts_and_numbers():
    for kind, prompts in PROMPTS.items():
        given = prompts_of(prompts(TEXTS[:2]))
        assert given == TEXTS[:2] and all(type(prompt) is str for prompt in given), kind
    for kind, seeds in SEEDS.items():
        numbers = seeds_of(seeds([0, 1]), least=0)
        assert list(numbers) == [0, 1] and all(type(seed) is int for seed in numbers), kind


TOGETHER = list(zip(PROMPTS, [*SEEDS, "list"], strict=True))
FEW_TOGETHER = [("list", "list"), ("filtered column", "column"), ("generator", "tensor")]


@pytest.mark.filterwarnings("ignore:.* keeps something from call to call")
@pytest.mark.parametrize("together", [FEW_TOGETHER, pytest.param(TOGETHER, marks=pytest.mark.long)], ids=len)
def test_prompts_and_seeds_of_all_kinds_are_the_same_images_and_costs(together, pipe, tmp_path):
    """The first kind is drawn and measured; what the others ask for is found in the stores."""
    kept, file = tmp_path / "kept.sqlite", tmp_path / "costs.safetensors"
    called = []
    handle = pipe.unet.register_forward_pre_hook(lambda module, args: called.append(1))
    for kind, other in together:
        prompts, seeds = PROMPTS[kind], SEEDS[other]
        called.clear()
        table = fl.compare_images(pipe, {}, prompts(TEXTS[:2]), seeds=seeds([0, 1]), rivals=False, store=kept, **FEW)
        assert table["prompt"].unique().tolist() == TEXTS[:2] and table["seed"].unique().tolist() == [0, 1], kind
        assert all(type(prompt) is str for prompt in table["prompt"]), kind
        about = calibrate(pipe, prompts(TEXTS[:2]), seeds=seeds([0, 1]), store=file, **FEW).about
        assert about["prompts"] == TEXTS[:2] and about["seeds"] == [0, 1], kind
        assert kind == "list" or len(called) <= 3, kind  # not the 12 calls of four images
    handle.remove()


@pytest.mark.long
def test_numbers_of_every_kind(pipe, tmp_path):
    kinds = itertools.cycle([np.int64, torch.tensor])

    def kind(value: int):
        return next(kinds)(value)

    steps, file = kind(6), tmp_path / "costs.safetensors"
    options = {"max_span": kind(2), "batch_size": kind(1), "order": kind(1), "guidance_scale": np.float32(7.1), "pipe_kwargs": SIZE}
    costs = calibrate(pipe, TEXTS[:1], num_inference_steps=kind(4), **options)
    costs.save(file)
    assert costs.measured_on["guidance_scale"] == 7.1 and type(costs.measured_on["num_inference_steps"]) is int
    fl.derive_schedule(costs, kind(2)).save(tmp_path / "schedule.json")
    store = {"pipe_kwargs": SIZE, "store": tmp_path / "kept.sqlite"}
    plain = compare(pipe, TEXTS[:1], guidance_scale=5, **store)
    found = compare(
        pipe, TEXTS[:1], num_inference_steps=steps, repeats=kind(0), batch_size=kind(2), guidance_scale=np.float64(5), **store
    )
    pd.testing.assert_frame_equal(found, plain)
    assert Method(steps=kind(3), prior_noise=np.float32(0)).about() == Method(steps=3).about()
    assert KeySchedule(steps, np.array([0, 2])) == KeySchedule(6, (0, 2)) and KeySchedule.uniform(steps, kind(2)).to_json()


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        ("a red ring", "prompts='a red ring' given; accepted: a list of texts, such as \\['a red ring'\\]"),
        (b"a red ring", "prompts=b'a red ring' given"),
        (3, "prompts of type int given; accepted: a list of texts"),
        ({"a red ring", "a star"}, "prompts of type set given"),
        ({"prompt": "a red ring"}, "prompts of type dict given"),
        (
            pd.DataFrame({"prompt": TEXTS}),
            "prompts of type DataFrame given; accepted: a list of texts .or a tuple, array, column of a table",
        ),
        (np.array("a red ring"), "prompts of type ndarray given"),
        (Image.new("RGB", (4, 4)), "prompts of type Image given"),
        ([["a red ring"]], r"prompt \['a red ring'\] given to StableDiffusionPipeline"),
        (["a red ring", float("nan")], "prompt nan given"),
        (["a red ring", None], "prompt None given"),
    ],
)
def test_prompts_that_are_none(prompts, message, pipe):
    for way in WAYS.values():
        with pytest.raises(TypeError, match=message):
            way(pipe, prompts)


def test_prompts_that_are_empty(pipe):
    for way in WAYS.values():
        for none in ([], np.array([]), iter([])):
            with pytest.raises(ValueError, match="0 prompts given; accepted: a list of one or more"):
                way(pipe, none)


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (3, TypeError, "seeds of type int given; accepted: a list of whole numbers"),
        ("01", TypeError, "seeds='01' given"),
        ({0, 1}, TypeError, "seeds of type set given"),
        ([0, 1.0], ValueError, "seed=1.0 asked; accepted: a whole number from"),
        (np.array([0.0]), ValueError, "seed=0.0 asked"),
        ([True], ValueError, "seed=True asked"),
        ([None], ValueError, "seed=None asked"),
        ([-1], ValueError, "seed=-1 asked; accepted: a whole number from 0 to"),
        ([], ValueError, "0 seeds given; accepted: a list of one or more"),
    ],
)
def test_seeds_that_are_none(given, error, message):
    with pytest.raises(error, match=message):
        seeds_of(given, least=0)


def test_numbers_that_are_none():
    wrong = (True, np.bool_(True), torch.tensor(True), 5.0, np.float64(5), "5", None, np.array([1, 2]))
    assert not any(map(is_whole, wrong)) and all(map(is_whole, (5, np.uint8(5), torch.tensor(5), np.array(5))))
    for given in (True, "5", None, float("nan"), np.float32("inf"), 1j, np.array([1.0, 2.0]), torch.ones(2)):
        with pytest.raises(ValueError, match="scale=.* asked; accepted: a finite number"):
            number("scale", given)
    assert [number("scale", given) for given in (5, np.float32(7.1), np.float16(0.1), torch.tensor(2.5), np.int8(3))] == [
        5,
        7.1,
        0.1,
        2.5,
        3,
    ]
    with pytest.raises(ValueError, match="`batch_size` must be a positive int, got 0"):
        whole_number("batch_size", np.int64(0), 1)
    assert listed("keys", pd.Series([1, 2], index=[5, 6]), "numbers") == [1, 2] and prompts_of(np.array(["a"])) == ["a"]


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (0, {"least": 1}, "`rows` must be a positive int, got 0"),
        (0, {"least": 1, "also": " or None"}, "`rows` must be a positive int or None, got 0"),
        (np.int64(1), {"least": 2}, "`rows` must be an int of 2 or more, got 1"),
        (9, {"least": 0, "most": 8}, "`rows` must be an int from 0 to 8, got 9"),
        (True, {"least": 1}, "got True"),
        (2.0, {"least": 1}, "got 2.0"),
        ("2", {"least": 1}, "got '2'"),
        (None, {"least": 1}, "got None"),
    ],
)
def test_arguments_that_are_no_whole_number(given, options, message):
    with pytest.raises(ValueError, match=message):
        whole_number("rows", given, **options)
    assert whole_number("rows", torch.tensor(8), 1, 8) == 8


@pytest.mark.parametrize("given", [-0.1, 1.5, float("nan"), True, "half", None])
def test_arguments_that_are_no_number_of_a_range(given):
    with pytest.raises(ValueError, match=re.escape(f"`weight` must be a number from 0 to 1, got {given!r}")):
        number("weight", given, 0, 1)
    assert number("weight", np.float32(0.1), 0, 1) == 0.1


@pytest.mark.parametrize("given", ["c", 1, True, None, ["a"], np.array(["a", "b"])])
def test_arguments_that_are_no_choice(given):
    with pytest.raises(ValueError, match="`way` must be one of a, b, 2, got "):
        choice("way", given, ("a", "b", 2))
    assert choice("way", np.str_("b"), ("a", "b")) == "b" and choice("way", np.int64(2), (1, 2)) == 2


def test_nothing_is_left_behind_by_what_is_refused(pipe):
    before = state(pipe)
    for way in WAYS.values():
        with pytest.raises(ValueError):
            way(pipe, pipe_kwargs={"negative_prompt": NEGATIVES[:2]})
    assert state(pipe) == before


LINES = ["a red\u2028ring", "a white\x85star", "a green\x0bcross\x0c", "a \u2029 b", "c"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_files_of_prompts(tmp_path, end, mark):
    file = tmp_path / "prompts.txt"
    file.write_bytes((mark + end.join([LINES[0], "", " \t ", *LINES[1:]]) + end).encode())
    assert prompt_lines(file, 1) == LINES


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp1252"])
def test_files_of_prompts_that_are_not_in_utf_8(tmp_path, encoding):
    file = tmp_path / "prompts.txt"
    file.write_bytes("un café rouge\nein grüner Stern\n".encode(encoding))
    with pytest.raises(
        ValueError, match=r"prompts.txt is not written in UTF-8; accepted: a text file with a prompt per line, saved as"
    ):
        prompt_lines(file, 1)
