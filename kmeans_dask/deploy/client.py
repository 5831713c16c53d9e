"""Connect to the cluster of a config, and shut down what was started for it."""

from __future__ import annotations

import asyncio
import logging
import signal
from asyncio import CancelledError
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from typing import Any

import dask
from distributed import Client, Worker, WorkerPlugin
from distributed.client import AllExit
from threadpoolctl import threadpool_limits

from kmeans_dask.config.cluster import Cluster
from kmeans_dask.config.loading import load_cluster
from kmeans_dask.deploy.dask_patches import MonotonicTime, forget_spans, use_monotonic_time
from kmeans_dask.deploy.kinds import kubernetes, local, pbs, slurm, ssh, threads
from kmeans_dask.deploy.security import check_certificates, tls_settings
from kmeans_dask.deploy.slurm_runner import scheduler_address
from kmeans_dask.deploy.watchdog import watch_workers
from kmeans_dask.errors import JobError, UserError
from kmeans_dask.sources import sandbox

LOG = logging.getLogger("kmeans_dask")

_CONNECT_SECONDS = 15

_LARGE_GRAPH = "1GiB"
"""Threshold of Dask's warning about large graphs. Every pass sends the centres in its graph: the candidates for 158
clusters of faces are 16 MB, above Dask's default of 10 MB."""

_ENVIRON = "distributed.nanny.pre-spawn-environ"
_MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(64 * 2**20), "MALLOC_MMAP_THRESHOLD_": str(12 * 2**20)}
"""Malloc settings of worker processes. By default, Dask makes them return every freed 64 KiB to the system, which then
has to clear each page of every new array: quantizing a 481 x 321 photo to 30 colours takes 26 ms with this default,
16 ms without it; a grey 250 x 250 photo 2.6 and 2.0 ms. Blocks larger than a chunk, above all Pillow's blocks of
16 MiB, are still returned at once: the C library would keep some of them, and a worker that quantized photos of
24 megapixels used up to 200 MiB more."""


_START = {"local": local, "threads": threads, "slurm": slurm, "pbs": pbs, "ssh": ssh, "kubernetes": kubernetes}
"""Context managers that start and end the scheduler and workers of each kind."""


class _OneBlasThread(WorkerPlugin):
    """Limit BLAS to one thread per worker, even if no nanny has set the environment variables."""

    name = "kmeans-dask-one-blas-thread"

    def setup(self, worker: Worker) -> None:
        self._limit = threadpool_limits(1, user_api="blas")


class _ShareMemoryLimit(WorkerPlugin):
    """Make the memory limit that the nanny enforces available to the code of the tasks."""

    name = "kmeans-dask-share-memory-limit"

    def setup(self, worker: Worker) -> None:
        sandbox.memory_limit = worker.memory_manager.memory_limit or 0 if worker.nanny else 0


class _IgnoreInterrupt(WorkerPlugin):
    """Ignore Ctrl-C, which reaches all processes of a terminal: the driver ends the workers, without tracebacks."""

    name = "kmeans-dask-ignore-interrupt"

    def setup(self, worker: Worker) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


class _SilenceTaskErrors(WorkerPlugin):
    """Silence the tracebacks that Dask logs for failed tasks, because the driver reports the error in one line.

    Also silences the traceback of a worker that is ended while it waits for its nanny, as all of them are.
    """

    name = "kmeans-dask-silence-task-errors"

    def setup(self, worker: Worker) -> None:
        for name in ("distributed.worker", "distributed.worker.state_machine", "distributed.nanny"):
            logging.getLogger(name).addFilter(_is_not_silenced)
        logging.getLogger("distributed.spill").addFilter(_shorten_traceback)


_SILENCED = (
    "Compute Failed", "Async instruction for", "Worker process died unexpectedly",
    "Failed to communicate with scheduler during heartbeat",
)  # fmt: skip
"""Beginnings of log messages. The last is logged by workers that end after the driver, which runs the scheduler."""


def _is_not_silenced(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_SILENCED)


def _shorten_traceback(record: logging.LogRecord) -> bool:
    """Shorten the traceback of a failed spill to one line; if the disk is full, data stay in memory."""
    if record.exc_info and record.exc_info[1]:
        record.msg, record.exc_info = f"{record.msg}: {record.exc_info[1]}", None
    return True


@contextmanager
def connect(cluster: Cluster | str | None = None, notify: Callable[[str], None] = LOG.warning) -> Iterator[Client]:
    """Connect to a cluster, starting scheduler and workers if needed; end what was started afterwards.

    Parameters
    ----------
    cluster
        Scheduler address such as ``tcp://10.0.0.1:8786``, YAML file with cluster settings, or section ``cluster`` of a
        config. None: one worker process per core of this machine.
    notify
        Called with a one-line message when workers are lost or hang.

    Yields
    ------
    distributed.Client
        Client of a scheduler with at least one worker.

    Raises
    ------
    UserError
        The cluster cannot be started here, no scheduler answers at the address, or it rejects the certificate.
    JobError
        The scheduler has no workers.
    """
    config = cluster if isinstance(cluster, Cluster) else load_cluster(cluster) if cluster else Cluster()
    use_monotonic_time()
    environ = {**dask.config.get(_ENVIRON), **_MALLOC}
    settings = {"distributed.admin.large-graph-warning-threshold": _LARGE_GRAPH, _ENVIRON: environ}
    previous_level = logging.root.manager.disable
    try:
        with (
            dask.config.set({**settings, **tls_settings(config.tls)}),
            _client(config) as client,
            watch_workers(client, notify, queued=config.is_queued),
        ):
            yield client
    finally:
        logging.disable(previous_level)


@contextmanager
def _ends_quietly(client: Client) -> Iterator[None]:
    """Silence Dask and asyncio when the work is aborted, because the driver reports the reason in one line.

    Dask would log tracebacks of whatever it is doing at that moment, usually reconnecting; asyncio would log those of
    futures that nobody awaits any more whenever they are garbage-collected.
    """
    loop = client.loop.asyncio_loop
    loop.set_exception_handler(_ignore_lost_connections)
    try:
        yield
    except (KeyboardInterrupt, JobError):
        loop.set_exception_handler(lambda *_: None)
        logging.disable(logging.CRITICAL)
        raise


def _ignore_lost_connections(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Ignore errors of Dask's background tasks on a lost cluster; they are raised in the caller anyway."""
    if not isinstance(context.get("exception"), (AllExit, OSError)):  # OSError includes CommClosedError
        loop.default_exception_handler(context)


def _client(config: Cluster) -> AbstractContextManager[Client]:
    if config.kind == "address":
        return _client_of(str(config.address))
    if config.kind == "slurm-runner":
        return _client_of(scheduler_address(), is_own=True)
    return _client_of_started(config)


@contextmanager
def _client_of_started(config: Cluster) -> Iterator[Client]:
    """Start scheduler and workers, and wait for the first worker, however long it is queued."""
    with ExitStack() as started:
        try:
            cluster = started.enter_context(_START[config.kind](config))
            client = started.enter_context(Client(cluster))
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"cluster.kind={config.kind} cannot be started here: {_one_line(error)}") from None
        started.enter_context(_ends_quietly(client))
        _prepare(client)
        if config.kind == "local":
            client.register_plugin(_IgnoreInterrupt())
        if config.kind in ("local", "threads"):
            client.register_plugin(_SilenceTaskErrors())
        client.wait_for_workers(1)
        yield client


@contextmanager
def _client_of(address: str, *, is_own: bool = False) -> Iterator[Client]:
    """Connect to a running scheduler; `is_own`: its workers belong to this job and share its output."""
    check_certificates(address)
    try:
        # a default client that fails to connect would remain Dask's scheduler until it is garbage-collected
        client = Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        hint = "give certificates of its authority" if address.startswith("tls:") else "start one with `dask scheduler`"
        raise UserError(f"no Dask scheduler answers at {address} ({_one_line(error)}); {hint}") from None
    with client, _ends_quietly(client), client.as_current(), ExitStack() as ended:
        try:
            client.wait_for_workers(1, timeout=_CONNECT_SECONDS)
            _prepare(client)
            ended.enter_context(forget_spans(client))
            if is_own:
                client.register_plugin(_SilenceTaskErrors())
        except TimeoutError:
            raise JobError(
                f"the scheduler at {address} has no workers after {_CONNECT_SECONDS} s; "
                f"start one with `dask worker {address}`"
            ) from None
        except (OSError, CancelledError):
            raise JobError(f"the scheduler at {address} went away; rerun the same command to resume") from None
        yield client


def _prepare(client: Client) -> None:
    """Set up scheduler and workers, whatever the kind of cluster."""
    with suppress(ImportError):  # a scheduler without this package works too
        client.run_on_scheduler(use_monotonic_time)
    _register(client, MonotonicTime(), _OneBlasThread(), _ShareMemoryLimit())


def _register(client: Client, *plugins: WorkerPlugin) -> None:
    """Register plugins on all present and future workers."""
    for plugin in plugins:
        for tries_left in (2, 1, 0):
            try:
                client.register_plugin(plugin)
                break
            except OSError:  # a worker, or the scheduler, ended meanwhile
                if not tries_left or client.status != "running":
                    raise


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
