"""Dask measures time by the clock of the day: when that is set back, its streams and heartbeats wait for so long."""

from __future__ import annotations

import sys
import time
from typing import Any

from distributed import Worker, WorkerPlugin
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
