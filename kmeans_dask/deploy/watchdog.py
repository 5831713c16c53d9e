"""Workers that are lost or hang while a job waits for them, and what the errors of a lost cluster mean."""

from __future__ import annotations

import re
import threading
import time
from asyncio import CancelledError
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError as FutureCancelledError
from contextlib import contextmanager, suppress
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from distributed import Client, Future, KilledWorker
from distributed.comm.core import CommClosedError

WATCH_SECONDS = 10.0
"""The scheduler logs a line each time."""
NO_WORKERS_SECONDS = 300.0
"""A job waits so long for new workers when all have gone; a nanny has a new one after some seconds."""
QUEUE_SECONDS = 7 * 86_400.0
"""The same where workers wait in a queue for their turn."""
_TOLD_SECONDS = 10.0
HANGS_SECONDS, HANGS_TIMES = 300.0, 20.0
"""A task hangs that runs longer than both five minutes and 20 times the mean of those of its kind that are done."""
HANGS_ALONE_SECONDS = 1800.0
"""The same for a task before any of its kind is done."""
PAUSED_SECONDS = 60.0
"""Paused workers free and spill what they can within seconds; when all of them stay paused, the work does not go on."""
_PAUSE_SHARE, _ENOUGH_SHARE = 0.8, 0.6
"""Of its limit: above the first Dask pauses a worker, above the second it begins to spill."""

_WHY: WeakKeyDictionary[Client, str] = WeakKeyDictionary()
"""What the watchdog has ended the work of a client for."""


class _Running(NamedTuple):
    key: str
    worker: str
    usual: float
    """Mean seconds of the tasks of its kind that are done; negative: none is. By the workers' clocks: one that jumps
    ahead makes it larger, so that a task that hangs is noticed later; one that jumps back counts as 0 s."""

    def hangs(self, seconds: float) -> bool:
        if self.usual < 0:
            return seconds > HANGS_ALONE_SECONDS
        return seconds > max(HANGS_SECONDS, HANGS_TIMES * self.usual)


class _Seen(NamedTuple):
    """What the scheduler knows at one moment."""

    workers: int
    running: list[_Running]
    paused: list[tuple[int, int]]
    """Bytes of the process and limit of each worker, where there is work and all have paused; else none."""


@contextmanager
def watched(client: Client, tell: Callable[[str], None], *, queued: bool = False) -> Iterator[None]:
    """Look after the workers in a thread: one whose task hangs is started anew, and without any the work ends.

    It also ends where all of them have paused, which a worker does that takes most of its memory.

    Parameters
    ----------
    client
        Whose workers they are.
    tell
        Called with one line for people.
    queued
        Whether new workers have to wait for their turn.

    Yields
    ------
    None
    """
    ended, patience = threading.Event(), QUEUE_SECONDS if queued else NO_WORKERS_SECONDS
    thread = threading.Thread(target=_watch, args=(client, tell, patience, ended), name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def lost(error: BaseException, client: Client) -> str | None:
    """Say what an error means if it is one of the cluster, not of the work.

    Parameters
    ----------
    error
        That the work has met.
    client
        Of the workers.

    Returns
    -------
    str or None
        One clause for people; None if the cluster is as it was.
    """
    if client in _WHY:
        return _WHY[client]
    if isinstance(error, KilledWorker):
        return f"{error.allowed_failures + 1} workers died one after the other in {task_in_words(error.task)}"
    if client.status != "running" or isinstance(error, (CancelledError, FutureCancelledError, CommClosedError)):
        return f"the scheduler at {_address(client)} went away"
    return None


def task_in_words(key: str) -> str:
    """Name a task by its key: ``quantize_batch-64-128-...`` are items 64 to 127."""
    found = re.match(r"([a-z_]+)-(\d+)-(\d+)-", key)
    if not found:
        return f"the task {key}"
    return f"the task {found[1]} of items {int(found[2]):,} to {int(found[3]) - 1:,}"


def _watch(client: Client, tell: Callable[[str], None], patience: float, ended: threading.Event) -> None:
    alone_since: float | None = None
    paused_since: float | None = None
    told = False
    seen: dict[tuple[str, str], float] = {}  # key and worker -> when first, by a clock that cannot jump
    while not ended.wait(WATCH_SECONDS):
        try:
            workers, running, paused = client.run_on_scheduler(_look, client.id)
        except Exception:  # the scheduler has gone, which the work finds out itself; or it does not know this package
            continue
        paused_since = (paused_since or time.monotonic()) if paused else None
        if paused_since and (seconds := time.monotonic() - paused_since) > PAUSED_SECONDS:
            _WHY[client] = _out_of_memory(client, paused, seconds)
            _cancel_all(client)
            return
        if workers:
            alone_since = None
        elif alone_since is None:
            alone_since, told = time.monotonic(), False
        elif (alone := time.monotonic() - alone_since) > patience:
            _WHY[client] = f"all workers of {_address(client)} went away, and none has come for {alone:.0f} s"
            _cancel_all(client)
            return
        elif alone > _TOLD_SECONDS and not told:
            tell(f"all workers of {_address(client)} went away; waiting up to {patience:,.0f} s for new ones")
            told = True
        now = time.monotonic()
        seen = {task[:2]: seen.get(task[:2], now) for task in running}
        for task in running:
            if task.hangs(seconds := now - seen[task[:2]]):
                _restart(client, task, seconds, tell)


def _restart(client: Client, task: _Running, seconds: float, tell: Callable[[str], None]) -> None:
    tell(
        f"{task_in_words(task.key)} runs for {seconds:.0f} s on {task.worker}, which usually takes "
        f"{max(task.usual, 0):.1f} s: this worker is started anew"
    )
    with suppress(Exception):  # it may have no nanny, or be too busy; the next look tries again
        client.restart_workers([task.worker], timeout=30)


def _out_of_memory(client: Client, paused: Sequence[tuple[int, int]], seconds: float) -> str:
    """Say what the workers take, what they have, and what to change."""
    process, limit = (number / 2**20 for number in max(paused))
    return (
        f"all {len(paused)} workers of {_address(client)} have begun no task for {seconds:.0f} s for want of memory: "
        f"they take up to {process:,.0f} MiB of {limit:,.0f} MiB each, and begin none above {_PAUSE_SHARE:.0%}; give "
        f"each worker {process / _ENOUGH_SHARE:,.0f} MiB, fewer threads or a smaller ingest.chunk_mib"
    )


def _look(client: str, dask_scheduler: Any) -> _Seen:
    """Be called on the scheduler: its workers, and the tasks of a client that they are in."""
    running = [
        _Running(str(task.key), address, _usual(task.prefix))
        for address, worker in dask_scheduler.workers.items()
        for task in worker.executing
        if task.processing_on is worker and _is_wanted(task, client)
    ]
    workers = dask_scheduler.workers.values()
    waits = dask_scheduler.queued or dask_scheduler.unrunnable or any(worker.processing for worker in workers)
    is_stuck = waits and all(worker.status.name == "paused" and not worker.executing for worker in workers)
    paused = [(worker.memory.process, worker.memory_limit) for worker in workers] if is_stuck else []
    return _Seen(len(workers), running, paused)


def _is_wanted(task: Any, client: str) -> bool:
    """Whether a task, or one that needs its result, is wanted by a client: others may take as long as they like."""
    todo, known = [task], {task}
    while todo:
        each = todo.pop()
        if any(wants.client_key == client for wants in each.who_wants or ()):
            return True
        new = each.dependents - known
        todo += new
        known |= new
    return False


def _usual(prefix: Any) -> float:
    """Mean over all that are done: the scheduler's own average forgets them when a task takes twice as long."""
    done = prefix.state_counts["memory"]
    return prefix.all_durations["compute"] / done if done else -1.0


def _cancel_all(client: Client) -> None:
    """End whatever the main thread waits for."""
    with suppress(Exception):
        client.cancel([Future(key, client) for key in list(client.futures)], force=True)


def _address(client: Client) -> str:
    return str(client.scheduler.address if client.scheduler else client._start_arg)
