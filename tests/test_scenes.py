"""Drawn scenes: the same on every machine, and captions that say what is drawn."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastdiff_lab.shapes.data import HELD_OUT, held_out_scenes
from fastdiff_lab.shapes.scenes import COLOURS, RELATIONS, draw, parse_caption, sample_scene, words
from studies.training.scene_batches import scene_images

SEEDS = st.integers(0, 2 * HELD_OUT)


@given(SEEDS)
def test_a_caption_says_what_is_asked_for(seed):
    scene = sample_scene(seed)
    assert parse_caption(scene.caption()) == scene.attributes()
    assert set(scene.caption().split()) <= set(words())


@given(SEEDS)
def test_the_scene_is_drawn_as_told(seed):
    scene = sample_scene(seed)
    pixels = np.asarray(draw(scene))
    assert tuple(pixels[0, 0]) == COLOURS[scene.background]
    for thing in scene.things:
        assert thing.colour != scene.background
        x, y = (round(place) for place in thing.centre)
        inside = (x, round(thing.centre[1] - 0.8 * thing.radius)) if thing.shape == "ring" else (x, y)
        assert tuple(pixels[inside[1], inside[0]]) == COLOURS[thing.colour]
    if len(scene.things) == 2:
        (ax, ay), (bx, by) = (thing.centre for thing in scene.things)
        assert scene.layout in RELATIONS
        assert (ay < by) if scene.layout == "above" else (ax < bx)


def test_a_seed_gives_the_same_images_everywhere():
    digest = hashlib.sha256()
    for seed in range(50):
        digest.update(np.asarray(draw(sample_scene(seed))).tobytes())
    assert digest.hexdigest() == "058f15822757b94b6661acf8c1139ec2052c586884157d5587e2366f0f41535b"
    assert sample_scene(0).caption() == "a small red circle to the left of a purple star on an orange background"


def test_no_held_out_scene_is_a_training_scene():
    assert held_out_scenes(3, objects=1) == [sample_scene(HELD_OUT + i, 1) for i in range(3)]
    assert all(len(scene.things) == 2 for scene in held_out_scenes(20, objects=2))


def test_images_are_tensors_from_minus_one_to_one():
    batch = scene_images(range(3))
    assert batch.shape == (3, 3, 64, 64) and batch.min() >= -1 and batch.max() <= 1


def test_bad_input():
    with pytest.raises(ValueError, match="objects=3 asked; a scene has 1 or 2 objects"):
        sample_scene(0, objects=3)
    for text in ("a dog", "a red circle", "a red circle on a blue background, please", ""):
        with pytest.raises(ValueError, match="cannot judge .*accepted: captions such as"):
            parse_caption(text)
