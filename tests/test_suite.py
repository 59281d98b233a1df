"""The suite: its methods, DeepCache among them, the claims, the figure, scene features and the command."""

from __future__ import annotations

import dataclasses
import json
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import typer
from models import denoiser_pipe
from systems.stable_diffusion import drawing_small
from typer.testing import CliRunner

import fastdiff_lab as fl
from fastdiff_lab import plot
from fastdiff_lab.calibration.reuse_costs import ReuseCosts
from fastdiff_lab.cli import commands
from fastdiff_lab.comparison import render, result_files
from fastdiff_lab.comparison.image_quality.distances import frechet_distance, kernel_distance
from fastdiff_lab.comparison.result_files import compare_into, write_comparison
from fastdiff_lab.hooks.flops import count_flops
from fastdiff_lab.sampling.methods import Method, denoiser_arguments, sample
from fastdiff_lab.sampling.rivals.deepcache import DeepCache
from fastdiff_lab.shapes.data import held_out_prompts, held_out_scenes
from fastdiff_lab.shapes.scenes import draw
from studies.scene_distance import scene_distance, scene_features
from studies.suite import __main__ as suite_command
from studies.suite.claims import paired
from studies.suite.figure import FAMILIES, plot_suite
from studies.suite.gains import plot_gains
from studies.suite.result_files import read_costs, write_suite
from studies.suite.run import run_suite
from studies.suite.seconds import seconds
from studies.suite.suite_methods import suite_columns, suite_methods

PROMPTS = held_out_prompts(2)
SUITE = {"num_inference_steps": 12, "guidance_scale": 1.0, "seeds": [0], "counts": (3, 9)}


def costs(order: int, steps: int = 10, reuse: str = "encoder", max_span: int = 6) -> ReuseCosts:
    """Longer spans cost more, and early ones most."""
    gaps = (0,) if order == 0 else (0, 1, 3)
    early = 1 + torch.arange(steps, 0, -1).float() / steps
    displacement = (torch.arange(max_span + 1).float() ** 2 * early[:, None]).expand(2, len(gaps), steps, max_span + 1).clone()
    return ReuseCosts(displacement, gaps, torch.ones(2, steps + 1), {"order": order, "reuse": reuse})


COSTS = {(reuse, order): costs(order, reuse=reuse) for reuse in ("encoder", "prediction") for order in (0, 1)}


@pytest.fixture(scope="module")
def pipe(embedded):
    return embedded


@pytest.fixture(scope="module")
def tiny():
    """For what does not depend on the images."""
    return drawing_small()


def test_refined_schedules_are_methods_of_what_they_were_measured_with():
    schedule = fl.KeySchedule(10, [0, 2, 6], "refined", {"reuse": "encoder", "order": 1})
    methods = suite_methods(10, COSTS, (3,), [schedule])
    assert methods["features, refined 3, order 1"] == Method(schedule, order=1)
    columns = suite_columns(10, COSTS, (3,), [schedule]).set_index("method")
    assert columns.loc["features, refined 3, order 1", ["keys", "num_keys"]].tolist() == ["refined", 3.0]


def test_fits_are_methods_of_what_they_were_made_with():
    fit = fl.PropagationFit(fl.KeySchedule(10, (0, 9)), ((0.0,) * 3, ()), (0.0, 0.0))
    predictions = fl.PropagationFit(
        fl.KeySchedule(10, (0, 9), "derived, refined in 9 runs"), ((0.0,) * 2, ()), (0.0, 0.0), "prediction"
    )
    methods = suite_methods(10, COSTS, (3,), [fit, predictions])
    assert methods["features, fitted 2, order 0"].propagation.fit == fit
    assert methods["predictions, refined, fitted 2, order 0"].propagation.fit == predictions
    uniform = fl.PropagationFit(fl.KeySchedule.uniform(10, 2), ((0.0,) * 3, (0.0,) * 5), (0.0, 0.0))
    assert "features, uniform, fitted 2, order 0" in suite_methods(10, {}, (3,), [uniform])
    with pytest.raises(ValueError, match="a fit for 10 steps given; accepted: fits of schedules of 50 steps"):
        suite_methods(50, {}, further=[fit])


def made_up_seconds(pipe, ways, task, repeats, options):
    """Instead of two more runs of each method, which tests/test_comparison.py times."""
    return pd.DataFrame({"seconds": np.arange(1.0, 1 + len(ways)), "peak_bytes": np.nan}, index=list(ways))


@pytest.fixture(scope="module")
def suite(tiny):
    """Which methods there are and how they are summed up does not depend on the pipeline."""
    with torch.no_grad(), pytest.MonkeyPatch.context() as patched:
        patched.setattr("fastdiff_lab.comparison.compare.of_one_image", made_up_seconds)
        given = {(reuse, order): costs(order, 12, reuse) for reuse, order in COSTS}
        return run_suite(tiny, given, PROMPTS[:1], reference_steps=14, repeats=1, **SUITE)


@pytest.mark.parametrize(("interval", "whole"), [(1, 6), (4, 2)])
def test_deepcache_counts_what_really_ran(pipe, interval, whole):
    counts = sample(pipe, Method(deepcache=interval), PROMPTS[:1], [0], num_inference_steps=6).counts
    assert (counts.encoder_calls, counts.forward_calls, counts.steps, counts.runs) == (whole, 6, 6, 1)


def test_deepcache_leaves_the_pipeline_as_it_was(pipe):
    before = {name: set(vars(module)) for name, module in pipe.unet.named_modules()}
    baseline = sample(pipe, Method(), PROMPTS[:1], [0], num_inference_steps=4)
    assert torch.equal(sample(pipe, Method(deepcache=1), PROMPTS[:1], [0], num_inference_steps=4).latents, baseline.latents)
    assert not torch.equal(sample(pipe, Method(deepcache=2), PROMPTS[:1], [0], num_inference_steps=4).latents, baseline.latents)
    with pytest.raises(KeyboardInterrupt), DeepCache(2)(pipe):
        raise KeyboardInterrupt
    assert {name: set(vars(module)) for name, module in pipe.unet.named_modules()} == before
    assert not any(module._forward_pre_hooks for module in pipe.unet.modules())
    assert torch.equal(sample(pipe, Method(), PROMPTS[:1], [0], num_inference_steps=4).latents, baseline.latents)


def test_operations_of_deepcache_are_those_of_what_it_runs(tiny):
    arguments, unet = denoiser_arguments(tiny, PROMPTS[0]), tiny.unet
    with_cache, plain = DeepCache(2).flops(unet, arguments), count_flops(unet, arguments)
    assert with_cache.total == plain.total  # a whole call is a plain one
    rows, side, ran = 2, 8, (unet.conv_in, unet.conv_out)
    convolutions = sum(2 * 9 * layer.in_channels * layer.out_channels * rows * side**2 for layer in ran)
    assert convolutions < with_cache.decoder < plain.decoder  # a cached call: less than the decoder, more than the outermost layers


def test_bad_deepcache(pipe, monkeypatch):
    with pytest.raises(
        ValueError, match="a method has DeepCache or a schedule or another number of steps or another rival, not two"
    ):
        Method(steps=5, deepcache=2)
    with pytest.raises(ValueError, match="a method has DeepCache or a schedule"):
        Method(fl.KeySchedule.paper(50), deepcache=2)
    for wrong in (0, 1.5, True):
        with pytest.raises(ValueError, match=r"deepcache=.* asked; accepted: an interval, a whole number of 1 or more"):
            Method(deepcache=wrong)
    transformer = SimpleNamespace(transformer=denoiser_pipe().unet, scheduler=pipe.scheduler)
    with pytest.raises(
        ValueError, match="DeepCache asked for a UNet2DConditionModel; accepted: a pipeline whose denoiser is a UNet"
    ):
        with DeepCache(2)(transformer):
            pass
    monkeypatch.setitem(sys.modules, "DeepCache", None)
    with pytest.raises(
        ModuleNotFoundError, match="a method with DeepCache needs DeepCache, which is not installed; get the extra rivals"
    ):
        sample(pipe, Method(deepcache=2), PROMPTS[:1], [0], num_inference_steps=4)
    with pytest.raises(ModuleNotFoundError, match="needs DeepCache, which is not installed"):  # before anything is drawn
        run_suite(pipe, {}, PROMPTS, **SUITE)


def test_the_methods_of_fifty_steps():
    given = {(reuse, order): costs(order, 50, reuse, max_span=25) for reuse, order in COSTS}
    methods, columns = suite_methods(50, given), suite_columns(50, given)
    assert list(methods) == list(columns["method"]) and len(set(methods)) == len(methods)
    assert next(iter(methods.values())) == Method() and methods["DeepCache 5"] == Method(deepcache=5)
    for count in (5, 7, 9, 13, 17):
        assert methods[f"fewer steps ({count})"] == Method(steps=count)
        assert (f"features, uniform {count}, order 1" in methods) == (count >= 9)
        for order in (0, 1) if count >= 9 else (0,):
            assert methods[f"features, uniform {count}, order {order}"] == Method(fl.KeySchedule.uniform(50, count), order=order)
            derived = methods[f"features, derived {count}, order {order}"]
            assert methods[f"predictions, derived {count}, order {order}"] == Method(
                derived.schedule, reuse="prediction", order=order
            )
            assert len(methods[f"predictions, derived for predictions {count}, order {order}"].schedule.keys) == count
    assert methods["predictions, paper 9, order 0"] == Method(fl.KeySchedule.paper(50), reuse="prediction")
    noisy = columns[columns["noise"]]
    assert sorted(zip(noisy["keys"], noisy["order"], noisy["num_keys"], strict=True)) == [
        (keys, 0, 9) for keys in ("derived", "paper", "uniform")
    ]
    assert all((methods[name].prior_noise > 0) == noise for name, noise in zip(columns["method"], columns["noise"], strict=True))
    assert columns.set_index("method").loc["features, paper 9, order 0", "key_steps"] == str(fl.KeySchedule.paper(50))


def test_methods_that_cannot_be_are_left_out():
    short = {("encoder", 0): costs(0, 50, max_span=8)}  # 50 steps in groups of 8 need 7 keys
    names = list(suite_methods(50, short))
    assert "features, derived 7, order 0" in names and "features, derived 5, order 0" not in names
    assert not any("order 1" in name and "derived" in name for name in names)
    few = list(suite_methods(8, {}))
    assert "fewer steps (7)" in few and not any("paper" in name or " 9" in name for name in few)


def test_costs_of_something_else():
    with pytest.raises(
        ValueError, match=r"the costs for \('encoder', 0\) are of runs of 10 steps, this one makes 50 denoiser calls"
    ):
        suite_methods(50, {("encoder", 0): costs(0)})
    with pytest.raises(ValueError, match=r"costs of order 1 given for \('encoder', 0\); accepted: 'encoder' or 'prediction'"):
        suite_methods(10, {("encoder", 0): costs(1)})
    with pytest.raises(ValueError, match=r"costs of order 1 given for \('decoder', 1\)"):
        suite_methods(10, {("decoder", 1): costs(1)})


def test_prompts_that_calibration_has_seen(pipe):
    seen = dataclasses.replace(costs(1, 12), about={"prompts": PROMPTS[1:]})
    with pytest.raises(ValueError, match="the costs were measured on '.*', a prompt of this comparison; accepted: prompts that"):
        run_suite(pipe, {("encoder", 1): seen}, PROMPTS, **SUITE)


@pytest.mark.long
def test_the_table_has_costs_and_nearness(suite):
    table, images = suite
    assert list(table["method"]) == list(images["method"].unique()) and (table["images"] == 1).all()
    rows = table.set_index("method")
    baseline, cached = rows.loc["baseline"], rows.loc["DeepCache 2"]
    assert baseline["psnr"] == np.inf and np.isfinite(baseline["reference_psnr"]) and baseline["ratio"] == 1
    assert cached["forward_calls"] == 12 and cached["encoder_calls"] == 6
    assert baseline["gflops"] / 2 < cached["gflops"] < baseline["gflops"]
    assert rows.loc["features, derived 9, order 1", "forward_calls"] == rows.loc["fewer steps (9)", "forward_calls"] == 9
    expected = {"seconds", "ssim_worst", "latent_mse_high", "reference_psnr_worst", "psnr_typical"}
    expected |= {"prompt_accuracy", "keys", "noise", "key_steps"}
    assert expected <= set(table)


@pytest.mark.long
def test_the_claims_are_differences_of_the_table(suite):
    table, images = suite
    claims, rows = paired(images, table), table.set_index("method")
    for _, row in claims.iterrows():
        assert row["difference"] == pytest.approx(rows.loc[row["method"], "psnr"] - rows.loc[row["other"], "psnr"])
        assert row["low"] <= row["difference"] + 1e-9 and row["difference"] <= row["high"] + 1e-9
    assert not claims.duplicated(["claim", "method", "other"]).any()
    found = claims.set_index(["claim", "num_keys", "order"])["other"]
    assert found["derived over uniform keys", 9, 1] == "features, uniform 9, order 1"
    assert found["features over predictions at keys derived for each", 9, 1] == "predictions, derived for predictions 9, order 1"
    assert found["extrapolated at derived keys over reused at the paper's", 9, 1] == "features, paper 9, order 0"
    assert found["derived over fewer steps", 9, 1] == "fewer steps (9)"
    assert (claims["claim"] == "with over without prior noise").sum() == 3  # the paper's, uniform and derived keys
    assert claims["claim"].str.startswith("the paper's over uniform keys, both").sum() == 2


@pytest.mark.long
def test_the_figure_has_every_family(suite):
    table, _ = suite
    fitted = table.assign(keys=table["keys"].replace({"derived": "fitted"}).mask(table["kind"] == "deepcache", "fitted"))
    table = pd.concat([table, fitted[fitted["keys"] == "fitted"]])
    figure = plot_suite(table, plot.figure(12, 10))
    *panels, legend = figure.axes
    assert [ax.get_xlabel().split()[0] for ax in panels] == ["sequential", "seconds", "GFLOPs"]
    assert all(ax.get_xscale() == "log" for ax in panels) and "(dB)" in figure.axes[0].get_ylabel()
    names = [text.get_text() for text in legend.get_legend().get_texts()]
    assert names == [family.label for family in FAMILIES] + ["the baseline's own PSNR to the converged reference"]
    looks = [
        (line.get_color(), line.get_marker(), line.get_linestyle(), line.get_markerfacecolor()) for line in figure.axes[0].lines
    ]
    assert len(looks) == len(set(map(str, looks))) == len(names)
    assert figure.axes[0].lines[-1].get_ydata()[0] == table["reference_psnr"].iloc[0]
    of_a_file = plot_suite(table.assign(keys=table["keys"].replace("", np.nan)), plot.figure(12, 10))
    assert [text.get_text() for text in of_a_file.axes[-1].get_legend().get_texts()] == names
    untimed = plot_suite(table.assign(seconds=np.nan), plot.figure(12, 10))
    assert [bool(ax.lines) for ax in untimed.axes] == [True, True, False]


@pytest.mark.parametrize("moved", [31.0, 35.0])
def test_gains_are_stairs_and_a_loss_is_hatched(moved):
    heights = {"uniform": 29.0, "uniform, fitted": 32.0, "fitted": 33.0, "refined, fitted": moved}
    rows = [("features", keys, psnr) for keys, psnr in heights.items()] + [
        ("predictions", "uniform", 30.0),
        ("predictions", "fitted", 31.0),
    ]
    table = pd.DataFrame(rows, columns=["kind", "keys", "psnr"]).assign(order=0.0, num_keys=9.0, noise=False)
    features, predictions = plot_gains(table, plot.figure(10, 4)).axes
    assert [text.get_text() for text in features.texts] == ["29.0", "32.0", "33.0", f"{moved:.1f}"]
    assert bool(features.patches[-1].get_hatch()) == (moved < 33) and len(predictions.patches) == 2
    assert features.patches[-1].get_height() == moved - 33


def test_held_out_captions_half_of_two_objects():
    prompts = held_out_prompts(9)
    assert len(set(prompts)) == 9 and prompts[:2] == held_out_prompts(9)[:2]
    known = {2: {scene.caption() for scene in held_out_scenes(40, 2)}}
    assert [prompt in known[2] for prompt in prompts] == [False] * 5 + [True] * 4
    with pytest.raises(ValueError, match="`count` must be a positive int, got 0"):
        held_out_prompts(0)


def test_distances_of_features():
    generator = torch.Generator().manual_seed(0)
    near, same, far = (torch.randn(200, 8, generator=generator) + shift for shift in (0.0, 0.0, 1.0))
    assert abs(kernel_distance(near, same)[0]) < 0.1 < 1 < kernel_distance(near, far)[0]
    assert kernel_distance(near, far) == kernel_distance(near, far)  # the same subsets
    assert frechet_distance(near, same) < 1 < frechet_distance(near, far) < 10  # the shift's square is 8
    with pytest.raises(ValueError, match="`subset_size` must be an int from 2 to 200 .the images of the smaller set., got 300"):
        kernel_distance(near, far, subset_size=300)
    with pytest.raises(ValueError, match=r"features of shapes \(200, 8\) and \(200, 7\) given"):
        frechet_distance(near, far[:, :7])


@pytest.mark.long
def test_scene_distance(pipe, tmp_path, monkeypatch):
    options = {"num_inference_steps": 3, "guidance_scale": 1.0, "store": tmp_path / "scenes.sqlite"}
    table = scene_distance(pipe, {"baseline": Method()}, 6, **options)
    assert table["method"].tolist() == ["drawn scenes", "baseline"] and (table["images"] == 6).all()
    monkeypatch.delattr(render, "_run")  # nothing is drawn again: all comes from the store
    pd.testing.assert_frame_equal(scene_distance(pipe, {"baseline": Method()}, 6, **options), table, rtol=1e-3)
    monkeypatch.undo()
    with pytest.raises(ValueError, match="3 images per method asked; accepted: a whole number of 4 or more"):
        scene_distance(pipe, {}, 3)
    assert scene_features([draw(scene) for scene in held_out_scenes(3)]).shape == (3, 128)


def invoke(*arguments):
    return CliRunner().invoke(commands.app, ["compare", *map(str, arguments)])


@pytest.mark.long
def test_the_command_writes_what_the_suite_found(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(suite_command, "load_pipeline", lambda *_, **__: tiny)
    costs(1, 4, max_span=3).save(tmp_path / "costs.safetensors")
    arguments = ["--costs", tmp_path / "costs.safetensors", "--count", 1, "--seeds", 1, "--steps", 4, "--guidance", 1,
                 "--reference", 0, "--repeats", 0, "--output", tmp_path / "out"]  # fmt: skip
    app = typer.Typer()
    app.command()(suite_command.suite)
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0 and "DeepCache 3" in result.output
    names = {"about.json", "images.csv", "table.csv", "paired.csv", "suite.png", "images.sqlite"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == names
    about = json.loads((tmp_path / "out" / "about.json").read_text())
    assert about["threads"] == 1 and about["versions"]["torch"] and about["asked"]["costs"] == [{"order": 1, "reuse": "encoder"}]
    table = pd.read_csv(tmp_path / "out" / "table.csv")
    assert table["method"][0] == "baseline" and np.isinf(table["psnr"][0]) and table["seconds"].isna().all()


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:this run has 4 steps")
def test_the_command_compares_schedules(tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(result_files, "load_pipeline", lambda **_: tiny)
    fl.KeySchedule(4, [0, 2]).save(tmp_path / "mine.json")
    result = invoke(tmp_path / "mine.json", "--order", 1, "--count", 1, "--seeds", 1, "--steps", 4, "--guidance", 1,
                    "--reference", 0, "--repeats", 0, "--output", tmp_path / "out", "--store", tmp_path / "s.sqlite")  # fmt: skip
    assert result.exit_code == 0
    table = pd.read_csv(tmp_path / "out" / "table.csv")
    assert table["method"].tolist() == ["baseline", "uniform 2", "fewer steps (2)", "mine, prediction reused", "mine"]
    about = (tmp_path / "out" / "about.json").read_text()
    assert json.loads(about)["asked"]["methods"]["mine"]["order"] == 1
    refused = invoke(tmp_path / "mine.json", "--count", 1, "--seeds", 1, "--steps", 5, "--output", tmp_path / "out")
    assert isinstance(refused.exception, ValueError) and (tmp_path / "out" / "about.json").read_text() == about


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:this run has 4 steps")
def test_a_comparison_that_is_stopped_leaves_the_files_of_the_one_before(monkeypatch, tmp_path, tiny):
    out = tmp_path / "out"
    run = {"num_inference_steps": 4, "guidance_scale": 1.0, "repeats": 0}
    write_comparison(out, tiny, {"mine": fl.KeySchedule(4, [0, 2])}, ["a red circle"], **run)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(result_files, "with_costs", _stop)
        write_comparison(out, tiny, {"mine": fl.KeySchedule(4, [0, 1])}, ["a red circle"], **run)
    assert set(before) == {"about.json", "images.csv", "table.csv"}
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def _stop(*_, **__):
    raise KeyboardInterrupt


def test_a_folder_that_cannot_be_written_is_found_out_before_anything_is_drawn(monkeypatch, tmp_path, pipe):
    (tmp_path / "file").write_text("mine")
    monkeypatch.setattr(result_files, "compare_images", _stop)
    with pytest.raises(OSError, match="cannot write to the output folder"):
        write_comparison(tmp_path / "file", pipe, {}, ["a red circle"])
    with pytest.raises(OSError, match="cannot write to the output folder"):
        write_suite(tmp_path / "file", pipe, {}, ["a red circle"])


def test_a_command_that_asks_for_nothing_or_too_much(tmp_path):
    schedule, other = tmp_path / "mine.json", tmp_path / "other" / "mine.json"
    other.parent.mkdir()
    for path in (schedule, other):
        fl.KeySchedule(4, [0, 2]).save(path)
    with pytest.raises(ValueError, match="no schedules asked; accepted: files of schedules"):
        compare_into(tmp_path, [])
    with pytest.raises(
        ValueError, match="refined schedule .* measured with reuse=None and order=None; accepted: schedules of 50 steps"
    ):
        suite_methods(50, {}, further=[fl.KeySchedule(50, [0, 2])])
    with pytest.raises(ValueError, match="two files are named 'mine'; accepted: files of different names"):
        compare_into(tmp_path, [schedule, other])
    with pytest.raises(ValueError, match="`seeds` must be a positive int, got 0"):
        compare_into(tmp_path, [schedule], seeds=0)
    for name in ("a", "b"):
        costs(1).save(tmp_path / name)
    with pytest.raises(
        ValueError, match=r"b holds costs for \('encoder', 1\), and so does a file before it; accepted: one file for each"
    ):
        read_costs([tmp_path / "a", tmp_path / "b"])


def test_the_methods_are_timed_anew_on_another_device(tmp_path):
    seconds(tmp_path, repeats=1, steps=6)
    table = pd.read_csv(tmp_path / "seconds.csv").set_index("method")
    assert {"baseline", "fewer steps (5)", "features, uniform 5, order 0", "DeepCache 2"} <= {*table.index}
    assert (table["seconds"] > 0).all() and json.loads((tmp_path / "about.json").read_text())["repeats"] == 1
