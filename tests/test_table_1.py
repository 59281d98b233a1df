"""The paper's Table 1 by one command, on the embedded pipeline with made-up COCO captions; token merging, which two of its rows have."""

from __future__ import annotations

import json
import sys

import pandas as pd
import pytest
import torch
import typer
from models import denoiser_pipe
from stand_ins import write_images, write_weights
from systems import ROWS
from typer.testing import CliRunner

import fastdiff_lab as fl
from fastdiff_lab import Method
from fastdiff_lab.comparison import render
from fastdiff_lab.hooks.flops import count_flops
from fastdiff_lab.sampling.methods import denoiser_arguments, sample
from fastdiff_lab.sampling.rivals.token_merging import TokenMerging
from fastdiff_lab.shapes.data import held_out_scenes
from studies import table_1
from studies.captions import read_captions
from studies.table_1 import PUBLISHED, beside_published, table_methods

PROMPTS = ["a red ring on a blue background", "a small white star on a red background"]
RUN = {"num_inference_steps": 5}


@pytest.fixture(scope="module")
def pipe(embedded):
    return embedded


def write_captions(path, captions, per_image=1):
    notes = [{"id": 1000 - i, "image_id": 7 * (i // per_image), "caption": f"{text} \n"} for i, text in enumerate(captions)]
    path.write_text(json.dumps({"images": [], "annotations": notes}))
    return path


def test_captions_come_one_per_image_first(tmp_path):
    file = write_captions(tmp_path / "captions.json", [f"caption {i}" for i in range(20)], per_image=2)
    first = read_captions(file, 10)
    assert [seed for _, seed in first] == list(range(10)) and read_captions(file, 4) == first[:4]
    assert {int(text.split()[1]) // 2 for text, _ in first} == set(range(10))  # each image once
    assert first != sorted(first) and len({text for text, _ in read_captions(file, 20)}) == 20
    with pytest.raises(ValueError, match=r"21 captions asked of .*, which has 20 of 10 images; accepted: as many or fewer"):
        read_captions(file, 21)
    with pytest.raises(ValueError, match="0 captions asked; accepted: a whole number of 1 or more"):
        read_captions(file, 0)


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[]",
        '{"annotations": [{"id": 1, "image_id": "a", "caption": "b"}]}',
        '{"annotations": [{"id": 1}]}',
        '{"annotations": [{"id": 1, "image_id": 1, "caption": 5}]}',
    ],
)
def test_foreign_captions(tmp_path, text, monkeypatch):
    file = tmp_path / "captions.json"
    file.write_text(text)
    with pytest.raises(
        ValueError, match=r"captions.json is no file of captions \(.*accepted: COCO's JSON, with annotations that have id"
    ):
        read_captions(file, 1)
    monkeypatch.setattr("studies.captions.MAX_BYTES", 2)
    file.write_text("{} ")
    with pytest.raises(ValueError, match="captions.json has 3 bytes; accepted: at most 2"):
        read_captions(file, 1)


@pytest.mark.parametrize("sampler", PUBLISHED)
def test_every_published_row_has_its_method(sampler):
    methods = table_methods(sampler, table_1.STEPS[sampler])
    assert set(PUBLISHED[sampler]) - set(methods) <= {"DeepCache, interval not stated"}
    keys = {len(method.schedule.keys) for name, method in methods.items() if "paper" in name}
    assert keys == {9 if sampler == "ddim" else 7}


def test_methods():
    uniform = table_methods("ddim", 50)["uniform 9"].schedule
    assert uniform.keys == tuple(range(0, 50, 6)) and "Table 5" in uniform.source
    derived = fl.derive_schedule(fl.embedded_costs(order=1), 9)
    assert table_methods("ddim", 50, {"mine": derived})["mine"] == Method(derived, order=1)
    with pytest.raises(ValueError, match="sampler='euler' asked; accepted: ddim or dpm-solver"):
        table_methods("euler", 50)
    with pytest.raises(ValueError, match="a schedule is named 'uniform 9', and so is a method of the table"):
        table_methods("ddim", 50, {"uniform 9": derived})


def test_the_paper_stands_beside_what_was_measured():
    ours = pd.DataFrame({"method": ["baseline", "mine", "paper's 9"], "fid": [30.0, 31.0, 32.0], "clip_score": [30.0, 31.0, 32.0]})
    table = beside_published(ours, "ddim").set_index("method")
    assert list(table.index[:3]) == ["baseline", "mine", "paper's 9"] and len(table) == len(PUBLISHED["ddim"]) + 1
    assert table.index.is_unique
    assert table.loc["baseline", ["clip", "paper_fid", "paper_source"]].tolist() == [pytest.approx(0.75), 21.75, "Table 1"]
    assert pd.isna(table.loc["mine", "paper_fid"]) and pd.isna(table.loc["token merging", "fid"])
    alone = beside_published(ours, None)
    assert alone["method"].tolist() == ours["method"].tolist() and alone["paper_fid"].isna().all()


def command():
    app = typer.Typer()
    app.command()(table_1.main)
    return app


def run(*options):
    return CliRunner().invoke(command(), [str(option) for option in options], catch_exceptions=False)


@pytest.mark.long
def test_from_captions_and_weights_to_the_table(tmp_path, monkeypatch):
    captions = write_captions(tmp_path / "captions.json", [scene.caption() for scene in held_out_scenes(5)])
    weights, real = write_weights(tmp_path / "weights"), write_images(tmp_path / "real", 6)
    schedule = tmp_path / "mine.json"
    fl.KeySchedule(10, [0, 4, 7]).save(schedule)
    options = ["--captions", captions, "--weights", weights, "--real", real, "--schedule", schedule, "--images", 4, "--steps", 10]
    options += ["--output", tmp_path / "out", "--batch-size", 2, "--threads", 1]
    found = run(*options, "--repeats", 1)
    assert found.exit_code == 0 and "paper_*: the paper's numbers, on its authors' machine" in found.output
    table = pd.read_csv(tmp_path / "out" / "table_1.csv").set_index("method")
    assert list(table.index) == list(table_methods("ddim", 10, {"mine": fl.KeySchedule.load(schedule)}))
    assert table[["fid", "kid", "clip", "lpips", "gmacs", "seconds"]].notna().all(axis=None) and (table["images"] == 4).all()
    assert table.loc["baseline", "lpips"] == 0 < table.drop(index="baseline")["lpips"].min() and table["clip"].gt(0).all()
    assert table.loc["token merging", "gmacs"] < table.loc["baseline", "gmacs"]
    assert table.loc["paper's 9", "gmacs"] == table.loc["paper's 9, prior noise", "gmacs"] > table.loc["mine", "gmacs"]
    images = pd.read_csv(tmp_path / "out" / "images.csv")
    assert sorted(images[images["method"] == "mine"]["seed"]) == [0, 1, 2, 3]  # each image its own noise
    assert json.loads((tmp_path / "out" / "about.json").read_text())["asked"]["captions"] == str(captions)
    monkeypatch.delattr(render, "_run")  # all comes from the store
    assert run(*options, "--repeats", 0, "--metric", "lpips", "--metric", "clip_score", "--metric", "kid").exit_code == 0
    again = pd.read_csv(tmp_path / "out" / "images.csv")
    pd.testing.assert_frame_equal(again, images.drop(columns="fid"), rtol=1e-4, atol=1e-4)  # by networks that were loaded again


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"--sampler": "euler"}, "sampler='euler' asked; accepted: ddim or dpm-solver"),
        ({"--metric": "fdi"}, "metric 'fdi' asked; accepted: fid, kid"),
        ({}, "fid and kid and clip_score and lpips asked without weights"),
        ({"--weights": "."}, "fid and kid asked without real images"),
        ({"--images": 9}, "9 captions asked of .*, which has 2 of 2 images"),
    ],
)
def test_bad_options_are_refused_before_an_image_is_drawn(tmp_path, options, message, monkeypatch):
    monkeypatch.delattr(render, "_run")
    given = {"--captions": write_captions(tmp_path / "c.json", PROMPTS), "--output": tmp_path, "--images": 2} | options
    with pytest.raises(ValueError, match=message):
        run(*(part for pair in given.items() for part in pair))


def test_token_merging_leaves_the_pipeline_as_it_was(pipe):
    before = {module: (type(module), set(vars(module)), len(module._forward_pre_hooks)) for module in pipe.unet.modules()}
    baseline = sample(pipe, Method(), PROMPTS[:1], [0], **RUN).latents
    with pytest.raises(KeyboardInterrupt), TokenMerging(0.5)(pipe):
        raise KeyboardInterrupt
    merged = sample(pipe, Method(token_merging=0.5), PROMPTS[:1], [0], **RUN).latents
    after = {module: (type(module), set(vars(module)), len(module._forward_pre_hooks)) for module in pipe.unet.modules()}
    assert before == after and torch.equal(sample(pipe, Method(), PROMPTS[:1], [0], **RUN).latents, baseline)
    assert not torch.allclose(merged, baseline, atol=1e-2)
    assert torch.equal(sample(pipe, Method(token_merging=0.5), PROMPTS[:1], [0], **RUN).latents, merged)  # nothing random in it


@pytest.mark.long
def test_token_merging_with_encoder_propagation(pipe):
    three = fl.KeySchedule(5, [0, 1, 3])
    methods = [Method(three, token_merging=0.5, parallel_decoding=parallel) for parallel in (True, False)]
    parallel, serial = (sample(pipe, method, PROMPTS, [0, 1], **RUN) for method in methods)
    assert torch.allclose(parallel.latents, serial.latents, atol=1e-4) and parallel.counts.encoder_calls == 3
    every = sample(pipe, Method(fl.KeySchedule(5, range(5)), token_merging=0.5), PROMPTS, [0, 1], **RUN).latents
    assert torch.equal(every, sample(pipe, Method(token_merging=0.5), PROMPTS, [0, 1], **RUN).latents)


@pytest.mark.long
def test_operations_with_merged_tokens():
    pipe = ROWS["sd"].build()
    arguments = denoiser_arguments(pipe, PROMPTS[0])
    plain = count_flops(pipe.unet, arguments)
    less, least = (TokenMerging(ratio).flops(pipe.unet, arguments) for ratio in (0.25, 0.75))
    assert plain.total > less.total > least.total and plain.rest == less.rest
    assert plain == count_flops(pipe.unet, arguments)


def test_methods_that_merge_tokens(monkeypatch):
    assert "token_merging" not in Method().about() and Method(token_merging=0.5).about()["token_merging"] == 0.5
    accepted = {
        -0.5: "a ratio above 0, 0.75 or less",
        0.8: "a ratio above 0, 0.75 or less",
        "much": "a finite number",
        True: "a finite",
    }
    for ratio, words in accepted.items():
        with pytest.raises(ValueError, match=f"token_merging={ratio!r} asked; accepted: {words}"):
            Method(token_merging=ratio)
    with pytest.raises(ValueError, match="a method has DeepCache or .* another rival, not two of them"):
        Method(deepcache=3, token_merging=0.5)
    with pytest.raises(
        ValueError, match="token merging asked for a DiTTransformer2DModel; accepted: a pipeline whose denoiser is a UNet"
    ):
        with TokenMerging(0.5)(denoiser_pipe("dit")):
            pass
    monkeypatch.setitem(sys.modules, "tomesd", None)
    with pytest.raises(
        ModuleNotFoundError, match="a method with token merging needs tomesd, which is not installed; get the extra rivals"
    ):
        TokenMerging(0.5).needs()
