"""The log of a driver: a file of JSON lines for every start of a driver, and how it is shown."""

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

_LOGGERS = (LOG.name, "dask", "distributed", "distributed.client")
"""Loggers of this package and of Dask; the last two do not propagate to their parents."""


class _JsonLines(logging.Formatter):
    """Format records as JSON: time (UTC), level, stage, message, and the facts of ``extra={"facts": {...}}``."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one JSON line."""
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
    """Write records as lines of a file. Not a StreamHandler, because Dask sets the level of those on its loggers."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        self._file = path.open("a", encoding="utf-8") if is_local(path) else io.StringIO()
        self._published, self._abandoned = 0, False
        self.setFormatter(_JsonLines())
        self.addFilter(_first_time)

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line immediately."""
        with suppress(OSError):  # a full disk is reported by the work itself
            self._file.write(self.format(record) + "\n")
            self._file.flush()

    def flush(self) -> None:
        """Rewrite the object in a store, which cannot append; a local file is always up to date."""
        if isinstance(self._file, io.StringIO) and self._file.tell() > self._published:
            self._published = self._file.tell()
            self._path.write_text(self._file.getvalue(), encoding="utf-8")

    def abandon(self) -> None:
        """Stop writing, because the object store is lost."""
        self._abandoned = True

    def close(self) -> None:
        """Write the remaining lines and close the file."""
        with suppress(Exception):  # a failing disk or store is reported by the work itself
            if not self._abandoned:
                self.flush()
            self._file.close()
        super().close()


_stage: str | None = None
"""Stage that is running in this process."""


@contextmanager
def in_stage(name: str) -> Iterator[None]:
    """Log the block under the name of a stage; an error keeps the name, for the lines that report it."""
    global _stage
    _stage = name
    yield
    _stage = None


def current_stage() -> str | None:
    """Return the stage that is running in this process, or None."""
    return _stage


@contextmanager
def logged(path: Path) -> Iterator[Log]:
    """Log the output of this process, and warnings of Dask and Python, to a file.

    Parameters
    ----------
    path
        Log file; lines are appended as they come. An object in a store is only written by `Log.flush`.

    Yields
    ------
    Log
    """
    make_folder(path.parent)
    handler = Log(path)
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    global _stage
    _stage = None
    level, show = LOG.level, warnings.showwarning
    LOG.setLevel(logging.INFO)
    for logger in loggers:
        logger.addHandler(handler)

    def show_and_log(message: Warning | str, category: type[Warning], *args: Any, **kwargs: Any) -> None:
        LOG.warning(f"{category.__name__}: {message}")
        show(message, category, *args, **kwargs)

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


def _first_time(record: logging.LogRecord) -> bool:
    """Accept records of this package and warnings of Dask, each once even if a logger and its parent both emit it."""
    if "logged" in record.__dict__ or not (record.name == LOG.name or record.levelno >= logging.WARNING):
        return False
    record.__dict__["logged"] = True
    return True


def show_log(lines: Iterable[str]) -> None:
    """Print log lines in readable form: time, stage, level unless it is info, message."""
    for line in lines:
        entry = json.loads(line)
        level = "" if entry["level"] == "info" else f"{entry['level'].upper()} "
        stage = f"[{entry['stage']}] " if entry["stage"] else ""
        show_line(f"{entry['time'][:19].replace('T', ' ')} {stage}{level}{entry['message']}")
