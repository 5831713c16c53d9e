"""Submit jobs whose driver runs on the cluster, in a process next to a worker, so that the client can disconnect.

The task that starts a driver does not occupy a thread of the worker, and belongs to no client: if its worker dies, the
scheduler reruns it on another one. Submissions, starts and ends are recorded as events of the scheduler.
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

ResultT = TypeVar("ResultT")

_TOPIC = "kmeans-dask-jobs"
"""Topic of the scheduler's events; the scheduler keeps the last 100,000."""

_MAX_STARTS = 4
"""A killed driver is restarted up to three times, as Dask restarts a task whose worker is killed."""

_WAIT_SECONDS = 120
"""A driver whose worker lost the scheduler notices and ends; its replacement waits this long for that."""

_CONFIRM_SECONDS = 15
"""Time limit for the scheduler to confirm a job."""


def start_driver(client: Client, name: str, run: str, config: Mapping[str, Any], options: Mapping[str, Any]) -> str:
    """Start the driver of a job on the cluster.

    Parameters
    ----------
    client
        From `connect`; it may be closed afterwards.
    name
        Name of the job.
    run
        Path or URL of the run folder on the workers.
    config
        Config of the job as JSON; the address in its section ``cluster`` is replaced by that of the workers' scheduler.
    options
        Options of ``kmeans-dask drive``.

    Returns
    -------
    str
        Key of the task, which identifies the job.

    Raises
    ------
    JobError
        The scheduler does not confirm the job within 15 s.
    """
    key = f"kmeans-dask-job-{name}-{uuid4().hex[:12]}"
    client.log_event(_TOPIC, {"job": key, "name": name, "run": run, "event": "submitted"})
    request = {"config": dict(config), "options": {**options, "job": key}}
    # the priority puts it ahead of the tasks of other jobs
    future = client.submit(_drive, key, run, request, key=key, pure=False, priority=100)
    fire_and_forget(future)
    deadline = time.monotonic() + _CONFIRM_SECONDS
    while not client.run_on_scheduler(_is_kept, key):
        if time.monotonic() > deadline:
            raise JobError(f"the scheduler at {client.scheduler.address} has not accepted the job; submit it again")
        time.sleep(0.05)
    return key


def _is_kept(key: str, dask_scheduler: Any) -> bool:
    """Return whether the scheduler runs a task even without its client, or has finished it."""
    task = dask_scheduler.tasks.get(key)
    events = dask_scheduler.get_events(_TOPIC)
    return (
        any(client.client_key == "fire-and-forget" for client in task.who_wants or ())
        if task
        else any(event["job"] == key and event["event"] == "ended" for _, event in events)
    )


def _drive(key: str, run: str, request: Mapping[str, Any]) -> None:
    """Run the driver in a separate process, and wait for its end."""
    secede()
    worker = get_worker()
    config = dict(request["config"])
    config["cluster"] = config["cluster"] | {"address": worker.scheduler.address}
    line = json.dumps({**request, "config": config}).encode() + b"\n"
    facts = {"job": key, "host": worker.ip, "worker": worker.address}
    status, message = 1, ""
    try:
        for _ in range(_MAX_STARTS):
            _wait_until_free(run)
            worker.log_event(_TOPIC, {**facts, "event": "started"})
            status, message = _run_driver(line)
            if status >= 0:  # not killed by a signal
                break
    except OSError as error:
        message = str(error)
    worker.log_event(_TOPIC, {**facts, "event": "ended", "status": status, "message": message})


def _run_driver(line: bytes) -> tuple[int, str]:
    """Run one driver to its end; return its exit status and the last line of its output."""
    command = [sys.executable, "-m", "kmeans_dask", "drive"]
    message = ""
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write(line)
        # keep stdin open: the driver ends when it is closed, hence no later than this process
        process.stdin.flush()
        for output in process.stderr:
            message = output.decode(errors="replace").strip() or message
            print(message, file=sys.stderr)  # to the log of the worker
        return process.wait(), message


def _wait_until_free(run: str) -> None:
    folder = RunFolder(location(run)).drivers
    deadline = time.monotonic() + _WAIT_SECONDS
    while (last := last_driver(folder)) and is_alive(folder, last) and time.monotonic() < deadline:
        time.sleep(1)


def submitted_jobs(client: Client) -> list[dict[str, Any]]:
    """Return the jobs submitted to a scheduler, oldest first.

    Parameters
    ----------
    client
        Client of the scheduler.

    Returns
    -------
    list of dict
        ``job`` (key), ``name``, ``run`` and ``event`` (the last one: submitted, started or ended). Started jobs also
        have ``host`` and ``worker``, ended jobs ``status`` (exit status) and ``message`` (last line of output).
    """
    jobs: dict[str, dict[str, Any]] = {}
    for _, event in client.get_events(_TOPIC):
        jobs.setdefault(event["job"], {}).update(event)
    return list(jobs.values())


def run_on_worker(client: Client, function: Callable[..., ResultT], *arguments: Any) -> ResultT:
    """Call a function on one of the workers, which can access the run folder, without waiting for its tasks.

    Parameters
    ----------
    client
        Client of a cluster.
    function
        Function of a module that is installed on the workers; it may run for a minute.
    *arguments
        Its arguments.

    Returns
    -------
    object
        Return value of the function.

    Raises
    ------
    UserError, JobError
        Raised by the function.
    JobError
        The cluster has no workers.
    """
    workers = list(client.scheduler_info(n_workers=-1)["workers"])
    if not workers:
        raise JobError(f"the scheduler at {client.scheduler.address} has no workers; start one")
    result, error = client.run(_in_thread, function, arguments, workers=workers[:1])[workers[0]]
    if error is not None:
        raise error
    return result


async def _in_thread(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, Exception | None]:
    """Call a function in a thread, which keeps the worker responsive; return errors, so that Dask logs no traceback."""
    try:
        return await asyncio.to_thread(function, *arguments), None
    except (UserError, JobError) as error:
        return None, type(error)(str(error))
