from __future__ import annotations

import os
import threading
import time
from pathlib import Path
from typing import Any, Literal

import dask
import psutil
import pytest
from threadpoolctl import threadpool_info

from kmeans_dask.config.cluster import Cluster
from kmeans_dask.deploy.client import connect
from kmeans_dask.deploy.tasks import run_tasks, run_tree
from kmeans_dask.deploy.workers import worker_memory
from kmeans_dask.errors import UserError

THREADS = Cluster(kind="threads", n_workers=2)


def location() -> tuple[int, int]:
    return os.getpid(), threading.get_ident()


def blas_threads() -> set[int]:
    import numpy as np

    np.ones((2, 2)) @ np.ones((2, 2))
    return {pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"}


def test_workers_are_threads_of_this_process():
    with connect(THREADS) as client:
        locations = client.run(location)

    assert {pid for pid, _ in locations.values()} == {os.getpid()}
    assert len(locations) == 2


def test_workers_are_processes_with_one_blas_thread():
    with connect(Cluster(kind="local", n_workers=2, memory_limit="1GiB")) as client:
        locations, threads = client.run(location), client.run(blas_threads)
        memory = worker_memory(client)

    pids = {pid for pid, _ in locations.values()}
    assert len(pids) == 2
    assert os.getpid() not in pids
    assert list(threads.values()) == [{1}, {1}]
    assert memory == 2 * 2**30
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)  # they end with the client


def test_task_errors_are_not_logged(capfd: pytest.CaptureFixture[str]):
    with connect(Cluster(kind="local", n_workers=1)) as client, pytest.raises(OSError, match="disk"):
        client.submit(fill_the_disk).result()
    assert capfd.readouterr().err == ""


def fill_the_disk() -> None:
    raise OSError(28, "the disk is full")


def test_malloc_settings_of_worker_processes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("MALLOC_TRIM_THRESHOLD_", raising=False)
    with connect(Cluster(kind="local", n_workers=1)) as client:
        (environ,) = client.run(lambda: dict(os.environ)).values()
    assert environ["MALLOC_TRIM_THRESHOLD_"] == str(64 * 2**20)
    assert environ["MALLOC_MMAP_THRESHOLD_"] == str(12 * 2**20)
    assert environ["OPENBLAS_NUM_THREADS"] == environ["OMP_NUM_THREADS"] == "1"


def test_threads_per_worker():
    with connect(Cluster(kind="threads", n_workers=1, threads_per_worker=3)) as client:
        assert list(client.nthreads().values()) == [3]


def test_unknown_protocol_raises():
    refused = pytest.raises(UserError, match="no Dask scheduler answers at carrier-pigeon://x")
    with refused, connect(Cluster(kind="address", address="carrier-pigeon://x")):
        pass


def test_failed_connection_restores_default_scheduler():
    address = Cluster(kind="address", address="carrier-pigeon://x")
    with pytest.raises(UserError) as caught, connect(address):  # keeps the traceback, and so the failed client
        pass

    assert "no Dask scheduler answers" in str(caught.value)
    assert dask.config.get("scheduler", None) is None
    with connect(THREADS) as client:
        assert client.submit(pow, 2, 3).result() == 8
    assert dask.config.get("scheduler", None) is None
    assert dask.delayed(pow)(2, 3).compute() == 8


def test_run_tasks_passes_on_each_result_once():
    results: list[int] = []
    task = dask.delayed(pow, pure=False)

    with connect(THREADS) as client:
        run_tasks(client, [task(number, 2) for number in range(50)], results.append)
        client.sync(_no_results_left, client)

    assert sorted(results) == [number**2 for number in range(50)]


async def _no_results_left(client: Any) -> None:
    """Wait until the scheduler has released all results."""
    limit = time.monotonic() + 60
    while await client.scheduler.who_has(keys=None):
        assert time.monotonic() < limit


GATE = threading.Event()


def wait_for_gate() -> str:
    assert GATE.wait(120)
    return "slow"


def test_run_tasks_passes_on_results_in_order_of_completion():
    order: list[str] = []

    def record(name: str) -> None:
        order.append(name)
        GATE.set()  # waiting for the slow task first would deadlock

    with connect(THREADS) as client:
        run_tasks(client, [dask.delayed(wait_for_gate)(), dask.delayed(str)("quick")], record)

    assert order == ["quick", "slow"]


def test_run_tasks_raises_task_error():
    def fail() -> None:
        raise OSError("disk full")

    with connect(THREADS) as client, pytest.raises(OSError, match="disk full"):
        run_tasks(client, [dask.delayed(fail)()], print)


def test_large_graph_does_not_warn():
    with connect(THREADS) as client:  # Dask's warning from 10 MB would be an error here
        assert client.compute(dask.delayed(len)(bytes(11_000_000))).result() == 11_000_000


def test_run_tasks_without_tasks():
    with connect(THREADS) as client:
        run_tasks(client, [], pytest.fail)


@pytest.mark.parametrize("kind", ["local", "threads"])
def test_nothing_listens_on_the_network(kind: Literal["local", "threads"]):
    own = psutil.Process()
    before = {connection.laddr for connection in own.net_connections("inet")}

    with connect(Cluster(kind=kind, n_workers=1)):
        sockets = [
            connection
            for process in [own, *own.children(recursive=True)]
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN and connection.laddr not in before
        ]

    assert {socket.laddr.ip for socket in sockets} == {"127.0.0.1"}


def number_and_square(number: int) -> list[int]:
    return [number, number**2]


def add_up(parts: list[list[int]]) -> list[int]:
    return [sum(column) for column in zip(*parts, strict=True)]


def test_run_tree_returns_combined_result():
    """40 results make a tree of two levels with a fan-in of eight."""
    positions: list[int] = []
    task = dask.delayed(number_and_square, pure=False)

    with connect(THREADS) as client:
        total = run_tree(client, [task(number) for number in range(40)], add_up, positions.append)
        client.sync(_no_results_left, client)

    assert total == [sum(range(40)), sum(number**2 for number in range(40))]
    assert sorted(positions) == list(range(40))


def test_run_tree_of_one_task_and_with_an_error():
    def fail() -> list[int]:
        raise OSError("disk full")

    task = dask.delayed(number_and_square, pure=False)
    with connect(THREADS) as client:
        assert run_tree(client, [task(3)], add_up, print) == [3, 9]
        with pytest.raises(OSError, match="disk full"):
            run_tree(client, [task(1), dask.delayed(fail, pure=False)(), task(2)], add_up, lambda _: None)


def test_cluster_by_address_or_file(tmp_path: Path):
    path = tmp_path / "threads.yaml"
    path.write_text("kind: threads\nn_workers: 1\nthreads_per_worker: 3\n")
    with connect(str(path)) as client:
        assert set(client.nthreads().values()) == {3}
    with pytest.raises(UserError, match="no Dask scheduler answers at"), connect("tcp://127.0.0.1:1"):
        pass


def test_default_is_worker_processes_of_this_machine():
    with connect() as client:
        assert os.getpid() not in client.run(os.getpid).values()
