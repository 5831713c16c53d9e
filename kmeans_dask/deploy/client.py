"""A client of the workers that a config asks for, and the end of what was started for it."""

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
from kmeans_dask.deploy.dask_patches import SteadyClock, measure_steadily, spans_forgotten
from kmeans_dask.deploy.kinds import kubernetes, local, pbs, slurm, ssh, threads
from kmeans_dask.deploy.security import check_certificates, tls_settings
from kmeans_dask.deploy.slurm_runner import scheduler_address
from kmeans_dask.deploy.watchdog import watched
from kmeans_dask.errors import JobError, UserError
from kmeans_dask.sources import sandbox

LOG = logging.getLogger("kmeans_dask")

_CONNECT_SECONDS = 15

_LARGE_GRAPH = "1GiB"
"""The centres travel in the graph, once a pass; Dask would warn of 10 MB, the candidates of 158 faces are 16 MB."""

_ENVIRON = "distributed.nanny.pre-spawn-environ"
_MALLOC = {"MALLOC_TRIM_THRESHOLD_": str(64 * 2**20), "MALLOC_MMAP_THRESHOLD_": str(12 * 2**20)}
"""Dask has worker processes give every freed 64 KiB back to the system, which then clears each page of every new array.
In 30 colours a photo of 481 x 321 takes 26 ms with it, 16 ms without; a grey one of 250 x 250 2.6 and 2.0 ms. But what
is larger than a chunk goes back at once, Pillow's blocks of 16 MiB above all: the C library by itself keeps some, and a
worker that quantized photos of 24 megapixels took up to 200 MiB more."""


_START = {"local": local, "threads": threads, "slurm": slurm, "pbs": pbs, "ssh": ssh, "kubernetes": kubernetes}
"""What starts scheduler and workers of each kind, and ends them."""


class _OneBlasThread(WorkerPlugin):
    """Keep BLAS on one thread in every worker, also where no nanny has set the environment."""

    name = "kmeans-dask-one-blas-thread"

    def setup(self, worker: Worker) -> None:
        self._limit = threadpool_limits(1, user_api="blas")


class _KnowMemoryLimit(WorkerPlugin):
    """Tell the process how much memory its nanny lets it take."""

    name = "kmeans-dask-know-memory-limit"

    def setup(self, worker: Worker) -> None:
        sandbox.memory_limit = worker.memory_manager.memory_limit or 0 if worker.nanny else 0


class _LeaveInterruptToDriver(WorkerPlugin):
    """Ctrl-C reaches all processes of a terminal: the driver ends the workers, which alone would print tracebacks."""

    name = "kmeans-dask-leave-interrupt-to-driver"

    def setup(self, worker: Worker) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


class _LeaveErrorsToDriver(WorkerPlugin):
    """The driver says in one line what a task has raised: Dask's lines about it would come before, with a traceback.

    A worker that ends while it waits for a word of its nanny logs one too, though that is how all of them end.
    """

    name = "kmeans-dask-leave-errors-to-driver"

    def setup(self, worker: Worker) -> None:
        for name in ("distributed.worker", "distributed.worker.state_machine", "distributed.nanny"):
            logging.getLogger(name).addFilter(_is_not_left_to_driver)
        logging.getLogger("distributed.spill").addFilter(_in_one_line)


_LEFT_TO_DRIVER = (
    "Compute Failed", "Async instruction for", "Worker process died unexpectedly",
    "Failed to communicate with scheduler during heartbeat",
)  # fmt: skip
"""The last is what a worker says that is slower to end than the driver, where the scheduler is."""


def _is_not_left_to_driver(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_LEFT_TO_DRIVER)


def _in_one_line(record: logging.LogRecord) -> bool:
    """Of a full disk to spill to: the data stay in memory, and the work goes on."""
    if record.exc_info and record.exc_info[1]:
        record.msg, record.exc_info = f"{record.msg}: {record.exc_info[1]}", None
    return True


@contextmanager
def connect(config: Cluster, tell: Callable[[str], None] = LOG.warning) -> Iterator[Client]:
    """Yield a client of the workers that the config asks for, and end what was started for it.

    Parameters
    ----------
    config
        Section ``cluster`` of a job's config.
    tell
        Called with a line for people when workers are lost or hang.

    Yields
    ------
    distributed.Client
        Of a scheduler that has at least one worker.

    Raises
    ------
    UserError
        The config does not fit this machine, no scheduler answers at the address, or it refuses the certificate.
    JobError
        The scheduler has no workers.
    """
    measure_steadily()
    environ = {**dask.config.get(_ENVIRON), **_MALLOC}
    settings = {"distributed.admin.large-graph-warning-threshold": _LARGE_GRAPH, _ENVIRON: environ}
    logged = logging.root.manager.disable
    try:
        with (
            dask.config.set({**settings, **tls_settings(config.tls)}),
            _client(config) as client,
            watched(client, tell, queued=config.kind in ("slurm", "pbs", "kubernetes")),
        ):
            yield client
    finally:
        logging.disable(logged)


@contextmanager
def _ended_quietly(client: Client) -> Iterator[None]:
    """Let Dask say nothing of the work that its client is ended amid: why it ends is told in a line.

    It would log the tracebacks of what it is about, reconnecting above all; and asyncio, whenever garbage is collected,
    of what nobody waits for any more.
    """
    loop = client.loop.asyncio_loop
    loop.set_exception_handler(_pass_over_lost)
    try:
        yield
    except (KeyboardInterrupt, JobError):
        loop.set_exception_handler(lambda *_: None)
        logging.disable(logging.CRITICAL)
        raise


def _pass_over_lost(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Pass over what Dask met in the background of a lost cluster; who waits for it is told it otherwise."""
    if not isinstance(context.get("exception"), (AllExit, OSError)):  # CommClosedError is one
        loop.default_exception_handler(context)


def _client(config: Cluster) -> AbstractContextManager[Client]:
    if config.kind == "address":
        return _client_of(str(config.address))
    if config.kind == "slurm-runner":
        return _client_of(scheduler_address(), own=True)
    return _client_of_started(config)


@contextmanager
def _client_of_started(config: Cluster) -> Iterator[Client]:
    """Start scheduler and workers; those of a queue may have to wait for their turn, however long."""
    with ExitStack() as started:
        try:
            cluster = started.enter_context(_START[config.kind](config))
            client = started.enter_context(Client(cluster))
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"cluster.kind={config.kind} cannot be started here: {_one_line(error)}") from None
        started.enter_context(_ended_quietly(client))
        _prepare(client)
        if config.kind == "local":
            client.register_plugin(_LeaveInterruptToDriver())
        if config.kind in ("local", "threads"):
            client.register_plugin(_LeaveErrorsToDriver())
        client.wait_for_workers(1)
        yield client


@contextmanager
def _client_of(address: str, *, own: bool = False) -> Iterator[Client]:
    """Connect to a scheduler that runs; own: its workers are there for this job, and write where it writes."""
    check_certificates(address)
    try:
        # a default client that cannot be reached would stay Dask's scheduler until it is collected as garbage
        client = Client(address, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, ValueError) as error:
        hint = "give certificates of its authority" if address.startswith("tls:") else "start one with `dask scheduler`"
        raise UserError(f"no Dask scheduler answers at {address} ({_one_line(error)}); {hint}") from None
    with client, _ended_quietly(client), client.as_current(), ExitStack() as ended:
        try:
            client.wait_for_workers(1, timeout=_CONNECT_SECONDS)
            _prepare(client)
            ended.enter_context(spans_forgotten(client))
            if own:
                client.register_plugin(_LeaveErrorsToDriver())
        except TimeoutError:
            raise JobError(
                f"the scheduler at {address} has no workers after {_CONNECT_SECONDS} s; "
                f"start one with `dask worker {address}`"
            ) from None
        except (OSError, CancelledError):
            raise JobError(f"the scheduler at {address} went away; the same command goes on from here") from None
        yield client


def _prepare(client: Client) -> None:
    """Give scheduler and workers what every kind of cluster needs."""
    with suppress(ImportError):  # a scheduler that does not know this package can do its work
        client.run_on_scheduler(measure_steadily)
    _register(client, SteadyClock(), _OneBlasThread(), _KnowMemoryLimit())


def _register(client: Client, *plugins: WorkerPlugin) -> None:
    """Have all workers set up plugins, those that come later too."""
    for plugin in plugins:
        for tries_left in (2, 1, 0):
            try:
                client.register_plugin(plugin)
                break
            except OSError:  # a worker has ended amid it, or the scheduler has
                if not tries_left or client.status != "running":
                    raise


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
