"""How a run is doing, from wherever its folder can be seen; ending it; its log."""

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
"""A driver that is asked to end has this long: it is usually gone in two seconds."""

_FOLLOW_SECONDS = 1.0


@contextmanager
def _asking(cluster: str | None) -> Iterator[Callable[..., Any]]:
    """Yield what calls a function where the run folder is seen: here, or on a worker of a cluster."""
    if cluster is None:
        yield lambda function, *arguments: function(*arguments)
        return
    from kmeans_dask.deploy.client import connect  # a second that only this needs
    from kmeans_dask.deploy.submission import ask_worker

    with connect(load_cluster(cluster)) as client:
        yield partial(ask_worker, client)


def status(run: str | None, cluster: str | None = None) -> None:
    """Print what a run does, how far it is, how long it will take, what failed, and whether its driver is alive.

    Parameters
    ----------
    run
        Run folder; None: all jobs that were submitted to the cluster.
    cluster
        As for `config_files.load_config`: one whose workers see the folder; None: it is seen here.

    Raises
    ------
    UserError
        The folder is no run, or neither run nor cluster is given.
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
    from kmeans_dask.deploy.submission import ask_worker, submitted_jobs

    with connect(load_cluster(cluster)) as client:
        jobs = submitted_jobs(client)
        show_line(f"{len(jobs)} jobs were submitted to {client.scheduler.address}")
        answers = ask_worker(client, _facts_of_all, [job["run"] for job in jobs])
    for job, facts in zip(jobs, answers, strict=True):
        show_line(f"{job['run']} ({job['job']}): {_told_job(job)}")
        for line in status_lines(facts) if facts else ():
            show_line(f"  {line}")


def _told_job(job: dict[str, Any]) -> str:
    """Say what has become of the driver of a submitted job."""
    if job["event"] == "submitted":
        return "submitted, waits for a worker"
    if job["event"] == "started":
        return f"started beside {job['worker']}"
    return f"ended with status {job['status']}{': ' + job['said'] if job['status'] else ''}"


def _facts_of_all(runs: Sequence[str]) -> list[dict[str, Any] | None]:
    """Read how runs are doing, at the same time: one whose driver is dead takes ten seconds. None: it is no run yet."""

    def facts(run: str) -> dict[str, Any] | None:
        try:
            return read_facts(run)
        except UserError:
            return None

    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(facts, runs))


def read_facts(run: str) -> dict[str, Any]:
    """Read how a run is doing.

    Parameters
    ----------
    run
        Run folder.

    Returns
    -------
    dict
        run, name, state, changed, stages (name, seconds and failed of each that is finished), driver (that of
        `lock.last_driver`, or None), alive (whether it is).

    Raises
    ------
    UserError
        The folder is no run.
    """
    folder = RunFolder(location(run))
    with reporting_unreachable(folder.path):
        driver = last_driver(folder.drivers)
    alive = driver is not None and is_alive(folder.drivers, driver)
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
    """Say how a run is doing, for people: a line on its state, one on what it does, one on what is finished."""
    driver, running = facts["driver"], facts["state"] == "running"
    since = f", {facts['changed']}" if facts["changed"] else ""
    if running and facts["alive"]:
        yield f"{facts['name']}: running; {describe_driver(driver)} is alive"
        step = driver["progress"].get("step")
        if step:
            failed = f", {step['failed']:,} failed" if step["failed"] else ""
            yield f"{step['title']}: {how_far(step['done'], step['total'], step['unit'], step['seconds'])}{failed}"
        else:
            yield f"{driver['progress'].get('stage') or 'listing'}: at work"
    elif running:
        who = describe_driver(driver) if driver else "its driver"
        yield f"{facts['name']}: stopped; {who} is dead; the same command again goes on from here"
    else:
        yield f"{facts['name']}: {facts['state']}{since}"
    if facts["stages"]:
        yield f"finished: {', '.join(map(_told_stage, facts['stages']))}"


def _told_stage(stage: dict[str, Any]) -> str:
    failed = f", {stage['failed']:,} failed" if stage["failed"] else ""
    return f"{stage['name']} ({stage['seconds']:,.1f} s{failed})"


def cancel(run: str, cluster: str | None = None) -> None:
    """Ask the driver of a run to end, and wait until it has.

    Parameters
    ----------
    run
        Run folder.
    cluster
        As for `status`.

    Raises
    ------
    UserError
        The folder is no run.
    JobError
        The driver has not ended after a minute.
    """
    with _asking(cluster) as ask:
        show_line(ask(request_end, run))


def request_end(run: str) -> str:
    """Ask the driver of a run to end, wait until it has, and return what is to be said."""
    folder = RunFolder(location(run))
    name = folder.path.resolve().name
    with reporting_unreachable(folder.path):
        driver = last_driver(folder.drivers)
    if driver is None:
        raise UserError(f"{run} is not a run folder that a driver has worked on; give one, for example runs/digits")
    if driver["ended"]:
        return f"{name}: nothing to cancel, no driver is at work; the run is {RunRecord.read(folder).state}"
    write_json(folder.cancel_request, {"driver": driver["number"], "job": driver["job"]})
    end = time.monotonic() + _END_SECONDS
    while is_alive(folder.drivers, driver):
        if time.monotonic() > end:
            raise JobError(f"{describe_driver(driver)} was asked to end, and has not after {_END_SECONDS} s; kill it")
        time.sleep(0.1)
        driver = last_driver(folder.drivers) or driver
    driver = last_driver(folder.drivers) or driver
    if not driver["ended"]:
        again = "; if the cluster starts it again, it ends at once" if driver["job"] else ""
        return f"{name}: {describe_driver(driver)} is dead{again}"
    return f"{name}: {RunRecord.read(folder).state}"


def logs(run: str, follow: bool, cluster: str | None = None) -> None:
    """Print the log of the driver that was started last on a run, from its beginning.

    Parameters
    ----------
    run
        Run folder.
    follow
        Whether to go on as it grows, until the driver has ended.
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
"""In the logs of a run: number of the driver, and bytes of its log."""


def read_log(run: str, position: Position) -> tuple[str, Position, bool]:
    """Read whole lines of the last driver's log.

    Parameters
    ----------
    run
        Run folder.
    position
        What has been read before; a newer driver's log is read from its beginning.

    Returns
    -------
    str, (int, int), bool
        The lines, the position after them, and whether the driver has ended, so that none will follow.

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
        whole = folder.log(number).read_bytes()[offset:]
    except FileNotFoundError:  # it has just been started
        whole = b""
    lines = whole[: whole.rfind(b"\n") + 1]
    return lines.decode("utf-8"), (number, offset + len(lines)), ended
