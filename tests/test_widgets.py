"""The widgets without a browser: traits, messages of the page, files, and what is shown where widgets cannot run."""

from __future__ import annotations

import base64
import io
import json
import math
import re
import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from ipywidgets import Widget
from models import state
from PIL import Image
from traitlets import All

import fastdiff_lab as fl
from fastdiff_lab import KeySchedule
from fastdiff_lab.lab.session.settings import Acceleration, Settings, keys_text
from fastdiff_lab.lab.session.watching import Cancelled
from fastdiff_lab.lab.widget import recording_explorer, schedule_lab, views
from fastdiff_lab.lab.widget.assets import FOLDER, PARTS, module, style
from fastdiff_lab.lab.widget.fallback import SENTENCE, SHOWN, lab_page
from fastdiff_lab.lab.widget.messages import answer
from fastdiff_lab.lab.widget.run_row import chain
from fastdiff_lab.recording.analysis import step_similarity

PROMPT = "a large red star at the left on a white background"
STEPS = 20


@pytest.fixture(scope="module")
def pipe(embedded):
    return embedded


@pytest.fixture(scope="module")
def recording(pipe):
    with fl.record(pipe, keep=["mid_block"]) as recording:
        pipe(PROMPT, num_inference_steps=10)
    return recording


@pytest.fixture(scope="module")
def made(pipe):
    return schedule_lab(pipe, prompt=PROMPT)


@pytest.fixture
def lab(made):
    """A lab of 20 steps with another scheduler, for which costs were measured; as at its beginning."""
    begin = {"prompt": PROMPT, "seed": 0, "steps": STEPS, "guidance": 5.0, "scheduler": "dpm-solver++"}
    made.form = {**begin, "reuse": "encoder", "order": 0, "prior_noise": 0.0, "prior_start": 0.5}
    made.clear()
    made.problem, made.said, made.result, made.progress_baseline = {}, {}, {}, {}
    made.use_num_keys(4)
    yield made
    made.cancel()
    assert made.wait(60)


def test_the_page_gets_nothing_that_json_cannot_carry(lab, recording):
    lab.form = {**lab.form, "steps": 3}
    lab.run()
    explorer = recording_explorer(recording, lab)
    for widget in (lab, explorer):
        assert "key_steps" in widget.get_state() and json.dumps(widget.get_state(), allow_nan=False)
    # ipywidgets keeps the names of synchronised traits in `keys`; a trait of that name would hide the state.
    assert isinstance(Widget.keys, object) and "form" in lab.keys and "curves" in explorer.keys


def test_a_newcomer_sees_the_derived_keys_with_a_prediction(pipe):
    lab = schedule_lab(pipe)
    assert lab.schedule.source.startswith("derived, 9 keys") and lab.num_steps == 50
    assert lab.prediction["cards"][0]["value"] not in ("", "–") and lab.front["rows"] and lab.time_steps[0] > lab.time_steps[-1]
    assert [preset["enabled"] for preset in lab.presets] == [True, True, True]


def test_the_page_moves_keys_and_everything_follows(lab):
    before = lab.prediction["cards"][0]["value"]
    lab.key_steps = [0, 4, 9]
    assert lab.schedule == KeySchedule(STEPS, (0, 4, 9)) and lab.schedule.source == "set by hand in the lab"
    assert lab.prediction["cards"][0]["value"] != before and lab.prediction["cards"][1]["value"] == "3"
    assert lab.schedule_text.startswith("0,4,9 of 20") and len(lab.profiles["cost"]["spans"]) == 3


@pytest.mark.parametrize("wrong", [[1, 2], [0, 99], [0, 3, 2], []])
def test_keys_that_are_none_are_refused_with_a_sentence(lab, wrong):
    kept = lab.schedule
    lab.key_steps = wrong
    assert "ValueError" in lab.problem["message"] and lab.schedule == kept and lab.key_steps == list(kept.keys)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("seed", None, "the field 'Seed' is empty; accepted: a value"),
        ("seed", -1, "`seed` must be an int from 0 to 4294967295, got -1"),
        ("prompt", "a red dog", "does not know 'dog'"),
        ("steps", 0, "`steps` must be an int from 1 to 1000, got 0"),
        ("order", 5, "order=5 asked"),
        ("prompt", "", "prompt='' asked"),
    ],
)
def test_settings_that_are_none_are_refused_with_a_sentence(lab, name, value, words):
    settings, kept = lab.settings, lab.schedule
    lab.form = {**lab.form, name: value}
    assert words in lab.form_error["message"] and lab.form_error["field"] == name
    assert lab.settings == settings and lab.schedule == kept and lab.can_undo
    lab.form = {**lab.form, name: {"seed": 3, "steps": STEPS, "order": 1, "prompt": "a red ring"}[name]}
    assert lab.form_error == {}
    lab.form = {**lab.form, name: value}
    lab.undo()  # the wrong value goes first
    assert lab.form_error == {} and lab.form[name] != value


def test_other_steps_spread_the_keys_anew(lab):
    lab.schedule = KeySchedule(STEPS, (0, 5, 10, 15))
    lab.form = {**lab.form, "steps": 40}
    assert lab.schedule == KeySchedule(40, (0, 10, 20, 30)) and lab.num_steps == 40 and len(lab.time_steps) == 40
    lab.form = {**lab.form, "steps": 2}
    assert lab.schedule == KeySchedule(2, (0, 1)) and not lab.presets[0]["enabled"]
    lab.form = {**lab.form, "steps": STEPS}
    assert lab.schedule == KeySchedule(STEPS, (0, 5, 10, 15))  # what was chosen comes back


def test_changes_are_undone_and_made_again(lab):
    first = lab.schedule
    for gesture, keys in ((7, [0, 3]), (7, [0, 4]), (8, [0, 4, 9])):
        lab.set_state({"gesture": gesture, "key_steps": keys})  # as the page does, twice in one drag
    lab.undo()
    assert lab.schedule.keys == (0, 4) and lab.can_redo
    answer(lab, {"action": "undo"})
    assert lab.schedule == first and lab.schedule.source == first.source and lab.key_steps == list(first.keys)
    answer(lab, {"action": "redo"})
    lab.redo()
    assert lab.schedule.keys == (0, 4, 9) and not lab.can_redo and lab.schedule_text.startswith("0,4,9 of 20")
    lab.form = {**lab.form, "order": 1, "steps": 10}
    lab.undo()
    assert (lab.form["steps"], lab.form["order"], lab.num_steps, lab.schedule.keys) == (STEPS, 0, STEPS, (0, 4, 9))
    lab.use_preset("paper")
    assert not lab.can_redo  # another way was taken


def test_presets_and_the_number_of_keys(lab):
    answer(lab, {"action": "preset", "name": "paper"})
    assert lab.schedule == KeySchedule.paper(STEPS)
    answer(lab, {"action": "preset", "name": "uniform"})
    assert lab.schedule == KeySchedule.uniform(STEPS, 7)
    answer(lab, {"action": "num_keys", "value": 5})
    derived = fl.derive_schedule(fl.embedded_costs(measured="dpm-solver++-20"), 5)
    assert lab.schedule == derived and lab.schedule.measured_on == derived.measured_on
    lab.form = {**lab.form, "guidance": 3}
    answer(lab, {"action": "num_keys", "value": 500})
    assert lab.schedule == KeySchedule.uniform(STEPS, STEPS) and lab.front == {} and not lab.presets[2]["enabled"]
    answer(lab, {"action": "preset", "name": "best"})
    assert "preset 'best' asked; accepted: paper, derived, uniform" in lab.problem["message"]


def test_keys_that_were_derived_for_something_else_say_so(lab):
    lab.use_num_keys(5)
    assert "derived for something else" not in lab.prediction["note"]
    lab.form = {**lab.form, "order": 1}
    assert "These keys were derived for something else: order 0, here 1." in lab.prediction["note"]


@pytest.mark.parametrize("wrong", [None, "run", {}, {"action": "erase"}, {"action": ["run"]}])
def test_messages_that_mean_nothing_do_nothing(lab, wrong):
    kept = lab.get_state()
    answer(lab, wrong)
    assert lab.get_state() == kept


def test_a_run_from_code_fills_the_page_and_the_history(lab, pipe):
    before, steps, schedule = state(pipe), 8, KeySchedule(8, (0, 3))
    lab.form = {**lab.form, "steps": steps}
    lab.schedule = schedule
    pair = lab.run()
    assert pair.acceleration.schedule == schedule and len(lab.history) == 1
    for name in ("baseline", "accelerated", "difference"):
        shown = getattr(lab, f"image_{name}")
        assert shown["address"].startswith("data:image/png;base64,") and shown["alt"]
    assert lab.progress_accelerated == {"step": steps, "steps": steps, "text": f"step {steps} of {steps}"}
    assert not lab.out_of_date
    assert lab.run_state["state"] == "done" and lab.result["rows"][0][0] == "seconds" and state(pipe) == before
    lab.form = {**lab.form, "order": 1, "prior_noise": 0.003}
    lab.key_steps = [0, 1, 7]
    assert lab.out_of_date
    lab.run()
    number = len(lab._runs.rows)
    assert lab.history["order"].tolist() == [0, 1] and not lab.out_of_date
    assert chain(lab.last_run)[-1]["shown"]["reuse"] == "encoder, order 1, noise 0.003"
    answer(lab, {"action": "restore", "run": number - 1})
    assert lab.acceleration == Acceleration(schedule) and lab.form["order"] == 0
    answer(lab, {"action": "restore", "run": number + 5})
    assert f"run {number + 5} asked; accepted: 1 to {number}" in lab.problem["message"] and lab.problem["where"] == "runs"
    answer(lab, {"action": "clear"})
    assert lab.cleared == number and lab.history.empty
    answer(lab, {"action": "undo"})
    assert len(lab.history) == 2


def test_a_run_that_is_cancelled_says_so_and_only_one_is_made_at_a_time(lab, pipe):
    before = state(pipe)
    lab.form = {**lab.form, "steps": 500, "scheduler": "own"}
    answer(lab, {"action": "run"})
    deadline = time.monotonic() + 60
    while lab.progress_baseline.get("step", 0) < 3:
        assert time.monotonic() < deadline and lab.run_state["state"] == "running"
        time.sleep(0.01)
    answer(lab, {"action": "run", "beat": 5})  # a double click asks for nothing more
    assert lab.problem == {} and lab.heard == 5
    with pytest.raises(RuntimeError, match="a run is being made already"):
        lab.start()
    with pytest.raises(RuntimeError, match="this pipeline is in use by the lab's run of 'a large red star"):
        schedule_lab(pipe, prompt=PROMPT)
    answer(lab, {"action": "cancel"})
    assert lab.wait(60) and lab.run_state["state"] == "cancelled" and lab.history.empty
    with pytest.raises(Cancelled):
        lab._running.result()
    assert state(pipe) == before


@contextmanager
def failing(lab):
    """Runs of the lab fail inside the block."""

    def fail(*args, **kwargs):
        raise ValueError("no memory for <b>this</b>")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lab._runner.pipe.scheduler, "step", fail)
        yield


def test_an_error_is_a_sentence_with_details_and_the_lab_goes_on(lab, pipe):
    before = state(pipe)
    lab.form = {**lab.form, "scheduler": "own", "steps": 3}
    with failing(lab), pytest.raises(ValueError, match="no memory"):
        lab.run()
    assert lab.problem["message"].startswith("ValueError: no memory for <b>this</b>") and lab.problem["where"] == "run"
    assert "Traceback" in lab.problem["details"] and lab.run_state["state"] == "error" and state(pipe)[0] == before[0]
    lab.run()
    assert lab.problem == {} and len(lab.history) == 1


def test_an_error_goes_when_what_it_tells_of_was_changed(lab):
    for changed in ({"form": {**lab.form, "scheduler": "own", "seed": 1}}, {"key_steps": [0, 7]}):
        lab.form = {**lab.form, "scheduler": "own"}
        with failing(lab), pytest.raises(ValueError, match="no memory"):
            lab.run()
        lab.set_trait(*next(iter(changed.items())))
        assert lab.problem == {}


def test_nothing_is_run_while_a_setting_is_wrong(lab):
    lab.form = {**lab.form, "seed": -1}
    answer(lab, {"action": "run"})
    assert "nothing is run while a setting is wrong: `seed` must be an int" in lab.problem["message"]
    assert lab.run_state["state"] != "running" and lab.wait(60) and lab.history.empty
    with pytest.raises(ValueError, match="nothing is run while a setting is wrong"):
        lab.run()


@pytest.mark.long
def test_measuring_the_ceiling_fills_its_card(lab, monkeypatch):
    monkeypatch.setattr("fastdiff_lab.lab.session.ceiling.SIZES", (1, 2))
    answer(lab, {"action": "measure"})
    assert lab.wait(120) and lab.run_state["state"] == "done"
    card = lab.prediction["cards"][-1]
    assert re.fullmatch(r"\d+\.\d\d×", card["value"]) and card["action"] == ""


# ---------------------------------------------------------------------------------------------------- files


def test_schedules_are_saved_and_loaded(lab, tmp_path):
    lab.use_num_keys(6)
    lab.save(str(tmp_path / "mine.json"))
    saved = KeySchedule.load(tmp_path / "mine.json")
    assert saved == lab.schedule and saved.measured_on == lab.schedule.measured_on
    with pytest.raises(FileExistsError, match="mine.json is there already"):
        lab.save(str(tmp_path / "mine.json"))
    lab.save(str(tmp_path / "mine.json"), replace=True)
    lab.use_preset("paper")
    text = (tmp_path / "mine.json").read_text()
    answer(lab, {"action": "load", "text": text, "name": "mine.json", "bytes": len(text)})
    assert lab.schedule == saved and lab.schedule.source == saved.source and lab.said["text"].startswith("Loaded mine.json")
    other = KeySchedule(50, (0, 20)).to_json()
    answer(lab, {"action": "load", "text": other, "name": "fifty.json", "bytes": len(other)})
    assert lab.schedule == KeySchedule(50, (0, 20)) and lab.settings.num_inference_steps == 50


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"text": "no json", "bytes": 7}, "x.json: the given text is no JSON"),
        ({"text": '{"schema": "other"}', "bytes": 19}, "x.json: the given text is no fastdiff_lab.KeySchedule"),
        ({"text": "", "bytes": 2_000_000}, "x.json has 2000000 bytes; accepted: a key schedule of at most 1000000 bytes"),
        ({"text": None, "bytes": 3}, "x.json has 3 bytes"),
    ],
)
def test_files_that_are_no_schedules_change_nothing(lab, content, words):
    kept = lab.schedule
    answer(lab, {"action": "load", "name": "x.json", **content})
    assert words in lab.problem["message"] and lab.schedule == kept


def test_a_schedule_that_no_run_of_the_scheduler_can_have_is_refused(lab):
    lab.form = {**lab.form, "scheduler": "pndm", "steps": 10}
    assert lab.num_steps == 19  # PNDM's first steps make several calls
    with pytest.raises(
        ValueError, match="the schedule is for 30 steps; a run with scheduler 'pndm' makes 39 for 30 requested ones"
    ):
        lab.schedule = KeySchedule.uniform(30, 3)
    with pytest.raises(TypeError, match="schedule='0,5 of 19' given; accepted: a KeySchedule"):
        lab.schedule = "0,5 of 19"


@pytest.mark.parametrize("path", ["mine.txt", ".json", "", None, 5])
def test_a_schedule_goes_to_a_json_file_only(lab, path):
    answer(lab, {"action": "save", "path": path})
    assert f"file {path!r} asked; accepted: a path that ends in .json" in lab.problem["message"]


def test_no_file_that_is_something_else_is_overwritten(lab, tmp_path):
    (tmp_path / "package.json").write_text('{"name": "mine"}')
    (tmp_path / "data.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match=r"package.json is no fastdiff_lab.KeySchedule"):
        lab.save(str(tmp_path / "package.json"))
    with pytest.raises(ValueError, match=r"data.csv is there and holds no runs of the lab; accepted: a new file"):
        lab.export(str(tmp_path / "data.csv"))
    assert (tmp_path / "package.json").read_text() == '{"name": "mine"}' and (tmp_path / "data.csv").read_text() == "a,b\n1,2\n"
    with pytest.raises(FileNotFoundError, match="no folder .*nowhere' to write runs.csv to"):
        lab.export(str(tmp_path / "nowhere" / "runs.csv"))
    lab.export(str(tmp_path / "runs.csv"))
    with pytest.raises(FileExistsError, match="runs.csv is there already"):
        lab.export(str(tmp_path / "runs.csv"))
    lab.export(str(tmp_path / "runs.csv"), replace=True)
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(OSError, match="folder"):
        lab.save(str(tmp_path / "folder.json"))
    with pytest.raises(ValueError, match="a file name of 305 letters asked"):
        lab.save("a" * 300 + ".json")


@pytest.mark.parametrize("path", ["../mine.json", "/tmp/mine.json", "sub/../../mine.json"])
def test_the_page_writes_beside_the_notebook_only(lab, path):
    answer(lab, {"action": "save", "path": path})
    assert "accepted here: a file in the notebook's folder" in lab.problem["message"] and lab.problem["where"] == "files"


# ---------------------------------------------------------------------------------------------------- where widgets cannot run


def test_without_widgets_there_is_a_sentence_and_an_image_of_the_state(lab, recording):
    lab.form = {**lab.form, "prompt": "a large red star at the left on a white background", "steps": 3}
    lab.run()
    for widget in (lab, recording_explorer(recording, KeySchedule.uniform(10, 3))):
        data, _ = widget._repr_mimebundle_()
        page = data["text/html"]
        assert data["text/plain"] == SENTENCE and SENTENCE in page and '<img alt="' in page
        assert "application/vnd.jupyter.widget-view+json" in data and len(page) < 300_000
    assert "Predicted error" in lab.page() and "<table" in lab.page()
    assert "<b>Change of " in page and "<b>Norm of " in page  # of which layer a figure is


def test_a_cell_shows_the_widget_and_below_it_the_page_that_a_living_widget_hides(lab, monkeypatch):
    shown = []
    monkeypatch.setattr(
        "fastdiff_lab.lab.widget.fallback.display", lambda data, **options: shown.append((set(data), options["raw"]))
    )
    lab._ipython_display_()
    assert shown == [({"application/vnd.jupyter.widget-view+json", "text/plain"}, True), ({"text/html", "text/plain"}, True)]
    assert "body:has(.fd-lab) .fd-static { display: none; }" in style()


def test_words_for_one_and_for_what_has_no_number(lab):
    assert (keys_text(1), keys_text(2)) == ("1 key", "2 keys")
    assert (views.psnr_words(math.inf), views.psnr_words(31.24)) == ("identical images", "PSNR 31.2 dB")
    lab.form = {**lab.form, "steps": 2}
    lab.key_steps = [0, 1]
    pair = lab.run()
    assert lab.run_state["text"].endswith("2 keys, identical images.") and "identical images" in lab.image_difference["alt"]
    fast = replace(pair, accelerated=replace(pair.accelerated, seconds=pair.baseline.seconds / 4))
    note = views.result(fast, lab.predict())["note"]
    assert "4.00× is more than the ceiling by operations, 1.00×: a call that decodes several steps at once" in note
    slow = replace(pair, accelerated=replace(pair.accelerated, seconds=pair.baseline.seconds * 4))
    assert "ceiling" not in views.result(slow, lab.predict())["note"]


def test_the_static_page_gives_each_column_the_same_digits(lab):
    runs = pd.DataFrame([dict.fromkeys(SHOWN, value) for value in (2.0, 30.96, math.inf)])
    page = lab_page(lab.schedule, lab.prediction, lab.profiles["cost"], None, runs)
    for row, psnr, ratio in zip(page.split("<tr>")[-3:], ("2.0", "31.0", "identical"), ("2.00", "30.96", "inf"), strict=True):
        cells = re.findall("<td>(.*?)</td>", row)
        assert (cells[SHOWN.index("psnr")], cells[SHOWN.index("ratio")]) == (psnr, ratio)


def test_what_a_user_writes_is_escaped_in_the_static_page(lab):
    lab.form = {**lab.form, "guidance": 3, "steps": 5}
    lab.schedule = KeySchedule(5, (0, 2), "<script>alert(1)</script>")
    lab.run()
    assert "<script>" not in lab.page()


def test_the_page_asks_nothing_of_other_machines_and_reads_no_text_as_html():
    for entry in ("lab", "explorer"):
        code = module(entry)
        assert code.count("export default") == 1 and "innerHTML" not in code and "insertAdjacentHTML" not in code
        assert set(re.findall(r"https?://[^\s\"')]+", code)) <= {"http://www.w3.org/2000/svg"}
        assert not re.search(r"^import |[^.]import\(|fetch\(|XMLHttpRequest", code, flags=re.MULTILINE)
    assert "url(" not in style() and "@import" not in style()
    assert {*PARTS, "lab", "explorer"} == {path.stem for path in FOLDER.glob("*.js")}


# ---------------------------------------------------------------------------------------------------- the explorer


def test_the_explorer_has_curves_similarity_and_maps_of_a_layer(recording):
    explorer = recording_explorer(recording, KeySchedule(10, (0, 4, 7)))
    assert explorer.form["layer"] == "mid_block" and explorer.key_steps == [0, 4, 7] and len(explorer.time_steps) == 10
    change, norm = explorer.curves
    expected = fl.feature_change(recording, "relative").query("layer == 'mid_block'").groupby("step")["value"].mean()
    assert change["values"][0] is None and change["values"][1:] == pytest.approx(expected.tolist(), rel=1e-3)
    assert all(value > 0 for value in norm["values"]) and len(norm["values"]) == 10
    tiles = read(explorer.maps["address"])
    side = recording["mid_block"].shape[-1]
    assert explorer.maps["columns"] == 4 and tiles.size == (4 * side, 3 * side)
    alike = np.asarray(read(explorer.similarity["address"]))[::-1, :, 0] / 255  # the first step is below
    low = explorer.similarity["low"]
    assert alike * (1 - low) + low == pytest.approx(step_similarity(recording, "mid_block"), abs=(1 - low) / 250)
    drawn = explorer.curves
    explorer.form = {**explorer.form, "layer": "conv_in", "kind": "cosine"}
    assert "conv_in" in explorer.curves[0]["title"] and "fl.record(pipe, keep=['conv_in'])" in explorer.maps["words"]
    explorer.form = {**explorer.form, "layer": "mid_block", "kind": "relative", "step": 99}
    assert "step 99 of layer 'mid_block' asked; accepted: steps from 0 to 9" in explorer.problem["message"]
    explorer.form = {**explorer.form, "step": 9}
    assert explorer.curves == drawn and explorer.problem == {}


def read(address: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))


def test_the_explorer_follows_a_lab_and_draws_nothing_for_it(recording, lab):
    explorer = recording_explorer(recording, lab)
    changed = []
    explorer.observe(lambda change: changed.append(change["name"]), All)
    lab.key_steps = [0, 2, 5]
    assert explorer.key_steps == [0, 2, 5] and changed == ["key_steps"]


def test_names_in_a_foreign_recording_are_escaped(recording):
    layers = tuple("<script>" if layer == "mid_block" else layer for layer in recording.layers)
    page = recording_explorer(replace(recording, layers=layers, features={"<script>": recording["mid_block"]})).page()
    assert "<script>" not in page and "&lt;script&gt;" in page


def test_a_recording_without_runs_is_refused():
    with pytest.raises(ValueError, match="nothing was recorded: no run was finished inside the record block"):
        recording_explorer(fl.Recording())


@pytest.mark.long
def test_the_measured_change_stands_above_the_strip(pipe, recording):
    lab = schedule_lab(pipe, recording=recording, num_inference_steps=10)
    spans = lab.profiles["change"]["spans"]
    assert [span[:2] for span in spans] == [[step, step + 1] for step in range(1, 10)] and all(span[2] > 0 for span in spans)
    lab.form = {**lab.form, "steps": 12}
    assert lab.profiles["change"]["spans"] == [] and lab.profiles["change"]["note"] == "The recording has 10 steps, this run 12."


@pytest.mark.long
def test_another_pipeline_has_no_prediction_until_it_is_measured(pipe):
    other = fl.load_pipeline()
    with torch.no_grad():
        other.unet.conv_in.weight.mul_(1.01)
    lab = schedule_lab(other, prompt=PROMPT, num_inference_steps=5)
    assert lab.prediction["cards"][0]["value"] == "–" and "nothing was measured on this pipeline" in lab.prediction["note"]
    assert lab.schedule == KeySchedule.uniform(5, 1) and lab.prediction["cards"][2]["value"] != "–"
    costs = fl.calibrate(other, [PROMPT], num_inference_steps=5, max_span=3)
    measured = schedule_lab(other, costs=costs, prompt=PROMPT, num_inference_steps=5)
    assert measured.prediction["cards"][0]["value"] != "–"
    assert measured.run().prompt_right is None and "No prompt accuracy" in measured.result["note"]


def test_settings_can_be_set_from_code(lab):
    lab.settings = Settings("a small white ring on a red background", seed=4, num_inference_steps=12, scheduler="heun")
    assert lab.form["seed"] == 4 and lab.num_steps == 23 and lab.schedule.num_steps == 23  # Heun's second stages are calls, too
