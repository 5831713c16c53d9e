"""A cluster of separate processes, each of which can be measured or killed on its own."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from distributed import Client

COMMANDS = Path(sys.executable).parent
WORKERS = 2


class Processes:
    """One scheduler and its workers, each with a nanny, on the loopback interface.

    Parameters
    ----------
    folder
        Folder for the logs and for the local files of the workers.
    memory
        Memory limit of each worker.
    preload
        Python file that every worker runs at start-up.
    """

    def __init__(self, folder: Path, memory: str = "2GiB", preload: Path | None = None) -> None:
        self._folder, self._memory = folder, memory
        self._preload = ["--preload", str(preload)] if preload else []
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self._port = free.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self._port}"
        self._started: list[subprocess.Popen[bytes]] = []

    def start(self) -> None:
        """Start the scheduler and the workers, and wait until all are connected."""
        listen = ["--host", "127.0.0.1"]
        command = ["scheduler", *listen, "--port", str(self._port), "--dashboard-address", "127.0.0.1:0"]
        self.scheduler = psutil.Process(self._start(command).pid)
        options = ["--nthreads", "1", "--memory-limit", self._memory, "--local-directory", str(self._folder)]
        worker = ["worker", self.address, *listen, *options, "--dashboard-address", "127.0.0.1:0", *self._preload]
        for _ in range(WORKERS):
            self._start(worker)
        with Client(self.address, timeout=60, set_as_default=False) as client:
            client.wait_for_workers(WORKERS, timeout=60)

    def workers(self) -> list[psutil.Process]:
        """Return the worker processes, which are children of the nannies."""
        found = []
        for nanny in self._started[1:]:
            with suppress(psutil.Error):
                found += [child for child in psutil.Process(nanny.pid).children() if "spawn_main" in _arguments(child)]
        return found

    def end(self) -> None:
        """Kill all processes and their descendants."""
        for parent in self._started:
            family = []
            with suppress(psutil.Error):
                process = psutil.Process(parent.pid)
                family = [*process.children(recursive=True), process]
            for process in family:
                with suppress(psutil.Error):
                    process.kill()
            parent.wait(30)
        self._started = []

    def _start(self, command: Sequence[str]) -> subprocess.Popen[bytes]:
        with open(self._folder / f"{command[0]}.log", "ab") as log:
            process = subprocess.Popen([COMMANDS / "dask", *command], stdout=log, stderr=log)
        self._started.append(process)
        return process


@contextmanager
def processes(folder: Path, memory: str = "2GiB") -> Iterator[Processes]:
    """Start a cluster, yield it, and kill it at the end."""
    cluster = Processes(folder, memory)
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.end()


def rss(process: psutil.Process) -> float:
    """Resident memory of a process in MiB; 0 if it has ended."""
    with suppress(psutil.Error):
        return process.memory_info().rss / 2**20
    return 0.0


def _arguments(process: psutil.Process) -> str:
    with suppress(psutil.Error):
        return " ".join(process.cmdline())
    return ""
