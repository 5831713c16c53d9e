"""The log of a driver: one JSON object a line, a file for every start of a driver; and showing it."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kmeans_dask.errors import without_secrets
from kmeans_dask.pipeline.console import LOG, show_line
from kmeans_dask.storage.object_store import is_local, make_folder

_OURS_AND_DASKS = (LOG.name, "dask", "distributed", "distributed.client")
"""Loggers; Dask lets its last two hand nothing upwards."""


class _JsonLines(logging.Formatter):
    """Time (UTC), level, stage, message, and the facts that were given as ``extra={"facts": {...}}``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "stage": _stage,
            "message": without_secrets(record.getMessage()),
        }
        if record.name != LOG.name:
            entry["logger"] = record.name
        entry |= getattr(record, "facts", {})
        if record.exc_info:
            entry["traceback"] = without_secrets(self.formatException(record.exc_info))
        return json.dumps(entry, default=str)


class Log(logging.Handler):
    """Records as lines of a file. Dask sets the level of all stream handlers of its loggers: this is none."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._file = path.open("a", encoding="utf-8") if is_local(path) else io.StringIO()
        self._published, self._abandoned = 0, False
        self.setFormatter(_JsonLines())
        self.addFilter(_wanted_once)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, now."""
        with suppress(OSError):  # a full disk: the work says so
            self._file.write(self.format(record) + "\n")
            self._file.flush()

    def flush(self) -> None:
        """Write what there is to an object store, which cannot append."""
        if isinstance(self._file, io.StringIO) and self._file.tell() > self._published:
            self._published = self._file.tell()
            self._path.write_text(self._file.getvalue(), encoding="utf-8")

    def abandon(self) -> None:
        """Write nothing more: the object store is lost."""
        self._abandoned = True

    def close(self) -> None:
        """Write what there is, for the last time."""
        with suppress(Exception):  # of a disk, or what the package of an object store raises: the work says so
            if not self._abandoned:
                self.flush()
            self._file.close()
        super().close()


_stage: str | None = None


@contextmanager
def in_stage(name: str) -> Iterator[None]:
    """Log whatever happens in the block under the name of a stage, and also what is said of the error that ends it."""
    global _stage
    _stage = name
    yield
    _stage = None


def current_stage() -> str | None:
    """Return the stage that is running in this process."""
    return _stage


@contextmanager
def logged(path: Path) -> Iterator[Log]:
    """Log what this process says, and what Dask and Python warn of, to a file.

    Parameters
    ----------
    path
        File; lines are appended to it as they come. Of an object, the log is to be flushed now and then.

    Yields
    ------
    Log
    """
    make_folder(path.parent)
    handler = Log(path)
    loggers = [logging.getLogger(name) for name in _OURS_AND_DASKS]
    global _stage
    _stage = None
    level, show = LOG.level, warnings.showwarning
    LOG.setLevel(logging.INFO)
    for logger in loggers:
        logger.addHandler(handler)

    def show_and_log(message: Warning | str, category: type[Warning], *where: Any, **more: Any) -> None:
        LOG.warning(f"{category.__name__}: {message}")
        show(message, category, *where, **more)

    warnings.showwarning = show_and_log
    try:
        yield handler
    finally:
        if warnings.showwarning is show_and_log:
            warnings.showwarning = show
        for logger in loggers:
            logger.removeHandler(handler)
        LOG.setLevel(level)
        handler.close()


def _wanted_once(record: logging.LogRecord) -> bool:
    """Let pass what we say and what Dask warns of; once, though it may come from a logger and from the one above."""
    if "logged" in record.__dict__ or not (record.name == LOG.name or record.levelno >= logging.WARNING):
        return False
    record.__dict__["logged"] = True
    return True


def show_log(lines: Iterable[str]) -> None:
    """Print lines of a log for people: time, stage, message; what is no information says what it is."""
    for line in lines:
        entry = json.loads(line)
        level = "" if entry["level"] == "info" else f"{entry['level'].upper()} "
        stage = f"[{entry['stage']}] " if entry["stage"] else ""
        show_line(f"{entry['time'][:19].replace('T', ' ')} {stage}{level}{entry['message']}")
