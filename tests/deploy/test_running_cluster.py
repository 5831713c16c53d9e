"""Jobs on a cluster that is already running, in separate processes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from distributed import Client

from kmeans_dask.cli import main
from kmeans_dask.deploy import client as client_module
from kmeans_dask.models.model import read_model
from tests.support.clusters import Running
from tests.support.images import draw_images
from tests.support.jobs import Result, write_config
from tests.support.processes import Process

Command = Callable[..., Result]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One scheduler and two workers."""
    with Running(tmp_path_factory.mktemp("cluster"), workers=2) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Config of a job with ten chunks and many images; its run ``local`` was made on the default cluster."""
    folder = tmp_path_factory.mktemp("job")
    draw_images(folder / "images", count=160, side=160, levels=16)
    config = write_config(
        folder,
        folder / "images",
        name="local",
        output="runs",  # relative, although the workers have another working directory
        ingest={"size": [112, 112]},
        fit={"k": 8, "algorithm": ["kmeans", "minibatch"]},
        report=None,
        cluster={},
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main.main(["run", str(config)]) == 0
    return config


def assert_same_results(one: Path, other: Path) -> None:
    """Assert that centres and images are bitwise equal, and that clusters are equal."""
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


def test_results_equal_those_of_default_cluster(
    command: Command, running: Running, job: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(job.parent)

    result = command("run", job, "name=address", "--cluster", running.address)

    assert result.status == 0
    assert_same_results(job.parent / "runs" / "local", job.parent / "runs" / "address")
    assert list(running.folder.glob("**/*.png")) == []  # nothing was written to the workers' directory


def test_running_cluster_is_not_shut_down(
    running: Running, job: Path, command: Command, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(job.parent)
    for name in ("first", "second"):
        assert command("ingest", job, f"name={name}", "--cluster", running.address).status == 0

    with Client(running.address) as client:
        assert len(client.scheduler_info()["workers"]) == 2
        assert client.run_on_scheduler(lambda dask_scheduler: list(dask_scheduler.tasks)) == []  # no results are kept


def test_results_are_equal_after_workers_are_killed(running: Running, job: Path, start: Callable[..., Process]):
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


def test_missing_scheduler_and_missing_workers(
    command: Command, job: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The job waits for both, since a cluster may still be starting; here with shorter timeouts."""
    monkeypatch.chdir(job.parent)
    monkeypatch.setattr(client_module, "_CONNECT_SECONDS", 1)
    unreachable = command("ingest", job, "name=unreachable", "--cluster", "tcp://127.0.0.1:1")
    with Running(tmp_path, workers=0) as without_workers:
        monkeypatch.setattr(client_module, "_CONNECT_SECONDS", 5)  # long enough for it to respond
        idle = command("ingest", job, "name=idle", "--cluster", without_workers.address)

    assert (unreachable.status, idle.status) == (2, 1)
    for result, name in ((unreachable, "unreachable"), (idle, "idle")):
        assert result.lines[0] == f"{name}: 160 items"
        assert len(result.lines) == 2
        assert result.out == ""
    assert "kmeans-dask: no Dask scheduler answers at tcp://127.0.0.1:1" in unreachable.err
    assert unreachable.err.endswith("start one with `dask scheduler`\n")
    assert f"kmeans-dask: the scheduler at {without_workers.address} has no workers after 5 s" in idle.err
