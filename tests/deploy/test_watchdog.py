"""Lost schedulers, lost workers and hanging workers, with real processes that are killed or stopped."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import dask
import distributed.worker
import psutil
import pytest
from distributed import Client

from kmeans_dask.config.cluster import Cluster
from kmeans_dask.deploy import client as client_module
from kmeans_dask.deploy import watchdog
from kmeans_dask.deploy.client import connect
from kmeans_dask.deploy.tasks import run_tasks
from kmeans_dask.errors import JobError
from kmeans_dask.pipeline.driver.failures import explained
from kmeans_dask.reduction import task_key
from tests.support.processes import Process


def hang_once(marker: Path) -> str:
    if not marker.exists():
        marker.touch()
        time.sleep(120)
    return "done"


def test_hanging_task_is_rerun_on_restarted_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(watchdog, "HANGS_SECONDS", 1.0)
    monkeypatch.setattr(watchdog, "WATCH_SECONDS", 0.3)
    messages: list[str] = []
    results: list[str] = []
    task = dask.delayed(hang_once, pure=False)
    (tmp_path / "quick").touch()
    quick = [task(tmp_path / "quick", dask_key_name=task_key("hang_once", i, i + 1)) for i in range(4)]
    slow = task(tmp_path / "slow", dask_key_name=task_key("hang_once", 1000, 2000))

    with connect(Cluster(kind="local", n_workers=1), messages.append) as client:
        run_tasks(client, quick, results.append)
        run_tasks(client, [slow], results.append)

    assert results == ["done"] * 5
    assert messages[0].startswith("the task hang_once of items 1,000 to 1,999 has been running for ")
    assert messages[0].endswith("restarting this worker")


def test_clock_jumps_and_tasks_of_other_clients_do_not_count_as_hanging(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(watchdog, "WATCH_SECONDS", 0.05)
    ahead = waited = 0
    monkeypatch.setattr(distributed.worker, "time", lambda: time.time() + ahead)
    monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + waited))
    messages: list[str] = []

    with (
        connect(Cluster(kind="threads", n_workers=2), messages.append) as client,
        Client(client.scheduler.address, set_as_default=False) as other_client,
    ):
        theirs, ours = other_client.submit(wait_for_theirs), client.submit(wait_for_ours)
        while len(executing := client.run_on_scheduler(task_seconds_of_dask)) < 2:
            time.sleep(0.01)
        ahead = 3600
        while max(executing := client.run_on_scheduler(task_seconds_of_dask)) < 3600:
            time.sleep(0.01)
        assert len(executing) == 2
        seen = client.run_on_scheduler(watchdog._snapshot, client.id)
        assert (seen.workers, [task.key for task in seen.running], seen.paused) == (2, [ours.key], [])
        OURS.set()
        ours.result()
        waited = 10 * watchdog.HANGS_ALONE_SECONDS
        time.sleep(0.5)  # ten checks
        THEIRS.set()
        theirs.result()

    assert messages == []


OURS, THEIRS = threading.Event(), threading.Event()


def wait_for_ours() -> None:
    assert OURS.wait(120)


def wait_for_theirs() -> None:
    assert THEIRS.wait(120)


def task_seconds_of_dask(dask_scheduler: Any) -> list[float]:
    return [seconds for worker in dask_scheduler.workers.values() for seconds in worker.executing.values()]


def test_killed_scheduler_raises_job_error(
    start: Callable[..., Process], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    scheduler = start("dask", "scheduler", "--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0")
    scheduler.wait_until(lambda: "Scheduler at:" in scheduler.output)
    address = next(word for word in scheduler.output.split() if word.startswith("tcp://"))
    listen = ["--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0", "--local-directory", tmp_path]
    worker = start("dask", "worker", address, *listen)
    scheduler.wait_until(lambda: "Register worker" in scheduler.output)
    monkeypatch.setattr(client_module, "_CONNECT_SECONDS", 5)  # the client then tries to reconnect for as long

    def work_until_killed() -> None:
        with connect(Cluster(kind="address", address=address)) as client, explained(tmp_path, client):
            future = client.submit(time.sleep, 120)
            scheduler.wait_until(lambda: any(client.processing().values()))
            scheduler.signal_all(signal.SIGKILL)
            future.result()

    started_at = time.monotonic()
    with pytest.raises(JobError) as caught:
        work_until_killed()

    assert str(caught.value) == f"the scheduler at {address} went away; rerun the same command to resume"
    assert time.monotonic() - started_at < 100  # the task itself takes two minutes
    worker.end()


def test_loss_of_all_workers_is_notified_then_raises(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(watchdog, "WATCH_SECONDS", 0.1)
    monkeypatch.setattr(watchdog, "_NOTIFY_SECONDS", 0.2)
    monkeypatch.setattr(watchdog, "NO_WORKERS_SECONDS", 1.5)
    messages: list[str] = []

    def work_without_workers() -> None:
        with connect(Cluster(kind="local", n_workers=1), messages.append) as client, explained(tmp_path, client):
            client.cluster.scale(0)
            while client.scheduler_info(n_workers=-1)["workers"]:
                time.sleep(0.01)
            client.submit(int, "2").result()

    with pytest.raises(JobError, match=r"all workers of .* are gone, and no new one has appeared for"):
        work_without_workers()

    assert len(messages) == 1
    assert "are gone; waiting up to 2 s for new ones" in messages[0]
    assert not [p for p in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]


def memory_of_workers(dask_scheduler: Any) -> list[tuple[int, bool]]:
    """Return the memory of each worker in bytes and whether it is paused, as known to the scheduler."""
    return [(worker.memory.process, worker.status.name == "paused") for worker in dask_scheduler.workers.values()]


ALLOCATED: list[bytearray] = []


def allocate_memory(fraction: float) -> None:
    """Make this worker process hold a fraction of its limit in memory that Dask can neither spill nor free."""
    missing = fraction * LIMIT - psutil.Process().memory_info().rss
    ALLOCATED.append(bytearray(b"x") * int(missing))


LIMIT = 500 * 2**20


def test_paused_workers_raise_job_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(watchdog, "WATCH_SECONDS", 0.2)
    monkeypatch.setattr(watchdog, "PAUSED_SECONDS", 2.0)
    messages: list[str] = []

    def work_on(client: Client, fraction: float, pauses: bool) -> int:
        client.run(allocate_memory, fraction)
        while not all(
            used > 0.98 * fraction * LIMIT and paused == pauses
            for used, paused in client.run_on_scheduler(memory_of_workers)
        ):
            time.sleep(0.05)
        with explained(tmp_path, client):
            return sum(client.gather(client.map(abs, range(20), pure=False)))

    with connect(Cluster(kind="local", n_workers=2, memory_limit="500MiB"), messages.append) as client:
        assert work_on(client, 0.7, pauses=False) == 190
        with pytest.raises(JobError) as caught:
            work_on(client, 0.87, pauses=True)

    assert re.fullmatch(
        r"all 2 workers of tcp://\S+ have started no task for \d+ s for lack of memory: they use up to 4[34]\d MiB of "
        r"500 MiB each, and start none above 80%; give each worker 7[23]\d MiB, fewer threads or a smaller "
        r"ingest.chunk_mib; rerun the same command to resume",
        str(caught.value),
    )
    assert messages == []
