"""The examples in the docstrings run, and give what they say."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest
from short_suite import long_but

import fastdiff_lab
import studies
import teaching

MODULES = sorted(
    found.name
    for package in (fastdiff_lab, studies, teaching)
    for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
    if found.name[-8:] != "__main__"
)


# Their examples sample many times.
DEAR = (
    "comparison.compare",
    "calibration.calibrate",
    "calibration.fitting",
    "calibration.refine",
    "recording.record",
    "sampling.methods",
)
CHEAP = [
    name for name in ("fastdiff_lab", *MODULES) if name.removeprefix("fastdiff_lab.") not in DEAR and not name.startswith("studies")
]


@pytest.mark.parametrize("name", long_but(CHEAP, ("fastdiff_lab", *MODULES)))
def test_the_examples_of_a_module(name):
    """As `pytest --doctest-modules fastdiff_lab`, in the processes that have imported everything already."""
    assert doctest.testmod(importlib.import_module(name)).failed == 0, "what was expected and what came stands above"


def test_examples_are_found():
    """A finder that finds nothing would let the test above pass."""
    examples = [
        example
        for name in MODULES
        for found in doctest.DocTestFinder().find(importlib.import_module(name))
        for example in found.examples
    ]
    run = [example for example in examples if not example.options.get(doctest.SKIP)]
    assert len(run) > 50 and any("Plan(num_steps=50" in example.source for example in run)
