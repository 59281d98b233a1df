"""The small DiT: its classes, its training and its sweep of splits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from diffusers import DiTPipeline

from fastdiff_lab import plot
from fastdiff_lab.shapes.data import held_out_scenes
from fastdiff_lab.shapes.scenes import draw, sample_scene
from studies import dit


def test_every_class_has_a_number():
    assert len(set(dit.CLASSES)) == 48 < dit.NULL_CLASS
    scene = sample_scene(3, objects=1)
    assert dit.CLASSES[dit.class_of(scene)] == f"{scene.things[0].colour} {scene.things[0].shape}"


def test_the_judge_tells_classes_apart():
    scenes = held_out_scenes(20, objects=1)
    images = torch.stack([torch.from_numpy(np.array(draw(scene))).permute(2, 0, 1) / 255 for scene in scenes])
    labels = [dit.class_of(scene) for scene in scenes]
    assert dit.classes_right(images, labels) > 0.9
    assert dit.classes_right(images, [(label + 1) % 48 for label in labels]) < 0.1


def test_a_file_is_small_enough_to_ship():
    assert 2 * sum(parameter.numel() for parameter in dit.new_dit().parameters()) < 14 * 2**20


def test_no_time_to_train(tmp_path):
    with pytest.raises(ValueError, match="minutes=0 asked; accepted: more than 0"):
        dit.train_dit(tmp_path, minutes=0)


@pytest.mark.long
def test_training_saving_and_a_sweep(tmp_path):
    torch.manual_seed(0)
    with torch.enable_grad():
        model = dit.train_dit(tmp_path / "work", minutes=5, max_steps=3, batch_size=2)
    dit.save_dit(tmp_path, model)
    pipe = dit.load_dit_pipeline(tmp_path)
    assert type(pipe) is DiTPipeline and not list(tmp_path.rglob("*.bin"))
    for parameter in pipe.transformer.parameters():  # three steps of training leave most of it at nothing
        if parameter.dim() > 1:
            parameter.data += 0.02 * torch.randn_like(parameter)
    table = dit.sweep(pipe, (1, 8, 12), steps=10, keys=(2,), count=1)
    assert table["blocks"].tolist() == [0, 1, 1, 8, 8, 12, 12]
    assert set(table.loc[table["papers_split"], "blocks"]) == {8}
    assert table["psnr"][0] == np.inf and np.isfinite(table["psnr"][1:]).all()
    one = table[table["schedule"] == "uniform 2"].set_index("blocks")["gflops"]
    assert one.is_monotonic_decreasing and one[1] < table["gflops"][0]
    assert one[12] == pytest.approx(table["gflops"][0] * 2 / 10)  # predictions reused: two whole calls instead of ten
    left, right = dit.plot_sweep(table, plot.figure()).axes
    assert [len(line.get_xdata()) for line in right.lines] == [3, 3] and left.get_legend() is not None
