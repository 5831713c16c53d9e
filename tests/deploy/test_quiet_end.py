"""A job whose scheduler or workers go away says one line, and nothing of Dask's, at whatever moment it ends."""

from __future__ import annotations

import gc
import logging
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import dask
import pytest
from distributed import Client, LocalCluster

from kmeans_dask.config.cluster import Cluster
from kmeans_dask.deploy import client as client_module
from kmeans_dask.deploy.client import connect
from kmeans_dask.deploy.workers import Workers, workers_of
from kmeans_dask.errors import JobError

ANY_PORT = "127.0.0.1:0"
"""Without one it would be 8787, and a warning where that is taken."""

SERVE = """
from distributed import LocalCluster
with LocalCluster(n_workers=1, processes=False, protocol="tcp", dashboard_address="127.0.0.1:0") as cluster:
    print(cluster.scheduler_address, flush=True)
    input()
"""


@contextmanager
def scheduler() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Yield address and process of a scheduler and its worker."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip(), process
        finally:
            process.kill()


def records_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What would reach the user once everything that nobody needs any more is collected."""
    for _ in range(2):
        gc.collect()
    return [f"{r.name}: {r.getMessage()} {r.exc_info}" for r in caplog.records if r.levelno >= logging.ERROR]


def test_a_scheduler_that_is_killed_while_the_workers_are_prepared(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    with scheduler() as (address, process):

        def killed(client: Client) -> None:
            threading.Timer(0.3, process.kill).start()
            try:
                client.run_on_scheduler(time.sleep, 60)
            finally:
                time.sleep(0.3)  # by now Dask is about to connect again

        monkeypatch.setattr(client_module, "_prepare", killed)
        with (
            dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
            pytest.raises(JobError, match="went away; the same command goes on from here"),
            connect(Cluster(kind="address", address=address)),
        ):
            pass

    assert records_of(caplog) == []


def _wait_for_ever() -> None:
    with connect(Cluster(kind="threads", n_workers=1)):
        with dask.annotate(resources={"none": 1}):
            powers = [dask.delayed(pow)(2, number) for number in range(3)]
        main = threading.main_thread().ident or 0
        threading.Timer(0.3, signal.pthread_kill, [main, signal.SIGUSR1]).start()
        dask.compute(*powers, optimize_graph=False)


@pytest.fixture
def own_handler() -> Iterator[None]:
    """Ctrl-C raises KeyboardInterrupt, though dask_jobqueue has taken it over if anything here has imported it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("own_handler")
def test_an_interrupted_job_that_waits_for_workers(caplog: pytest.LogCaptureFixture):
    """The futures are released when the client ends; what waits for each of them in Dask then fails."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)  # dask-jobqueue has set that of SIGINT where it is imported
    try:
        with pytest.raises(KeyboardInterrupt):
            _wait_for_ever()
    finally:
        signal.signal(signal.SIGUSR1, before)

    assert records_of(caplog) == []


def test_a_cluster_whose_workers_have_just_gone_has_one_without_a_limit():
    with LocalCluster(n_workers=0, processes=False, dashboard_address=ANY_PORT) as cluster, Client(cluster) as client:
        assert workers_of(client) == Workers(1, 1, 0)
