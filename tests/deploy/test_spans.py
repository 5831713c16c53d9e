"""A scheduler that serves many jobs does not keep their spans forever."""

from __future__ import annotations

import time
from collections.abc import Callable

import dask.array as da
from distributed import Scheduler, span

from kmeans_dask.config.cluster import Cluster
from kmeans_dask.deploy.client import connect
from kmeans_dask.deploy.dask_patches import forget_spans


def spans_of(dask_scheduler: Scheduler) -> set[tuple[str, ...]]:
    known = dask_scheduler.extensions["spans"]
    names = [*known.root_spans, *known.spans_search_by_name["default",], *known.spans_search_by_tag["default"]]
    assert {s.id for s in names} <= set(known.spans)
    return {(s.name[0], s.id) for s in known.spans.values()}


def last_seen(dask_scheduler: Scheduler) -> float:
    return min(worker.last_seen for worker in dask_scheduler.workers.values())


def compute(*values: int) -> None:
    """Run one computation per value; they share no tasks."""
    for value in values:
        assert da.full(100, value, chunks=10).sum().compute() == 100 * value


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(1200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("timed out")


def test_forget_spans_removes_only_unnamed_spans_of_the_job() -> None:
    with connect(Cluster(kind="threads", n_workers=1)) as client:
        with forget_spans(client, after_seconds=3600):
            compute(1, 2)
        before = client.run_on_scheduler(spans_of)
        assert len(before) >= 1  # workers may still report on them
        with forget_spans(client, after_seconds=0.1):
            compute(3, 4, 5)
            with span("named"):
                compute(6)
            during = client.run_on_scheduler(spans_of)
            for _ in range(2):  # the second heartbeat reports on all of these spans, later ones on none
                seen = client.run_on_scheduler(last_seen)
                wait_until(lambda seen=seen: client.run_on_scheduler(last_seen) > seen)
        named = {s for s in during if s[0] == "named"}
        assert len(during - before - named) >= 1
        assert len(named) == 1

        wait_until(lambda: client.run_on_scheduler(spans_of) == before | named)
        compute(7)
