"""Long work beside the notebook: one job at a time, in a thread of its own, that can be asked to stop.

- `Worker`: `.start(job)`, `.cancel()`, `.wait()`
- `Later`: something slow that is done once its causes have settled
"""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import Any


class Worker:
    """Runs one job at a time in a thread, so that no callback of a notebook is ever blocked.

    >>> worker = Worker()
    >>> worker.start(lambda cancelled: None)
    >>> worker.wait()
    True
    """

    def __init__(self) -> None:
        self._cancel = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @property
    def is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self, job: Callable[[Callable[[], bool]], Any]) -> None:
        """Starts `job(cancelled)`, where `cancelled()` says whether it was asked to stop; the job catches its own errors.

        Raises RuntimeError while another one runs.
        """
        with self._lock:
            if self.is_running:
                raise RuntimeError("a run is being made already; cancel it, or wait for its end")
            self._cancel.clear()
            # Messages to the notebook belong to the cell or the click that started the job.
            context = contextvars.copy_context()
            self._thread = threading.Thread(
                target=lambda: context.run(job, self._cancel.is_set), name="fastdiff_lab run", daemon=True
            )
            self._thread.start()

    def cancel(self) -> None:
        """Asks the job to stop."""
        self._cancel.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Waits for the job's end, at most so long; was it reached? An interrupt while waiting cancels the job."""
        thread = self._thread
        if thread is None:
            return True
        try:
            thread.join(seconds)
        except KeyboardInterrupt:
            self.cancel()
            raise
        return not thread.is_alive()


class Later:
    """Does something slow when nobody has asked for it for a while, in a thread of its own.

    >>> later = Later(lambda: None)
    >>> later.ask()
    """

    def __init__(self, action: Callable[[], object], seconds: float = 0.25) -> None:
        self.action, self.seconds = action, seconds
        self._timer: threading.Timer | None = None

    def ask(self) -> None:
        """Asks for it; what was asked before and has not begun is forgotten."""
        if self._timer is not None:
            self._timer.cancel()
        context = contextvars.copy_context()
        self._timer = threading.Timer(self.seconds, lambda: context.run(self.action))
        self._timer.daemon = True
        self._timer.start()
