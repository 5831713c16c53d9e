"""A client of the workers that a config asks for, and the end of what was started for it."""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import dask
from dask.utils import parse_bytes
from distributed import Client, LocalCluster, Worker, WorkerPlugin
from threadpoolctl import threadpool_limits

from kmeans_dask.config import Cluster
from kmeans_dask.errors import JobError, UserError

_CONNECT_SECONDS = 15

_LARGE_GRAPH = "1GiB"
"""The centres travel in the graph, once a pass; Dask would warn of 10 MB, the candidates of 158 faces are 16 MB."""

_ENVIRON = "distributed.nanny.pre-spawn-environ"
_TRIM = "MALLOC_TRIM_THRESHOLD_"
"""Dask has worker processes give every freed 64 KiB back to the system, which then clears each page of every new array.
In 30 colours a photo of 481 x 321 takes 26 ms with it, 16 ms without; a grey one of 250 x 250 2.6 and 2.0 ms."""


class _OneBlasThread(WorkerPlugin):
    """Keep BLAS on one thread in every worker, also where no nanny has set the environment."""

    name = "kmeans-dask-one-blas-thread"

    def setup(self, worker: Worker) -> None:
        self._limit = threadpool_limits(1, user_api="blas")


class _LeaveInterruptToDriver(WorkerPlugin):
    """Ctrl-C reaches all processes of a terminal: the driver ends the workers, which alone would print tracebacks."""

    name = "kmeans-dask-leave-interrupt-to-driver"

    def setup(self, worker: Worker) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def connect(config: Cluster) -> Iterator[Client]:
    """Yield a client of the workers that the config asks for, and end what was started for it.

    Parameters
    ----------
    config
        Section ``cluster`` of a job's config.

    Yields
    ------
    distributed.Client

    Raises
    ------
    UserError
        The memory limit is no size, or no scheduler answers at the address.
    JobError
        The scheduler has no workers.
    """
    started = _client_of(str(config.address)) if config.kind == "address" else _local_client(config)
    logged = logging.root.manager.disable
    try:
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": _LARGE_GRAPH}), started as client:
            try:
                yield client
            except KeyboardInterrupt:
                logging.disable(logging.CRITICAL)  # Dask, ended amid its work, would log tracebacks
                raise
    finally:
        logging.disable(logged)


@contextmanager
def _local_client(config: Cluster) -> Iterator[Client]:
    try:
        memory = config.memory if config.memory == "auto" else parse_bytes(config.memory)
    except ValueError:
        raise UserError(f"cluster.memory={config.memory!r}; allowed are auto or a size such as 2GiB") from None
    processes = config.kind == "local"
    environ = {name: value for name, value in dask.config.get(_ENVIRON).items() if name != _TRIM}
    with (
        dask.config.set({_ENVIRON: environ}),
        LocalCluster(
            n_workers=config.workers,
            threads_per_worker=config.threads,
            processes=processes,
            memory_limit=memory,
            host="127.0.0.1" if processes else None,  # threads talk in memory, and refuse to be told where to listen
            dashboard_address="127.0.0.1:0",
            worker_dashboard_address="127.0.0.1:0",  # else that of a thread is open to the network
        ) as cluster,
        Client(cluster) as client,
    ):
        client.register_plugin(_OneBlasThread())
        if processes:
            client.register_plugin(_LeaveInterruptToDriver())
        yield client


@contextmanager
def _client_of(address: str) -> Iterator[Client]:
    try:
        # a default client that cannot be reached would stay Dask's scheduler until it is collected as garbage
        client = Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"no Dask scheduler answers at {address} ({reason}); start one with `dask scheduler`") from None
    with client, client.as_current():
        try:
            client.wait_for_workers(1, timeout=_CONNECT_SECONDS)
        except TimeoutError:
            raise JobError(
                f"the scheduler at {address} has no workers after {_CONNECT_SECONDS} s; "
                f"start one with `dask worker {address}`"
            ) from None
        client.register_plugin(_OneBlasThread())
        yield client
