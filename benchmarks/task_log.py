"""Preload script for Dask workers that logs the key of every started task to the file $TASK_LOG."""

from __future__ import annotations

import os
from typing import Any

from distributed import Worker, WorkerPlugin


class TaskLog(WorkerPlugin):
    """Log the key of every started task, unbuffered so that a kill loses no line."""

    def setup(self, worker: Worker) -> None:
        """Open the log file."""
        self._file = os.open(os.environ["TASK_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def transition(self, key: Any, start: str, finish: str, **kwargs: Any) -> None:
        """Log the key of a task that starts executing."""
        if finish == "executing":
            os.write(self._file, f"{key}\n".encode())


async def dask_setup(worker: Worker) -> None:
    """Register the plugin when a worker starts."""
    await worker.plugin_add(plugin=TaskLog(), name="task-log")
