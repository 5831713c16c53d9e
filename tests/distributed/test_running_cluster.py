"""A scheduler and workers that someone else has started, in processes of their own."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import COMMANDS, Process, Said, draw_images, write_config
from distributed import Client

from jobs import cli
from kmeans_dask.cluster import connecting
from kmeans_dask.models import read_model
from kmeans_dask.publish import read_json

Command = Callable[..., Said]


class Running:
    """A scheduler and its workers, while they are needed."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.folder = folder
        self.workers = workers
        self.address = ""
        self._file = folder / "scheduler.json"
        self._processes: list[Process] = []

    def __enter__(self) -> Running:
        try:
            self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(self._file))
            self._processes[0].wait_until(self._answers)
            self.address = read_json(self._file)["address"]
            for _ in range(self.workers):  # their current folder is another one than that of the job
                self._start("worker", self.address, "--nthreads", "1", "--local-directory", str(self.folder))
            if self.workers:
                with Client(self.address) as client:
                    client.wait_for_workers(self.workers, timeout=120)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for process in reversed(self._processes):
            process.end()

    def _start(self, *arguments: str) -> None:
        self._processes.append(Process([str(COMMANDS / "dask"), *arguments, "--no-dashboard"], self.folder))

    def _answers(self) -> bool:
        try:
            return "address" in read_json(self._file)
        except (FileNotFoundError, ValueError):  # not there, or half-written
            return False

    def kill_worker_process(self) -> None:
        """Kill one worker in the middle of its task; its nanny, which is another process, starts it anew."""
        with Client(self.address) as client:
            pids = client.run(os.getpid)
        os.kill(next(iter(pids.values())), signal.SIGKILL)


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One scheduler and two workers."""
    with Running(tmp_path_factory.mktemp("cluster"), workers=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Config of a job with ten chunks and many images, which has been run on the default cluster as ``local``."""
    folder = tmp_path_factory.mktemp("job")
    draw_images(folder / "images", count=160, side=160, levels=16)
    config = write_config(
        folder,
        folder / "images",
        name="local",
        output="runs",  # not absolute: the workers' current folder is another one
        ingest={"size": [112, 112]},
        fit={"k": 8, "algorithm": ["kmeans", "minibatch"]},
        report=None,
        cluster={},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert cli.main(["run", str(config)]) == 0
    return config


def assert_same_results(one: Path, other: Path) -> None:
    """The same centres and images to the last bit, and the same clusters."""
    models = sorted(path.relative_to(one) for path in one.glob("models/*/*.zarr"))
    assert len(models) == 2
    for path in models:
        a, b = read_model(one / path), read_model(other / path)
        assert a.centres.tobytes() == b.centres.tobytes()
        assert a.history.tolist() == b.history.tolist()
    images = sorted(path.relative_to(one) for path in one.glob("quantized/*/*/*.png"))
    assert len(images) == 320
    for path in images:
        assert (one / path).read_bytes() == (other / path).read_bytes()
    assert pq.read_table(one / "clusters.parquet").equals(pq.read_table(other / "clusters.parquet"))
    assert (one / "items.csv").read_bytes() == (other / "items.csv").read_bytes()


def test_the_same_results_as_on_the_default_cluster(
    command: Command, running: Running, job: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(job.parent)

    said = command("run", job, "name=address", "--cluster", running.address)

    assert said.status == 0
    assert_same_results(job.parent / "runs" / "local", job.parent / "runs" / "address")
    assert list(running.folder.glob("**/*.png")) == []  # nothing went to the workers' own folder


def test_the_cluster_is_left_running(running: Running, job: Path, command: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(job.parent)
    for name in ("first", "second"):
        assert command("ingest", job, f"name={name}", "--cluster", running.address).status == 0

    with Client(running.address) as client:
        assert len(client.scheduler_info()["workers"]) == 2
        assert client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.tasks)) == []  # nothing is kept


def test_workers_that_are_killed_are_made_up_for(running: Running, job: Path, start: Callable[..., Process]):
    folder = job.parent / "runs" / "killed"
    process = start("dask", "kmeans", "run", job, "name=killed", "--cluster", running.address, folder=job.parent)

    process.wait_until(lambda: list(folder.rglob("items/part-*.parquet")))
    running.kill_worker_process()
    process.wait_until(lambda: list(folder.glob("models/*/k=*.zarr")))
    running.kill_worker_process()
    process.wait_until(lambda: list(folder.glob("quantized/6/*/*.png")))
    running.kill_worker_process()

    assert process.wait() == 0
    assert_same_results(job.parent / "runs" / "local", folder)


def test_nobody_answers_or_nobody_works(command: Command, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Both are waited for, since a cluster may still be starting; here for less than a quarter of a minute."""
    monkeypatch.chdir(job.parent)
    monkeypatch.setattr(connecting, "_CONNECT_SECONDS", 1)
    nobody = command("ingest", job, "name=nobody", "--cluster", "tcp://127.0.0.1:1")
    with Running(tmp_path, workers=0) as lonely:
        monkeypatch.setattr(connecting, "_CONNECT_SECONDS", 5)  # it answers, as soon as it can
        idle = command("ingest", job, "name=idle", "--cluster", lonely.address)

    assert (nobody.status, idle.status) == (2, 1)
    for said, name in ((nobody, "nobody"), (idle, "idle")):
        assert said.lines[0] == f"{name}: 160 items"
        assert len(said.lines) == 2
        assert said.out == ""
    assert "kmeans-dask: no Dask scheduler answers at tcp://127.0.0.1:1" in nobody.err
    assert nobody.err.endswith("start one with `dask scheduler`\n")
    assert f"kmeans-dask: the scheduler at {lonely.address} has no workers after 5 s" in idle.err
