"""Let a notebook's stop button end work that runs in a thread."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Callable

LOOK_EVERY = 0.2  # seconds


def kernels_loop() -> asyncio.AbstractEventLoop | None:
    """The loop of the kernel's main thread, which signals reach; None in another thread, or without a kernel.

    >>> kernels_loop() is None
    True
    """
    if threading.current_thread() is not threading.main_thread():
        return None
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def cancel_on_interrupt(loop: asyncio.AbstractEventLoop, is_running: Callable[[], bool], cancel: Callable[[], object]) -> None:
    """While work runs beside an idle kernel, let an interrupt cancel it; a cell that runs gets its interrupt itself.

    >>> cancel_on_interrupt(loop, lambda: worker.is_running, worker.cancel)  # doctest: +SKIP

    `loop`: that of the main thread. The caller may be in another one, since JupyterLab sends clicks to threads of their own.
    An idle kernel ignores interrupts, and a running cell has a handler of its own; only the first is replaced.
    """

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

    loop.call_soon_threadsafe(look)
