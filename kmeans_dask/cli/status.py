"""Commands status, cancel and logs, run here or on a worker of a cluster that can access the run folder."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from typing import Any

from kmeans_dask.config.loading import load_cluster
from kmeans_dask.errors import JobError, UserError
from kmeans_dask.pipeline.console import how_far, show_line
from kmeans_dask.pipeline.driver.logs import show_log
from kmeans_dask.pipeline.resume import STAGES
from kmeans_dask.storage.lock import describe_driver, is_alive, last_driver
from kmeans_dask.storage.object_store import location, reporting_unreachable
from kmeans_dask.storage.publish import write_json
from kmeans_dask.storage.run_folder import RunFolder
from kmeans_dask.storage.run_record import RunRecord

_END_SECONDS = 60
"""Time limit for a cancelled driver to end; it usually takes two seconds."""

_FOLLOW_SECONDS = 1.0
"""Interval between reads of a log that is followed."""


@contextmanager
def _asking(cluster: str | None) -> Iterator[Callable[..., Any]]:
    """Yield a function that calls another one where the run folder is accessible: here, or on a worker."""
    if cluster is None:
        yield lambda function, *arguments: function(*arguments)
        return
    from kmeans_dask.deploy.client import connect  # these imports cost a second
    from kmeans_dask.deploy.submission import run_on_worker

    with connect(load_cluster(cluster)) as client:
        yield partial(run_on_worker, client)


def status(run: str | None, cluster: str | None = None) -> None:
    """Print the progress of a run, its remaining time and failures, and whether its driver is alive.

    Parameters
    ----------
    run
        Run folder; None: all jobs that were submitted to the cluster.
    cluster
        As for `config.loading.load_config`: a cluster whose workers can access the folder; None: this machine can.

    Raises
    ------
    UserError
        The folder is not a run, or neither run nor cluster is given.
    """
    if run is None:
        if cluster is None:
            raise UserError("give a run folder, for example runs/digits, or --cluster tcp://HOST:PORT")
        _status_of_all(cluster)
        return
    with _asking(cluster) as ask:
        for line in status_lines(ask(read_facts, run)):
            show_line(line)


def _status_of_all(cluster: str) -> None:
    from kmeans_dask.deploy.client import connect
    from kmeans_dask.deploy.submission import run_on_worker, submitted_jobs

    with connect(load_cluster(cluster)) as client:
        jobs = submitted_jobs(client)
        show_line(f"{len(jobs)} jobs were submitted to {client.scheduler.address}")
        answers = run_on_worker(client, _facts_of_all, [job["run"] for job in jobs])
    for job, facts in zip(jobs, answers, strict=True):
        show_line(f"{job['run']} ({job['job']}): {_job_state(job)}")
        for line in status_lines(facts) if facts else ():
            show_line(f"  {line}")


def _job_state(job: dict[str, Any]) -> str:
    """Describe the state of the driver of a submitted job."""
    if job["event"] == "submitted":
        return "submitted, waiting for a worker"
    if job["event"] == "started":
        return f"running next to worker {job['worker']}"
    return f"ended with status {job['status']}{': ' + job['message'] if job['status'] else ''}"


def _facts_of_all(runs: Sequence[str]) -> list[dict[str, Any] | None]:
    """Read the states of runs concurrently, as a dead driver takes ten seconds to detect. None: not a run yet."""

    def facts(run: str) -> dict[str, Any] | None:
        try:
            return read_facts(run)
        except UserError:
            return None

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(facts, runs))


def read_facts(run: str) -> dict[str, Any]:
    """Read the state of a run.

    Parameters
    ----------
    run
        Run folder.

    Returns
    -------
    dict
        ``run``, ``name``, ``state``, ``changed``; ``stages`` (``name``, ``seconds`` and ``failed`` of each finished
        one); ``driver`` (from `lock.last_driver`, or None) and ``alive`` (whether the driver is alive).

    Raises
    ------
    UserError
        The folder is not a run.
    """
    folder = RunFolder(location(run))
    with reporting_unreachable(folder.path):
        driver = last_driver(folder.drivers)
    alive = driver is not None and is_alive(folder.drivers, driver)
    # read it again: detecting a dead driver takes ten seconds, in which a live one makes progress
    record, driver = RunRecord.read(folder), last_driver(folder.drivers)
    if record.state is None and not alive:
        raise UserError(f"{run} has no run.json; give a run folder, for example runs/digits")
    stages = [
        {"name": name, "seconds": record.stages[name]["seconds"], "failed": _failed(record.stages[name])}
        for name in STAGES
        if name in record.stages
    ]
    return {
        "run": run, "name": folder.path.resolve().name, "state": record.state or "running",
        "changed": record.facts.get("changed"), "stages": stages, "driver": driver, "alive": alive,
    }  # fmt: skip


def _failed(stage: dict[str, Any]) -> int:
    return int(stage["summary"].get("failed", 0))


def status_lines(facts: dict[str, Any]) -> Iterator[str]:
    """Describe a run in readable lines: its state, current step and finished stages."""
    driver, running = facts["driver"], facts["state"] == "running"
    changed = f", {facts['changed']}" if facts["changed"] else ""
    if running and facts["alive"]:
        yield f"{facts['name']}: running; {describe_driver(driver)} is alive"
        step = driver["progress"].get("step")
        if step:
            failed = f", {step['failed']:,} failed" if step["failed"] else ""
            yield f"{step['title']}: {how_far(step['done'], step['total'], step['unit'], step['seconds'])}{failed}"
        else:
            yield f"{driver['progress'].get('stage') or 'listing'}: running"
    elif running:
        dead_driver = describe_driver(driver) if driver else "its driver"
        yield f"{facts['name']}: stopped; {dead_driver} is dead; rerun the same command to resume"
    else:
        yield f"{facts['name']}: {facts['state']}{changed}"
    if facts["stages"]:
        yield f"finished: {', '.join(map(_stage_line, facts['stages']))}"


def _stage_line(stage: dict[str, Any]) -> str:
    failed = f", {stage['failed']:,} failed" if stage["failed"] else ""
    return f"{stage['name']} ({stage['seconds']:,.1f} s{failed})"


def cancel(run: str, cluster: str | None = None) -> None:
    """Cancel the driver of a run, and wait until it has ended.

    Parameters
    ----------
    run
        Run folder.
    cluster
        As for `status`.

    Raises
    ------
    UserError
        The folder is not a run.
    JobError
        The driver did not end within a minute.
    """
    with _asking(cluster) as ask:
        show_line(ask(request_end, run))


def request_end(run: str) -> str:
    """Cancel the driver of a run, wait until it has ended, and return the line to print."""
    folder = RunFolder(location(run))
    name = folder.path.resolve().name
    with reporting_unreachable(folder.path):
        driver = last_driver(folder.drivers)
    if driver is None:
        raise UserError(f"{run} is not a run folder that a driver has worked on; give one, for example runs/digits")
    if driver["ended"]:
        return f"{name}: nothing to cancel, as no driver is running; the run is {RunRecord.read(folder).state}"
    write_json(folder.cancel_request, {"driver": driver["number"], "job": driver["job"]})
    deadline = time.monotonic() + _END_SECONDS
    while is_alive(folder.drivers, driver):
        if time.monotonic() > deadline:
            raise JobError(f"{describe_driver(driver)} did not end within {_END_SECONDS} s; kill it")
        time.sleep(0.1)
        driver = last_driver(folder.drivers) or driver
    driver = last_driver(folder.drivers) or driver
    if not driver["ended"]:
        restart = "; if the cluster restarts it, it ends immediately" if driver["job"] else ""
        return f"{name}: {describe_driver(driver)} is dead{restart}"
    return f"{name}: {RunRecord.read(folder).state}"


def logs(run: str, follow: bool, cluster: str | None = None) -> None:
    """Print the log of the latest driver of a run from its beginning.

    Parameters
    ----------
    run
        Run folder.
    follow
        Keep printing as it grows, until the driver has ended.
    cluster
        As for `status`.

    Raises
    ------
    UserError
        The run has no log.
    """
    position, ended = (0, 0), False
    with _asking(cluster) as ask:
        while not ended:
            text, position, ended = ask(read_log, run, position)
            show_log(text.splitlines())
            if not follow:
                return
            if not ended:
                time.sleep(_FOLLOW_SECONDS)


Position = tuple[int, int]
"""Position in the logs of a run: number of the driver, and offset in its log in bytes."""


def read_log(run: str, position: Position) -> tuple[str, Position, bool]:
    """Read complete lines of the latest driver's log.

    Parameters
    ----------
    run
        Run folder.
    position
        Where the last call stopped; the log of a newer driver is read from its beginning.

    Returns
    -------
    str, (int, int), bool
        The lines, the position after them, and whether the driver has ended, so that no more will follow.

    Raises
    ------
    UserError
        The run has no log.
    """
    folder = RunFolder(location(run))
    with reporting_unreachable(folder.path):
        driver = last_driver(folder.drivers)
    if driver is None:
        raise UserError(f"{run} has no log; give a run folder, for example runs/digits")
    number, offset = driver["number"], 0
    if position[0] == number:
        offset = position[1]
    ended = not is_alive(folder.drivers, driver)
    try:
        data = folder.log(number).read_bytes()[offset:]
    except FileNotFoundError:  # the driver has only just started
        data = b""
    lines = data[: data.rfind(b"\n") + 1]
    return lines.decode("utf-8"), (number, offset + len(lines)), ended
