"""How a command is ended from outside: Ctrl-C, SIGTERM, a request to cancel, another driver on the same run.

The first signal ends the work cleanly, through `Stopped`, which rises in the main thread; a second one ends the process
at once, wherever it is.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_AGAIN = "the same command again goes on from here"


class Stopped(KeyboardInterrupt):
    """The command is to end now; what handles Ctrl-C handles it.

    Attributes
    ----------
    state
        Of the run: interrupted, cancelled; None where another driver says it.
    status
        Exit status of the command.
    """

    def __init__(self, line: str, state: str | None, status: int) -> None:
        super().__init__(line)
        self.state = state
        self.status = status


def interrupted(number: int = signal.SIGINT) -> Stopped:
    """Return what a signal asks for; exit status 130 for Ctrl-C, 143 for SIGTERM, as shells count them."""
    name = "" if number == signal.SIGINT else f" by {signal.Signals(number).name}"
    return Stopped(f"interrupted{name}; {_AGAIN}", "interrupted", 128 + number)


def cancelled() -> Stopped:
    """Return what `kmeans-dask cancel` asks for."""
    return Stopped(f"cancelled; {_AGAIN}", "cancelled", 130)


def lost(why: str) -> Stopped:
    """Return what a driver does whose run belongs to another one: nothing more."""
    return Stopped(f"this driver has lost its run: {why}", None, 1)


def homeless(why: str) -> Stopped:
    """Return what a driver does whose run folder has gone, before the work itself finds out."""
    return Stopped(f"{why}; {_AGAIN}", None, 1)


_asked: list[Stopped] = []
"""Why this process interrupts itself."""


def stop_here(why: Stopped) -> None:
    """Interrupt the main thread, from another one, where the command is `stoppable`."""
    if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
        return
    _asked[:] = [why]
    # to that very thread: only a signal wakes it where it waits, and SIGINT is ignored in a shell's background
    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)


@contextmanager
def stoppable() -> Iterator[None]:
    """Let the first signal raise `Stopped` and the second one end the process; not in a thread, which gets none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    stopping = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopping
        if stopping:
            os.write(2, b"kmeans-dask: ended at once; the same command again goes on from here\n")
            os._exit(128 + number)  # worker processes end by themselves when this one has
        stopping = True
        raise _asked.pop() if _asked else interrupted(number)

    numbers = [signal.SIGTERM]
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:
        numbers.append(signal.SIGINT)
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def leave_status_to_job() -> None:
    """Let SIGTERM end a task of a Slurm job well, unless it is the one that does the work: nothing is lost with it.

    The exit status of all is the highest, and where the job ends by a user's mistake, Slurm sends it to the others.
    """
    try:
        number, count = (int(os.environ[name]) for name in ("SLURM_PROCID", "SLURM_NTASKS"))
    except KeyError:  # whoever needs them says so
        return
    if number != min(1, count - 1):
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
