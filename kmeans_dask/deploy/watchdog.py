"""Watch the workers of a running job: restart those that hang, and fail the job when the cluster is lost."""

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
"""Interval of the checks. The scheduler logs a line for each."""
NO_WORKERS_SECONDS = 300.0
"""How long a job waits for new workers when all are lost; a nanny starts a new one within seconds."""
QUEUE_SECONDS = 7 * 86_400.0
"""The same while new workers wait in a queue."""
_NOTIFY_SECONDS = 10.0
"""How long all workers must be lost before the user is notified."""
HANGS_SECONDS, HANGS_TIMES = 300.0, 20.0
"""A task hangs if it runs longer than five minutes and than 20 times the mean of the finished tasks of its kind."""
HANGS_ALONE_SECONDS = 1800.0
"""The same limit while no task of its kind is finished."""
PAUSED_SECONDS = 60.0
"""Paused workers free or spill memory within seconds; if all of them stay paused for this long, the work is stuck."""
_PAUSE_FRACTION, _SPILL_FRACTION = 0.8, 0.6
"""Fractions of the memory limit above which Dask pauses a worker, and above which it starts to spill."""

_REASONS: WeakKeyDictionary[Client, str] = WeakKeyDictionary()
"""Why the watchdog cancelled the work of a client."""


class _Running(NamedTuple):
    """A task that a worker is executing."""

    key: str
    worker: str
    usual: float
    """Mean duration in seconds of the finished tasks of its kind; negative if there are none. Measured by the clocks of
    the workers: one that jumps ahead increases it, so that a hanging task is noticed later; one that jumps back counts
    as 0 s."""

    def hangs(self, seconds: float) -> bool:
        """Return whether the task is considered hung after running for some seconds."""
        if self.usual < 0:
            return seconds > HANGS_ALONE_SECONDS
        return seconds > max(HANGS_SECONDS, HANGS_TIMES * self.usual)


class _Snapshot(NamedTuple):
    """State of the cluster as the scheduler knows it."""

    workers: int
    """Number of workers."""
    running: list[_Running]
    """Tasks of the client that are being executed."""
    paused: list[tuple[int, int]]
    """Memory of the process and memory limit of each worker in bytes, if there is work but all are paused; else
    empty."""


@contextmanager
def watch_workers(client: Client, notify: Callable[[str], None], *, queued: bool = False) -> Iterator[None]:
    """Watch the workers in a thread: restart those whose task hangs, and cancel the work if it cannot continue.

    It cannot continue if all workers are lost, or if all stay paused because they use most of their memory.

    Parameters
    ----------
    client
        Client of the workers.
    notify
        Called with one-line messages for the user.
    queued
        Whether new workers are queued, and so are waited for much longer.

    Yields
    ------
    None
    """
    ended, patience = threading.Event(), QUEUE_SECONDS if queued else NO_WORKERS_SECONDS
    thread = threading.Thread(target=_watch, args=(client, notify, patience, ended), name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def cluster_failure(error: BaseException, client: Client) -> str | None:
    """Describe an error that is caused by the loss of the cluster, not by the work.

    Parameters
    ----------
    error
        Error raised while waiting for tasks.
    client
        Client of the workers.

    Returns
    -------
    str or None
        Reason in one clause; None if the cluster is not the cause.
    """
    if client in _REASONS:
        return _REASONS[client]
    if isinstance(error, KilledWorker):
        return f"{error.allowed_failures + 1} workers in a row died in {describe_task(error.task)}"
    if client.status != "running" or isinstance(error, (CancelledError, FutureCancelledError, CommClosedError)):
        return f"the scheduler at {_address(client)} went away"
    return None


def describe_task(key: str) -> str:
    """Describe a task by its key: ``quantize_batch-64-128-...`` processes items 64 to 127."""
    match = re.match(r"([a-z_]+)-(\d+)-(\d+)-", key)
    if not match:
        return f"the task {key}"
    return f"the task {match[1]} of items {int(match[2]):,} to {int(match[3]) - 1:,}"


def _watch(client: Client, notify: Callable[[str], None], patience: float, ended: threading.Event) -> None:
    lost_since: float | None = None
    paused_since: float | None = None
    notified = False
    first_seen: dict[tuple[str, str], float] = {}  # key and worker -> monotonic time in seconds
    while not ended.wait(WATCH_SECONDS):
        try:
            workers, running, paused = client.run_on_scheduler(_snapshot, client.id)
        except Exception:  # the scheduler is gone, which the tasks report, or lacks this package
            continue
        paused_since = (paused_since or time.monotonic()) if paused else None
        if paused_since and (seconds := time.monotonic() - paused_since) > PAUSED_SECONDS:
            _REASONS[client] = _out_of_memory(client, paused, seconds)
            _cancel_all(client)
            return
        if workers:
            lost_since = None
        elif lost_since is None:
            lost_since, notified = time.monotonic(), False
        elif (lost := time.monotonic() - lost_since) > patience:
            _REASONS[client] = (
                f"all workers of {_address(client)} are gone, and no new one has appeared for {lost:.0f} s"
            )
            _cancel_all(client)
            return
        elif lost > _NOTIFY_SECONDS and not notified:
            notify(f"all workers of {_address(client)} are gone; waiting up to {patience:,.0f} s for new ones")
            notified = True
        now = time.monotonic()
        first_seen = {task[:2]: first_seen.get(task[:2], now) for task in running}
        for task in running:
            if task.hangs(seconds := now - first_seen[task[:2]]):
                _restart(client, task, seconds, notify)


def _restart(client: Client, task: _Running, seconds: float, notify: Callable[[str], None]) -> None:
    notify(
        f"{describe_task(task.key)} has been running for {seconds:.0f} s on {task.worker}, although it usually takes "
        f"{max(task.usual, 0):.1f} s: restarting this worker"
    )
    with suppress(Exception):  # it has no nanny or is too busy; the next check retries
        client.restart_workers([task.worker], timeout=30)


def _out_of_memory(client: Client, paused: Sequence[tuple[int, int]], seconds: float) -> str:
    """Describe how much memory the workers use and have, and what to change."""
    process, limit = (size / 2**20 for size in max(paused))
    return (
        f"all {len(paused)} workers of {_address(client)} have started no task for {seconds:.0f} s for lack of memory: "
        f"they use up to {process:,.0f} MiB of {limit:,.0f} MiB each, and start none above {_PAUSE_FRACTION:.0%}; give "
        f"each worker {process / _SPILL_FRACTION:,.0f} MiB, fewer threads or a smaller ingest.chunk_mib"
    )


def _snapshot(client: str, dask_scheduler: Any) -> _Snapshot:
    """Return the state of the cluster and the running tasks of a client; runs on the scheduler."""
    running = [
        _Running(str(task.key), address, _mean_seconds(task.prefix))
        for address, worker in dask_scheduler.workers.items()
        for task in worker.executing
        if task.processing_on is worker and _is_wanted(task, client)
    ]
    workers = dask_scheduler.workers.values()
    has_work = dask_scheduler.queued or dask_scheduler.unrunnable or any(worker.processing for worker in workers)
    is_stuck = has_work and all(worker.status.name == "paused" and not worker.executing for worker in workers)
    paused = [(worker.memory.process, worker.memory_limit) for worker in workers] if is_stuck else []
    return _Snapshot(len(workers), running, paused)


def _is_wanted(task: Any, client: str) -> bool:
    """Return whether a client waits for a task or a dependent of it; tasks of other clients are not watched."""
    todo, seen = [task], {task}
    while todo:
        current = todo.pop()
        if any(wants.client_key == client for wants in current.who_wants or ()):
            return True
        new = current.dependents - seen
        todo += new
        seen |= new
    return False


def _mean_seconds(prefix: Any) -> float:
    """Return the mean of all finished tasks; the scheduler's own average forgets them if one takes twice as long."""
    done = prefix.state_counts["memory"]
    return prefix.all_durations["compute"] / done if done else -1.0


def _cancel_all(client: Client) -> None:
    """Cancel everything that the main thread waits for."""
    with suppress(Exception):
        client.cancel([Future(key, client) for key in list(client.futures)], force=True)


def _address(client: Client) -> str:
    return str(client.scheduler.address if client.scheduler else client._start_arg)
