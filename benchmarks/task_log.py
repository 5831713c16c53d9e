"""Preload of a Dask worker: a line in the file TASK_LOG for every task that begins: repeated ones can be counted."""

from __future__ import annotations

import os
from typing import Any

from distributed import Worker, WorkerPlugin


class TaskLog(WorkerPlugin):
    """Writes the key of every task that begins; a kill loses no line."""

    def setup(self, worker: Worker) -> None:
        """Open the file."""
        self._file = os.open(os.environ["TASK_LOG"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def transition(self, key: Any, start: str, finish: str, **kwargs: Any) -> None:
        """Write the key of a task that begins."""
        if finish == "executing":
            os.write(self._file, f"{key}\n".encode())


async def dask_setup(worker: Worker) -> None:
    """Be called when a worker starts."""
    await worker.plugin_add(plugin=TaskLog(), name="task-log")
