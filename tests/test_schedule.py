"""KeySchedule: round trips, properties, and what it refuses."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastdiff_lab import KeySchedule
from fastdiff_lab.key_schedule import PAPER_KEYS


@st.composite
def schedules(draw):
    num_steps = draw(st.integers(1, 300))
    later = draw(st.sets(st.integers(1, num_steps - 1))) if num_steps > 1 else set()
    return KeySchedule(num_steps, [0, *sorted(later)], draw(st.text(max_size=20)))


@settings(max_examples=30)
@given(schedules())
def test_text_and_json_round_trip(schedule):
    assert KeySchedule.parse(str(schedule)) == schedule
    again = KeySchedule.from_json(schedule.to_json())
    assert again == schedule and again.source == schedule.source and hash(again) == hash(schedule)


@given(schedules())
def test_groups_are_the_steps_cut_before_each_key(schedule):
    groups = schedule.groups()
    assert [step for group in groups for step in group] == list(range(schedule.num_steps))
    assert tuple(group.start for group in groups) == schedule.keys


@given(schedules(), st.integers(1, 400))
def test_rescaling_keeps_the_first_step_and_the_number_of_keys(schedule, num_steps):
    if num_steps < len(schedule.keys):
        with pytest.raises(
            ValueError, match=rf"`num_keys` must be an int from 1 to {num_steps} \(the steps\), got {len(schedule.keys)}"
        ):
            schedule.rescaled(num_steps)
    else:
        rescaled = schedule.rescaled(num_steps)
        assert rescaled.num_steps == num_steps and len(rescaled.keys) == len(schedule.keys)
        assert num_steps != schedule.num_steps or rescaled == schedule


def test_the_source_tells_the_last_rescaling_only():
    once, twice = KeySchedule.paper(50).rescaled(20), KeySchedule.paper(50).rescaled(39).rescaled(20)
    assert once.source == twice.source == "paper, section 3.3, rescaled to 20 steps"


@given(st.integers(1, 300).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))))
def test_uniform_groups_differ_by_one_step_at_most(numbers):
    num_steps, num_keys = numbers
    sizes = [len(group) for group in KeySchedule.uniform(num_steps, num_keys).groups()]
    assert len(sizes) == num_keys and max(sizes) - min(sizes) <= 1


def test_the_papers_keys():
    schedule = KeySchedule.paper(50)
    assert str(schedule) == "0-3,5,10,15,25,35 of 50"
    assert [len(group) for group in schedule.groups()] == [1, 1, 1, 2, 5, 5, 10, 10, 15]
    assert KeySchedule.paper(20).keys == (0, 1, 2, 3, 5, 10, 15)
    assert len(KeySchedule.paper(100, "deepfloyd-if-1").keys) == 40
    assert len(KeySchedule.paper(75, "deepfloyd-if-3").keys) == 11
    assert "paper" in schedule.source


def test_every_published_list_is_a_schedule_with_a_source():
    for system, lists in PAPER_KEYS.items():
        for num_steps in lists:
            source = KeySchedule.paper(num_steps, system).source
            assert source.startswith(("paper", "code"))


def test_the_key_lists_stand_in_one_file_only():
    from pathlib import Path

    package = Path(__file__).parent.parent / "fastdiff_lab"
    found = [f.name for f in package.rglob("*.py") if "15, 25, 35" in f.read_text() or "48, 47, 45" in f.read_text()]
    assert found == ["key_schedule.py"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((50, [1, 2]), r"keys \[1, 2\] given; the first step of a run must be a key; accepted: lists that begin with 0"),
        ((50, []), "accepted: lists that begin with 0"),
        ((50, [0, 5, 3]), "key step 3 comes after 5 .*accepted: ascending keys, each once"),
        ((50, [0, 3, 3]), "key step 3 stands twice .*accepted: ascending keys, each once"),
        ((50, [0, -1]), "key step -1 given; accepted: whole numbers from 0 to 49"),
        ((50, [0, 50]), "key step 50 given; accepted: whole numbers from 0 to 49"),
        ((50, [0, 1.5]), "key step 1.5 given"),
        ((50, [0, True]), "key step True given"),
        ((0, [0]), "`num_steps` must be an int from 1 to 100000, got 0"),
        ((10**9, [0]), "`num_steps` must .* got 1000000000"),
        (("50", [0]), "`num_steps` must .* got '50'"),
    ],
)
def test_invalid_schedules(arguments, message):
    with pytest.raises(ValueError, match=message):
        KeySchedule(*arguments)


@pytest.mark.parametrize("text", ["", "0,1", "0-3 of", "0;1 of 5", "of 5", "a of 5", "0--1 of 5", "0-3,5 of 20 30", "٠ of 5"])
def test_text_that_is_no_schedule(text):
    with pytest.raises(ValueError, match="as a key schedule; accepted: text such as"):
        KeySchedule.parse(text)


def test_a_huge_range_is_refused_before_it_is_made():
    with pytest.raises(ValueError, match="key step 99999999999 asked"):
        KeySchedule.parse("0-99999999999 of 50")
    with pytest.raises(ValueError, match="key step 0 comes after 99999 in keys"):
        KeySchedule.parse(",".join(["0-99999"] * 10_000) + " of 100000")
    with pytest.raises(ValueError, match="cannot read '0 of 1000.*' as a key schedule"):
        KeySchedule.parse("0 of 1" + "0" * 5000)


GOOD = json.loads(KeySchedule.paper(50).to_json())


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ("{", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ("1" * 5000, "is no JSON"),
        ("[]", "is no fastdiff_lab.KeySchedule"),
        (json.dumps(GOOD | {"schema": "other"}), "its schema is 'other'"),
        (json.dumps(GOOD | {"version": 9}), "has version '9'.*accepted: 1"),
        (json.dumps({k: v for k, v in GOOD.items() if k != "keys"}), "field 'keys' is missing"),
        (json.dumps(GOOD | {"kyes": []}), "field 'kyes' is unknown"),
        (json.dumps(GOOD | {"keys": "0,1"}), "keys='0,1' given"),
        (json.dumps(GOOD | {"keys": [0, 99]}), "key step 99 given"),
        (json.dumps(GOOD | {"source": 3}), "source=3 given"),
        (" " * (9 * 2**20), "accepted: at most"),
    ],
)
def test_broken_or_foreign_json(document, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        KeySchedule.from_json(document)
    file = tmp_path / "schedule.json"
    file.write_text(document)
    with pytest.raises(ValueError, match=message):
        KeySchedule.load(file)


def test_files(tmp_path):
    file = tmp_path / "deep" / "schedule.json"
    KeySchedule.paper(50).save(file)
    assert KeySchedule.load(file) == KeySchedule.paper(50)
    assert KeySchedule.load(file).source == KeySchedule.paper(50).source
    assert [path.name for path in file.parent.iterdir()] == ["schedule.json"]
    with pytest.raises(FileNotFoundError):
        KeySchedule.load(tmp_path / "none.json")


def test_unpublished_keys():
    with pytest.raises(ValueError, match="no published keys for system 'flux'; there are: stable-diffusion"):
        KeySchedule.paper(50, "flux")
    with pytest.raises(ValueError, match=r"no published keys for 30 steps .*for: 50, 20.*rescaled\(30\)"):
        KeySchedule.paper(30)


def test_what_a_schedule_was_measured_on():
    schedule = KeySchedule(10, [0, 5], measured_on={"model": "UNet2DConditionModel", "order": 1, "guidance_scale": 5.0})
    again = KeySchedule.from_json(schedule.to_json())
    assert again.measured_on == schedule.measured_on and hash(again) == hash(KeySchedule(10, [0, 5]))
    assert "measured_on" not in KeySchedule(10, [0, 5]).to_json()
    with pytest.raises(TypeError, match=r"measured_on=\[1\] given; accepted: names with texts and numbers"):
        KeySchedule(10, [0], measured_on=[1])
    with pytest.raises(ValueError, match=r"measured_on\['model'\]=None given; accepted: a text or a number"):
        KeySchedule.from_json(json.dumps(json.loads(schedule.to_json()) | {"measured_on": {"model": None}}))
