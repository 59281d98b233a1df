"""What the check of an exercise says of a wrong answer, and how it reads values."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from exercise_answers import changes_in_numpy

import fastdiff_lab as fl
from fastdiff_lab.exercises import check, show
from fastdiff_lab.exercises.answer_values import as_arrays, described, own_copy, same
from fastdiff_lab.exercises.exercise import nearness
from fastdiff_lab.exercises.hooks_and_features import _hooks, pipeline


def test_the_report_says_what_was_passed_found_and_expected():
    report = check("extrapolate", lambda before, last, *steps: last * 2)
    assert re.search(r"given: before=tensor \(3,\) = \[.*key_before=0, key_last=2, step=3\n  wrong value: found \[", repr(report))
    assert "expected [" in report.text and "largest difference" in report.text


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (lambda f: None, "nothing returned"),
        (lambda f: "0.5", "wrong type"),
        (lambda f: {1, "a"}, "wrong type"),
        (lambda f: torch.zeros(3).to_sparse(), "wrong type"),
        (lambda f: 1j * np.ones(4), "wrong type"),
        (lambda f: f[1:], "wrong shape"),
        (lambda f: torch.full((len(f) - 1,), torch.nan), "wrong value"),
        (lambda f: f.no_such_thing, "raised"),
        (lambda f, g: f, "raised"),
    ],
)
def test_what_is_wrong_has_a_name(given, kind):
    assert f"  {kind}: " in check("relative_change", given).text


def test_an_exception_is_shown_with_its_line_and_the_input():
    def broken(features):
        return features.norm(dim=7)  # here

    text = check("relative_change", broken).text
    assert "given: features=tensor (5, 4, 3, 3)" in text and "IndexError" in text and "return features.norm(dim=7)  # here" in text


def test_writing_into_an_input_is_told():
    def writes(features):
        right = changes_in_numpy(features.clone())
        features += 1
        return right

    assert "changed its input: the result is right, but your function wrote into features" in check("relative_change", writes).text


def test_a_stopped_answer_names_its_input():
    def endless(features):
        raise KeyboardInterrupt

    assert "1 interrupted" in check("relative_change", endless).text


def test_hooks_left_behind_are_told_and_taken_away():
    before = _hooks(pipeline().unet)

    def forgetful(unet, arguments):
        unet.conv_in.register_forward_hook(lambda *_: None)
        unet(**arguments)
        return []

    assert "left 1 hooks on the UNet" in check("collect_skips", forgetful).text
    show("collect_skips", forgetful)
    assert _hooks(pipeline().unet) == before


def test_a_value_instead_of_a_function_is_told():
    assert "hand over the function itself" in check("relative_change", torch.zeros(3)).text
    assert "A ContestEntry is wanted, found KeySchedule" in check("contest", fl.KeySchedule.uniform(50, 7)).text


def test_unknown_exercises_are_refused():
    for asked in (check, show):
        with pytest.raises(ValueError, match="no exercise is called 'skips'; there are: relative_change"):
            asked("skips", None)


def test_rows_that_do_not_fit_are_told():
    text = check("decode_group", lambda decode, f, text, t, g: decode(f, text, t)).text
    assert "decode got [2, 2, 2] rows of features, 2 of text and 4 time-steps; accepted: as many of each" in text


def test_numbers_are_read_from_any_wrapping():
    for wrapped in (
        [1, 2],
        (1.0, 2),
        torch.tensor([1, 2]),
        np.array([1, 2]),
        range(1, 3),
        {"a": 1, "b": 2},
        {1, 2},
        [torch.tensor(1), 2],
    ):
        assert as_arrays(wrapped).tolist() == [1.0, 2.0]
    assert [part.shape for part in as_arrays([torch.zeros(2), torch.zeros(3, 1)])] == [(2,), (3, 1)]
    assert as_arrays("text") is None and as_arrays([None]) is None and as_arrays(object()) is None


def test_copies_are_equal_and_independent():
    given = (torch.zeros(2), [np.zeros(1), {"a": torch.ones(1)}], 3)
    copied = own_copy(given)
    assert same(copied, given)
    copied[1][1]["a"] += 1
    assert not same(copied, given)
    assert described([torch.zeros(2, 3), torch.zeros(1)]) == "list of 2: tensor (2, 3), tensor (1,) = [0]"


def test_nearness_tells_exact_from_close():
    assert nearness([1.0, np.inf], [1.0, np.inf]).kind == "exact"
    assert nearness([1.0 + 1e-6, np.inf], [1.0, np.inf]).kind == "close"
    assert nearness([1.0 + 1e-6], [1.0]).kind == "close" and nearness([1.1], [1.0]).kind == "wrong value"
