"""One driver at a time works on a run folder, and says so in it once a second.

Every start of a driver creates ``drivers/<number>.json`` with the next number; the highest number has the run. Numbers
only grow: who takes over a dead driver's run creates the number after it, which of several takers one can. While it
works, a driver writes its own file again once a second, with a counter: whether a driver on another machine is alive
is seen by its counter moving, so no clock and no difference of two clocks matters.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

from kmeans_dask.errors import UserError
from kmeans_dask.storage.publish import create, read_json, remove, write_json

BEAT_SECONDS = 1.0
"""A driver writes its file so often."""

WATCH_SECONDS = 10.0
"""A driver elsewhere whose counter has not moved for so long is dead: ten beats."""


class LockLostError(RuntimeError):
    """Another driver has taken the run over."""


class Lock:
    """A run that this process works on.

    Attributes
    ----------
    number
        How many drivers have been started on this run, this one included.
    job
        Key of the submitted job that this driver belongs to; None for a driver that a person has started.
    before
        Record of the driver before this one; None if this is the first.
    ending
        Whether the work is over, well or not, so that nothing is to be interrupted any more.
    """

    def __init__(self, folder: Path, record: dict[str, Any], before: dict[str, Any] | None) -> None:
        self._folder = folder
        self._record = record
        self.number: int = record["number"]
        self.job: str | None = record["job"]
        self.before = before
        self.ending = False

    @property
    def took_over(self) -> str | None:
        """Words about the dead driver whose run was taken over; None if the last one had ended by itself."""
        return None if self.before is None or self.before["ended"] else told(self.before)

    def beat(self, progress: Mapping[str, Any]) -> None:
        """Say that this driver is alive, and how far it is.

        Parameters
        ----------
        progress
            Facts that can be JSON.

        Raises
        ------
        LockLostError
            The run belongs to another driver.
        FileNotFoundError
            The run folder has gone.
        OSError
            The run folder cannot be reached.
        """
        last = last_driver(self._folder)
        if last is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._folder))
        if last["token"] != self._record["token"]:
            raise LockLostError(f"{told(last)} works on it now")
        self._record.update(progress=dict(progress), beats=self._record["beats"] + 1)
        self._write()

    def release(self) -> None:
        """Say that this driver has ended; the file stays, so that numbers grow."""
        last = last_driver(self._folder)
        if last is not None and last["token"] == self._record["token"]:
            self._record["ended"] = True
            self._write()

    def _write(self) -> None:
        write_json(_file(self._folder, self.number), self._record)


def take(folder: Path, command: str, job: str | None = None) -> Lock:
    """Take a run for this process.

    Parameters
    ----------
    folder
        ``drivers`` in the run folder; need not exist.
    command
        What this process was asked to do, for people.
    job
        Name of the submitted job that this driver belongs to.

    Returns
    -------
    Lock

    Raises
    ------
    UserError
        Another driver works on the run.
    """
    while True:
        last = refuse_if_held(folder)
        number = 1 if last is None else last["number"] + 1
        record: dict[str, Any] = {
            "number": number, "token": uuid4().hex, "host": platform.node(), "machine": _machine(), "pid": os.getpid(),
            "process_started": _start_of(os.getpid()), "command": command, "job": job,
            "beats": 0, "ended": False, "progress": {},
        }  # fmt: skip
        if not create(_file(folder, number), json.dumps(record)) and _read(folder, number) != record:
            continue  # another taker was first: it is alive
        if max(_numbers(folder)) > number:  # so old was what was seen that the name had been free again
            remove(_file(folder, number))
            continue
        for older in _numbers(folder):
            if older < number:
                remove(_file(folder, older))
        return Lock(folder, record, last)


def refuse_if_held(folder: Path) -> dict[str, Any] | None:
    """Refuse a run that a driver works on; return the record of its last driver, which does not.

    Parameters
    ----------
    folder
        ``drivers`` in the run folder.

    Returns
    -------
    dict
        As of `last_driver`.

    Raises
    ------
    UserError
        A driver works on the run.
    """
    last = last_driver(folder)
    if last is not None and is_alive(folder, last):
        run = folder.parent
        raise UserError(
            f"{run} is being worked on by {told(last)}; wait for its end, or end it with: kmeans-dask cancel {run}"
        )
    return last


def last_driver(folder: Path) -> dict[str, Any] | None:
    """Return the record of the driver that was started last on a run; None if none has been.

    Parameters
    ----------
    folder
        ``drivers`` in the run folder.

    Returns
    -------
    dict
        number (of driver starts), token, host, machine, pid, process_started, command, job, beats, ended, progress.
    """
    while numbers := _numbers(folder):
        with suppress(FileNotFoundError):  # a newer one has removed it
            return _read(folder, max(numbers))
    return None


def _read(folder: Path, number: int) -> dict[str, Any]:
    try:
        return dict(read_json(_file(folder, number)))
    except ValueError:  # being written, where it cannot be linked: who wrote it is unknown until it beats
        return {
            "number": number, "token": "", "host": "?", "machine": "", "pid": 0, "process_started": "", "command": "?",
            "job": None, "beats": -1, "ended": False, "progress": {},
        }  # fmt: skip


def is_alive(folder: Path, seen: Mapping[str, Any]) -> bool:
    """Whether a driver is still at work. On its own machine that is known at once, elsewhere after 1 to 10 seconds.

    Parameters
    ----------
    folder
        ``drivers`` in the run folder.
    seen
        Its record, from `last_driver`.

    Returns
    -------
    bool
    """
    if seen["ended"]:
        return False
    if seen["machine"] and seen["machine"] == _machine() and not _is_hidden(seen["pid"]):
        return bool(_start_of(seen["pid"]) == seen["process_started"])
    end = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < end:
        time.sleep(BEAT_SECONDS / 2)
        now = last_driver(folder)
        if now is None or (now["token"] == seen["token"] and now["ended"]):
            return False
        if (now["token"], now["beats"]) != (seen["token"], seen["beats"]):
            return True
    return False


def told(record: Mapping[str, Any]) -> str:
    """Say which driver a record is of."""
    return f"process {record['pid']} on {record['host']} ({record['command']})"


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number}.json"


def _numbers(folder: Path) -> list[int]:
    try:
        return [int(path.stem) for path in folder.iterdir() if path.suffix == ".json" and path.stem.isdigit()]
    except (FileNotFoundError, NotADirectoryError):  # the second of an object store
        return []


def _machine() -> str:
    """Name what process numbers are unique in: this start of this machine, and the container; "" where not known."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _start_of(pid: int) -> str | None:
    """Return when a process of this machine was started, in ticks since the machine was; None if it does not run."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]  # of a process that was killed and not yet collected: Z


def _is_hidden(pid: int) -> bool:
    """Whether it is a process of somebody else, whom the system tells nothing about."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return not Path(f"/proc/{pid}/stat").exists()
    except OSError:
        pass
    return False
