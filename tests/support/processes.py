"""Commands in processes of their own, killed or held at chosen moments."""

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
"""Where the project's own command and Dask's were installed."""


@contextmanager
def meanwhile(function: Callable[[Event], object]) -> Iterator[None]:
    """Run a function in a thread until the event that it is given is set, at the end of the block."""
    ended = Event()
    thread = Thread(target=function, args=[ended])
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


class Process:
    """A command in a process group of its own, so that it can be killed with all that it started."""

    def __init__(self, arguments: list[str], folder: Path) -> None:
        self._log = folder / f"{time.monotonic_ns()}.log"
        with open(self._log, "wb") as log:
            self._process = subprocess.Popen(
                arguments, cwd=folder, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    @property
    def output(self) -> str:
        """What it has written so far."""
        return self._log.read_text(errors="replace")  # the last character may be half-written

    def wait(self, seconds: float = 240) -> int:
        return self._process.wait(seconds)

    def wait_until(self, condition: Callable[[], object], seconds: float = 120, pause: float = 0.01) -> None:
        """Wait for something that the running command brings about."""
        limit = time.monotonic() + seconds
        while not condition():
            assert self._process.poll() is None, f"ended too early:\n{self.output}"
            assert time.monotonic() < limit, f"waited in vain:\n{self.output}"
            time.sleep(pause)

    def signal_all(self, number: signal.Signals) -> None:
        """Send a signal to it and to all that it started."""
        os.killpg(self._process.pid, number)

    def end(self) -> None:
        """Kill what is left of it."""
        with suppress(ProcessLookupError):  # all of them may have ended
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
"""In a module of the name that Python imports when it starts."""


class Planted:
    """Processes that are started meet a moment that no machine is too fast or too slow for."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self._gate, self._patch = folder / "gate", patch
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(PLANTED)
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(folder), os.environ.get("PYTHONPATH")))))
        patch.setenv("HELD_UNTIL", str(self._gate))

    def hold(self) -> None:
        """Have whoever decodes an image that is marked by `hold_later` wait until `let_go`, as from the start."""
        self._gate.unlink(missing_ok=True)

    def let_go(self) -> None:
        """Let whoever waits for marked images decode them."""
        self._gate.touch()

    @contextmanager
    def signalled(self, number: signal.Signals, pattern: str, nth: int) -> Iterator[None]:
        """Of processes that are started in the block, all get a signal when one renames its n-th file to such a name.

        The file has not got its name when the signal is sent.
        """
        with self._patch.context() as patch:
            patch.setenv("SIGNALLED_AT", f"{int(number)} {nth} {pattern}")
            yield
