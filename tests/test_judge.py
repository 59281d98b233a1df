"""The judge that is shipped: right on drawn scenes, silent on spoilt ones."""

from __future__ import annotations

import pytest
import torch

from fastdiff_lab.shapes.data import HELD_OUT, held_out_scenes
from fastdiff_lab.shapes.judge import load_judge, prompt_accuracy
from fastdiff_lab.shapes.scenes import draw
from studies.training.judge_training import blur, judge_accuracy
from studies.training.scene_batches import scene_images

SEEDS = range(HELD_OUT + 5000, HELD_OUT + 5500)


def test_every_attribute_is_read_right_on_99_of_100_held_out_scenes():
    accuracy = judge_accuracy(load_judge(), SEEDS)
    assert all(share >= 0.99 for name, share in accuracy.items() if name != "abstained"), accuracy


def abstained(images) -> float:
    return sum(read is None for read in load_judge().read(images)) / len(images)


@pytest.mark.parametrize("sigma", [3.0, 4.5, 8.0])
def test_it_abstains_on_blurred_scenes(sigma):
    assert abstained(blur(scene_images(SEEDS[:200]), sigma)) >= 0.95


@pytest.mark.parametrize("share", [0.4, 0.5])
def test_it_abstains_on_blends_of_two_scenes(share):
    images = scene_images(SEEDS[:200])
    # The neighbour has another background and objects; a blend shows both.
    assert abstained(share * images + (1 - share) * images.roll(1, 0)) >= 0.9


def test_it_abstains_on_bare_backgrounds_and_noise():
    images = scene_images(SEEDS[:100])
    assert abstained(images[:, :, :1, :1].expand_as(images).contiguous()) >= 0.95
    assert abstained(torch.randn(images.shape, generator=torch.Generator().manual_seed(0))) == 1.0


def test_prompt_accuracy_counts_what_the_prompt_asks_for():
    scenes = held_out_scenes(40)
    images, captions = [draw(scene) for scene in scenes], [scene.caption() for scene in scenes]
    assert prompt_accuracy(images, captions)["all"].mean() >= 0.97
    assert prompt_accuracy(images, captions[1:] + captions[:1])["all"].mean() <= 0.1
    one = prompt_accuracy([images[0]], ["a red circle on a blue background"])
    assert "layout" not in one and "size_1" not in one


def test_features_tell_sets_of_scenes_apart():
    judge = load_judge()
    features = judge.features(scene_images(SEEDS[:64]))
    assert features.shape == (64, 128) and features.std() > 0.01
