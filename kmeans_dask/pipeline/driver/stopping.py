"""Stopping a command from outside: Ctrl-C, SIGTERM, a request to cancel, another driver on the same run.

The first signal ends the work cleanly by raising `Stopped` in the main thread; a second one ends the process at once.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

RERUN = "rerun the same command to resume"
"""The advice at the end of every message about work that was cut short."""


class Stopped(KeyboardInterrupt):
    """Raised to end the command; handled like Ctrl-C.

    Attributes
    ----------
    state
        State to record for the run, ``interrupted`` or ``cancelled``; None if another driver records it.
    status
        Exit status of the command.
    """

    def __init__(self, line: str, state: str | None, status: int) -> None:
        super().__init__(line)
        self.state = state
        self.status = status


def interrupted(number: int = signal.SIGINT) -> Stopped:
    """Return the exception for a signal; its exit status follows shells: 130 for Ctrl-C, 143 for SIGTERM."""
    name = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
    return Stopped(f"interrupted{name}; {RERUN}", "interrupted", 128 + number)


def cancelled() -> Stopped:
    """Return the exception for `kmeans-dask cancel`."""
    return Stopped(f"cancelled; {RERUN}", "cancelled", 130)


def lost(why: str) -> Stopped:
    """Return the exception for a driver whose run another driver has taken over."""
    return Stopped(f"this driver has lost its run: {why}", None, 1)


def folder_gone(why: str) -> Stopped:
    """Return the exception for a driver whose run folder has disappeared."""
    return Stopped(f"{why}; {RERUN}", None, 1)


_requested: list[Stopped] = []
"""Why this process interrupts itself: at most one exception, which the signal handler raises."""


def stop_here(why: Stopped) -> None:
    """Interrupt the main thread from another one, if the command is `stoppable`."""
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        return
    _requested[:] = [why]
    # sent to the main thread itself, because only a signal wakes it; SIGINT is ignored in background jobs of a shell
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


@contextmanager
def stoppable() -> Iterator[None]:
    """Make the first signal raise `Stopped` and the second one end the process; no effect outside the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        if stopping:
            os.write(2, f"kmeans-dask: stopped at once; {RERUN}\n".encode())
            os._exit(128 + number)  # worker processes end by themselves when this one is gone
        stopping = True
        raise _requested.pop() if _requested else interrupted(number)

    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        numbers.append(signal.SIGINT)
    previous = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def leave_status_to_job() -> None:
    """Make SIGTERM end a task of a Slurm job with status 0, unless it is the task that does the work.

    Slurm reports the highest status of all tasks, and sends SIGTERM to the others when one of them fails.
    """
    try:
        number, count = (int(os.environ[name]) for name in ("SLURM_PROCID", "SLURM_NTASKS"))
    except KeyError:  # not in a Slurm job: `deploy.slurm_runner` reports it
        return
    if number != min(1, count - 1):
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
