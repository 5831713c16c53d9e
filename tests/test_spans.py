"""A scheduler of many jobs does not keep what it knows of each for ever."""

from __future__ import annotations

import time
from collections.abc import Callable

import dask.array as da
from distributed import Client, LocalCluster, Scheduler, span

from kmeans_dask.cluster.spans import spans_forgotten


def spans_of(dask_scheduler: Scheduler) -> set[tuple[str, ...]]:
    known = dask_scheduler.extensions["spans"]
    names = [*known.root_spans, *known.spans_search_by_name["default",], *known.spans_search_by_tag["default"]]
    assert {s.id for s in names} <= set(known.spans)
    return {(s.name[0], s.id) for s in known.spans.values()}


def sums(n: int) -> list[float]:
    return [float(da.ones(100, chunks=10).sum().compute()) for _ in range(n)]


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(200):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("it never happened")


def test_the_spans_of_a_job_are_forgotten_and_no_others() -> None:
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        sums(2)
        before = client.run_on_scheduler(spans_of)
        with spans_forgotten(client, after_seconds=0.5):
            sums(3)
            with span("somebody's"):
                sums(1)
            during = client.run_on_scheduler(spans_of)
        assert client.run_on_scheduler(spans_of) == during  # workers may still tell of them
        named = {s for s in during if s[0] == "somebody's"}
        assert len(before) >= 1
        assert len(during - before - named) >= 1
        assert len(named) == 1

        wait_until(lambda: client.run_on_scheduler(spans_of) == before | named)
        assert sums(1) == [100.0]
