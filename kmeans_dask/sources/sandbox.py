"""An item that ends the process which opens it is found in a process of its own, and set aside.

A task leaves a marker while it runs. Whoever finds the marker of an attempt that did not end goes on carefully: another
process does the work on one item after the other, nothing of it is kept, and the items that ended it are known.
As long as no worker dies this costs a task two small writes.
"""

from __future__ import annotations

import os
import pickle
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import psutil

from kmeans_dask.sources.images import ImageError
from kmeans_dask.storage.publish import create, remove

ITEM_SECONDS = 300
"""An item that takes longer hangs. One of 200 megapixels takes 20 s in three K of 30 colours, minutes in 10,000s."""

memory_limit = 0
"""Bytes above which this process is ended as a worker; 0: it has no limit. Whoever starts the workers sets it."""

_SHARE_OF_LIMIT = 0.9
"""A nanny ends its worker at 0.95 of the limit."""

_CHILD = "import sys; from kmeans_dask.sources.sandbox import serve; serve(int(sys.argv[1]))"

Read = Callable[[Sequence[int]], Iterable[tuple[int, Any]]]


@contextmanager
def attempt(marker: Path) -> Iterator[bool]:
    """Mark that a task has begun until it ends, in whatever way but with its process.

    Parameters
    ----------
    marker
        File of this task alone.

    Yields
    ------
    bool
        Whether an earlier attempt did not end.
    """
    is_first = create(marker, f"process {os.getpid()} of {os.uname().nodename}\n")
    try:
        yield not is_first
    finally:
        remove(marker)


def ended_by(read: Read, n_rows: int, work: Callable[[Any], Any]) -> dict[int, ImageError]:
    """Do some work on every item in another process, and say which of them cannot be used.

    Parameters
    ----------
    read
        Yields (row, content) of each of the rows that it is given, in any order. Must be picklable, as `work`.
    n_rows
        Rows are 0 to n_rows - 1.
    work
        Called with each content. What it returns is dropped, and so is what it raises, unless that is an `ImageError`.

    Returns
    -------
    dict
        Row -> what `work` raised; or an error with the status ``crashed`` or ``hung`` of a row that ended the process.
    """
    errors: dict[int, ImageError] = {}
    left = list(range(n_rows))
    while left:
        done = set()
        in_hand = None
        ours, process = _start_child(read, left, work)
        with suppress(EOFError, ConnectionError):  # the process has ended: `left` says how far it came
            for row, error in iter(ours.recv, None):
                in_hand = None if row == in_hand else row
                if in_hand is None:
                    done.add(row)
                if error is not None:
                    errors[row] = ImageError(*error)
        ours.close()
        process.wait()
        left = [row for row in left if row not in done]
        if left:  # without an item in hand it was about to read one: the next
            row = left[0] if in_hand is None else in_hand
            left.remove(row)
            errors[row] = _error_of(process.returncode)
    return errors


def _start_child(read: Read, rows: Sequence[int], work: Callable[[Any], Any]) -> tuple[Connection, subprocess.Popen]:
    """Start a process that does the work. Not by multiprocessing: workers are daemons, which it allows no children."""
    ours, theirs = Pipe()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
    room = int(_SHARE_OF_LIMIT * memory_limit - psutil.Process().memory_info().rss) if memory_limit else None
    with suppress(ConnectionError):
        ours.send_bytes(pickle.dumps((read, rows, work, room, ITEM_SECONDS)))
    return ours, process


def serve(connection: int) -> None:
    """Be the other process: say of every row that it begins, and that it is done.

    Parameters
    ----------
    connection
        File descriptor.
    """
    theirs = Connection(connection)
    read, rows, work, room, seconds = pickle.loads(theirs.recv_bytes())  # of the process that has started this one
    if room is not None:
        _limit_memory(room)
    for row, content in read(rows):
        theirs.send((row, None))
        signal.alarm(seconds)  # ends the process, also where no Python runs
        error = None
        try:
            work(content)
        except ImageError as problem:
            error = (problem.status, problem.reason)
        except MemoryError:
            error = ("crashed", "takes more memory than a worker has left")
        except Exception:  # the task meets it again, and knows what to do
            error = None
        signal.alarm(0)
        theirs.send((row, error))
    theirs.send(None)


def _limit_memory(room: int) -> None:
    """Let this process take `room` bytes more than it has; without Linux, which says what it has, do nothing."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmData:"):
                limit = max(room, 0) + 1024 * int(line.split()[1])
                resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _error_of(status: int) -> ImageError:
    if status == -signal.SIGALRM:
        return ImageError("hung", f"not done after {ITEM_SECONDS} s, so its process was ended")
    how = signal.Signals(-status).name if status < 0 else f"status {status}"
    return ImageError("crashed", f"ends the process that opens it ({how})")
