"""The commands, and what they say of bad input."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from importlib.metadata import version
from itertools import product
from pathlib import Path

import nbformat
import pandas as pd
import papermill
import pytest
import torch
from PIL import Image
from short_suite import long_but
from typer.testing import CliRunner

from fastdiff_lab import KeySchedule, PropagationFit, derive_schedule, load_pipeline
from fastdiff_lab.calibration.reuse_costs import ReuseCosts
from fastdiff_lab.cli import commands, tour
from fastdiff_lab.cli.parsing import fitting_keys
from fastdiff_lab.cli.tour import notebooks_folder, run_tour
from fastdiff_lab.comparison.compare import SHOWN
from fastdiff_lab.exercises import ContestEntry, contest

PROMPT = "a small red circle at the left on a blue background"


def invoke(*arguments):
    return CliRunner().invoke(commands.app, [str(argument) for argument in arguments])


def failed(monkeypatch, capsys, *arguments) -> str:
    """What the whole program says on its error output when it ends with exit code 2."""
    monkeypatch.setattr("sys.argv", ["fastdiff-lab", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        commands.main()
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_help_names_every_command():
    shown = invoke("--help").output
    assert all(
        command in shown for command in ("tour", "sample", "calibrate", "derive", "fit", "compare", "contest", "train", "lab")
    )


@pytest.mark.long
def test_from_measurement_to_image(tmp_path):
    """The README's way: calibrate, derive, sample with the schedule's file."""
    costs, schedule, image = tmp_path / "costs.safetensors", tmp_path / "schedule.json", tmp_path / "a.png"
    (tmp_path / "prompts.txt").write_text(f"{PROMPT}\n\n")
    result = invoke(
        "calibrate", costs, "--steps", 6, "--order", 1, "--max-span", 3, "--prompts", tmp_path / "prompts.txt", "--threads", 1
    )
    assert result.exit_code == 0 and f"fastdiff-lab derive {costs} --num-keys 3" in result.output
    front = invoke("derive", costs).output
    assert len(front.splitlines()) == 1 + 4 and "0-5 of 6" in front  # 3 to 6 keys: a gap of 3 steps between keys was not measured
    assert invoke("derive", costs, "--num-keys", 3, "--output", schedule).exit_code == 0
    derived = KeySchedule.load(schedule)
    assert len(derived.keys) == 3 and derived.measured_on["order"] == 1
    assert invoke("derive", costs, "--num-keys", 3, "--refine", 2, "--output", schedule).exit_code == 0
    assert re.search("refined in 2 runs|of 2 runs of refinement none came nearer", KeySchedule.load(schedule).source)
    result = invoke("sample", PROMPT, "--schedule", schedule, "--steps", 6, "--output", image)
    assert result.exit_code == 0 and "3 encoder calls" in result.output  # no warning: order 1 is taken from the file
    with pytest.warns(UserWarning, match="order 1, here 0"):
        assert invoke("sample", PROMPT, "--schedule", schedule, "--order", 0, "--steps", 6, "--output", image).exit_code == 0


@pytest.mark.long
def test_a_fit_from_its_schedule_to_an_image(tmp_path):
    schedule, place, image = tmp_path / "schedule.json", tmp_path / "fit.json", tmp_path / "a.png"
    KeySchedule(6, (0, 1, 3)).save(schedule)
    result = invoke("fit", schedule, "--steps", 6, "--count", 2, "--threads", 1, "--output", place)
    assert result.exit_code == 0 and f"fastdiff-lab sample PROMPT --fit {place}" in result.output
    assert PropagationFit.load(place).about["seeds"] == [0, 1]
    result = invoke("sample", PROMPT, "--fit", place, "--steps", 6, "--output", image)
    assert result.exit_code == 0 and "3 encoder calls" in result.output and image.exists()
    options = ["--count", 1, "--seeds", 1, "--steps", 6, "--reference", 0, "--repeats", 0, "--output", tmp_path]
    assert "fit" in invoke("compare", schedule, "--fit", place, *options).output
    assert set(pd.read_csv(tmp_path / "table.csv")["method"]) >= {"schedule", "fit"}


def test_training_is_the_repositorys(monkeypatch, capsys, tmp_path):
    called = []
    monkeypatch.setattr(os, "execve", lambda *given: called.append(given))
    assert invoke("train", "--minutes", 1, "--help").exit_code == 0
    assert called[0][1][1:] == ["-m", "studies.training", "--minutes", "1", "--help"]
    assert (Path(called[0][2]["PYTHONPATH"].split(os.pathsep)[0]) / "studies" / "training" / "__main__.py").exists()
    monkeypatch.setattr(commands, "__file__", str(tmp_path / "a" / "b" / "c.py"))
    assert "accepted: the same command in a clone of the repository" in failed(monkeypatch, capsys, "train")


@pytest.mark.parametrize("option", [("--keys", 3), ("--schedule", "schedule.json"), ("--order", 1)])
def test_a_fit_has_its_own_schedule_and_order(monkeypatch, capsys, tmp_path, option):
    said = failed(monkeypatch, capsys, "sample", PROMPT, "--fit", tmp_path / "fit.json", *option)
    assert f"{option[0]} asked with --fit, which ignores it" in said


def test_a_schedule_file_that_is_none(monkeypatch, capsys, tmp_path):
    (tmp_path / "schedule.json").write_text("{}")
    said = failed(monkeypatch, capsys, "sample", PROMPT, "--schedule", tmp_path / "schedule.json", "--output", tmp_path / "a.png")
    assert "schedule.json is no fastdiff_lab.KeySchedule" in said and not (tmp_path / "a.png").exists()
    said = failed(monkeypatch, capsys, "derive", tmp_path / "schedule.json")
    assert "schedule.json is no whole file of reuse costs" in said


@pytest.mark.parametrize(("keys", "calls"), long_but([("paper", 9)], [("paper", 9), ("none", 10), ("0,5 of 10", 2)]))
def test_sample_draws_an_image(tmp_path, keys, calls):
    result = invoke("sample", PROMPT, "--keys", keys, "--steps", 10, "--output", tmp_path / "a.png")
    assert result.exit_code == 0 and f"{calls} encoder calls" in result.output
    with Image.open(tmp_path / "a.png") as image:
        assert image.size == (64, 64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", 0], "0 steps asked; accepted: a whole number of 1 or more"),
        (["--steps", 1000, "--keys", "none"], "1000 steps asked of DDIMScheduler, which chooses among 1000 training time-steps"),
        (["--steps", 2000, "--keys", "none"], "accepted: a whole number from 1 to 999"),
        (["--seed", 10**23, "--steps", 9], f"seed={10**23} asked; accepted: a whole number from"),
        (["--keys", "0,5 of 20", "--steps", 10], "the schedule is for 20 steps, this run has 10 time-steps"),
        (["--keys", "7 of 10", "--steps", 10], "must be a key"),
        (["--keys", "1" * 5000, "--steps", 10], "as a key schedule"),
        (["--model", "/no/folder"], "no folder '/no/folder'"),
        (["--guidance", "nan"], "guidance_scale=nan asked; accepted: a finite number"),
        (["--steps", 5], "the paper's 9 keys asked for 5 steps; accepted: 9 steps or more"),
        (["--scheduler", "slow"], "scheduler='slow' asked"),
    ],
)
def test_bad_options(monkeypatch, capsys, tmp_path, options, message):
    assert message in failed(monkeypatch, capsys, "sample", PROMPT, "--output", tmp_path / "a.png", *options)
    assert not (tmp_path / "a.png").exists()


def _not_permitted(**_):
    raise PermissionError(errno.EACCES, "Permission denied")


def test_an_output_that_cannot_be_written(monkeypatch, capsys, tmp_path):
    for command in (["sample", PROMPT], ["calibrate"]):
        output = [] if command == ["calibrate"] else ["--output"]
        said = failed(monkeypatch, capsys, *command, *output, tmp_path / "none" / "a.png")
        assert (
            f"cannot write {tmp_path / 'none' / 'a.png'}: the folder {tmp_path / 'none'} does not exist; accepted: a file in"
            in said
        )
        with monkeypatch.context() as patched:  # as root, a folder without permissions would take files all the same
            patched.setattr(tempfile, "TemporaryFile", _not_permitted)
            said = failed(monkeypatch, capsys, *command, *output, tmp_path / "a.png")
        assert f"nothing can be written to the folder {tmp_path} (Permission denied)" in said
        assert f"cannot write {tmp_path}: it is a folder" in failed(monkeypatch, capsys, *command, *output, tmp_path)
    blocked = tmp_path / "file"
    blocked.write_text("mine")
    assert "cannot write to the output folder" in failed(monkeypatch, capsys, "tour", "--output", blocked)
    KeySchedule.paper(50).save(tmp_path / "mine.json")
    compare = ["compare", tmp_path / "mine.json"]
    assert "cannot write to the output folder" in failed(monkeypatch, capsys, *compare, "--output", blocked)
    said = failed(monkeypatch, capsys, *compare, "--output", tmp_path / "out", "--store", blocked / "store.sqlite")
    assert f"cannot open {blocked / 'store.sqlite'}" in said
    assert blocked.read_text() == "mine"


@pytest.mark.parametrize(
    ("command", "accepted"),
    [
        (["derive"], "a file that ReuseCosts.save wrote"),
        (["sample", PROMPT, "--schedule"], "a fastdiff_lab.KeySchedule file"),
        (["compare"], "a fastdiff_lab.KeySchedule file"),
        (["calibrate", "costs.safetensors", "--prompts"], "a text file with a prompt per line"),
        (["compare", "--prompts"], "a text file with a prompt per line"),
    ],
)
def test_files_to_read_that_are_none(monkeypatch, capsys, tmp_path, command, accepted):
    monkeypatch.chdir(tmp_path)
    assert f"error: {tmp_path} is a folder; accepted: {accepted}" in failed(monkeypatch, capsys, *command, tmp_path)
    assert f"error: none.json does not exist; accepted: {accepted}" in failed(monkeypatch, capsys, *command, "none.json")
    assert not any(tmp_path.iterdir())


def test_prompts_that_are_none(monkeypatch, capsys, tmp_path):
    (tmp_path / "prompts.txt").write_text("\n  \n")
    said = failed(monkeypatch, capsys, "calibrate", tmp_path / "c.safetensors", "--prompts", tmp_path / "prompts.txt")
    assert "prompts.txt has no prompt; accepted: a text file with a prompt per line" in said
    result = invoke("calibrate", tmp_path / "c.safetensors", "--count", 0)
    assert result.exit_code == 2 and "Invalid value for '--count'" in result.output


def test_options_that_would_be_ignored(monkeypatch, capsys, tmp_path):
    schedule, image = tmp_path / "schedule.json", tmp_path / "a.png"
    KeySchedule.paper(50).save(schedule)
    said = failed(monkeypatch, capsys, "sample", PROMPT, "--keys", 5, "--schedule", schedule, "--output", image)
    assert f"--keys 5 and --schedule {schedule} asked; accepted: one of the two" in said and not image.exists()
    costs = Path(notebooks_folder()).parent / "data" / "calibration" / "ddim-50" / "encoder-0.safetensors"
    for command, said in (
        (["derive", costs, "--refine", 2], "--refine asked without --num-keys, which ignores it; accepted: one without the other"),
        (["derive", costs, "--output", schedule], "--output asked without --num-keys"),
        (
            ["derive", costs, "--num-keys", 9, "--images", 4, "--model", "nowhere"],
            "--images and --model asked without --refine",
        ),
        (["sample", PROMPT, "--keys", "none", "--order", 1, "--output", image], "--order asked with --keys none"),
        (["calibrate", image, "--prompts", schedule, "--count", 3], "--count asked with --prompts"),
        (["compare", schedule, "--prompts", schedule, "--count", 3], "--count asked with --prompts"),
        (["calibrate", image, "--prompts", 4], "4 does not exist; accepted: a text file with a prompt per line"),
    ):
        assert said in failed(monkeypatch, capsys, *command)
    assert KeySchedule.load(schedule) == KeySchedule.paper(50) and not image.exists()


@pytest.mark.parametrize("command", [["sample", PROMPT], ["calibrate"], ["compare", "mine.json"]])
def test_orders_that_commands_do_not_have(monkeypatch, tmp_path, command):
    monkeypatch.chdir(tmp_path)
    result = invoke(*command, "--order", 2)
    assert result.exit_code == 2 and "Invalid value for '--order'" in result.output and not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("command", "stopped_in", "said"),
    [
        (["sample", PROMPT], "pipelines.load_pipeline", "stopped"),
        (["calibrate"], "calibration.calibrate.calibrate", "stopped; the same command goes on"),
        (["compare", "mine.json"], "comparison.result_files.compare_into", "stopped; the same command goes on"),
    ],
)
def test_a_command_that_is_stopped_says_so(monkeypatch, tmp_path, command, stopped_in, said):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(f"fastdiff_lab.{stopped_in}", stop)
    result = invoke(*command)
    assert result.exit_code == 130 and result.stderr.splitlines() == [said]


def test_the_version():
    result = invoke("--version")
    assert result.exit_code == 0 and result.output == f"fastdiff-lab {version('fastdiff-lab')}\n"


def test_the_number_of_keys_that_calibrate_names_can_be_derived():
    for steps, max_span, keys in ((50, 25, 9), (10, 10, 5), (3, 3, 2), (50, 2, 25)):
        costs = ReuseCosts(torch.ones(1, 1, steps, max_span + 1), (0,), torch.ones(1, steps + 1), {"order": 0})
        assert fitting_keys(costs) == keys == len(derive_schedule(costs, keys).keys)


def test_unknown_words(monkeypatch, capsys, tmp_path):
    message = failed(monkeypatch, capsys, "sample", "a pink dog", "--output", tmp_path / "a.png", "--steps", 10)
    assert message.startswith("error: the embedded pipeline does not know 'pink'")


@pytest.mark.long
def test_the_tour_leaves_a_page_that_asks_nothing_of_the_network(tmp_path, capsys, monkeypatch):
    monkeypatch.delenv("PYTEST_CURRENT_TEST", raising=False)
    page = run_tour(tmp_path, num_inference_steps=10)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"tour.html", "table.csv", "recording.safetensors", "schedule.json"} <= names and "unfinished" not in names
    text = page.read_text()
    scripts = re.findall(r"<script\b.*?</script>", text, flags=re.DOTALL)
    assert not any("http" in script for script in scripts) and 'href="http' not in text.split("<body", 1)[0]
    assert "<img alt=" in text and "baseline" in text
    assert "tour.html" in capsys.readouterr().out
    with pytest.raises(ValueError, match="0 steps asked"):
        run_tour(tmp_path, num_inference_steps=0)


def test_the_notebooks_are_found():
    assert os.path.exists(notebooks_folder() / "00_quickstart.ipynb")


def test_the_notebooks_are_looked_for_in_two_places(tmp_path, monkeypatch):
    monkeypatch.setattr(tour, "__file__", str(tmp_path / "fastdiff_lab" / "cli/tour.py"))
    with pytest.raises(FileNotFoundError, match="the notebooks are missing; looked in: .*fastdiff_lab/notebooks, .*notebooks"):
        notebooks_folder()


def test_a_tour_needs_steps(monkeypatch, capsys, tmp_path):
    folder = tmp_path / "tour"
    assert "0 steps asked; accepted: a whole number" in failed(monkeypatch, capsys, "tour", "--steps", 0, "--output", folder)
    assert "the paper's 9 keys asked for 5 steps" in failed(monkeypatch, capsys, "tour", "--steps", 5, "--output", folder)
    assert f"seed={10**22} asked" in failed(monkeypatch, capsys, "tour", "--seed", 10**22, "--output", folder)
    assert not folder.exists()


def test_a_tour_whose_notebook_stops(monkeypatch, tmp_path):
    def stop(*args, **kwargs):
        raise papermill.PapermillExecutionError(0, 1, "1 / 0", "ZeroDivisionError", "division by zero", [])

    monkeypatch.setattr(papermill, "execute_notebook", stop)
    with pytest.raises(ValueError, match="the notebook stopped with ZeroDivisionError: division by zero"):
        run_tour(tmp_path)


def test_a_stopped_tour_leaves_a_finished_one_as_it_is(monkeypatch, capsys, tmp_path):
    def begun(source, notebook, cwd, **kwargs):
        nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("half")]), notebook)
        pd.DataFrame([dict.fromkeys(SHOWN, 1.0)]).to_csv(Path(cwd) / "table.csv", index=False)

    def stopped(*args, **kwargs):
        begun(*args, **kwargs)
        raise KeyboardInterrupt

    finished = {name: f"finished {name}" for name in ("tour.html", "table.csv", "00_quickstart.ipynb")}
    for name, text in finished.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(papermill, "execute_notebook", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_tour(tmp_path)
    assert {name: (tmp_path / name).read_text() for name in finished} == finished
    assert "half" in (tmp_path / "unfinished" / "tour.html").read_text()
    assert "stopped; as far as it got: " in capsys.readouterr().out
    for folder in (tmp_path, tmp_path / "unfinished"):  # JupyterLab's, where both were opened
        (folder / ".ipynb_checkpoints").mkdir()
        (folder / ".ipynb_checkpoints" / "00_quickstart-checkpoint.ipynb").write_text("{}")
    (tmp_path / "unfinished" / "stale.csv").write_text("of the tour before")
    monkeypatch.setattr(papermill, "execute_notebook", begun)
    page = run_tour(tmp_path)
    assert not (tmp_path / "stale.csv").exists()
    assert page == tmp_path / "tour.html" and "half" in page.read_text() and not (tmp_path / "unfinished").exists()


def test_an_image_of_unknown_kind_is_refused_before_it_is_drawn(monkeypatch, capsys, tmp_path):
    said = failed(monkeypatch, capsys, "sample", PROMPT, "--output", tmp_path / "a.xyz")
    assert "cannot write an image as 'a.xyz'; accepted: names that end in .png" in said


def test_an_image_of_a_kind_that_is_only_read_is_refused(monkeypatch, capsys, tmp_path):
    said = failed(monkeypatch, capsys, "sample", PROMPT, "--output", tmp_path / "a.psd")
    assert "cannot write an image as 'a.psd'" in said


@pytest.mark.parametrize("order", long_but(['"five"', "NaN"], ['"five"', "1e999", "1.7", "NaN", "true"]))
def test_a_foreign_order_is_refused(monkeypatch, capsys, tmp_path, order):
    text = KeySchedule(10, [0, 5], measured_on={"order": "here"}).to_json().replace('"here"', order)
    (tmp_path / "foreign.json").write_text(text)
    said = failed(monkeypatch, capsys, "sample", PROMPT, "--schedule", tmp_path / "foreign.json", "--steps", 10,
                  "--output", tmp_path / "a.png")  # fmt: skip
    assert "the schedule says that it was measured with order" in said and not (tmp_path / "a.png").exists()


def test_what_is_wrong_with_a_schedule_is_told_before_a_model_is_loaded(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("fastdiff_lab.pipelines.load_pipeline", lambda *_, **__: pytest.fail("loaded"))
    for wrong in (["--schedule", tmp_path / "none.json"], ["--keys", "many"], ["--keys", 3, "--schedule", tmp_path / "none.json"]):
        assert "accepted: " in failed(monkeypatch, capsys, "sample", PROMPT, *wrong, "--output", tmp_path / "a.png")


def test_a_tour_of_no_model_leaves_no_folder(monkeypatch, capsys, tmp_path):
    said = failed(monkeypatch, capsys, "tour", "--model", "/no/folder", "--output", tmp_path / "tour")
    assert "no folder '/no/folder'" in said and not (tmp_path / "tour").exists()


def test_the_lab_opens_notebook_09(monkeypatch):
    started = []
    monkeypatch.setattr(commands.os, "execv", lambda path, command: started.append(command))
    assert CliRunner().invoke(commands.app, ["lab", "--port", "9999"]).exit_code == 0
    (command,) = started
    assert f"--LabApp.default_url=/lab/tree/{tour.LAB}" in command and "--port=9999" in command
    assert (notebooks_folder() / tour.LAB).exists()


@pytest.mark.long
def test_the_contest_is_scored_and_a_broken_entry_does_not_stop_it(monkeypatch, tmp_path):
    """With 20 steps instead of 50."""
    costs = ReuseCosts(torch.rand(1, 1, 20, 21, generator=torch.Generator().manual_seed(0)), (0,), torch.ones(1, 21), {"order": 0})
    monkeypatch.setattr(contest, "NUM_STEPS", 20)
    monkeypatch.setattr(contest, "embedded_costs", lambda: costs)
    ContestEntry(KeySchedule.uniform(20, 7)).save(tmp_path / "ada.json")
    (tmp_path / "eve.json").write_text('{"code": "import os"}')
    result = invoke("contest", tmp_path, "--seed", 3, "--images", 1, "--threads", 1)
    assert result.exit_code == 0, result.output
    rows = {line.split()[1]: line for line in result.output.splitlines() if line[:1].isdigit()}
    assert {"ada", "uniform", "derived", "the"} == set(rows) and "True" in rows["ada"] and "False" in rows["uniform"]
    assert "refused: eve: eve.json is no fastdiff_lab.ContestEntry" in result.output


@pytest.mark.parametrize(
    ("keys", "part"), long_but([("none", "vae"), ("0,2 of 6", "unet")], product(["none", "0,2 of 6"], ["unet", "vae"]))
)
@pytest.mark.filterwarnings("ignore:invalid value encountered in cast:RuntimeWarning")
def test_an_image_of_no_numbers_is_not_written(keys, part, tmp_path, monkeypatch, capsys):
    def spoilt(*args, **kwargs):
        pipe = load_pipeline(*args, **kwargs)
        weight = pipe.unet.conv_out.bias if part == "unet" else next(pipe.vae.decoder.parameters())
        weight.data[0] = float("nan")
        return pipe

    monkeypatch.setattr("fastdiff_lab.pipelines.load_pipeline", spoilt)
    said = failed(monkeypatch, capsys, "sample", PROMPT, "--keys", keys, "--steps", 6, "--output", tmp_path / "a.png")
    assert "hold NaN or infinite values" in said or "the autoencoder AutoencoderTiny gave NaN or infinite values" in said
    assert not (tmp_path / "a.png").exists()
