"""What goes wrong around a job, in one line each: lost schedulers and workers, full disks, lost mounts and stores."""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kmeans_dask.errors import JobError, UserError
from kmeans_dask.storage.object_store import UnreachableError, is_local, storage_failure

GOES_ON = "the same command goes on from here"


class StoreLostError(JobError):
    """The object store of the run folder is lost: each further request would be tried again for half a minute."""


@contextmanager
def explained(folder: Path, client: Any = None) -> Iterator[None]:
    """Make one line of a failure of what a job stands on; other errors are left as they are.

    Parameters
    ----------
    folder
        Run folder. It has been made.
    client
        Of the workers; None: they are not used.

    Raises
    ------
    JobError
        The scheduler or all workers have gone, or the run folder has, or it cannot be written.
    """
    try:
        yield
    except StoreLostError:
        raise
    except (Exception, CancelledError) as error:
        if reason := _of_folder(error, folder):
            raise (JobError if is_local(folder) else StoreLostError)(f"{reason}; {GOES_ON}") from None
        if not isinstance(error, (UserError, JobError)) and (reason := _of_cluster(error, client)):
            raise JobError(f"{reason}; {GOES_ON}") from None
        raise


def went_away(folder: Path) -> str:
    """Say that a run folder is not there any more."""
    return f"the run folder {folder} went away" + (" (is its file system still mounted?)" if is_local(folder) else "")


def _of_folder(error: BaseException, folder: Path) -> str | None:
    if isinstance(error, UnreachableError):
        return str(error.args[0])
    if reason := storage_failure(error, folder):
        return reason
    # where nothing is left, a collection is not finished, or a chunk is missing
    if isinstance(error, (FileNotFoundError, NotADirectoryError, UserError, JobError)):
        try:
            if not any((folder / name).exists() for name in ("run.json", "drivers")):
                return went_away(folder)
        except Exception as problem:
            return storage_failure(problem, folder)
    return None


def _of_cluster(error: BaseException, client: Any) -> str | None:
    if client is None:
        return None
    from kmeans_dask.deploy.watchdog import lost  # imported already; a job that needs no workers is spared it

    return lost(error, client)
