"""Work around two defects of distributed: delays measured by the wall clock, and spans that are never forgotten."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from distributed import Client, Scheduler, Worker, WorkerPlugin
from tornado.ioloop import IOLoop

_TIME = IOLoop.time


def use_monotonic_time() -> None:
    """Make Dask in this process measure time by a monotonic clock that starts at the current time of day.

    distributed 2026.8 computes delays as differences of ``time.time()``. If the clock is set back by an hour, a busy
    stream (`distributed.batched`) sends nothing for an hour, and the job stalls; tornado's periodic callbacks, which
    send the heartbeats of workers, wait as long. Neither can be configured, so ``time`` is replaced in every module
    that has imported it.
    """
    if IOLoop.time is not _TIME:
        return
    offset = time.time() - time.monotonic()

    def now(*_: Any) -> float:
        return time.monotonic() + offset

    for name, module in list(sys.modules.items()):
        if name.startswith("distributed.") and getattr(module, "time", None) is time.time:
            vars(module)["time"] = now
    IOLoop.time = now  # type: ignore[assignment, method-assign]


class MonotonicTime(WorkerPlugin):
    """Call `use_monotonic_time` in every worker."""

    name = "kmeans-dask-monotonic-time"

    def setup(self, worker: Worker) -> None:
        """Patch the process of a worker."""
        use_monotonic_time()


_SECONDS = 600
"""Delay after the end of the job: heartbeats of workers, sent every few seconds, still report on its spans. A worker
that has been silent for 300 s is removed by the scheduler itself."""


@contextmanager
def forget_spans(client: Client, after_seconds: float = _SECONDS) -> Iterator[None]:
    """Remove the spans created in this context from a scheduler that outlives the job and would keep them forever.

    Every pass is a span with its task groups, 0.7 MiB for a job of 14 passes
    (https://github.com/dask/distributed/issues/7977). Named spans are kept.

    Parameters
    ----------
    client
        Client of the scheduler.
    after_seconds
        Delay in seconds between the end of the context and the removal.

    Yields
    ------
    None
    """
    before = client.run_on_scheduler(_spans_of)
    try:
        yield
    finally:
        with suppress(Exception):  # the job may have ended because the scheduler is gone
            client.run_on_scheduler(_forget_later, before=before, after_seconds=after_seconds)


def _spans_of(dask_scheduler: Scheduler) -> set[str]:
    return set(dask_scheduler.extensions["spans"].spans)


def _forget_later(dask_scheduler: Scheduler, before: set[str], after_seconds: float) -> None:
    spans = dask_scheduler.extensions["spans"].spans.values()
    span_ids = {span.id for span in spans if span.id not in before and span.name == ("default",) and span.done}
    dask_scheduler.loop.call_later(after_seconds, _forget, dask_scheduler, span_ids)


def _forget(scheduler: Scheduler, span_ids: set[str]) -> None:
    extension = scheduler.extensions["spans"]
    for id_ in span_ids:
        extension.spans.pop(id_, None)  # a concurrent job may have removed it
    by_name, by_tag = extension.spans_search_by_name["default",], extension.spans_search_by_tag["default"]
    for spans in (extension.root_spans, by_name, by_tag):
        spans[:] = [span for span in spans if span.id not in span_ids]
