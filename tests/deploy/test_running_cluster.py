"""A scheduler and workers that someone else has started, in processes of their own."""

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
from tests.support.jobs import Said, write_config
from tests.support.processes import Process

Command = Callable[..., Said]


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
        assert main.main(["run", str(config)]) == 0
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
    monkeypatch.setattr(client_module, "_CONNECT_SECONDS", 1)
    nobody = command("ingest", job, "name=nobody", "--cluster", "tcp://127.0.0.1:1")
    with Running(tmp_path, workers=0) as lonely:
        monkeypatch.setattr(client_module, "_CONNECT_SECONDS", 5)  # it answers, as soon as it can
        idle = command("ingest", job, "name=idle", "--cluster", lonely.address)

    assert (nobody.status, idle.status) == (2, 1)
    for said, name in ((nobody, "nobody"), (idle, "idle")):
        assert said.lines[0] == f"{name}: 160 items"
        assert len(said.lines) == 2
        assert said.out == ""
    assert "kmeans-dask: no Dask scheduler answers at tcp://127.0.0.1:1" in nobody.err
    assert nobody.err.endswith("start one with `dask scheduler`\n")
    assert f"kmeans-dask: the scheduler at {lonely.address} has no workers after 5 s" in idle.err
