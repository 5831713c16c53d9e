"""Lost schedulers, lost and hanging workers: seen on processes that are really killed or stopped."""

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


def test_a_task_that_hangs_is_done_again_by_a_new_worker(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(watchdog, "HANGS_SECONDS", 1.0)
    monkeypatch.setattr(watchdog, "WATCH_SECONDS", 0.3)
    said: list[str] = []
    results: list[str] = []
    task = dask.delayed(hang_once, pure=False)
    (tmp_path / "quick").touch()
    quick = [task(tmp_path / "quick", dask_key_name=task_key("hang_once", i, i + 1)) for i in range(4)]
    slow = task(tmp_path / "slow", dask_key_name=task_key("hang_once", 1000, 2000))

    with connect(Cluster(kind="local", n_workers=1), said.append) as client:
        run_tasks(client, quick, results.append)
        run_tasks(client, [slow], results.append)

    assert results == ["done"] * 5
    assert said[0].startswith("the task hang_once of items 1,000 to 1,999 runs for ")
    assert said[0].endswith("this worker is started anew")


def test_clocks_that_jump_and_the_tasks_of_others_make_nobody_hang(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(watchdog, "WATCH_SECONDS", 0.05)
    ahead = waited = 0
    monkeypatch.setattr(distributed.worker, "time", lambda: time.time() + ahead)
    monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + waited))
    said: list[str] = []

    with (
        connect(Cluster(kind="threads", n_workers=2), said.append) as client,
        Client(client.scheduler.address, set_as_default=False) as somebody,
    ):
        theirs, ours = somebody.submit(wait_for_theirs), client.submit(wait_for_ours)
        while len(executing := client.run_on_scheduler(times_that_dask_tells)) < 2:
            time.sleep(0.01)
        ahead = 3600
        while max(executing := client.run_on_scheduler(times_that_dask_tells)) < 3600:
            time.sleep(0.01)
        assert len(executing) == 2
        seen = client.run_on_scheduler(watchdog._look, client.id)
        assert (seen.workers, [task.key for task in seen.running], seen.paused) == (2, [ours.key], [])
        OURS.set()
        ours.result()
        waited = 10 * watchdog.HANGS_ALONE_SECONDS
        time.sleep(0.5)  # ten looks
        THEIRS.set()
        theirs.result()

    assert said == []


OURS, THEIRS = threading.Event(), threading.Event()


def wait_for_ours() -> None:
    assert OURS.wait(120)


def wait_for_theirs() -> None:
    assert THEIRS.wait(120)


def times_that_dask_tells(dask_scheduler: Any) -> list[float]:
    return [seconds for worker in dask_scheduler.workers.values() for seconds in worker.executing.values()]


def test_a_scheduler_that_is_killed_is_one_line(
    start: Callable[..., Process], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    scheduler = start("dask", "scheduler", "--host", "127.0.0.1", "--port", "0", "--dashboard-address", "127.0.0.1:0")
    scheduler.wait_until(lambda: "Scheduler at:" in scheduler.output)
    address = next(word for word in scheduler.output.split() if word.startswith("tcp://"))
    listen = ["--host", "127.0.0.1", "--dashboard-address", "127.0.0.1:0", "--local-directory", tmp_path]
    worker = start("dask", "worker", address, *listen)
    scheduler.wait_until(lambda: "Register worker" in scheduler.output)
    monkeypatch.setattr(client_module, "_CONNECT_SECONDS", 5)  # the client looks for the scheduler as long again

    def work_until_it_is_killed() -> None:
        with connect(Cluster(kind="address", address=address)) as client, explained(tmp_path, client):
            future = client.submit(time.sleep, 120)
            scheduler.wait_until(lambda: any(client.processing().values()))
            scheduler.signal_all(signal.SIGKILL)
            future.result()

    begun_at = time.monotonic()
    with pytest.raises(JobError) as said:
        work_until_it_is_killed()

    assert str(said.value) == f"the scheduler at {address} went away; the same command goes on from here"
    assert time.monotonic() - begun_at < 100  # not the two minutes that the task takes
    worker.end()


def test_workers_that_are_all_gone_are_waited_for_and_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(watchdog, "WATCH_SECONDS", 0.1)
    monkeypatch.setattr(watchdog, "_TOLD_SECONDS", 0.2)
    monkeypatch.setattr(watchdog, "NO_WORKERS_SECONDS", 1.5)
    said: list[str] = []

    def work_without_workers() -> None:
        with connect(Cluster(kind="local", n_workers=1), said.append) as client, explained(tmp_path, client):
            client.cluster.scale(0)
            while client.scheduler_info(n_workers=-1)["workers"]:
                time.sleep(0.01)
            client.submit(int, "2").result()

    with pytest.raises(JobError, match=r"all workers of .* went away, and none has come for"):
        work_without_workers()

    assert len(said) == 1
    assert "went away; waiting up to 2 s for new ones" in said[0]
    assert not [p for p in psutil.Process().children(recursive=True) if "spawn_main" in " ".join(p.cmdline())]


def told_by_workers(dask_scheduler: Any) -> list[tuple[int, bool]]:
    """Bytes that each worker takes, and whether it has paused, as far as the scheduler has heard."""
    return [(worker.memory.process, worker.status.name == "paused") for worker in dask_scheduler.workers.values()]


TAKEN: list[bytearray] = []


def take_memory(share: float) -> None:
    """Have this worker process hold so much of its limit, in what Dask can neither spill nor free."""
    missing = share * LIMIT - psutil.Process().memory_info().rss
    TAKEN.append(bytearray(b"x") * int(missing))


LIMIT = 500 * 2**20


def test_workers_that_have_all_paused_end_the_work_with_the_numbers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setattr(watchdog, "WATCH_SECONDS", 0.2)
    monkeypatch.setattr(watchdog, "PAUSED_SECONDS", 2.0)
    said: list[str] = []

    def work_on(client: Client, share: float, pauses: bool) -> int:
        client.run(take_memory, share)
        while not all(
            taken > 0.98 * share * LIMIT and paused == pauses
            for taken, paused in client.run_on_scheduler(told_by_workers)
        ):
            time.sleep(0.05)
        with explained(tmp_path, client):
            return sum(client.gather(client.map(abs, range(20), pure=False)))

    with connect(Cluster(kind="local", n_workers=2, memory_limit="500MiB"), said.append) as client:
        assert work_on(client, 0.7, pauses=False) == 190
        with pytest.raises(JobError) as told:
            work_on(client, 0.87, pauses=True)

    assert re.fullmatch(
        r"all 2 workers of tcp://\S+ have begun no task for \d+ s for want of memory: they take up to 4[34]\d MiB of "
        r"500 MiB each, and begin none above 80%; give each worker 7[23]\d MiB, fewer threads or a smaller "
        r"ingest.chunk_mib; the same command goes on from here",
        str(told.value),
    )
    assert said == []
