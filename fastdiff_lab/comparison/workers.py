"""Tasks in worker processes, local ones or those of a Dask cluster; workers may die.

- `in_workers(work, shared, tasks, n_jobs)`: what `work` gives for each task, as it comes
- `count_workers(n_jobs)`: how many tasks run at once
- `WorkerLostError`: raised where a worker died with its task
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures.process import BrokenProcessPool
from typing import TYPE_CHECKING, Any

from ..inputs.extras import extra

if TYPE_CHECKING:
    from distributed import Client

# A Dask worker with several threads has one copy of what is shared, and a pipeline can do one run at a time.
_ONE_AT_A_TIME = threading.Lock()


class WorkerLostError(RuntimeError):
    """A worker process died, and a task or its result with it."""


def in_workers(work: Callable, shared: Any, tasks: Iterable[tuple], n_jobs: int | Client | None = None) -> Iterator[Any]:
    """Run `work(shared, *task)` for each task and give the results as they come, in any order.

    >>> sorted(in_workers(pow, 2, [(1,), (3,)]))
    [2, 8]

    Args:
        n_jobs: local processes, by joblib (-1: one a core); None or 1: this process; or a Dask client, whose workers get `shared` once.

    Raises:
        WorkerLostError: where a worker died and its tasks have to be given anew; what was computed before has been given.
    """
    if n_jobs is None or n_jobs == 1:
        return (work(shared, *task) for task in tasks)
    return (_of_processes if isinstance(n_jobs, int) else _of_cluster)(n_jobs, work, shared, tasks)


def count_workers(n_jobs: int | Client | None) -> int:
    """How many tasks run at once, with `n_jobs` of `in_workers`.

    >>> count_workers(None), count_workers(3)
    (1, 3)
    """
    if isinstance(n_jobs, int):
        return n_jobs if n_jobs > 0 else max(1, (os.cpu_count() or 1) + 1 + n_jobs)
    return 1 if n_jobs is None else len(n_jobs.nthreads())


def _of_processes(n_jobs: Any, work: Callable, shared: Any, tasks: Iterable[tuple]) -> Iterator[Any]:
    with extra("workers", "n_jobs"):
        import joblib
    try:
        yield from joblib.Parallel(n_jobs, return_as="generator_unordered")(joblib.delayed(work)(shared, *task) for task in tasks)
    except BrokenProcessPool as loss:
        raise _lost(loss) from loss


def _of_cluster(client: Any, work: Callable, shared: Any, tasks: Iterable[tuple]) -> Iterator[Any]:
    from distributed import KilledWorker, as_completed
    from distributed.client import FutureCancelledError

    there = client.scatter(shared, broadcast=True, hash=False)
    try:
        for future in as_completed([client.submit(_alone, work, there, *task, pure=False) for task in tasks]):
            yield future.result()
    except (KilledWorker, FutureCancelledError) as loss:
        raise _lost(loss) from loss


def _alone(work: Callable, *arguments: Any) -> Any:
    with _ONE_AT_A_TIME:
        return work(*arguments)


def _lost(loss: Exception) -> WorkerLostError:
    return WorkerLostError(f"a worker process was killed ({type(loss).__name__})")
