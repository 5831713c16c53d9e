"""Jobs whose driver runs on the cluster after the submitting client has disconnected."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import Client

from kmeans_dask.storage.lock import last_driver
from kmeans_dask.storage.publish import read_json
from tests.support.clusters import Running
from tests.support.images import draw_images, hold_later
from tests.support.jobs import Result, write_config
from tests.support.processes import Planted, Process

Command = Callable[..., Result]
LONG = {"k": list(range(150, 250)), "init": "k-means||"}
"""Minutes of work that no test waits for."""


@pytest.fixture(scope="module")
def gate(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Planted]:
    """Gate that the workers and drivers of this module wait at."""
    with pytest.MonkeyPatch.context() as patch:
        yield Planted(tmp_path_factory.mktemp("planted") / "modules", patch)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, gate: Planted) -> Iterator[Running]:
    """One scheduler and two workers."""
    with Running(tmp_path_factory.mktemp("cluster"), workers=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Config of a job with relative paths."""
    folder = tmp_path_factory.mktemp("job")
    draw_images(folder / "images", count=60, side=160)
    stages: dict[str, Any] = {"ingest": None, "fit": None, "evaluate": None, "report": None}
    return write_config(
        folder, Path("images"), output="runs", input={"path": "images"}, quantize={"k": 2}, cluster=None, **stages
    )


def wait_until(condition: Callable[[], object], seconds: float = 120) -> None:
    limit = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < limit, "timed out"
        time.sleep(0.02)


def state_of(run: Path) -> str | None:
    try:
        return read_json(run / "run.json").get("state")
    except FileNotFoundError:
        return None


def at_work(run: Path, number: int) -> bool:
    """Return whether the driver with this number is quantizing images."""
    last = last_driver(run / "drivers")
    step = last["progress"].get("step") if last else None
    return bool(last and last["number"] == number and step and step["title"] == "quantize")


def tasks_of(running: Running) -> list[str]:
    with Client(running.address) as client:
        return client.run_on_scheduler(lambda dask_scheduler: list(map(str, dask_scheduler.tasks)))


def test_submitted_jobs_run_without_client(
    command: Command, start: Callable[..., Process], running: Running, job: Path, monkeypatch: pytest.MonkeyPatch
):
    """Two at a time; relative paths are relative to the working directory of the command."""
    monkeypatch.chdir(job.parent)
    options = ("--cluster", running.address)
    one = start("kmeans-dask", "submit", job, "name=one", *options, folder=job.parent)
    two = command("submit", job, "name=two", *options)
    names = ("one", "two")
    assert (one.wait(), two.status) == (0, 0)
    for name, output in zip(names, (one.output, two.out), strict=True):
        run = job.parent / "runs" / name
        submitted, folder, hint = output.splitlines()
        assert re.fullmatch(rf"submitted: kmeans-dask-job-{name}-\w+", submitted)
        assert folder == f"run folder: {run}, on the cluster"
        assert hint.startswith(f"follow it: kmeans-dask status {run} ")

    for name in names:
        wait_until(lambda name=name: state_of(job.parent / "runs" / name) == "finished")
        record = read_json(job.parent / "runs" / name / "run.json")
        assert record["driver_starts"] == 1
        assert len(list((job.parent / "runs" / name / "quantized" / "2").rglob("*.png"))) == 60
    wait_until(lambda: tasks_of(running) == [])  # the scheduler has forgotten them
    result = command("status", "--cluster", running.address)
    assert result.status == 0
    assert result.out.splitlines()[0] == f"2 jobs were submitted to {running.address}"
    assert read_json(job.parent / "runs" / "one" / "run.json")["command"].startswith("kmeans-dask submit ")
    for name in names:
        run = job.parent / "runs" / name
        expected = rf"^{run} \(kmeans-dask-job-{name}-\w+\): ended with status 0\n  {name}: finished, "
        assert re.search(expected, result.out, re.MULTILINE)


def test_status_logs_and_cancel_of_submitted_job(
    command: Command, running: Running, job: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(job.parent)
    run = job.parent / "runs" / "long"
    submit = ("submit", job, "name=long", f"quantize.k={LONG['k']}", "quantize.init=k-means||", "--cluster")
    assert command(*submit, running.address).status == 0
    wait_until(lambda: at_work(run, 1))

    result = command("status", run, "--cluster", running.address)
    assert re.match(r"long: running; process \d+ on .+ is alive\nquantize: \d+ of 60 items", result.out)
    assert "quantize: 60 items in K = 150" in command("logs", run, "--cluster", running.address).out
    result = command(*submit, running.address)
    assert (result.status, len(result.lines)) == (2, 1)
    assert f"{run} is in use by process " in result.err

    result = command("cancel", run, "--cluster", running.address)

    assert (result.status, result.out) == (0, "long: cancelled\n")
    wait_until(lambda: tasks_of(running) == [])  # the scheduler does not restart it
    assert state_of(run) == "cancelled"
    assert "ended with status 130: kmeans-dask: cancelled; " in command("status", "--cluster", running.address).out
    assert read_json(run / "run.json")["driver_starts"] == 1


def test_submitted_job_survives_killed_driver_and_killed_worker(
    command: Command, running: Running, job: Path, gate: Planted, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(job.parent)
    run = job.parent / "runs" / "killed"
    draw_images(job.parent / "many", count=256)  # four tasks; those running when the driver is killed finish
    hold_later(max((job.parent / "many").rglob("*.png")))
    ks = [10, 20]
    submit = ("submit", job, "name=killed", "input.path=many", f"quantize.k={ks}", "--fresh", "--cluster")
    assert command(*submit, running.address).status == 0

    wait_until(lambda: at_work(run, 1))
    os.kill(driver_of(run)["pid"], signal.SIGKILL)
    wait_until(lambda: at_work(run, 2))
    with Client(running.address) as client:  # kill the worker that runs the driver; its nanny restarts it
        pids = client.run(os.getpid).values()
    parent = parent_of(driver_of(run)["pid"])
    assert parent in pids
    os.kill(parent, signal.SIGKILL)
    gate.let_go()
    wait_until(lambda: state_of(run) == "finished" and driver_of(run)["ended"])

    assert read_json(run / "run.json")["driver_starts"] == 3
    assert len(list((run / "quantized").rglob("*.png"))) == len(ks) * 256
    assert " is dead; resuming its work" in (run / "logs" / "2.jsonl").read_text()
    wait_until(lambda: tasks_of(running) == [])


def test_retry_of_run_that_only_the_cluster_can_access(
    command: Command, running: Running, job: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(job.parent)
    draw_images(job.parent / "few", count=3)
    broken = job.parent / "few" / "disc" / "000.png"
    content = broken.read_bytes()
    broken.write_bytes(b"no image")
    run = running.folder / "runs" / "few"
    here = (f"output={running.folder / 'runs'}", "cluster.kind=threads")
    assert command("run", job, "name=few", "input.path=few", *here).status == 0
    broken.write_bytes(content)

    result = command("retry", "runs/few", "--cluster", running.address)  # relative to the workers' directory

    assert result.status == 0
    assert f"run folder: {run}, on the cluster" in result.out
    wait_until(lambda: len(list((run / "quantized").rglob("*.png"))) == 3 and state_of(run) == "finished")
    wait_until(lambda: tasks_of(running) == [])
    result = command("retry", "runs/nothing", "--cluster", running.address)
    assert (result.status, len(result.lines)) == (2, 1)
    assert "on the cluster, runs/nothing is not a run folder" in result.err


def driver_of(run: Path) -> dict[str, Any]:
    last = last_driver(run / "drivers")
    assert last is not None
    return last


def parent_of(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_invalid_submissions(command: Command, running: Running, job: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(job.parent)

    result = command("submit", job)
    assert (result.status, result.lines) == (
        2, ["kmeans-dask: submit needs a cluster that is running already: --cluster tcp://HOST:PORT"],
    )  # fmt: skip

    result = command("submit", job, "input.path=nowhere", "name=lost", "--cluster", running.address)
    assert (result.status, len(result.lines)) == (2, 1)
    assert f"on the cluster, input.path={job.parent / 'nowhere'}: no such file or folder" in result.err

    for name in ("status", "cancel", "logs"):
        result = command(name, job.parent / "nothing", "--cluster", running.address)
        assert (result.status, len(result.lines)) == (2, 1)
    assert command("status").status == 2
