"""compare: the honest table, its store, and what happens when it is killed."""

from __future__ import annotations

import os
import signal
import sqlite3
import threading
import time

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from short_suite import long_but
from systems import ROWS

import fastdiff_lab as fl
from fastdiff_lab import Method
from fastdiff_lab.comparison import compare, render
from fastdiff_lab.comparison.compare import compare_tasks, summarised
from fastdiff_lab.comparison.fidelity import fidelity, interval, mean_psnr
from fastdiff_lab.comparison.result_store import Result, Store
from fastdiff_lab.sampling.methods import sample
from fastdiff_lab.sampling.run_settings import RunSettings
from fastdiff_lab.shapes.data import held_out_scenes

PROMPTS = [scene.caption() for scene in held_out_scenes(2, objects=1)]
OPTIONS = {"num_inference_steps": 6, "pipe_kwargs": {"height": 32, "width": 32}}
CALLS = ["encoder_calls", "decoder_calls", "forward_calls"]


@pytest.fixture(scope="module")
def pipe():
    """A tiny one: what stands in the tables does not depend on it."""
    return ROWS["sd"].build()


@pytest.fixture(scope="module")
def methods():
    mine = fl.KeySchedule(6, [0, 1, 2, 3, 5])
    return {"mine": mine, "every step": fl.KeySchedule(6, range(6)), "prediction": Method(mine, reuse="prediction")}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store") / "kept.sqlite"


@pytest.fixture(scope="module")
def table(pipe, methods, store):
    with torch.no_grad():
        return fl.compare(pipe, methods, PROMPTS, repeats=1, reference_steps=12, store=store, **OPTIONS).set_index("method")


@pytest.fixture(scope="module")
def images(pipe, methods, store, table):
    """Those of the table, from its store."""
    with torch.no_grad():
        return fl.compare_images(pipe, methods, PROMPTS, store=store, **OPTIONS)


def test_the_honest_rivals_are_always_there(table):
    assert list(table.index) == [
        "baseline", "uniform 5", "fewer steps (5)", "uniform 6", "fewer steps (6)", "every step, prediction reused", "mine", "every step",
        "prediction",
    ]  # fmt: skip


def test_costs_and_fidelity(table):
    assert table.loc["baseline", CALLS].tolist() == [6, 6, 6]
    assert table.loc["mine", CALLS].tolist() == [5, 6, 5]
    assert table.loc["prediction", CALLS].tolist() == table.loc["fewer steps (5)", CALLS].tolist() == [5, 5, 5]
    for name in ("baseline", "every step", "uniform 6", "fewer steps (6)", "every step, prediction reused"):
        assert table.loc[name, "psnr"] == np.inf and table.loc[name, "ssim"] == pytest.approx(1, abs=1e-4)
        assert table.loc[name, "latent_mse"] == 0
    assert np.isfinite(table.loc["mine", "psnr"]) and table.loc["mine", "latent_mse"] > 0
    assert table.loc["prediction", "gflops"] < table.loc["mine", "gflops"] < table.loc["baseline", "gflops"]
    assert (table["gmacs"] * 2 == table["gflops"]).all() and (table["images"] == 2).all()
    assert (table["psnr_worst"] <= table["psnr"] + 1e-6).all() and table["prompt_accuracy"].between(0, 1).all()
    assert (table["psnr"].clip(upper=100) <= table["psnr_typical"] + 1e-6).all()  # few large errors count less
    assert table.loc["baseline", "psnr_typical"] == 100
    assert (table["psnr_low"] <= table["psnr"]).all() and (table["psnr"] <= table["psnr_high"]).all()
    assert (table["ssim_low"] <= table["ssim"] + 1e-12).all() and (table["latent_mse"] <= table["latent_mse_worst"] + 1e-12).all()
    assert table["seconds"].gt(0).all() and table.loc["baseline", "ratio"] == 1 and table["peak_bytes"].isna().all()  # no CUDA here


def test_the_converged_reference_shows_how_far_the_baseline_itself_is(table, pipe):
    near = fidelity(*(sample(pipe, method, PROMPTS, [0, 0], **OPTIONS).images for method in (Method(), Method(steps=12))))
    assert table.loc["baseline", "reference_psnr"] == pytest.approx(mean_psnr(near["mse"]), abs=0.05)
    with pytest.raises(ValueError, match="reference_steps=6 asked; accepted: more than the 6 steps"):
        fl.compare(pipe, {}, PROMPTS, reference_steps=6, **OPTIONS)


def test_more_steps_converge(pipe):
    latents = {steps: sample(pipe, Method(steps=steps), PROMPTS[:1], [0], **OPTIONS).latents for steps in (4, 8, 20)}
    assert (latents[8] - latents[20]).square().mean() < (latents[4] - latents[20]).square().mean()


def test_the_batch_changes_nothing(pipe, methods, images):
    alone = fl.compare_images(pipe, {"mine": methods["mine"]}, PROMPTS, batch_size=1, rivals=False, **OPTIONS)
    together = images[images["method"].isin(alone["method"])]
    assert alone["method"].tolist() == together["method"].tolist() == 2 * ["baseline"] + 2 * ["mine"]
    assert np.allclose(alone["mse"], together["mse"], atol=1e-4) and alone["seed"].tolist() == together["seed"].tolist()


def test_fidelity_is_what_torchmetrics_has():
    from torchmetrics.functional.image import peak_signal_noise_ratio, structural_similarity_index_measure

    pixels = np.random.default_rng(0).integers(0, 256, (2, 24, 17, 3), dtype=np.uint8)
    pixels[:, :12] //= 16  # dark and nearly flat, too
    found = fidelity([Image.fromarray(pixels[0])], [Image.fromarray(pixels[1])]).loc[0]
    a, b = (torch.from_numpy(image / 255).permute(2, 0, 1)[None] for image in pixels)
    assert found["psnr"] == pytest.approx(float(peak_signal_noise_ratio(a, b, data_range=1.0)), rel=1e-6)
    assert found["ssim"] == pytest.approx(float(structural_similarity_index_measure(a, b, data_range=1.0)), rel=1e-6)
    same = fidelity([Image.fromarray(pixels[0])], [Image.fromarray(pixels[0])]).loc[0]
    assert same["mse"] == 0 and same["psnr"] == np.inf and same["ssim"] == pytest.approx(1, abs=1e-12)


def test_a_killed_comparison_goes_on(pipe, methods, images, tmp_path, monkeypatch):
    file = tmp_path / "store.sqlite"
    run, drawn = render._run, []

    def counting(pipe, method, tasks, keys, options):
        if len(drawn) == 4:
            raise KeyboardInterrupt
        drawn.extend(keys)
        return run(pipe, method, tasks, keys, options)

    monkeypatch.setattr(render, "_run", counting)
    options = OPTIONS | {"batch_size": 1, "rivals": False, "store": file}
    with pytest.raises(KeyboardInterrupt):
        fl.compare_images(pipe, methods, PROMPTS, **options)
    with Store(file) as store:
        assert store.keys() == set(drawn) and len(drawn) == 4
    drawn.append("another")  # from now on nothing is interrupted
    resumed = fl.compare_images(pipe, methods, PROMPTS, **options)
    assert len(drawn) == len(set(drawn))  # nothing is computed twice
    expected = images[images["method"].isin(["baseline", *methods])].reset_index(drop=True)
    pd.testing.assert_frame_equal(resumed, expected, rtol=1e-2, atol=1e-4, check_dtype=False)
    before = len(drawn)
    more = methods | {"noise": Method(methods["mine"], prior_noise=0.003)}
    fl.compare_images(pipe, more, PROMPTS, **options)
    assert len(drawn) == before + 2  # the new method only
    fl.compare_images(pipe, {}, PROMPTS[:1], store=file, guidance_scale=2.0, **OPTIONS)
    assert len(drawn) == before + 3  # other settings are other results


@pytest.mark.long
def test_two_workers_one_of_them_killed(pipe, methods, images, tmp_path):
    from joblib.externals.loky import reusable_executor

    file = tmp_path / "store.sqlite"
    killed = []

    def kill_one():
        while not killed:
            time.sleep(0.2)
            with Store(file) as store:
                begun = store.keys()
            workers = list(reusable_executor._executor._processes) if begun else []
            if workers:
                os.kill(workers[0], signal.SIGKILL)
                killed.append(workers[0])

    Store(file).connection.close()
    threading.Thread(target=kill_one, daemon=True).start()
    with pytest.warns(UserWarning, match="a worker process was killed; its images are drawn again"):
        found = fl.compare_images(pipe, methods, PROMPTS, batch_size=1, n_jobs=2, store=file, **OPTIONS)
    assert killed
    pd.testing.assert_frame_equal(found, images, rtol=1e-2, atol=1e-4, check_dtype=False)


def _with_lora():
    from peft import LoraConfig

    pipe = ROWS["sd"].build()
    torch.manual_seed(0)
    pipe.unet.add_adapter(LoraConfig(r=2, target_modules=["to_k"], init_lora_weights=False), "style")
    return pipe


STEERING = {
    "FreeU": (ROWS["sd"].build, lambda pipe: pipe.enable_freeu(s1=0.9, s2=0.2, b1=1.5, b2=1.6)),
    "LoRA's scale": (_with_lora, lambda pipe: pipe.unet.set_adapters("style", 0.3)),
    "LoRA off": (_with_lora, lambda pipe: pipe.unet.disable_adapters()),
}


@pytest.mark.parametrize("name", long_but(("FreeU",), STEERING))
def test_a_store_tells_apart_what_steers_the_same_weights(name, tmp_path):
    make, change = STEERING[name]
    pipe = make()

    def latent(**kept):
        images = render.drawn(pipe, {"baseline": Method()}, [(PROMPTS[0], 0)], RunSettings(2), **kept)
        return images["baseline"][0].latent

    before = latent(store=tmp_path / "kept.sqlite")
    change(pipe)
    assert torch.equal(latent(store=tmp_path / "kept.sqlite"), latent()) and not torch.equal(latent(), before)


def test_foreign_and_damaged_stores(tmp_path):
    text = tmp_path / "text.sqlite"
    text.write_text("no database at all, but long enough to be looked at")
    with pytest.raises(ValueError, match=r"is no fastdiff_lab.Store file"):
        Store(text)
    assert text.read_text().startswith("no database")
    with pytest.raises(OSError, match="cannot open .*accepted: the path of a file"):
        Store(tmp_path)
    foreign = tmp_path / "foreign.sqlite"
    connection = sqlite3.connect(foreign)
    connection.execute("CREATE TABLE mine (x)")
    connection.close()
    with pytest.raises(ValueError, match=r"is no fastdiff_lab.Store of version 2"):
        Store(foreign)
    image = Image.new("RGB", (8, 8))
    with Store(tmp_path / "store.sqlite") as store:
        store.add({"a": Result(torch.zeros(4, 2, 2), image, {"encoder_calls": 1})})
        with pytest.raises(ValueError, match="holds one of these results already"):
            store.add({"b": Result(torch.zeros(1), image, {}), "a": Result(torch.zeros(1), image, {})})
        assert store.keys() == {"a"}  # all of them or none
        with pytest.raises(KeyError, match="has no result b"):
            store.read(["b"])
        for column in ("latent", "image", "counts"):
            store.connection.execute(f"UPDATE results SET {column} = CAST('x' AS BLOB)")
            with pytest.raises(ValueError, match="result a is damaged"):
                store.read(["a"])


def test_intervals_and_paired_differences(images):
    assert interval([2.0, 2.0, 2.0]) == (2.0, 2.0)
    low, high = interval(np.arange(100.0))
    assert 40 < low < 49.5 < high < 59
    difference = fl.paired_difference(images, "every step", "mine", "ssim")
    mean = images.groupby("method")["ssim"].mean()
    assert difference["difference"] == pytest.approx(mean["every step"] - mean["mine"])
    assert difference["low"] <= difference["difference"] <= difference["high"] and difference["images"] == 2
    same = fl.paired_difference(images, "mine", "mine")
    assert same["difference"] == same["low"] == same["high"] == 0


def test_a_summary_needs_the_images_only(images, table):
    again = summarised(images)
    assert np.allclose(again["ssim"], table["ssim"])
    assert again.loc["mine", "psnr_worst"] == images[images["method"] == "mine"]["psnr"].min()


def test_the_brief_table_calls_identical_images_identical(table):
    shown = compare.brief(table.reset_index()).set_index("method")
    assert shown.loc["every step", "psnr"] == "identical" and float(shown.loc["mine", "psnr"]) > 0


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"methods": {"mine": 9}}, TypeError, "method 'mine' is 9; accepted: a KeySchedule, a PropagationFit or a Method"),
        ({"batch_size": 0}, ValueError, "`batch_size` must be a positive int, got 0"),
        ({"n_jobs": 0}, ValueError, "n_jobs=0 asked; accepted: 1 or more, -1 for all cores, None, or a Dask client"),
        ({"seeds": ["a"]}, ValueError, "seed='a' asked; accepted: a whole number from 0 to"),
        ({"repeats": -1}, ValueError, "`repeats` must be an int of 0 or more, got -1"),
        ({"pipe": object()}, TypeError, "has no 'unet' and no 'transformer'"),
    ],
)
def test_bad_options_of_compare(options, error, message):
    given = {
        "pipe": ROWS["sd"].build(),
        "methods": {},
        "prompts": ["a red ring on a blue background"],
        "num_inference_steps": 4,
    } | options
    with pytest.raises(error, match=message):
        fl.compare(given.pop("pipe"), given.pop("methods"), given.pop("prompts"), **given)


@pytest.mark.parametrize(
    ("methods", "options", "message"),
    [
        ({"mine": fl.KeySchedule.paper(50)}, {}, "the schedule is for 50 steps, this run has 6 time-steps with DDIM"),
        ({"mine": fl.KeySchedule.uniform(5, 2)}, {}, "the schedule is for 5 steps, this run has 6 time-steps with DDIM"),
        (
            {"fits": fl.KeySchedule.uniform(6, 2), "mine": fl.KeySchedule.uniform(20, 2)},
            {},
            "the schedule is for 20 steps, this run has 6",
        ),
        ({}, {"reference_steps": 2000}, "2000 steps asked of DDIMScheduler, which .* accepted: a whole number from 1 to 1000"),
    ],
)
def test_what_does_not_fit_is_refused_before_an_image_is_drawn(pipe, monkeypatch, methods, options, message):
    monkeypatch.setattr(render, "_run", lambda *_: pytest.fail("an image was drawn"))
    scheduler = pipe.scheduler
    with pytest.raises(ValueError, match=message):
        fl.compare_images(pipe, methods, PROMPTS, **options, **OPTIONS)
    assert pipe.scheduler is scheduler and "_compiled_call_impl" not in vars(pipe.unet)


def test_tasks_are_compared_to_the_baseline():
    with pytest.raises(ValueError, match="methods paper given; accepted: 'baseline' among them"):
        compare_tasks(ROWS["sd"].build(), {"paper": Method(steps=2)}, [("a red ring", 0)], RunSettings(4))
