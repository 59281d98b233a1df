"""A new object learned from five images: its drawing, its judge, and what each method may change."""

from __future__ import annotations

import pytest
import torch
from PIL import Image, ImageDraw

from fastdiff_lab import KeySchedule, plot
from fastdiff_lab.shapes.data import held_out_scenes
from fastdiff_lab.shapes.scenes import COLOURS, draw
from studies import personalise
from studies.crescent import COLOUR, FIVE, NEW, crescent_overlap, draw_keepsake, outline_overlap


def test_the_judge_sees_the_crescent_and_nothing_else():
    assert min(crescent_overlap([draw_keepsake(place) for place in (*FIVE, *NEW)])) > 0.85
    assert min(outline_overlap([draw_keepsake(place) for place in NEW], NEW)) > 0.8
    scenes = [scene for scene in held_out_scenes(40) if "blue" not in scene.caption()]
    assert len(scenes) > 10 and max(crescent_overlap([draw(scene) for scene in scenes])) < 0.05
    disc = Image.new("RGB", (64, 64), COLOURS["white"])
    ImageDraw.Draw(disc).ellipse([19, 19, 45, 45], fill=COLOUR)
    assert 0.3 < crescent_overlap([disc])[0] < 0.6


def test_no_new_scene_is_one_of_the_five():
    learned = {(place.background, place.position) for place in FIVE}
    assert len(learned) == 5 and not learned & {(place.background, place.position) for place in NEW}


@pytest.fixture(autouse=True)
def _few_priors(monkeypatch):
    monkeypatch.setattr(personalise, "PRIORS", 8)


def parts(pipe):
    return {
        f"{part}.{name}": value.clone()
        for part in ("unet", "text_encoder", "vae")
        for name, value in getattr(pipe, part).state_dict().items()
    }


@pytest.mark.long
def test_dreambooth_changes_the_unet_only(tmp_path):
    pipe = personalise.untrained()
    before = parts(pipe)
    personalise.dreambooth(pipe, tmp_path, steps=2)
    after = parts(pipe)
    changed = {name.partition(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"unet"} and before.keys() == after.keys()
    assert not any(parameter.requires_grad for parameter in pipe.unet.parameters())


@pytest.mark.long
def test_custom_diffusion_changes_keys_values_and_one_word(tmp_path):
    pipe = personalise.untrained()
    before = parts(pipe)
    with torch.no_grad():
        plain = pipe.unet(torch.ones(1, 4, 16, 16), 500, torch.ones(1, 24, 128)).sample
    personalise.custom_diffusion(pipe, tmp_path / "none", steps=0)
    with torch.no_grad():  # it begins as the pipeline was
        assert torch.allclose(pipe.unet(torch.ones(1, 4, 16, 16), 500, torch.ones(1, 24, 128)).sample, plain, atol=1e-5)
    pipe = personalise.untrained()
    personalise.custom_diffusion(pipe, tmp_path / "two", steps=2)
    after = parts(pipe)
    words = next(name for name in before if name.endswith("token_embedding.weight"))
    assert torch.equal(after[words][:-1], before[words]) and len(after[words]) == len(before[words]) + 1
    assert all(torch.equal(after[name], value) for name, value in before.items() if name != words)
    added = after.keys() - before.keys()
    assert added and all("_custom_diffusion" in name for name in added)
    trained = next(name for name in sorted(added) if "to_k_custom" in name)
    layer = trained.replace("processor.to_k_custom_diffusion", "to_k")
    assert not torch.equal(after[trained], before[layer])


@pytest.mark.long
@pytest.mark.parametrize("method", personalise.LESSONS)
def test_the_table_of_methods(method, monkeypatch, tmp_path):
    monkeypatch.setattr(personalise, "STEPS", 5)
    monkeypatch.setattr(personalise, "SEEDS", 2)
    monkeypatch.setattr(personalise, "NEW", NEW[:2])
    pipe = personalise.untrained()
    personalise.LESSONS[method](pipe, tmp_path, steps=1)
    table, images = personalise.judged(pipe, method, {"baseline": None, "two": KeySchedule(5, [0, 2])})
    assert table["keys"].tolist() == [5, 2] and table["images"].tolist() == [4, 4]
    assert [len(shown) for shown in images.values()] == [2, 2]
    axes = personalise.drawn_methods(images, plot.figure()).axes
    assert [ax.get_ylabel() for ax in axes[::2]] == ["learned from", "baseline", "two"] and all(ax.images for ax in axes[2:])
    assert table["psnr"][0] == float("inf") and table["psnr"][1] < 100
    assert table["overlap"].between(0, 1).all() and table["likeness"].between(-1, 1).all()


def test_the_methods_of_the_paper():
    methods = personalise.schedules("dreambooth")
    assert [None if schedule is None else len(schedule.keys) for schedule in methods.values()] == [None, 10, 10, 10]


def far_apart(one, other) -> float:
    """The distance of all weights that both have in one shape."""
    pairs = [(value, other[name]) for name, value in one.items() if value.shape == other[name].shape]
    return float(torch.stack([(a.double() - b.double()).square().sum() for a, b in pairs]).sum().sqrt())


@pytest.mark.long
@pytest.mark.parametrize("method", personalise.LESSONS)
def test_a_training_that_had_no_time_goes_on(method, tmp_path):
    begun, whole, stopped, goes_on = (personalise.untrained() for _ in range(4))
    personalise.LESSONS[method](begun, tmp_path / "begun", steps=0)
    personalise.LESSONS[method](whole, tmp_path / "whole", steps=2)
    personalise.LESSONS[method](stopped, tmp_path / "parts", steps=2, seconds=1e-9)  # ends before the first step
    personalise.LESSONS[method](goes_on, tmp_path / "parts", steps=2)
    # Pipelines' weights lie at other places, which decides the last bit of a gradient, and so the sign of a gradient that is almost 0.
    assert far_apart(parts(goes_on), parts(whole)) < 0.01 * far_apart(parts(begun), parts(whole))
