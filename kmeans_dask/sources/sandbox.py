"""Find items that crash or block their process by trying each one in a child process.

A task keeps a marker file while it runs. A task that finds the marker of an unfinished attempt first runs the work on
one item after the other in a child process and discards the results; the items that kill the child are then skipped.
As long as no worker dies, this costs two small writes per task.
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
"""Seconds after which an item counts as hung. Three palettes of 30 colours take 20 s for 200 megapixels; palettes of
tens of thousands of colours take minutes."""

memory_limit = 0
"""Memory limit of this worker process in bytes, set by the code that starts the workers; 0 means no limit."""

_LIMIT_FRACTION = 0.9
"""Fraction of the memory limit to use; the nanny kills its worker at 0.95."""

_CHILD = "import sys; from kmeans_dask.sources.sandbox import serve; serve(int(sys.argv[1]))"

Read = Callable[[Sequence[int]], Iterable[tuple[int, Any]]]


@contextmanager
def attempt(marker: Path) -> Iterator[bool]:
    """Keep a marker file while a task runs; it survives only if the process dies.

    Parameters
    ----------
    marker
        Path of the file, unique to this task.

    Yields
    ------
    bool
        Whether an earlier attempt did not finish.
    """
    is_first = create(marker, f"process {os.getpid()} of {os.uname().nodename}\n")
    try:
        yield not is_first
    finally:
        remove(marker)


def probe_items(read: Read, n_rows: int, work: Callable[[Any], Any]) -> dict[int, ImageError]:
    """Run the work on every item in a child process, and report the items that cannot be used.

    Parameters
    ----------
    read
        Yields (row, content) for the rows passed to it, in any order. Must be picklable, like `work`.
    n_rows
        Number of rows.
    work
        Called with each content. Its results are discarded, and so are its exceptions, except `ImageError`.

    Returns
    -------
    dict
        Row -> the `ImageError` raised by `work`, or one with status ``crashed`` or ``hung`` if the row killed the
        process.
    """
    errors: dict[int, ImageError] = {}
    remaining = list(range(n_rows))
    while remaining:
        done = set()
        current = None
        parent_end, process = _start_child(read, remaining, work)
        with suppress(EOFError, ConnectionError):  # the child died: `done` and `current` show how far it got
            for row, error in iter(parent_end.recv, None):
                current = None if row == current else row
                if current is None:
                    done.add(row)
                if error is not None:
                    errors[row] = ImageError(*error)
        parent_end.close()
        process.wait()
        remaining = [row for row in remaining if row not in done]
        if remaining:  # without a current row, the child died reading the next one
            row = remaining[0] if current is None else current
            remaining.remove(row)
            errors[row] = _error_of(process.returncode)
    return errors


def _start_child(read: Read, rows: Sequence[int], work: Callable[[Any], Any]) -> tuple[Connection, subprocess.Popen]:
    """Start the child process. Not with multiprocessing: workers are daemonic, which rules out children there."""
    parent_end, child_end = Pipe()
    with child_end:
        process = subprocess.Popen(
            [sys.executable, "-c", _CHILD, str(child_end.fileno())],
            pass_fds=[child_end.fileno()],
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
    room = int(_LIMIT_FRACTION * memory_limit - psutil.Process().memory_info().rss) if memory_limit else None
    with suppress(ConnectionError):
        parent_end.send_bytes(pickle.dumps((read, rows, work, room, ITEM_SECONDS)))
    return parent_end, process


def serve(connection: int) -> None:
    """Run in the child process: report the start and the end of every row.

    Parameters
    ----------
    connection
        File descriptor of the pipe to the parent.
    """
    child_end = Connection(connection)
    read, rows, work, room, seconds = pickle.loads(child_end.recv_bytes())  # sent by the parent process
    if room is not None:
        _limit_memory(room)
    for row, content in read(rows):
        child_end.send((row, None))
        signal.alarm(seconds)  # kills the process even while it runs native code
        error = None
        try:
            work(content)
        except ImageError as problem:
            error = (problem.status, problem.reason)
        except MemoryError:
            error = ("crashed", "needs more memory than the worker has left")
        except Exception:  # the task will hit it again and handle it
            error = None
        signal.alarm(0)
        child_end.send((row, error))
    child_end.send(None)


def _limit_memory(room: int) -> None:
    """Allow this process to allocate `room` more bytes; does nothing except on Linux, which reports current usage."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmData:"):
                limit = max(room, 0) + 1024 * int(line.split()[1])
                resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))


def _error_of(status: int) -> ImageError:
    if status == -signal.SIGALRM:
        return ImageError("hung", f"still running after {ITEM_SECONDS} s; its process was killed")
    how = signal.Signals(-status).name if status < 0 else f"status {status}"
    return ImageError("crashed", f"crashes the process that opens it ({how})")
