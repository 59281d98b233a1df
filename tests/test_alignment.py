"""The suite on other processors: weights at other places in memory, and other numbers of threads."""

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
# Sums over several threads are added in another order.
LAWS = ("test_every_step_a_key.py", "test_serial_is_parallel.py", "test_split_by_hand.py", "test_pipelines.py")


def outcome(names: tuple[str, ...], *options: str, threads: int = 1) -> subprocess.CompletedProcess:
    """Some files of tests in a process of their own."""
    files = [str(TESTS / name) for name in (*names, f"{Path(__file__).name}::{test_as_many_threads_as_asked.__name__}")]
    call = [sys.executable, "-m", "pytest", "-q", "-m", "not long", "-p", "no:cacheprovider", "-p", "no:xdist", *options, *files]
    paths = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    # Threads that wait passively: with another test beside this one, spinning ones would slow both tenfold.
    variables |= {"PYTHONPATH": paths, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}
    return subprocess.run(call, env=variables, cwd=TESTS.parent, capture_output=True, text=True)


@pytest.mark.long
def test_no_result_depends_on_where_weights_lie():
    run = outcome(SENSITIVE, "-p", "misaligned")
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-1000:]


@pytest.mark.long
@pytest.mark.parametrize("threads", [2, 4])
def test_no_law_depends_on_the_number_of_threads(threads):
    run = outcome(LAWS, threads=threads)
    assert run.returncode == 0, run.stdout[-4000:] + run.stderr[-1000:]


def test_as_many_threads_as_asked():
    assert torch.get_num_threads() == int(os.environ["OMP_NUM_THREADS"])


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
