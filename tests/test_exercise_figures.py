"""The images of answers."""

from __future__ import annotations

from functools import partial

import pytest
from exercise_answers import answer
from short_suite import long_but

from fastdiff_lab.exercises import figures, show
from fastdiff_lab.exercises.checking import EXERCISES


@pytest.fixture(scope="module", autouse=True)
def _short_runs_in_images():
    """Features of a run of 26 steps are drawn instead of 50."""
    figures._recording.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        for draw in ("relative_change", "step_similarity", "extrapolate"):
            patch.setitem(figures.DRAWN, draw, partial(in_short, figures.DRAWN[draw]))
        yield
    figures._recording.cache_clear()


def in_short(draw, answer):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "STEPS", 26)
        return draw(answer)


# A curve, a batch, a path through costs.
@pytest.mark.parametrize("name", long_but(("key_of_each_step", "decode_group", "best_keys"), EXERCISES))
def test_answers_are_drawn_with_words_for_those_who_do_not_see(name):
    assert show(name, answer(name)).data.startswith('<img alt="')


@pytest.mark.parametrize("name", long_but([name for name in EXERCISES if name != "flop_ceiling"], EXERCISES))
def test_what_cannot_be_drawn_is_told(name):
    told = show(name, lambda *given: "<b>").data
    assert told.startswith("<p>Nothing to draw yet: ") and "<b>" not in told
