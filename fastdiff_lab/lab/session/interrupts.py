"""Let a notebook's stop button end work that runs in a thread."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable

LOOK_EVERY = 0.2  # seconds


def cancel_on_interrupt(is_running: Callable[[], bool], cancel: Callable[[], object]) -> None:
    """While work runs beside an idle kernel, let an interrupt cancel it; a cell that runs gets its interrupt itself.

    >>> cancel_on_interrupt(lambda: worker.is_running, worker.cancel)  # doctest: +SKIP

    An idle kernel ignores interrupts, and a running cell has a handler of its own; only the first is replaced.
    """
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:  # no kernel
        return
    if threading.current_thread() is not threading.main_thread():
        return

    def interrupted(number: int, frame: object) -> None:
        cancel()

    def look() -> None:
        handler = signal.getsignal(signal.SIGINT)
        if is_running():
            if handler is signal.SIG_IGN:
                signal.signal(signal.SIGINT, interrupted)
            loop.call_later(LOOK_EVERY, look)
        elif handler is interrupted:
            signal.signal(signal.SIGINT, signal.SIG_IGN)

    loop.call_soon(look)
