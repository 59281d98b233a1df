"""Do long work beside the notebook: one job at a time, in its own thread, that can be cancelled."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable
from typing import Any

from .interrupts import cancel_on_interrupt, kernels_loop


class Worker:
    """Run one job at a time in a thread, so that no callback of a notebook is blocked.

    >>> worker = Worker()
    >>> worker.start(lambda cancelled: None)
    >>> worker.wait()
    True
    """

    def __init__(self) -> None:
        self._cancel = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._loop = kernels_loop()

    @property
    def is_running(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def start(self, job: Callable[[Callable[[], bool]], Any]) -> None:
        """Start `job(cancelled)`, where `cancelled()` says whether to stop. The job catches its own errors.

        Raises RuntimeError while another one runs.
        """
        with self._lock:
            if self.is_running:
                raise RuntimeError("a run is being made already; cancel it, or wait for its end")
            self._cancel.clear()
            # Outputs go to the cell or the click that started the job.
            context = contextvars.copy_context()
            self._thread = threading.Thread(
                target=lambda: context.run(job, self._cancel.is_set), name="fastdiff_lab run", daemon=True
            )
            self._thread.start()
        if self._loop is not None:
            cancel_on_interrupt(self._loop, lambda: self.is_running, self.cancel)

    def cancel(self) -> None:
        """Ask the job to stop."""
        self._cancel.set()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the job's end; return whether it came in time. An interrupt cancels the job."""
        thread = self._thread
        if thread is None:
            return True
        try:
            thread.join(seconds)
        except KeyboardInterrupt:
            self.cancel()
            raise
        return not thread.is_alive()
