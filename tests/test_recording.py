"""Recording and analysis on a tiny real pipeline."""

from __future__ import annotations

import gc
import weakref

import diffusers
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from models import DEEP, FAMILIES, FAMILY_KINDS, FRAMES, SIDES, TOKENS, WIDTH, conditions, denoiser_pipe, loop, pipeline, run
from short_suite import long_but

import fastdiff_lab as fl
from fastdiff_lab.recording.analysis import KINDS

LAYER = "up_blocks.1"


@pytest.fixture(scope="module")
def pipe():
    return pipeline(dtype=torch.float32)


@pytest.fixture(scope="module")
def recorded(pipe):
    with torch.no_grad():
        baseline = run(pipe)
        with fl.record(pipe, keep=["down_blocks.1", LAYER]) as recording:
            latents = run(pipe)
        assert torch.equal(latents, baseline)
    return recording


def test_blocks_are_recorded_by_the_hosts_names(recorded):
    expected = ("conv_in", "down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1")
    assert set(recorded.layers) == set(expected)
    assert dict(zip(recorded.layers, recorded.parts, strict=True))["mid_block"] == "encoder"
    assert recorded.num_steps == 10 and recorded.num_samples == 2
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__, "fastdiff_lab": fl.__version__}
    names = {"pipeline": "StableDiffusionPipeline", "model": "UNet2DConditionModel", "scheduler": "DDIMScheduler"}
    assert recorded.about == names | versions


def test_statistics_are_those_of_the_kept_features(recorded):
    features = recorded[LAYER].double()
    place = recorded.index(LAYER)
    change = (features[:, 1:] - features[:, :-1]).square().mean(dim=(2, 3, 4))
    assert torch.allclose(recorded.statistics["change"][:, 1:, place].double(), change, rtol=1e-4)
    assert recorded.statistics["change"][:, 0].isnan().all()
    norm = features.mean(dim=2).flatten(2).norm(dim=2)
    assert torch.allclose(recorded.statistics["norm"][..., place].double(), norm, rtol=1e-4)


def test_several_runs_add_up_as_samples():
    pipe = denoiser_pipe()
    with fl.record(pipe) as recording:
        loop(pipe, 5, conditions())
        loop(pipe, 5, conditions(rows=3), rows=3)
        assert recording.num_samples == 5
        with pytest.raises(ValueError, match="holds runs of 5 steps, now one of 6 steps"):
            loop(pipe, 6, conditions())
    assert recording.num_samples == 5


def test_an_interrupted_run_is_left_out(pipe):
    def stop(pipe, step, timestep, values):
        raise KeyboardInterrupt

    with fl.record(pipe) as recording:
        with pytest.raises(KeyboardInterrupt):
            run(pipe, callback_on_step_end=stop)
        assert recording.num_samples == 0
        run(pipe, 2)
    assert recording.num_samples == 2
    assert all(not m._forward_hooks and not m._forward_pre_hooks for m in pipe.unet.modules())


def test_a_run_with_nan_is_left_out_and_the_step_is_named(pipe):
    calls = []

    def spoil(module, args, output):
        calls.append(1)
        return output * float("nan") if len(calls) == 7 else output

    with fl.record(pipe) as recording:
        run(pipe, 4)
        handle = pipe.unet.mid_block.register_forward_hook(spoil)
        calls.extend([1] * 4)
        with pytest.raises(
            ValueError, match=r"the features of 'up_blocks.0' at step 2 \(time-step 251\) hold NaN or infinite values"
        ):
            run(pipe, 4)
        handle.remove()
        run(pipe, 4)
    assert recording.num_samples == 4


@pytest.mark.parametrize("parallel", [False, True])
def test_an_accelerated_run_is_refused(parallel):
    pipe = pipeline()
    with pytest.raises(ValueError, match="record baselines: leave the block that accelerates the pipeline first"):
        with fl.record(pipe), fl.encoder_propagation(pipe, fl.KeySchedule(10, [0, 5]), parallel_decoding=parallel):
            run(pipe)


def test_files_keep_every_bit(recorded, tmp_path):
    file = tmp_path / "recording.safetensors"
    recorded.save(file)
    again = fl.Recording.load(file)
    assert (again.layers, again.parts, again.time_steps, again.about) == (
        recorded.layers, recorded.parts, recorded.time_steps, recorded.about,
    )  # fmt: skip
    for kind in ("statistics", "features"):
        kept, read = getattr(recorded, kind), getattr(again, kind)
        assert kept.keys() == read.keys()
        assert all(torch.equal(kept[name].nan_to_num(-1), read[name].nan_to_num(-1)) for name in kept)


def test_truncated_and_foreign_files(recorded, tmp_path):
    from safetensors.torch import save_file

    whole = tmp_path / "recording.safetensors"
    recorded.save(whole)
    for length in (0, 4, 100, whole.stat().st_size - 1):
        file = tmp_path / "cut.safetensors"
        file.write_bytes(whole.read_bytes()[:length])
        with pytest.raises(ValueError, match="is no whole recording"):
            fl.Recording.load(file)
    save_file({"weight": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="is no recording of version 1"):
        fl.Recording.load(tmp_path / "other.safetensors")
    broken = fl.Recording(recorded.layers[:-1], recorded.parts[:-1], recorded.time_steps, recorded.statistics)
    broken.save(tmp_path / "broken.safetensors")
    with pytest.raises(ValueError, match="have not 10 steps and 5 layers"):
        fl.Recording.load(tmp_path / "broken.safetensors")
    with pytest.raises(FileNotFoundError):
        fl.Recording.load(tmp_path / "none.safetensors")
    with pytest.raises(ValueError, match="is no whole recording .it is a folder.; accepted: a file that"):
        fl.Recording.load(tmp_path)


def test_a_recording_of_nothing_is_not_saved(tmp_path):
    with pytest.warns(UserWarning, match="nothing was recorded"), fl.record(denoiser_pipe()) as recording:
        pass
    with pytest.raises(ValueError, match="nothing was recorded: no run was finished inside the record block"):
        recording.save(tmp_path / "recording.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_header_that_is_not_of_these_tensors(recorded, tmp_path):
    file = tmp_path / "recording.safetensors"
    fl.Recording(recorded.layers, recorded.parts[:-1], recorded.time_steps, recorded.statistics).save(file)
    with pytest.raises(ValueError, match="its header and its tensors do not belong together; accepted: a file that"):
        fl.Recording.load(file)


def test_a_recording_holds_no_reference_to_the_model():
    pipe = denoiser_pipe()
    with fl.record(pipe, keep=[LAYER]) as recording:
        loop(pipe, 3, conditions())
    model = weakref.ref(pipe.unet)
    del pipe
    gc.collect()
    assert model() is None and recording.num_samples == 2


def test_an_unknown_layer_says_which_are_close(recorded):
    pipe = denoiser_pipe()
    with pytest.raises(KeyError, match=r"no layer 'up_block.1'; close to it: up_blocks.1"), fl.record(pipe, layers=["up_block.1"]):
        pass
    with pytest.raises(KeyError, match="close to it: down_blocks"):
        recorded["down_blocks"]
    with pytest.raises(KeyError, match="only statistics of 'mid_block' were recorded"):
        recorded["mid_block"]
    with pytest.raises(KeyError, match="no layer 'up_block.*resnet"), fl.record(pipe, layers="up_block.*resnet"):
        pass
    with pytest.raises(KeyError, match="the function chose none of"), fl.record(pipe, keep=lambda name: False):
        pass


def test_layers_by_name_pattern_and_function():
    pipe = denoiser_pipe()
    for asked in (
        ["mid_block.resnets.1", "mid_block.resnets.0"],
        "mid_block.resnets.?",
        lambda name: name.startswith("mid_block.res") and len(name) == 19,
    ):
        with fl.record(pipe, layers=asked) as recording:
            loop(pipe, 2, conditions())
        assert recording.layers == ("mid_block.resnets.0", "mid_block.resnets.1") and recording.parts == ("encoder",) * 2


def test_the_paper_counts_44_layers():
    pipe = denoiser_pipe()
    pipe.unet = UNet2DConditionModel(**DEEP | {"layers_per_block": 2}).double()
    with fl.record(pipe, layers="inner") as recording:
        loop(pipe, 2, conditions())
    assert len(recording.layers) == 44  # Table 7
    assert recording.layers[:5] == tuple(
        f"down_blocks.0.{name}" for name in ("resnets.0", "attentions.0", "resnets.1", "attentions.1", "downsamplers.0")
    )
    assert recording.layers[17:20] == ("mid_block.resnets.0", "mid_block.attentions.0", "mid_block.resnets.1")
    assert recording.parts.count("encoder") == 20


@pytest.mark.parametrize("name", long_but(FAMILY_KINDS, FAMILIES))
def test_every_denoiser_class_is_recorded_without_touching_it(name):
    pipe = denoiser_pipe(name)
    baseline = loop(pipe, 2, conditions(name))
    with fl.record(
        pipe, layers="inner" if name != "dit" else None, keep=lambda layer: "blocks.0" in layer and layer.count(".") == 1
    ) as recording:
        assert torch.equal(loop(pipe, 2, conditions(name)), baseline)
    frames = FRAMES if FAMILIES[name].frames_axis else 1
    assert recording.num_samples == 2 * frames
    assert recording.statistics["change"][:, 1:].gt(0).all() and set(recording.parts) == {"encoder", "decoder"}


@pytest.mark.parametrize(
    ("options", "rows"),
    [
        ({}, slice(2, 4)),
        ({"half": "conditional"}, slice(2, 4)),
        ({"half": "unconditional"}, slice(0, 2)),
        ({"half": "all"}, slice(0, 4)),
    ],
)
def test_the_half_of_the_rows_that_is_recorded(pipe, options, rows):
    """Under guidance it is the conditional half, unless another is asked for."""
    seen = []
    handle = pipe.unet.up_blocks[1].register_forward_hook(lambda m, a, output: seen.append(output.clone()))
    with fl.record(pipe, keep=[LAYER], **options) as recording:
        run(pipe, 3)
    handle.remove()
    assert len(seen) == 3 and all(torch.equal(recording[LAYER][:, step], output[rows]) for step, output in enumerate(seen))
    with (
        pytest.raises(ValueError, match="`half` must be one of conditional, unconditional, all, got 'text'"),
        fl.record(pipe, half="text"),
    ):
        pass


def test_a_transformer_has_the_prompt_in_the_first_half():
    pipe = denoiser_pipe("dit")
    labels = torch.tensor([7, 8, 1000, 1000])  # DiTPipeline: the null class stands in the second half
    seen = []
    handle = pipe.transformer.transformer_blocks[1].register_forward_hook(lambda m, a, output: seen.append(output.clone()))
    with fl.record(pipe, keep=["transformer_blocks.1"]) as recording:
        loop(pipe, 2, {"class_labels": labels}, rows=4)
    handle.remove()
    assert torch.equal(recording["transformer_blocks.1"][:, 1], seen[1][:2])


def test_pipelines_that_do_not_tell_whether_they_guide():
    """DeepFloyd-IF and LDM give the same sample to both halves, the negative prompt first."""
    pipe = denoiser_pipe()
    pipe.scheduler.set_timesteps(1)
    both = torch.randn(2, 4, *SIDES, dtype=torch.float64).repeat(2, 1, 1, 1)
    with fl.record(pipe) as recording:
        pipe.unet(both, pipe.scheduler.timesteps[0], **conditions(rows=4))
    assert recording.num_samples == 2
    with fl.record(pipe) as recording:
        pipe.scheduler.set_timesteps(1)
        pipe.unet(torch.randn(4, 4, *SIDES, dtype=torch.float64), pipe.scheduler.timesteps[0], **conditions(rows=4))
    assert recording.num_samples == 4


def test_features_that_need_too_much_memory_are_refused_before_the_first_step():
    pipe = denoiser_pipe()
    steps = []
    with pytest.raises(
        ValueError, match=r"features of 1 layers needs 120960 bytes, max_bytes is 120959; the largest is up_blocks.1"
    ):
        with fl.record(pipe, keep=[LAYER], max_bytes=120959):
            pipe.unet.conv_in.register_forward_hook(lambda *_: steps.append(1))
            loop(pipe, 3, conditions())
    assert not steps
    with fl.record(pipe, keep=[LAYER], max_bytes=120960) as recording:
        loop(pipe, 3, conditions())
    assert recording[LAYER].nbytes == 120960


def test_the_bytes_of_kept_features_are_told_before_the_run(pipe):
    baseline, evaluated = run(pipe, 2), []
    handle = pipe.unet.conv_in.register_forward_hook(lambda *_: evaluated.append(1))
    keep = lambda name: name in ("mid_block", LAYER)
    text = torch.randn((2, TOKENS, WIDTH), generator=torch.Generator().manual_seed(1))
    call = {"prompt_embeds": text, "negative_prompt_embeds": -text, "latents": torch.zeros(2, 4, *SIDES), "output_type": "latent"}
    call |= {"num_inference_steps": 3, "guidance_scale": 5.0}
    told = {half: fl.bytes_to_keep(pipe, keep, half=half, **call) for half in ("conditional", "all")}
    assert not evaluated
    handle.remove()
    for half, sizes in told.items():
        with fl.record(pipe, keep=keep, half=half) as recording:
            pipe(**call)
        assert sizes == {name: recording[name].nbytes for name in ("mid_block", LAYER)}
    assert torch.equal(run(pipe, 2), baseline) and not pipe.unet._forward_pre_hooks
    with pytest.raises(KeyError, match="no layer 'up'"):
        fl.bytes_to_keep(pipe, "up", **call)
    with pytest.raises(ValueError, match="`half` must be one of .*, got 'text'"):
        fl.bytes_to_keep(pipe, keep, half="text", **call)


def test_a_run_without_a_denoiser_call_has_no_bytes_to_tell(monkeypatch):
    pipe = pipeline(dtype=torch.float32)
    monkeypatch.setattr(type(pipe), "__call__", lambda self: None)
    with pytest.raises(ValueError, match="ran without calling its denoiser; accepted: arguments for a run of at least one step"):
        fl.bytes_to_keep(pipe, LAYER)


def test_tables(recorded):
    for kind in KINDS:
        table = fl.feature_change(recorded, kind)
        assert list(table.columns) == ["sample", "step", "time_step", "part", "layer", "value"]
        assert len(table) == 2 * 9 * len(recorded.layers) and table["value"].notna().all() and (table["value"] >= -1e-6).all()
    one = fl.feature_change(recorded, "relative").query(f"layer == '{LAYER}' and sample == 1 and step == 4")["value"].item()
    features = recorded[LAYER][1].double()
    assert one == pytest.approx(float((features[4] - features[3]).norm() / features[3].norm()), rel=1e-4)
    assert len(fl.feature_norm(recorded)) == 2 * 10 * len(recorded.layers)
    with pytest.raises(ValueError, match="`kind` must be one of squared, relative, cosine, got 'mse'"):
        fl.feature_change(recorded, "mse")


def test_similarity_and_clusters_of_steps(recorded):
    similarity = fl.step_similarity(recorded, LAYER)
    assert similarity.shape == (10, 10) and np.allclose(np.diag(similarity), 1, atol=1e-5)
    one = recorded[LAYER][:, [2, 7]].flatten(2).double()
    expected = torch.nn.functional.cosine_similarity(one[:, 0], one[:, 1], dim=-1).mean()
    assert similarity[2, 7] == pytest.approx(float(expected), abs=1e-5)
    for count in (1, 4, 10):
        labels = fl.step_clusters(similarity, count)
        assert labels[0] == 0 and sorted(labels) == labels.tolist() and len(set(labels)) == count
    blocks = np.kron(np.eye(2), np.ones((3, 3)))
    assert fl.step_clusters(blocks, 2).tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(ValueError, match=r"`count` must be an int from 1 to 10 \(the steps\), got 11"):
        fl.step_clusters(similarity, 11)


def test_maps_of_a_transformer():
    pipe = denoiser_pipe("dit")
    with fl.record(pipe, keep=["transformer_blocks.0"]) as recording:
        loop(pipe, 3, conditions("dit"))
    assert fl.pca_maps(recording, "transformer_blocks.0").shape == (3, 5, 5, 3)


def test_encoder_against_decoder_in_numbers(recorded):
    table = fl.feature_change(recorded).groupby("part")["value"].agg(["mean", "std", "max"])
    change = recorded.statistics["change"][:, 1:]
    decoder = [part == "decoder" for part in recorded.parts]
    assert table.loc["decoder", "mean"] == pytest.approx(float(change[..., decoder].mean()), rel=1e-4)


def test_pca_maps_share_one_basis(recorded):
    maps = fl.pca_maps(recorded, LAYER, steps=[0, 5, 5])
    assert maps.shape == (3, *SIDES, 3) and maps.min() >= 0 and maps.max() <= 1
    assert np.allclose(maps[1], maps[2], atol=1e-5) and not np.allclose(maps[0], maps[1])
