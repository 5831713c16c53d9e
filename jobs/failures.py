"""What goes wrong around a job, in one line each: a lost scheduler, lost workers, a full disk, a lost mount."""

from __future__ import annotations

import errno
import re
from asyncio import CancelledError
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kmeans_dask.errors import STORAGE_ERRORS, JobError, UserError
from kmeans_dask.object_store import is_local


@contextmanager
def explained(folder: Path, client: Any = None) -> Iterator[None]:
    """Make one line of a failure of what a job stands on; other errors are left as they are.

    Parameters
    ----------
    folder
        Run folder.
    client
        Of the workers; None: they are not used.

    Raises
    ------
    JobError
        The scheduler or all workers have gone, or the run folder cannot be written.
    """
    try:
        yield
    except (UserError, JobError):
        raise
    except (Exception, CancelledError) as error:
        reason = _of_files(error, folder) or _of_cluster(error, client)
        if reason is None:
            raise
        raise JobError(f"{reason}; the same command goes on from here") from None


def _of_files(error: BaseException, folder: Path) -> str | None:
    if not isinstance(error, OSError) or not is_local(folder):
        return None
    named = re.search(r"\[errno (\d+)\]", str(error), re.IGNORECASE)  # pyarrow only says it in words
    number = error.errno or (int(named[1]) if named else None)
    if number in STORAGE_ERRORS:
        return f"cannot write in {folder}: {STORAGE_ERRORS[number]} ({error.filename or folder})"
    if number in (errno.ENOENT, errno.ENOTDIR) and not (folder / "run.json").exists():
        return f"the run folder {folder} went away (is its file system still mounted?)"
    return None


def _of_cluster(error: BaseException, client: Any) -> str | None:
    if client is None:
        return None
    from kmeans_dask.cluster import lost  # imported already; a job that needs no workers is spared it

    return lost(error, client)
