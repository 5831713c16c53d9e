"""Commands in separate processes, killed or held at chosen moments."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Event, Thread

import pytest

COMMANDS = Path(sys.executable).parent
"""Folder of the installed commands ``kmeans-dask`` and ``dask``."""


@contextmanager
def meanwhile(function: Callable[[Event], object]) -> Iterator[None]:
    """Run a function in a thread during the block; the event that it receives is set at the end of the block."""
    ended = Event()
    thread = Thread(target=function, args=[ended])
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Process:
    """A command in its own process group, so that it can be killed together with its child processes."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        self._log = folder / f"{time.monotonic_ns()}.log"
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                arguments, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    @property
    def output(self) -> str:
        """Output so far: standard output and standard error."""
        return self._log.read_text(errors="replace")  # the last character may be half-written

    def wait(self, seconds: float = 240) -> int:
        return self._process.wait(seconds)

    def wait_until(self, condition: Callable[[], object], seconds: float = 120, pause: float = 0.01) -> None:
        """Wait for a condition while the command runs."""
        limit = time.monotonic() + seconds
        while not condition():
            assert self._process.poll() is None, f"ended too early:\n{self.output}"
            assert time.monotonic() < limit, f"timed out:\n{self.output}"
            time.sleep(pause)

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to the whole process group."""
        os.killpg(self._process.pid, number)

    def end(self) -> None:
        """Kill whatever is left of the process group."""
        with suppress(ProcessLookupError):  # the group may have ended already
            self.signal_all(signal.SIGKILL)
        self._process.wait(30)


PLANTED = """
import os, sys, time
from fnmatch import fnmatch
from PIL.PngImagePlugin import PngImageFile

gate, moment = os.environ["HELD_UNTIL"], os.environ.get("SIGNALLED_AT")
prepare = PngImageFile.load_prepare

def decode_later(self):
    while self.info.get("Comment") == "held" and not os.path.exists(gate):
        time.sleep(0.01)
    prepare(self)

PngImageFile.load_prepare = decode_later
if moment:
    number, left, pattern = moment.split(maxsplit=2)
    left = int(left)

    def signal_all(event, arguments):
        global left
        if event == "os.rename" and fnmatch(str(arguments[1]), pattern):
            left -= 1
            if left == 0:
                os.killpg(0, int(number))

    sys.addaudithook(signal_all)
"""
"""Source of a ``sitecustomize`` module, which Python imports at start-up."""


class Planted:
    """Inject code into started processes that stops or signals them at exact moments, however fast the machine is."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self._gate, self._patch = folder / "gate", patch
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(PLANTED)
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH")))))
        patch.setenv("HELD_UNTIL", str(self._gate))

    def hold(self) -> None:
        """Block the decoding of images marked by `hold_later` until `let_go`; this is also the initial state."""
        self._gate.unlink(missing_ok=True)

    def let_go(self) -> None:
        """Unblock the decoding of marked images."""
        self._gate.touch()

    @contextmanager
    def signalled(self, number: signal.Signals, pattern: str, nth: int) -> Iterator[None]:
        """Signal the whole process group when a process started in the block renames its n-th file to a matching name.

        The signal is sent before the rename takes place.
        """
        with self._patch.context() as patch:
            patch.setenv("SIGNALLED_AT", f"{int(number)} {nth} {pattern}")
            yield
