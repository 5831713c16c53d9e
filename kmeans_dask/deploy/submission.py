"""Drivers that run on the cluster, in a process beside a worker: whoever submitted them may leave.

The task that starts a driver does not occupy the worker's thread, and belongs to no client: if its worker dies, the
scheduler runs it again on another one. What is submitted, started and ended is told by the scheduler's events.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from uuid import uuid4

from distributed import Client, fire_and_forget, get_worker, secede

from kmeans_dask.errors import JobError, UserError
from kmeans_dask.storage.lock import is_alive, last_driver
from kmeans_dask.storage.object_store import location
from kmeans_dask.storage.run_folder import RunFolder

Answer = TypeVar("Answer")

_TOPIC = "kmeans-dask-jobs"
"""Of the scheduler's events; it keeps the last 100,000."""

_STARTS = 4
"""A driver that is killed is started again three times, as often as Dask starts a task whose worker is killed."""

_WAIT_SECONDS = 120
"""The driver of a worker that has lost the scheduler notices, and ends; the one that replaces it waits so long."""

_CONFIRM_SECONDS = 15


def start_driver(client: Client, name: str, run: str, config: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """Start the driver of a job on the cluster.

    Parameters
    ----------
    client
        From `connect`; it may be closed when this has returned.
    name
        Of the job.
    run
        Run folder, as the workers see it.
    config
        The job's, as JSON; whatever its section ``cluster`` says of the address, the workers' own is taken.
    options
        Of ``kmeans-dask drive``.

    Returns
    -------
    str
        Key of the job.

    Raises
    ------
    JobError
        The scheduler does not confirm that it has the job.
    """
    key = f"kmeans-dask-job-{name}-{uuid4().hex[:12]}"
    client.log_event(_TOPIC, {"job": key, "name": name, "run": run, "event": "submitted"})
    order = {"config": dict(config), "options": {**options, "job": key}}
    future = client.submit(_drive, key, run, order, key=key, pure=False, priority=100)  # before the tasks of other jobs
    fire_and_forget(future)
    end = time.monotonic() + _CONFIRM_SECONDS
    while not client.run_on_scheduler(_is_kept, key):
        if time.monotonic() > end:
            raise JobError(f"the scheduler at {client.scheduler.address} has not taken the job; submit it again")
        time.sleep(0.05)
    return key


def _is_kept(key: str, dask_scheduler: Any) -> bool:
    """Whether the scheduler goes on with a task without its client; also when it is done already."""
    task = dask_scheduler.tasks.get(key)
    events = dask_scheduler.get_events(_TOPIC)
    return (
        any(client.client_key == "fire-and-forget" for client in task.who_wants or ())
        if task
        else any(event["job"] == key and event["event"] == "ended" for _, event in events)
    )


def _drive(key: str, run: str, order: Mapping[str, Any]) -> None:
    """Run the driver in a process of its own, until it has ended."""
    secede()
    worker = get_worker()
    config = dict(order["config"])
    config["cluster"] = config["cluster"] | {"address": worker.scheduler.address}
    line = json.dumps({**order, "config": config}).encode() + b"\n"
    facts = {"job": key, "host": worker.ip, "worker": worker.address}
    status, said = 1, ""
    try:
        for _ in range(_STARTS):
            _wait_until_free(run)
            worker.log_event(_TOPIC, {**facts, "event": "started"})
            status, said = _run_driver(line)
            if status >= 0:  # else a signal has killed it
                break
    except OSError as error:
        said = str(error)
    worker.log_event(_TOPIC, {**facts, "event": "ended", "status": status, "said": said})


def _run_driver(line: bytes) -> tuple[int, str]:
    """Run one driver to its end; return its exit status, and the last line that it said."""
    command = [sys.executable, "-m", "kmeans_dask", "drive"]
    said = ""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(
            line
        )  # and it stays open: its end, which the end of this process brings about, ends the driver
        process.stdin.flush()
        for answer in process.stderr:
            said = answer.decode(errors="replace").strip() or said
            print(said, file=sys.stderr)  # in the worker's log
        return process.wait(), said


def _wait_until_free(run: str) -> None:
    folder = RunFolder(location(run)).drivers
    end = time.monotonic() + _WAIT_SECONDS
    while (last := last_driver(folder)) and is_alive(folder, last) and time.monotonic() < end:
        time.sleep(1)


def submitted_jobs(client: Client) -> list[dict[str, Any]]:
    """Return the jobs that were submitted to a scheduler, the oldest first.

    Parameters
    ----------
    client
        Of the scheduler.

    Returns
    -------
    list of dict
        job (key), name, run; event, the last one: submitted, started or ended; of a job that was started host and
        worker, of one that has ended status (exit status) and said (its last line).
    """
    jobs: dict[str, dict[str, Any]] = {}
    for _, event in client.get_events(_TOPIC):
        jobs.setdefault(event["job"], {}).update(event)
    return list(jobs.values())


def ask_worker(client: Client, function: Callable[..., Answer], *arguments: Any) -> Answer:
    """Call a function on one of the workers, which sees the run folder, at once and beside its tasks.

    Parameters
    ----------
    client
        Of a cluster with workers.
    function
        Of a module that is installed there; it may take a minute.
    *arguments
        For it.

    Returns
    -------
    object
        What the function has returned.

    Raises
    ------
    UserError, JobError
        Raised by the function.
    JobError
        There is no worker.
    """
    workers = list(client.scheduler_info(n_workers=-1)["workers"])
    if not workers:
        raise JobError(f"the scheduler at {client.scheduler.address} has no workers that could be asked")
    answer, error = client.run(_in_thread, function, arguments, workers=workers[:1])[workers[0]]
    if error is not None:
        raise error
    return answer


async def _in_thread(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, Exception | None]:
    """Call it where the worker goes on answering; an error is a value, so that nobody logs a traceback."""
    try:
        return await asyncio.to_thread(function, *arguments), None
    except (UserError, JobError) as error:
        return None, type(error)(str(error))
