"""Dask measures time by the clock of the day: when that is set back, its streams and heartbeats wait for so long."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from distributed import Client, Scheduler, Worker, WorkerPlugin
from tornado.ioloop import IOLoop

_TIME = IOLoop.time


def measure_steadily() -> None:
    """Have Dask in this process measure time by a clock that cannot jump, and begins with the time of the day.

    distributed 2026.8 computes delays as differences of ``time.time()``. A busy stream (`distributed.batched`) whose
    clock is set back by an hour sends nothing for an hour, and the job stands still; tornado's periodic callbacks, by
    which a worker says that it is alive, wait as long. Neither can be configured, so the names of that function are
    given another one where they are imported.
    """
    if IOLoop.time is not _TIME:
        return
    ahead = time.time() - time.monotonic()

    def now(*_: Any) -> float:
        return time.monotonic() + ahead

    for name, module in list(sys.modules.items()):
        if name.startswith("distributed.") and getattr(module, "time", None) is time.time:
            vars(module)["time"] = now
    IOLoop.time = now  # type: ignore[assignment, method-assign]


class SteadyClock(WorkerPlugin):
    """The same in every worker."""

    name = "kmeans-dask-steady-clock"

    def setup(self, worker: Worker) -> None:
        """Be called when a worker has it."""
        measure_steadily()


_SECONDS = 600
"""After the job: a worker tells with its heartbeat, every few seconds, what it has spent on a span; a worker that has
been silent for 300 s is forgotten itself."""


@contextmanager
def spans_forgotten(client: Client, after_seconds: float = _SECONDS) -> Iterator[None]:
    """Have a scheduler that outlives the job forget the job's spans, which it would keep for as long as it lives.

    Every pass is a span, with its groups of tasks: 0.7 MiB a job of 14 passes on a scheduler that serves one after the
    other (https://github.com/dask/distributed/issues/7977). Spans that somebody has named are left alone.

    Parameters
    ----------
    client
        Of the scheduler.
    after_seconds
        How long after the block.
    """
    before = client.run_on_scheduler(_spans_of)
    try:
        yield
    finally:
        with suppress(Exception):  # the scheduler may be what has ended the job
            client.run_on_scheduler(_forget_later, before=before, after_seconds=after_seconds)


def _spans_of(dask_scheduler: Scheduler) -> set[str]:
    return set(dask_scheduler.extensions["spans"].spans)


def _forget_later(dask_scheduler: Scheduler, before: set[str], after_seconds: float) -> None:
    spans = dask_scheduler.extensions["spans"].spans.values()
    ours = {span.id for span in spans if span.id not in before and span.name == ("default",) and span.done}
    dask_scheduler.loop.call_later(after_seconds, _forget, dask_scheduler, ours)


def _forget(scheduler: Scheduler, ours: set[str]) -> None:
    known = scheduler.extensions["spans"]
    for id_ in ours:
        known.spans.pop(id_, None)  # another job at the same time may have taken it for its own
    for some in (known.root_spans, known.spans_search_by_name["default",], known.spans_search_by_tag["default"]):
        some[:] = [span for span in some if span.id not in ours]
