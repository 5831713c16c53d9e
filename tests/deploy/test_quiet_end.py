"""A job that loses its scheduler or workers reports one line and no output of Dask, whenever that happens."""

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
"""The default is 8787, with a warning if that port is in use."""

SERVE = """
from distributed import LocalCluster
with LocalCluster(n_workers=1, processes=False, protocol="tcp", dashboard_address="127.0.0.1:0") as cluster:
    print(cluster.scheduler_address, flush=True)
    input()
"""


@contextmanager
def scheduler() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Start a scheduler with one worker; yield its address and process."""
    with subprocess.Popen(
        [sys.executable, "-c", SERVE], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().strip(), process
        finally:
            process.kill()


def records_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the errors logged, including those logged when garbage is collected."""
    for _ in range(2):
        gc.collect()
    return [f"{r.name}: {r.getMessage()} {r.exc_info}" for r in caplog.records if r.levelno >= logging.ERROR]


def test_scheduler_killed_while_connecting(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch):
    with scheduler() as (address, process):

        def kill_scheduler(client: Client) -> None:
            threading.Timer(0.3, process.kill).start()
            try:
                client.run_on_scheduler(time.sleep, 60)
            finally:
                time.sleep(0.3)  # by now Dask is about to reconnect

        monkeypatch.setattr(client_module, "_prepare", kill_scheduler)
        with (
            dask.config.set({"distributed.comm.timeouts.connect": "1s"}),
            pytest.raises(JobError, match="went away; rerun the same command to resume"),
            connect(Cluster(kind="address", address=address)),
        ):
            pass

    assert records_of(caplog) == []


def _wait_forever() -> None:
    with connect(Cluster(kind="threads", n_workers=1)):
        with dask.annotate(resources={"none": 1}):
            powers = [dask.delayed(pow)(2, number) for number in range(3)]
        main = threading.main_thread().ident or 0
        threading.Timer(0.3, signal.pthread_kill, [main, signal.SIGUSR1]).start()
        dask.compute(*powers, optimize_graph=False)


@pytest.fixture
def default_interrupt() -> Iterator[None]:
    """Make Ctrl-C raise KeyboardInterrupt, even if an earlier test has imported dask_jobqueue, which changes that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("default_interrupt")
def test_interrupt_while_waiting_for_workers(caplog: pytest.LogCaptureFixture):
    """When the client closes, its futures are released, and the coroutines of Dask that wait for them fail."""

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, interrupt)  # not SIGINT, whose handler dask-jobqueue may have set
    try:
        with pytest.raises(KeyboardInterrupt):
            _wait_forever()
    finally:
        signal.signal(signal.SIGUSR1, before)

    assert records_of(caplog) == []


def test_workers_of_cluster_without_workers():
    with LocalCluster(n_workers=0, processes=False, dashboard_address=ANY_PORT) as cluster, Client(cluster) as client:
        assert workers_of(client) == Workers(1, 1, 0)
