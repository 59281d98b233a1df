"""Check answers, and say what was passed, found and expected.

- `check(name, answer)`: try an answer on several inputs
- `Report`: the outcome
- `EXERCISES`: those of the sheets by name
- `GAPS`: those of the notebooks
"""

from __future__ import annotations

import os
import sys
import sysconfig
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import contest, gaps_of_calibration, gaps_of_the_method, hooks_and_features, propagation, schedules, time_fit_and_claims
from .answer_values import described, own_copy, same, shown
from .exercise import Exercise, Verdict, nearness

EXERCISES: dict[str, Exercise] = {
    exercise.name: exercise
    for exercise in (*hooks_and_features.EXERCISES, *propagation.EXERCISES, *schedules.EXERCISES, *time_fit_and_claims.EXERCISES)
}  # fmt: skip
GAPS = {exercise.name: exercise for exercise in (*gaps_of_the_method.GAPS, *gaps_of_calibration.GAPS)}
NAMES = (*EXERCISES, contest.NAME)
INSIDE = f"{Path(__file__).parent.parent}{os.sep}"
# What an answer may call of this package; anything else would answer for the student.
ALLOWED_FILES = (
    "key_schedule.py",
    "inputs/plain_values.py",
    "hooks/denoiser.py",
    "hooks/patching.py",
    "pipelines.py",
    "shapes/text.py",
    "exercises/checking.py",
)
ALLOWED_CODE = ("RowDecoder", "Stopwatch", "ToyModel", "_hooks_are_removed", "_encodes_at_keys_only")


@dataclass(frozen=True)
class Report:
    """The outcome for an answer. Printed, it says what was passed, found and expected."""

    name: str
    passed: bool
    text: str

    def __repr__(self) -> str:
        return f"{self.name}: {'right' if self.passed else 'NOT RIGHT YET'}. {self.text}"


def check(name: str, answer: Any, *, seed: int = 0, inputs: Iterable[tuple] | None = None) -> Report:
    """Try an answer on several inputs, and report whether it is right.

    >>> check("relative_change", my_function)  # doctest: +SKIP
    relative_change: right. 6 inputs: 6 close (largest difference 1.2e-07)

    Args:
        name: Of the exercise.
        answer: The function itself; for "contest" a `ContestEntry`. Arguments are passed by position.
            The result may be a tensor, an array, a list or a tuple.
        seed: Of the inputs, 0 or more.
        inputs: Argument tuples to use instead.

    Returns:
        A report, also of what the answer raises.

    Raises:
        ValueError: An unknown name.
    """
    if name not in (*NAMES, *GAPS):
        raise ValueError(f"no exercise is called {name!r}; there are: {', '.join((*NAMES, *GAPS))}")
    if name == contest.NAME:
        return Report(name, *contest.judged(answer, seed))
    exercise = (EXERCISES | GAPS)[name]
    if not callable(answer):
        told = "nothing" if answer is None or answer is ... else shown(answer)
        return Report(name, False, f"A function is wanted, found {told}: hand over the function itself, without calling it")
    given = list(exercise.inputs(np.random.default_rng(seed)) if inputs is None else inputs)
    return Report(name, *_told(exercise, answer, given))


def _told(exercise: Exercise, answer: Callable, inputs: list[tuple]) -> tuple[bool, str]:
    """All verdicts in a few lines; the first wrong one in full."""
    verdicts: list[Verdict] = []
    for arguments in inputs:
        verdicts.append(verdict(exercise, answer, arguments))
        if verdicts[-1].kind == "interrupted":
            break
    kinds = Counter(found.kind for found in verdicts)
    counted = ", ".join(f"{count} {kind}" for kind, count in kinds.most_common())
    wrong = next((place for place, found in enumerate(verdicts) if not found.is_right), None)
    if wrong is None:
        largest = max(found.difference for found in verdicts)
        return True, f"{len(inputs)} inputs: {counted}" + (f" (largest difference {largest:.2g})" if largest else "")
    lines = [f"{len(inputs)} inputs: {counted}. The first that is wrong:"]
    passed = ", ".join(f"{name}={described(value)}" for name, value in zip(exercise.arguments, inputs[wrong], strict=True))
    lines += [f"  given: {passed}", f"  {verdicts[wrong].kind}: {verdicts[wrong].reason}"]
    lines += [f"  perhaps: {sentence}" for sentence in _mistakes(exercise, verdicts[wrong].found, inputs[wrong])]
    return False, "\n".join(lines)


def verdict(exercise: Exercise, answer: Callable, arguments: tuple) -> Verdict:
    """Judge an answer on one input. It gets copies, and is told if it writes into them."""
    given = own_copy(arguments)
    try:
        with torch.no_grad(), exercise.rules(*given) as broken, _by_itself(broken):
            found = answer(*given)
    except KeyboardInterrupt:
        return Verdict("interrupted", "you stopped it while it worked on this input; a quicker way may be needed")
    except Exception as error:
        return Verdict("raised", f"{type(error).__name__}: {error}{_place(error)}")
    if broken and found is not None:
        return Verdict("broke a rule", "; ".join(broken), found=found)
    judged = _judged(exercise.judge, exercise.expected, found, arguments)
    if judged.is_right and not same(given, arguments):
        names = [name for name, new, old in zip(exercise.arguments, given, arguments, strict=True) if not same(new, old)]
        return Verdict("changed its input", f"the result is right, but your function wrote into {', '.join(names)}; work on a copy")
    return replace(judged, found=found)


def _judged(judge: Callable[[Any, Any, tuple], Verdict], right: Callable, found: Any, arguments: tuple) -> Verdict:
    """Judge a result beside that of the function `right`."""
    with torch.no_grad():
        expected = right(*own_copy(arguments))
        try:
            return judge(found, expected, arguments)
        except Exception as error:  # an answer may return anything
            what = f"a {type(found).__name__} that cannot be compared ({type(error).__name__}: {error})"
            return Verdict("wrong type", f"found {what}; expected {shown(expected)}")


@contextmanager
def _by_itself(broken: list[str]) -> Iterator[None]:
    """Note inside the block each function of this package that is called, as a broken rule."""

    def note(frame: Any, event: str, arg: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_filename.startswith(INSIDE) and not code.co_qualname.startswith(ALLOWED_CODE):
            file = code.co_filename[len(INSIDE) :].replace(os.sep, "/")
            if file not in ALLOWED_FILES and not broken:
                broken.append(f"your function calls fastdiff_lab ({code.co_qualname} of {file}); write it yourself")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        yield
    finally:
        sys.setprofile(before)


def _place(error: Exception) -> str:
    """The line of the student's own code that led to an error."""
    installed = tuple({INSIDE, *map(sysconfig.get_path, ("purelib", "platlib", "stdlib"))})
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(installed)]
    return f" (line {frames[-1].lineno} of {frames[-1].name}: {frames[-1].line})" if frames else ""


def _mistakes(exercise: Exercise, found: Any, arguments: tuple) -> Iterable[str]:
    """The known mistakes with exactly this result."""
    for sentence, mistake in exercise.mistakes.items() if found is not None else ():
        if _judged(nearness, mistake, found, arguments).is_right:
            yield sentence
