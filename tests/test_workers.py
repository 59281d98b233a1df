"""Tasks in worker processes, local and on a Dask cluster, and workers that are killed.

Work is defined inside the tests, so that it is sent by value: a worker cannot import this file.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pandas as pd
import pytest
from systems import ROWS

import fastdiff_lab as fl
from fastdiff_lab.comparison import render, workers
from fastdiff_lab.comparison.result_store import Store
from fastdiff_lab.comparison.workers import WorkerLostError, count_workers, in_workers
from fastdiff_lab.shapes.data import held_out_scenes

PROMPTS = [scene.caption() for scene in held_out_scenes(3, objects=1)]


@pytest.fixture(scope="module")
def pipe(embedded):
    return embedded


@contextmanager
def dask_client():
    """A client of two processes of one thread on this machine."""
    import distributed

    options = {"host": "127.0.0.1", "dashboard_address": None, "worker_dashboard_address": None}
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, **options) as cluster, distributed.Client(cluster) as client:
        assert count_workers(client) == 2
        yield client


def test_results_come_from_other_processes():
    where = list(in_workers(lambda shared, number: (shared + number, os.getpid()), 10, [(1,), (2,)], n_jobs=2))
    assert {value for value, _ in where} == {11, 12} and os.getpid() not in {process for _, process in where}


def test_an_error_of_the_work_is_that_error():
    def work(shared, number):
        raise KeyError(number)

    with pytest.raises(KeyError, match="7"):
        list(in_workers(work, None, [(7,), (7,)], n_jobs=2))


def test_threads_take_turns_on_the_one_pipeline():
    running, most = [], []

    def work(shared, number):
        running.append(number)
        most.append(len(running))
        time.sleep(0.01)
        running.remove(number)

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(lambda number: workers._alone(work, None, number), range(8)))
    assert len(most) == 8 and max(most) == 1


@pytest.mark.long
def test_a_local_worker_that_dies():
    with pytest.raises(WorkerLostError, match=r"a worker process was killed \(TerminatedWorkerError\)"):
        list(in_workers(lambda shared, number: os.kill(os.getpid(), signal.SIGKILL), None, [(1,), (2,)], n_jobs=2))


def test_workers_that_die_again_and_again(monkeypatch):
    def dying(*arguments):
        raise WorkerLostError("a worker process was killed (KilledWorker)")
        yield

    monkeypatch.setattr(render, "in_workers", dying)
    with pytest.warns(UserWarning, match="a worker process was killed; its images are drawn again"):
        with pytest.raises(
            WorkerLostError, match="workers were killed 3 times in a row before one had finished a batch of 2; perhaps memory"
        ):
            fl.compare_images(ROWS["sd"].build(), {}, PROMPTS, batch_size=2, num_inference_steps=2)


@pytest.mark.long
def test_a_task_that_kills_every_dask_worker_is_given_up():
    with dask_client() as client:
        with pytest.raises(WorkerLostError, match=r"a worker process was killed \((KilledWorker|FutureCancelledError)\)"):
            list(in_workers(lambda shared, number: os.kill(os.getpid(), signal.SIGKILL), "shared", [(1,)], client))


@pytest.mark.long
def test_two_dask_workers_one_of_them_killed(pipe, tmp_path, monkeypatch):
    methods = {"paper": fl.KeySchedule.paper(50).rescaled(10), "three": fl.KeySchedule.uniform(10, 3)}
    options = {"num_inference_steps": 10, "batch_size": 1}
    alone = fl.compare_images(pipe, methods, PROMPTS, **options)
    file, log = tmp_path / "store.sqlite", tmp_path / "log"
    run, killed = render._run, []

    def logged(pipe, method, tasks, keys, options):
        with open(log, "a") as lines:
            lines.write(f"{os.getpid()} {keys[0]}\n")
        return run(pipe, method, tasks, keys, options)

    def kill_one():
        while not log.exists() or len(log.read_text().splitlines()) < 6:
            time.sleep(0.05)
        killed.append(int(log.read_text().split()[0]))
        os.kill(killed[0], signal.SIGKILL)

    monkeypatch.setattr(render, "_run", logged)
    with dask_client() as client:
        killer = threading.Thread(target=kill_one)
        killer.start()
        found = fl.compare_images(pipe, methods, PROMPTS, store=file, n_jobs=client, **options)
        killer.join()
    pd.testing.assert_frame_equal(found, alone, rtol=1e-2, atol=1e-4, check_dtype=False)  # nothing is lost
    begun = [line.split() for line in log.read_text().splitlines()]
    assert len({process for process, _ in begun}) >= 2 and os.getpid() not in {int(process) for process, _ in begun}
    with Store(file) as store:
        assert store.keys() == {key for _, key in begun}
    # Only what the killed worker had in its hands was begun again.
    again = {key for key, count in Counter(key for _, key in begun).items() if count > 1}
    assert again <= {key for process, key in begun if int(process) == killed[0]} and len(again) <= 2
