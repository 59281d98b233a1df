"""Run tasks in worker processes that may die, local or on a Dask cluster."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import joblib
from joblib.externals.loky.process_executor import TerminatedWorkerError

from ..hooks.patching import replaced_method

# Threads of a worker share one pipeline, which can do one run at a time.
_ONE_AT_A_TIME = threading.Lock()


class WorkerLostError(RuntimeError):
    """A worker process died, and a task or its result with it."""


def in_workers(work: Callable, shared: Any, tasks: Iterable[tuple], n_jobs: int | None = None) -> Iterator[Any]:
    """Run `work(shared, *task)` for each task by joblib, and yield the results as they come, in any order.

    >>> sorted(in_workers(pow, 2, [(1,), (3,)]))
    [2, 8]

    `n_jobs` counts local processes; None for one, or what `joblib.parallel_config` says. Under
    `joblib.parallel_config("dask")` the current Dask client's workers run the tasks, and each gets `shared` once.
    Raises WorkerLostError if a worker died; results from before have been yielded.
    """
    parallel = joblib.Parallel(n_jobs=n_jobs, return_as="generator_unordered")
    with ExitStack() as stack:
        if _is_of_dask(parallel._backend):
            stack.enter_context(replaced_method(parallel._backend, "submit", _telling))
            shared = parallel._backend.client.scatter(shared, broadcast=True, hash=False)
        try:
            yield from parallel(joblib.delayed(_alone)(work, shared, *task) for task in tasks)
        except _losses() as loss:
            raise WorkerLostError(f"a worker process was killed ({type(loss).__name__})") from loss


def _alone(work: Callable, *arguments: Any) -> Any:
    with _ONE_AT_A_TIME:
        return work(*arguments)


def _is_of_dask(backend: Any) -> bool:
    return type(backend).__name__ == "DaskDistributedBackend"


def _losses() -> tuple[type[BaseException], ...]:
    """The errors that loky and Dask raise for lost workers. Dask need not be installed."""
    if (distributed := sys.modules.get("distributed")) is None:
        return (TerminatedWorkerError,)
    return TerminatedWorkerError, distributed.KilledWorker, distributed.client.FutureCancelledError


def _telling(submit: Callable) -> Callable:
    """Tell joblib 1.6 as a result that Dask gave a task up; else it would wait for ever."""

    def telling(task: Any, callback: Callable) -> Any:
        future = submit(task, callback)
        future.add_done_callback(lambda done: done.exception() and callback(done.exception()))
        return future

    return telling
