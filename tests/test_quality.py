"""FID, KID, CLIPScore and LPIPS with stand-in weights; what the networks compute was recorded from torch-fidelity and torchvision."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import safetensors.torch
import torch
from PIL import Image
from stand_ins import ALEXNET, INCEPTION, random_weights, write_images, write_weights
from systems import ROWS
from typer.testing import CliRunner

import fastdiff_lab as fl
from fastdiff_lab import Method
from fastdiff_lab.cli import commands
from fastdiff_lab.comparison import compare, render, tables
from fastdiff_lab.comparison.image_quality.networks import InceptionV3
from fastdiff_lab.comparison.image_quality.real_images import as_square, image_files, opened
from fastdiff_lab.comparison.image_quality.scores import METRICS, quality_of
from fastdiff_lab.comparison.image_quality.weights import load_clip, load_inception, load_lpips, read_tensors
from fastdiff_lab.shapes.data import held_out_scenes
from fastdiff_lab.shapes.scenes import draw

PROMPTS = [scene.caption() for scene in held_out_scenes(4)]
RUN = {"num_inference_steps": 5, "rivals": False}


@pytest.fixture(scope="module")
def pipe(embedded):
    return embedded


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return write_weights(tmp_path_factory.mktemp("weights"))


@pytest.fixture(scope="module")
def real(tmp_path_factory):
    return write_images(tmp_path_factory.mktemp("real"), 4)


@pytest.fixture(scope="module")
def quality(weights):
    """Of single images; Inception's distances of sets take seconds."""
    return quality_of(["lpips", "clip_score"], metric_weights=weights, real_images=None, images=4)


@pytest.fixture(scope="module")
def methods():
    return {"three": fl.KeySchedule(5, [0, 1, 3])}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store") / "images.sqlite"


@pytest.fixture(scope="module")
def images(pipe, methods, weights, real, store):
    with torch.no_grad():
        return fl.compare_images(
            pipe, methods, PROMPTS, metrics=METRICS, metric_weights=weights, real_images=real, store=store, **RUN
        )


def noise(seed: int, *shape: int) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def test_inception_computes_what_torch_fidelity_does():
    """Features that FeatureExtractorInceptionV3 of torch-fidelity 0.4.0 gave with these weights for these images."""
    network = InceptionV3().eval()
    random_weights(network)
    pixels = torch.randint(0, 256, (2, 3, 299, 299), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    found = network(pixels)
    given = [[2.6951, 0.6551, 0.0, 0.1802], [2.6793, 0.6521, 0.0, 0.1951]]
    assert found.shape == (2, 2048) and torch.allclose(found[:, [0, 500, 1000, 2047]], torch.tensor(given), atol=2e-4)
    assert torch.allclose(found.norm(dim=1), torch.tensor([50.6869, 50.5731]), atol=1e-3)


def test_lpips_computes_what_it_does_with_torchvision(weights):
    """What torchmetrics' LPIPS gave on torchvision 0.28's AlexNet with these weights."""
    net = load_lpips(weights)
    assert float(net(noise(2, 1, 3, 64, 64), noise(3, 1, 3, 64, 64), normalize=True)) == pytest.approx(0.0922, abs=1e-4)
    import torchmetrics.functional.image.lpips as module

    assert module._get_tv_model_features.__module__ == module.__name__  # as it was


@pytest.mark.long
def test_sets_alike_are_no_distance_apart(weights, real):
    quality = quality_of(METRICS, metric_weights=weights, real_images=real, images=4)
    assert abs(quality.of_set(quality.real)["fid"]) < 0.02  # of others it is more, below


def test_images_alike_are_no_distance_apart(quality, real):
    image, other = (opened(path) for path in image_files(real)[:2])
    found = quality.of_images([image, image], [image, other], PROMPTS[:2])
    assert found["lpips"][0] == 0 < found["lpips"][1]
    assert found["clip_score"].between(0, 100).all() and found["clip_score"][0] != found["clip_score"][1]


def test_clip_score_is_the_cosine_that_transformers_gives(quality, weights):
    model, processor = load_clip(weights)
    image = draw(held_out_scenes(1)[0])
    given = processor(text=[PROMPTS[0]]) | processor(images=[torch.from_numpy(np.array(image)).permute(2, 0, 1)])
    logits = model.model(**given).logits_per_image / model.model.logit_scale.exp()
    score = quality.of_images([image], [image], PROMPTS[:1])["clip_score"][0]
    assert 0 < score == pytest.approx(100 * float(logits), abs=1e-3)


def test_long_captions_keep_their_end(weights):
    _, processor = load_clip(weights)
    end = processor.processor.tokenizer.eos_token_id
    tokens = processor(text=[" ".join(["red"] * 100)])["input_ids"]
    assert tokens.shape == (1, 24) and tokens[0, -1] == end


@pytest.mark.long
def test_each_image_and_each_method_has_its_quality(images):
    baseline, three = (images[images["method"] == name] for name in ("baseline", "three"))
    assert (baseline["lpips"] == 0).all() and (three["lpips"] > 0).all()
    assert images["clip_score"].between(0, 100).all() and images["clip_score"].gt(0).any()
    assert all(group[name].nunique() == 1 for _, group in images.groupby("method") for name in ("fid", "kid", "kid_std"))
    assert baseline["fid"].iloc[0] != three["fid"].iloc[0] > 0.02


@pytest.mark.long
def test_summary_and_brief_table(pipe, methods, images):
    summary = compare.summarised(images)
    of_three = images[images["method"] == "three"]
    assert summary.loc["three", "lpips_worst"] == of_three["lpips"].max()
    assert summary.loc["three", "clip_score_worst"] == of_three["clip_score"].min()
    for name in ("lpips", "clip_score"):
        assert (summary[f"{name}_low"] <= summary[name]).all() and (summary[name] <= summary[f"{name}_high"]).all()
    assert summary.loc["three", "fid"] == of_three["fid"].iloc[0] and "fid_low" not in summary
    ways = {"baseline": Method(), "three": Method(methods["three"])}
    shown = compare.brief(compare.with_costs(pipe, ways, images, num_inference_steps=5, repeats=0))
    assert list(shown.columns[-4:]) == ["clip_score", "lpips", "fid", "kid"]


@pytest.mark.long
def test_from_the_store_nothing_is_drawn_and_all_is_the_same(pipe, methods, weights, store, images, monkeypatch):
    monkeypatch.delattr(render, "_run")
    monkeypatch.setattr(tables, "_AT_ONCE", 3)  # nor does it matter how many are measured at once
    options = {"metrics": ["lpips", "clip_score", "lpips"], "metric_weights": weights, "store": store}
    again = fl.compare_images(pipe, methods, PROMPTS, **options, **RUN)
    pd.testing.assert_frame_equal(again, images.drop(columns=["fid", "kid", "kid_std"]), rtol=1e-4, atol=1e-4)


@pytest.mark.long
def test_two_workers_give_the_same(pipe, methods, weights, real, images):
    options = {"metrics": METRICS, "metric_weights": weights, "real_images": real, **RUN}
    found = fl.compare_images(pipe, methods, PROMPTS, n_jobs=2, batch_size=2, **options)
    pd.testing.assert_frame_equal(found, images, rtol=2e-2, atol=2e-3, check_dtype=False)


def test_a_few_metrics_need_only_their_weights(tmp_path, weights):
    pipe = ROWS["sd"].build()
    (tmp_path / f"{ALEXNET}.pth").symlink_to(weights / f"{ALEXNET}.pth")
    found = fl.compare_images(pipe, {}, PROMPTS[:1], metrics=["lpips"], metric_weights=tmp_path, num_inference_steps=2)
    assert (found["lpips"] == 0).all() and not {"fid", "kid", "clip_score"} & set(found)
    assert "lpips" not in fl.compare_images(pipe, {}, PROMPTS[:1], num_inference_steps=2)


def assert_same_weights(one, other):
    """What was loaded is compared, not what is computed with it: where weights lie in memory decides the last bit of that."""
    found, expected = one.state_dict(), other.state_dict()
    assert found.keys() == expected.keys() and expected
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_weights_as_safetensors_and_as_pytorch_files_are_the_same(tmp_path, weights):
    tensors = read_tensors(weights / f"{INCEPTION}.safetensors")
    older = {name: value for name, value in tensors.items() if not name.endswith("num_batches_tracked")}
    torch.save(older | {"fc.weight": torch.zeros(1008, 2048)}, tmp_path / "pt_inception-2015-12-05-6726825d.pth")
    assert_same_weights(load_inception(tmp_path), load_inception(weights))
    layers = read_tensors(weights / f"{ALEXNET}.pth")
    safetensors.torch.save_file(layers, tmp_path / f"{ALEXNET}.safetensors")
    assert_same_weights(load_lpips(tmp_path), load_lpips(weights))


class Running:
    """What a malicious file holds: unpickling it would call a function."""

    def __reduce__(self):
        return Path.touch, (Path("was-run"),)


def test_foreign_weight_files_are_refused_and_not_run(tmp_path, monkeypatch, weights):
    monkeypatch.chdir(tmp_path)
    place = tmp_path / f"{ALEXNET}.pth"
    for content in ({"features.0.weight": Running()}, Running()):
        torch.save(content, place)
        with pytest.raises(ValueError, match=r"alexnet-owt-7be5be79.pth is no file of tensors \(UnpicklingError"):
            load_lpips(tmp_path)
    assert not Path("was-run").exists()
    place.write_bytes(b"text")
    with pytest.raises(ValueError, match=r"is no file of tensors .*accepted: safetensors, or a PyTorch file with nothing but"):
        load_lpips(tmp_path)
    torch.save([torch.zeros(1)], place)
    with pytest.raises(ValueError, match=r"holds a list; accepted: tensors by their names"):
        load_lpips(tmp_path)
    torch.save({"features.0.weight": torch.zeros(64, 3, 11, 10)}, place)
    with pytest.raises(
        ValueError, match=r"is no weight file of AlexNet: 'features.0.weight' has the shape \(64, 3, 11, 10\); accepted"
    ):
        load_lpips(tmp_path)
    safetensors.torch.save_file({"fc.bias": torch.zeros(1)}, tmp_path / f"{INCEPTION}.safetensors")
    with pytest.raises(ValueError, match=r"is no weight file of Inception v3: 'Conv2d_1a_3x3.conv.weight' is missing"):
        load_inception(tmp_path)
    monkeypatch.setattr("fastdiff_lab.comparison.image_quality.weights.MAX_BYTES", 10)
    with pytest.raises(ValueError, match=r"safetensors has \d+ bytes; accepted: at most 10"):
        load_inception(tmp_path)


def test_foreign_folders_of_clip(tmp_path, weights):
    place = tmp_path / "clip"
    place.mkdir()
    (place / "config.json").write_text("{}")
    with pytest.raises(
        ValueError, match=r"clip is no CLIP that transformers can read \(.*accepted: what CLIPModel and CLIPProcessor save"
    ):
        load_clip(tmp_path)
    for file in (weights / "clip").iterdir():
        (place / file.name).write_bytes(file.read_bytes() if file.suffix == ".json" else b"text")
    with pytest.raises(ValueError, match="clip is no CLIP that transformers can read"):
        load_clip(tmp_path)
    safetensors.torch.save_file({"logit_scale": torch.zeros(())}, place / "model.safetensors")
    with pytest.raises(ValueError, match="clip holds no whole CLIP: '.*' is missing or of another shape"):
        load_clip(tmp_path)
    (place / "model.safetensors").unlink()
    torch.save({"logit_scale": Running()}, place / "pytorch_model.bin")
    with pytest.raises(ValueError, match="clip is no CLIP that transformers can read"):
        load_clip(tmp_path)
    assert not Path("was-run").exists()


def test_pickled_clip_weights_are_read_without_running_code(tmp_path, weights):
    place = tmp_path / "clip"
    place.mkdir()
    for file in (weights / "clip").glob("*.json"):
        (place / file.name).write_bytes(file.read_bytes())
    torch.save(safetensors.torch.load_file(weights / "clip" / "model.safetensors"), place / "pytorch_model.bin")
    assert_same_weights(load_clip(tmp_path)[0].model, load_clip(weights)[0].model)


def test_real_images(tmp_path):
    folder = write_images(tmp_path / "real", 2)
    (folder / "notes.txt").write_text("no image")
    (folder / "inside.png").mkdir()
    with pytest.raises(ValueError, match=r"inside.png is no image that can be read"):
        image_files(folder)
    (folder / "inside.png").rmdir()
    assert [path.name for path in image_files(folder)] == ["0000.png", "0001.png"]
    wide = Image.new("RGB", (300, 100), "red")
    wide.paste("blue", (100, 0, 200, 100))
    assert as_square(wide).shape == (3, 256, 256) and as_square(wide)[2, 100, 100:150].eq(255).all()  # the middle
    whole = (folder / "0000.png").read_bytes()
    (folder / "0000.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"0000.png is no image that can be read .*none of them damaged"):
        [opened(path) for path in image_files(folder)]
    with pytest.raises(FileNotFoundError, match=r"no images in '.*empty'; accepted: a folder with files that end in .jpg"):
        image_files(tmp_path / "empty")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"metrics": "fid"}, TypeError, "metrics='fid' given; accepted: a list of names, such as \\['fid'\\]"),
        ({"metrics": ["fdi"]}, ValueError, "metric 'fdi' asked; accepted: fid, kid, clip_score, lpips"),
        ({"metrics": ["lpips", "fid"], "metric_weights": None}, ValueError, "lpips and fid asked without weights; accepted: metric_wei"),
        ({"metrics": ["kid"], "real_images": None}, ValueError, "kid asked without real images; accepted: real_images=FOLDER of "),
        ({"metrics": []}, ValueError, r"metric_weights \(--weights\) given, and no metric that needs it"),
        ({"metrics": ["lpips"]}, ValueError, r"real_images \(--real\) given, and no metric that needs it"),
        ({"metrics": ["kid"]}, ValueError, "kid asked of 1 images a method and 4 real ones; accepted: 4 or more of each"),
        ({"metrics": ["fid"]}, ValueError, "fid asked of 1 images a method and 4 real ones; accepted: 2 or more of each"),
        ({"metrics": ["fid"], "real_images": "nowhere"}, FileNotFoundError, "no images in 'nowhere'"),
    ],
)  # fmt: skip
def test_bad_asking_is_refused_before_an_image_is_drawn(pipe, weights, real, options, error, message, monkeypatch):
    monkeypatch.delattr(render, "_run")
    given = {"metric_weights": weights, "real_images": real} | options
    with pytest.raises(error, match=message):
        fl.compare(pipe, {}, PROMPTS[:1], num_inference_steps=4, **given)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (
            "fid",
            r"no weights of Inception v3 in .*; accepted: weights-inception-2015-12-05-6726825d.pth there, from https://github.com",
        ),
        ("lpips", r"no weights of AlexNet in .*; accepted: alexnet-owt-7be5be79.pth there, from https://download.pytorch.org"),
        ("clip_score", r"no weights of CLIP in .*; accepted: a folder 'clip' there, with config.json"),
    ],
)
def test_missing_weights_say_where_they_are_to_be_had(pipe, real, tmp_path, metric, message, monkeypatch):
    monkeypatch.delattr(render, "_run")
    place = real if metric == "fid" else None
    with pytest.raises(FileNotFoundError, match=message):
        fl.compare(pipe, {}, PROMPTS, num_inference_steps=4, metrics=[metric], metric_weights=tmp_path, real_images=place)


@pytest.mark.long
def test_from_the_command_line(tmp_path, weights, methods):
    file = tmp_path / "three.json"
    methods["three"].save(file)
    options = ["--count", "1", "--seeds", "1", "--steps", "5", "--reference", "0", "--repeats", "0", "--output", str(tmp_path)]
    asked = ["--metric", "lpips", "--metric", "clip_score", "--weights", str(weights)]
    found = CliRunner().invoke(commands.app, ["compare", str(file), *options, *asked], catch_exceptions=False)
    assert found.exit_code == 0 and "clip_score" in found.output
    table = pd.read_csv(tmp_path / "table.csv").set_index("method")
    assert table.loc["baseline", "lpips"] == 0 < table.loc["three", "lpips"] and "fid" not in table
    about = json.loads((tmp_path / "about.json").read_text())["asked"]
    assert about["metrics"] == ["lpips", "clip_score"] and about["metric_weights"] == str(weights)
