"""Files that were written under other names: read as what they are, or refused in a sentence that says what to do."""

from __future__ import annotations

import json
import sqlite3

import pytest
import torch
from safetensors.torch import save_file

import fastdiff_lab as fl
from fastdiff_lab.calibration.reuse_costs import ReuseCosts
from fastdiff_lab.comparison.result_store import Store
from fastdiff_lab.inputs.files import read_json


def test_costs_of_version_1_have_the_names_of_today(tmp_path):
    header = {
        "schema": "fastdiff_lab.ReuseCosts", "version": 1, "gaps": [0],
        "measured_on": {"order": 0, "what": "prediction", "pictures": 1}, "about": {"prompts": ["1"], "options": {"eta": 0.5}},
    }  # fmt: skip
    tensors = {"displacement": torch.ones(1, 1, 4, 3), "sensitivity": torch.ones(1, 5)}
    save_file(tensors, tmp_path / "costs.safetensors", metadata={"fastdiff_lab": json.dumps(header)})
    costs = ReuseCosts.load(tmp_path / "costs.safetensors")
    assert costs.measured_on == {"order": 0, "reuse": "prediction", "images": 1}
    assert costs.about == {"prompts": ["1"], "pipe_kwargs": {"eta": 0.5}}
    costs.save(tmp_path / "again.safetensors")
    again = ReuseCosts.load(tmp_path / "again.safetensors")
    assert again.measured_on == costs.measured_on and again.about == costs.about


def test_shipped_costs_say_what_is_reused():
    assert {fl.embedded_costs(reuse).measured_on["reuse"] for reuse in ("encoder", "prediction")} == {"encoder", "prediction"}


def test_a_schedule_derived_under_other_names_is_refused(tmp_path):
    document = json.loads(fl.KeySchedule.uniform(10, 3).to_json())
    for measured_on, refused in (({"what": "encoder"}, True), ({"reuse": "encoder"}, False)):
        (tmp_path / "schedule.json").write_text(json.dumps(document | {"measured_on": measured_on}))
        if refused:
            with pytest.raises(
                ValueError, match="schedule.json was written when `reuse` was called .what.; derive the schedule anew"
            ):
                fl.KeySchedule.load(tmp_path / "schedule.json")
        else:
            assert fl.KeySchedule.load(tmp_path / "schedule.json").measured_on == measured_on


def test_a_schedule_that_was_not_measured_is_read_as_before():
    text = '{"schema": "fastdiff_lab.KeySchedule", "version": 1, "num_steps": 10, "keys": [0, 3], "source": "by hand"}'
    assert fl.KeySchedule.from_json(text).keys == (0, 3)


def test_a_store_of_version_1_is_refused(tmp_path):
    with sqlite3.connect(tmp_path / "compare.sqlite") as connection:
        connection.execute("CREATE TABLE about (schema TEXT, version INTEGER)")
        connection.execute("INSERT INTO about VALUES ('fastdiff_lab.Store', 1)")
        connection.execute("CREATE TABLE results (key TEXT PRIMARY KEY, counts TEXT, latent BLOB, picture BLOB)")
    connection.close()
    before = (tmp_path / "compare.sqlite").read_bytes()
    with pytest.raises(ValueError, match="of version 2; accepted: a new path, which compare draws anew"):
        Store(tmp_path / "compare.sqlite")
    assert (tmp_path / "compare.sqlite").read_bytes() == before


def test_json_of_an_older_version_is_refused():
    text = json.dumps({"schema": "fastdiff_lab.Bench", "version": 1})
    with pytest.raises(ValueError, match="has version '1' of fastdiff_lab.Bench; accepted: 2, as a file made anew has"):
        read_json(text, "bench.json", "fastdiff_lab.Bench", 2)
