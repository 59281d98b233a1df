"""Shared fixtures: no network, no gradients, one thread per process."""

import gc
import os

# Before torch and numpy are imported, and for the processes that tests start: two test workers with two threads each on two cores
# wait for each other most of the time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import socket

import pytest
import torch
from hypothesis import settings

# A slow machine is no failure.
settings.register_profile("fastdiff_lab", deadline=None)
settings.load_profile("fastdiff_lab")


# By the time that their long tests take, waiting for other processes included. With `--dist loadfile` a file that begins last leaves
# the other workers idle.
LONGEST = (
    "classroom",
    "site",
    "systems",
    "browser_lab",
    "pretend_device",
    "lab_page",
    "packaging",
    "browser",
    "ablation",
    "cli",
    "documents",
)


def pytest_collection_modifyitems(items):
    """The longest files first; all else in its order."""
    place = {f"test_{name}.py": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


def pytest_collection_finish():
    """What was imported stays: looking through all of it for garbage again and again took a tenth of the tests' time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _as_many_threads():
    """One, unless OMP_NUM_THREADS says another number: training sets the number of threads of its whole process."""
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """Every connection that leaves this machine fails the test that makes it."""
    connect = socket.socket.connect

    def guarded(self, address):
        host = address[0] if isinstance(address, tuple) else "localhost"
        if str(host) not in ("127.0.0.1", "::1", "localhost"):
            raise AssertionError(f"a test opened a connection to {address}")
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.no_grad():
        yield


@pytest.fixture(scope="session")
def embedded():
    """The embedded pipeline, loaded once for all tests that leave it as it was."""
    from fastdiff_lab import load_pipeline

    return load_pipeline()
