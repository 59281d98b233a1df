"""Training: resumes where it was killed, and makes a pipeline from nothing."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline
from torch import nn
from torch.nn import functional

from fastdiff_lab.pipelines import load_pipeline
from fastdiff_lab.shapes.data import HELD_OUT, as_tensor, held_out_scenes
from fastdiff_lab.shapes.judge import prompt_accuracy
from fastdiff_lab.shapes.scenes import draw, sample_scene
from studies.training import train
from studies.training.autoencoder import crops, new_autoencoder
from studies.training.data_parallel import in_processes
from studies.training.decoder_training import train_decoder
from studies.training.denoiser_training import OFFSET_NOISE, loss_weight, new_scheduler, offset_noise
from studies.training.model_card import through_autoencoder
from studies.training.scene_batches import Ahead, objects_of, scene_batch, scene_images
from studies.training.tokens import new_tokenizer, tokens_of
from studies.training.trainer import fit, learning_rate_factor


@pytest.fixture(autouse=True)
def _gradients():
    with torch.enable_grad():
        yield


def small_fit(folder: Path, stop_at: int | None = None, steps: int = 12) -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))

    def loss(model, step, progress):
        if step == stop_at:
            raise KeyboardInterrupt
        batch = torch.randn((8, 3), generator=torch.Generator().manual_seed(step))
        return (model(batch) - batch.sum(1, keepdim=True)).square().mean()

    return fit(model, loss, name="small", folder=folder, learning_rate=1e-2, max_steps=steps, save_every=0.0)


def test_a_killed_training_goes_on_as_if_it_had_not_been(tmp_path):
    unbroken = small_fit(tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        small_fit(tmp_path / "b", stop_at=7)
    resumed = small_fit(tmp_path / "b")
    for name, tensor in unbroken.state_dict().items():
        assert torch.allclose(tensor, resumed.state_dict()[name], atol=1e-6), name


def test_training_lowers_the_loss(tmp_path):
    model = small_fit(tmp_path, steps=300)
    batch = torch.randn((64, 3), generator=torch.Generator().manual_seed(10**6))
    assert float((model.eval()(batch) - batch.sum(1, keepdim=True)).square().mean()) < 0.5


def test_the_learning_rate_rises_and_falls():
    factors = [learning_rate_factor(place / 100) for place in range(101)]
    assert factors[0] < 0.1 and factors[2:70] == [1.0] * 68 and factors[70:] == sorted(factors[70:], reverse=True)
    assert factors[-1] == pytest.approx(0.01)


def test_the_loss_weight_makes_a_v_loss():
    scheduler = new_scheduler()
    signal = scheduler.alphas_cumprod
    weight = loss_weight(scheduler, cap=float("inf"))
    assert torch.allclose(weight / weight[0], signal[0] / signal) and float(weight.mean()) == pytest.approx(1, abs=1e-5)


def test_the_cap_bounds_the_loss_weight():
    weight = loss_weight(new_scheduler())
    assert float(weight.max() / weight.min()) == pytest.approx(10, rel=1e-2) and float(weight.mean()) == pytest.approx(1, abs=1e-5)


def test_offset_noise_has_means_of_its_own():
    means = offset_noise((64, 4, 32, 32), torch.Generator().manual_seed(0)).mean(dim=(2, 3))
    assert float(means.std()) == pytest.approx((OFFSET_NOISE**2 + 1 / 1024) ** 0.5, rel=0.15)


def test_batches_are_scenes_that_come_once():
    tokenizer = new_tokenizer()
    images, tokens = scene_batch(tokenizer, 5, draw=3)
    later, _ = scene_batch(tokenizer, 5, draw=4)
    scenes = [sample_scene(seed, objects_of(seed)) for seed in range(15, 25)]
    assert [len(scene.things) for scene in scenes] == [2, 2, 2, 1, 1] * 2
    assert torch.equal(torch.cat([images, later]), torch.stack([as_tensor(draw(scene)) for scene in scenes]))
    assert torch.equal(tokens, tokens_of([scene.caption() for scene in scenes[:5]], tokenizer))


def test_workers_draw_the_same_scenes():
    tokenizer = new_tokenizer()
    here, ahead = (Ahead(partial(scene_batch, tokenizer, 4), workers) for workers in (0, 1))
    for place in (2, 3):  # a training that goes on begins anywhere
        for one, other in zip(here(place), ahead(place), strict=True):
            assert torch.equal(one, other)


def test_a_draw_that_nobody_makes_ahead():
    ahead = Ahead(partial(scene_batch, new_tokenizer(), 2), workers=1)
    ahead(3)
    with pytest.raises(ValueError, match="draw 3 asked; accepted: 4, which was made ahead"):
        ahead(3)


def test_crops_hold_a_part_of_an_object():
    images = crops(20, draw=0)
    assert images.shape == (20, 3, 32, 32)
    assert float((images.flatten(2).std(dim=2).amax(dim=1) > 0.05).float().mean()) > 0.9


def test_a_trained_decoder_leaves_the_latents(tmp_path):
    torch.manual_seed(0)
    vae, images = new_autoencoder(), crops(8, draw=10**6)
    before, error = vae.encoder(images), functional.l1_loss(vae(images).sample, images)
    train_decoder(tmp_path, vae, device="cpu", max_steps=30, max_seconds=60)
    assert torch.equal(vae.encoder(images), before)
    assert functional.l1_loss(vae(images).sample, images) < 0.8 * error


@pytest.mark.parametrize("objects", [1, 2])
def test_the_autoencoder_keeps_what_a_scene_shows(objects):
    images = through_autoencoder(load_pipeline(), scene_images(range(HELD_OUT, HELD_OUT + 20), objects))
    assert prompt_accuracy(images, [scene.caption() for scene in held_out_scenes(20, objects)])["all"].all()


def _train_together(folder: Path) -> None:
    """In each process of a team: one model on batches of its own."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1, bias=False)
    draws = []

    def loss(model, draw, progress):
        draws.append(draw)
        batch = torch.randn((4, 3), generator=torch.Generator().manual_seed(draw))
        return (model(batch) - batch.sum(1, keepdim=True)).square().mean()

    fit(model, loss, name="team", folder=folder, learning_rate=1e-2, max_steps=5)
    (folder / f"draws_{draws[0]}").write_text(" ".join(map(str, draws)) + "\n" + " ".join(map(str, model.weight.tolist()[0])))


@pytest.mark.long
def test_a_team_is_one_training_with_larger_batches(tmp_path):
    in_processes(2, tmp_path, _train_together, tmp_path)
    (first, weights), (second, same) = ((tmp_path / f"draws_{rank}").read_text().split("\n") for rank in (0, 1))
    assert first == "0 2 4 6 8" and second == "1 3 5 7 9" and weights == same
    torch.manual_seed(0)
    model = nn.Linear(3, 1, bias=False)

    def loss(model, draw, progress):
        batch = torch.cat([torch.randn((4, 3), generator=torch.Generator().manual_seed(2 * draw + rank)) for rank in (0, 1)])
        return (model(batch) - batch.sum(1, keepdim=True)).square().mean()

    fit(model, loss, name="alone", folder=tmp_path, learning_rate=1e-2, max_steps=5)
    assert torch.allclose(model.weight[0], torch.tensor([float(value) for value in weights.split()]), atol=1e-6)
    assert (tmp_path / "team.safetensors").exists() and not (tmp_path / "team").exists()


def test_what_cannot_be_trained_leaves_no_folder(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("mine")
    for output, options, error, words in (
        (tmp_path / "a", {"minutes": 0.0}, ValueError, "minutes=0.0 asked; accepted: more than 0"),
        (tmp_path / "a", {"minutes": 1, "device": "warp"}, ValueError, "device='warp' asked; on this machine: cpu"),
        (blocked, {"minutes": 1}, OSError, "cannot write to the output folder"),
    ):
        with pytest.raises(error, match=words):
            train.train_pipeline(output, **options)
    assert not (tmp_path / "a").exists()


def test_a_team_elsewhere_than_on_the_cpu():
    with pytest.raises(ValueError, match="processes=2 asked on cuda; accepted: 1, or more on the CPU"):
        train.train_pipeline(Path("nowhere"), minutes=1, device="cuda", processes=2)
    assert not Path("nowhere").exists()


@pytest.mark.long
@pytest.mark.parametrize("processes", [1, 2])
def test_a_pipeline_from_nothing(processes, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "_plan", lambda device: replace(train.ON_CPU, batch_size=2))
    for _ in range(2):  # the second call finds everything done
        train.train_pipeline(tmp_path, minutes=0.2, threads=2, processes=processes)
    pipe = StableDiffusionPipeline.from_pretrained(tmp_path, dtype=torch.float32, local_files_only=True)
    assert pipe("a red circle on a blue background", num_inference_steps=2).images[0].size == (64, 64)
    assert (tmp_path / "judge" / "model.safetensors").exists()
    assert list((tmp_path / "training").glob("samples_*.png")) and (tmp_path / "training" / "unet.csv").exists()
