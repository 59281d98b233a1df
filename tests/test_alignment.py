"""The suite on other processors: weights at other places in memory."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from misaligned import move, moved
from torch import nn

TESTS = Path(__file__).parent
# Where weights are loaded, saved or copied a second time, and what comes of it is compared. All other files were run so by hand.
SENSITIVE = ("test_quality.py", "test_pipelines.py", "test_shared_parts.py")


def outcome(*options: str) -> subprocess.CompletedProcess:
    """The sensitive tests in a process of their own."""
    files = [str(TESTS / name) for name in SENSITIVE]
    call = [sys.executable, "-m", "pytest", "-q", "-m", "not long", "-p", "no:cacheprovider", "-p", "no:xdist", *options, *files]
    paths = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    return subprocess.run(call, env=variables | {"PYTHONPATH": paths}, cwd=TESTS.parent, capture_output=True, text=True)


@pytest.mark.long
def test_no_result_depends_on_where_weights_lie():
    run = outcome("-p", "misaligned")
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-1000:]


def test_moved_weights_are_the_same_at_another_place():
    convolution = nn.Conv2d(3, 5, 3).to(memory_format=torch.channels_last)
    before = {name: value.clone() for name, value in convolution.state_dict().items()}
    strides, weight = convolution.weight.stride(), convolution.weight
    move(convolution)
    assert convolution.weight is weight and weight.stride() == strides and weight.storage_offset() > 0
    assert all(torch.equal(before[name], value) for name, value in convolution.state_dict().items())
    place = weight.data_ptr()
    move(convolution)
    assert weight.data_ptr() == place  # nothing moves between two runs that are compared


def test_no_two_models_lie_alike():
    first, second = nn.Linear(3, 5), nn.Linear(3, 5)
    move(first)
    move(second)
    assert first.weight.storage_offset() != second.weight.storage_offset()


def test_a_tensor_that_was_moved_computes_on():
    whole = moved(torch.arange(6.0).reshape(2, 3).t(), 3)
    assert whole.stride() == (1, 3) and whole.storage_offset() == 3 and whole.tolist() == [[0, 3], [1, 4], [2, 5]]
