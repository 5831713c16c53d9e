"""Dask clusters that run in separate processes."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from distributed import Client

from kmeans_dask.storage.publish import read_json
from tests.support.processes import COMMANDS, Process


class Running:
    """Context manager of a scheduler and its workers."""

    def __init__(self, folder: Path, workers: int) -> None:
        self.folder = folder
        self.workers = workers
        self.address = ""
        self._file = folder / "scheduler.json"
        self._processes: list[Process] = []

    def __enter__(self) -> Running:
        try:
            self._start("scheduler", "--host", "127.0.0.1", "--port", "0", "--scheduler-file", str(self._file))
            self._processes[0].wait_until(self._answers)
            self.address = read_json(self._file)["address"]
            for _ in range(self.workers):  # in a different working directory than the job
                self._start("worker", self.address, "--nthreads", "1", "--local-directory", str(self.folder))
            if self.workers:
                with Client(self.address) as client:
                    client.wait_for_workers(self.workers, timeout=120)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        for process in reversed(self._processes):
            process.end()

    def _start(self, *arguments: str) -> None:
        self._processes.append(Process([str(COMMANDS / "dask"), *arguments, "--no-dashboard"], self.folder))

    def _answers(self) -> bool:
        try:
            return "address" in read_json(self._file)
        except (FileNotFoundError, ValueError):  # missing, or half-written
            return False

    def kill_worker_process(self) -> None:
        """Kill one worker process in the middle of its task; its nanny, a separate process, restarts it."""
        with Client(self.address) as client:
            pids = client.run(os.getpid)
        os.kill(next(iter(pids.values())), signal.SIGKILL)
