"""The lock of a run folder: one driver at a time, with a heartbeat once a second.

Each driver that starts creates ``drivers/<number>.json`` with the next number; the highest number holds the lock.
Numbers only grow: taking over from a dead driver means creating the number after its own, which only one of several
contenders can do. While it works, a driver rewrites its own file once a second with an incremented counter. A driver
on another machine is alive if its counter moves, so neither clocks nor their differences matter.
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
"""Interval between heartbeats."""

WATCH_SECONDS = 10.0
"""A driver on another machine is dead if its counter has not moved for this long: ten beats."""


class LockLostError(RuntimeError):
    """Another driver has taken over the run."""


class Lock:
    """The lock of a run, held by this process.

    Attributes
    ----------
    number : int
        Number of drivers started on this run so far, including this one.
    job : str or None
        Key of the submitted job that this driver belongs to; None if it was started by hand.
    previous : dict or None
        Record of the previous driver; None if this is the first.
    ending : bool
        Whether the work has ended, successfully or not, so that it must not be interrupted any more.
    """

    def __init__(self, folder: Path, record: dict[str, Any], previous: dict[str, Any] | None) -> None:
        self._folder = folder
        self._record = record
        self.number: int = record["number"]
        self.job: str | None = record["job"]
        self.previous = previous
        self.ending = False

    @property
    def took_over(self) -> str | None:
        """Description of the dead driver that this one replaces; None if the previous driver ended properly."""
        return None if self.previous is None or self.previous["ended"] else describe_driver(self.previous)

    def beat(self, progress: Mapping[str, Any]) -> None:
        """Write a heartbeat with the current progress.

        Parameters
        ----------
        progress
            JSON values.

        Raises
        ------
        LockLostError
            Another driver holds the run.
        FileNotFoundError
            The run folder no longer exists.
        OSError
            The run folder cannot be reached.
        """
        last = last_driver(self._folder)
        if last is None:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(self._folder))
        if last["token"] != self._record["token"]:
            raise LockLostError(f"{describe_driver(last)} is working on it now")
        self._record.update(progress=dict(progress), beats=self._record["beats"] + 1)
        self._write()

    def release(self) -> None:
        """Record that this driver has ended; its file stays, so that numbers keep growing."""
        last = last_driver(self._folder)
        if last is not None and last["token"] == self._record["token"]:
            self._record["ended"] = True
            self._write()

    def _write(self) -> None:
        write_json(_file(self._folder, self.number), self._record)


def acquire(folder: Path, command: str, job: str | None = None) -> Lock:
    """Acquire the lock of a run for this process.

    Parameters
    ----------
    folder
        ``drivers`` in the run folder; it need not exist.
    command
        Command line of this process, for messages.
    job
        Key of the submitted job that this driver belongs to.

    Returns
    -------
    Lock

    Raises
    ------
    UserError
        Another driver is working on the run.
    """
    while True:
        last = refuse_if_held(folder)
        number = 1 if last is None else last["number"] + 1
        record: dict[str, Any] = {
            "number": number, "token": uuid4().hex, "host": platform.node(), "machine": _machine(), "pid": os.getpid(),
            "process_started": _start_time_of(os.getpid()), "command": command, "job": job,
            "beats": 0, "ended": False, "progress": {},
        }  # fmt: skip
        if not create(_file(folder, number), json.dumps(record)) and _read(folder, number) != record:
            continue  # another contender was first, and it is alive
        if max(_numbers(folder)) > number:  # the listing was stale: a newer driver had already removed this number
            remove(_file(folder, number))
            continue
        for older in _numbers(folder):
            if older < number:
                remove(_file(folder, older))
        return Lock(folder, record, last)


def refuse_if_held(folder: Path) -> dict[str, Any] | None:
    """Raise if a driver is working on a run; else return the record of its last driver.

    Parameters
    ----------
    folder
        ``drivers`` in the run folder.

    Returns
    -------
    dict or None
        As for `last_driver`.

    Raises
    ------
    UserError
        A driver is working on the run.
    """
    last = last_driver(folder)
    if last is not None and is_alive(folder, last):
        run = folder.parent
        raise UserError(
            f"{run} is in use by {describe_driver(last)}; wait for it, or stop it with: kmeans-dask cancel {run}"
        )
    return last


def last_driver(folder: Path) -> dict[str, Any] | None:
    """Return the record of the driver that was started last on a run.

    Parameters
    ----------
    folder
        ``drivers`` in the run folder.

    Returns
    -------
    dict or None
        Its record, with the keys that `acquire` writes; None if no driver has been started.
    """
    while numbers := _numbers(folder):
        with suppress(FileNotFoundError):  # removed by a newer driver
            return _read(folder, max(numbers))
    return None


def _read(folder: Path, number: int) -> dict[str, Any]:
    try:
        return dict(read_json(_file(folder, number)))
    except ValueError:  # still being written, on a file system without links: unknown until its first heartbeat
        return {
            "number": number, "token": "", "host": "?", "machine": "", "pid": 0, "process_started": "", "command": "?",
            "job": None, "beats": -1, "ended": False, "progress": {},
        }  # fmt: skip


def is_alive(folder: Path, seen: Mapping[str, Any]) -> bool:
    """Return whether a driver is still running: at once on its own machine, after 1 to 10 seconds on another one.

    Parameters
    ----------
    folder
        ``drivers`` in the run folder.
    seen
        Record of the driver, from `last_driver`.

    Returns
    -------
    bool
    """
    if seen["ended"]:
        return False
    if seen["machine"] and seen["machine"] == _machine() and not _is_hidden(seen["pid"]):
        return bool(_start_time_of(seen["pid"]) == seen["process_started"])
    end = time.monotonic() + WATCH_SECONDS
    while time.monotonic() < end:
        time.sleep(BEAT_SECONDS / 2)
        now = last_driver(folder)
        if now is None or (now["token"] == seen["token"] and now["ended"]):
            return False
        if (now["token"], now["beats"]) != (seen["token"], seen["beats"]):
            return True
    return False


def describe_driver(record: Mapping[str, Any]) -> str:
    """Describe the driver of a record: process, host and command."""
    return f"process {record['pid']} on {record['host']} ({record['command']})"


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number}.json"


def _numbers(folder: Path) -> list[int]:
    try:
        return [int(path.stem) for path in folder.iterdir() if path.suffix == ".json" and path.stem.isdigit()]
    except (FileNotFoundError, NotADirectoryError):  # NotADirectoryError: from an object store
        return []


def _machine() -> str:
    """Identify the scope in which process ids are unique, boot and PID namespace; "" if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _start_time_of(pid: int) -> str | None:
    """Return when a local process was started, in clock ticks since boot; None if it is not running."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] in "ZX" else fields[19]  # Z: killed, but not yet reaped


def _is_hidden(pid: int) -> bool:
    """Return whether a process belongs to another user and the system hides it (hidepid)."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return not Path(f"/proc/{pid}/stat").exists()
    except OSError:
        pass
    return False
