"""Facts about the workers, and records of their work: memory, hosts, dashboard, performance report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from kmeans_dask.storage.publish import publish

if TYPE_CHECKING:
    from distributed import Client


def dashboard_link(client: Client) -> str:
    """Return the URL of the dashboard of a client's scheduler."""
    return str(client.dashboard_link)


@contextmanager
def record_performance(path: Path | None) -> Iterator[None]:
    """Record the tasks of the current client in this context, and publish Dask's performance report.

    Parameters
    ----------
    path
        Self-contained HTML file; None: record nothing.

    Yields
    ------
    None
    """
    if path is None:
        yield
        return
    from distributed import performance_report

    with publish(path) as partial, performance_report(str(partial), mode="inline"):
        yield


def worker_hosts(client: Client) -> dict[str, int]:
    """Return the number of workers on each host."""
    return dict(Counter(worker["host"] for worker in client.scheduler_info(n_workers=-1)["workers"].values()))


def workers_of(client: Client) -> Workers:
    """Return the number of workers, and the smallest number of threads and memory limit among them.

    If all workers have just been lost, describe a single one without a limit, because new ones are being waited for.
    """
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    limits = [worker["memory_limit"] or 0 for worker in workers]
    # without a nanny, workers are threads of one process or unsupervised: their limit is not enforced
    limit = min(limits, default=0) if all(worker["nanny"] for worker in workers) else 0
    return Workers(max(len(limits), 1), min((worker["nthreads"] for worker in workers), default=1), limit)


def worker_memory(client: Client) -> int:
    """Return the sum of the memory limits of all workers in bytes; 0 if they have none."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return sum(worker["memory_limit"] or 0 for worker in workers)


class Workers(NamedTuple):
    """Size of a cluster."""

    n: int
    """Number of workers."""
    threads: int
    """Threads per worker."""
    limit: int
    """Memory limit per worker in bytes; 0: no limit."""
