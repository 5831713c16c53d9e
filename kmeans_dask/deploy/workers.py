"""What the workers have, and what they do: memory, dashboard, performance report."""

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
    """Return the address of the dashboard of a client's scheduler, if that has one."""
    return str(client.dashboard_link)


@contextmanager
def recorded(path: Path | None) -> Iterator[None]:
    """Record what the workers of the current client do, and publish Dask's performance report.

    Parameters
    ----------
    path
        HTML file, with all its scripts inside; None: nothing is recorded.

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
    """Return how many workers there are on each host."""
    return dict(Counter(worker["host"] for worker in client.scheduler_info(n_workers=-1)["workers"].values()))


def workers_of(client: Client) -> Workers:
    """Return how many workers there are, and the threads and the memory limit of the one with the least.

    Where all have just gone it is one without a limit: new ones are waited for.
    """
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    limits = [worker["memory_limit"] or 0 for worker in workers]
    # threads of one process share its limit, which nobody enforces
    least = min(limits, default=0) if all(worker["nanny"] for worker in workers) else 0
    return Workers(max(len(limits), 1), min((worker["nthreads"] for worker in workers), default=1), least)


def worker_memory(client: Client) -> int:
    """Return the memory limits of all workers together, in bytes; 0 if they have none."""
    workers = client.scheduler_info(n_workers=-1)["workers"].values()
    return sum(worker["memory_limit"] or 0 for worker in workers)


class Workers(NamedTuple):
    """What a cluster has."""

    n: int
    threads: int
    """Of one worker."""
    limit: int
    """Bytes of the worker with the least; 0: none has a limit."""
