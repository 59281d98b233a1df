"""The contest: entries and their files, the check, the leaderboard."""

from __future__ import annotations

import json

import pytest
import torch
from exercise_answers import answer, hidden_test, modules_kept
from systems import ROWS

import fastdiff_lab as fl
from fastdiff_lab.calibration.reuse_costs import ReuseCosts
from fastdiff_lab.exercises import ContestEntry, check, contest, show


def test_damping_without_a_line_is_refused():
    with pytest.raises(ValueError, match=r"damping=0\.2 asked with order 0, which reuses features"):
        ContestEntry(fl.KeySchedule.uniform(50, 7), damping=0.2)


def test_an_entry_survives_its_file(tmp_path):
    entry = ContestEntry(fl.KeySchedule.uniform(50, 7), order=1, damping=0.25, axis="log_snr", parts="skips", prior_noise=0.003)
    entry.save(tmp_path / "entry.json")
    assert ContestEntry.load(tmp_path / "entry.json") == entry == ContestEntry.from_json(entry.to_json())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"schedule": "0-7 of 50"}, "at most 7 encoder calls; 0-7 of 50 has 50 steps and makes 8 calls"),
        ({"schedule": "0-5 of 20"}, "has 20 steps"),
        ({"schedule": 3}, "cannot read '3' as a key schedule"),
        ({"order": 1.0}, "order='1.0' given; accepted: 0, 1 or 2"),
        ({"order": 3}, "`order` must be an int from 0 to 2, got 3"),
        ({"prior_noise": float("nan")}, "`prior_noise` must be a number from 0 to 1, got nan"),
        ({"image": "cached.png"}, "accepted: schedule, and of"),
        ({"version": 2}, "has version '2'"),
        ({"schema": "x"}, "is no fastdiff_lab.ContestEntry"),
    ],
)
def test_broken_entries_are_refused_and_do_not_stop_the_others(tmp_path, change, said):
    good = ContestEntry(fl.KeySchedule.uniform(50, 7))
    good.save(tmp_path / "good.json")
    (tmp_path / "bad\x1b[2J.json").write_text(json.dumps({**json.loads(good.to_json()), **change}))
    entries, refused = contest.read_entries(tmp_path)
    assert entries == {"good": good} and said in refused["bad?[2J"] and "\x1b" not in refused["bad?[2J"]


def test_the_hidden_test_of_the_contest_reads_what_is_handed_in_and_nothing_else():
    class Forged:
        """Seven keys to look at, eight to draw with."""

        schedule = fl.KeySchedule.uniform(50, 7)

        def to_json(self):
            good = json.loads(ContestEntry(self.schedule).to_json())
            return json.dumps({**good, "schedule": "0-7 of 50"})

        def method(self):
            return fl.Method()

    assert "A ContestEntry is wanted" in check("contest", Forged()).text
    with modules_kept(), pytest.raises(ValueError, match="makes 8 calls"):
        hidden_test("contest")(Forged())


def test_a_schedule_must_be_a_schedule():
    with pytest.raises(TypeError, match=r"schedule='\[0, 7\]' given; accepted: a KeySchedule of 50 steps"):
        ContestEntry([0, 7])


def test_captions_follow_from_the_seed():
    one, same_again, other = (contest.drawn_tasks(seed, 5) for seed in (3, 3, 4))
    assert one == same_again != other and len(dict(one)) == 5


def costs_of(steps: int) -> ReuseCosts:
    """Made-up costs of reuse."""
    displacement = torch.rand(1, 1, steps, steps + 1, generator=torch.Generator().manual_seed(0))
    return ReuseCosts(displacement, (0,), torch.ones(1, steps + 1), {"order": 0})


@pytest.mark.long
def test_the_leaderboard_counts_what_the_library_evaluates(monkeypatch):
    monkeypatch.setattr(contest, "NUM_STEPS", 20)
    monkeypatch.setattr(contest, "embedded_costs", lambda: costs_of(20))
    entries = {
        "early": ContestEntry(fl.KeySchedule(20, (0, 1, 2, 3, 4, 5, 6))),
        "few": ContestEntry(fl.KeySchedule(20, (0, 8)), order=1),
    }
    board = contest.leaderboard(entries, seed=5, images=1, pipe=ROWS["sd"].build()).set_index("entry")
    assert board["encoder_calls"].to_dict() == {"early": 7, "few": 2, **dict.fromkeys(contest.well_known(), 7)}
    assert (board["decoder_calls"] == 20).all() and board["score"].is_monotonic_decreasing
    assert board["handed in"].to_dict() == {name: name in entries for name in board.index}
    assert board["score"].between(0, contest.BEST_PSNR).all()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: contest.leaderboard({}, seed=-1), "`seed` must be an int of 0 or more, got -1"),
        (lambda: contest.leaderboard({}, seed=1, images=0), "`images` must be a positive int, got 0"),
        (lambda: contest.leaderboard({"derived": ContestEntry(fl.KeySchedule(50, (0,)))}, seed=1), "an entry is called 'derived'"),
    ],
)
def test_what_the_leaderboard_refuses(call, said):
    with pytest.raises(ValueError, match=said):
        call()


def test_a_folder_without_entries_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no entries in"):
        contest.read_entries(tmp_path)


@pytest.mark.long
def test_the_check_of_the_contest_passes_what_is_no_worse_than_the_weakest(monkeypatch):
    monkeypatch.setattr(contest, "PRACTICE", 1)
    contest.practice.cache_clear()
    assert check("contest", answer("contest")).passed
    assert not check("contest", answer("contest", solved=False)).passed
    derived = fl.derive_schedule(fl.embedded_costs(), 7)
    variants = [  # the schedules beside it, written another way
        ContestEntry(fl.KeySchedule(50, (0, 7, 14, 21, 29, 36, 43))),
        ContestEntry(fl.KeySchedule.parse(str(derived)), order=1, damping=0),
        ContestEntry.from_json(ContestEntry(fl.KeySchedule.paper(20).rescaled(50)).to_json()),
    ]
    for entry in variants:
        assert check("contest", entry).passed, check("contest", entry)
    assert show("contest", answer("contest")).data.startswith('<img alt="Images of')
    contest.practice.cache_clear()
