"""Failures around a job, in one line each: lost schedulers and workers, full disks, lost mounts and stores."""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from kmeans_dask.errors import JobError, UserError
from kmeans_dask.pipeline.driver.stopping import RERUN
from kmeans_dask.storage.object_store import UnreachableError, is_local, storage_failure


class StoreLostError(JobError):
    """The object store of the run folder is lost. Send it no more requests: each would be retried for half a minute."""


@contextmanager
def explained(folder: Path, client: Any = None) -> Iterator[None]:
    """Turn failures of the cluster, disk or store into one line; other errors pass through.

    Parameters
    ----------
    folder
        Run folder; it exists.
    client
        Client connected to the workers; None if the block uses none.

    Raises
    ------
    JobError
        The scheduler, all workers or the run folder are lost, or the folder cannot be written.
    """
    try:
        yield
    except StoreLostError:
        raise
    except (Exception, CancelledError) as error:
        if reason := _folder_failure(error, folder):
            raise (JobError if is_local(folder) else StoreLostError)(f"{reason}; {RERUN}") from None
        if not isinstance(error, (UserError, JobError)) and (reason := _cluster_failure(error, client)):
            raise JobError(f"{reason}; {RERUN}") from None
        raise


def describe_lost_folder(folder: Path) -> str:
    """Return the message for a run folder that no longer exists."""
    return f"the run folder {folder} no longer exists" + (
        " (is its file system still mounted?)" if is_local(folder) else ""
    )


def _folder_failure(error: BaseException, folder: Path) -> str | None:
    if isinstance(error, UnreachableError):
        return str(error.args[0])
    if reason := storage_failure(error, folder):
        return reason
    # if the folder is gone, other code reports an unfinished collection or a missing chunk
    if isinstance(error, (FileNotFoundError, NotADirectoryError, UserError, JobError)):
        try:
            if not any((folder / name).exists() for name in ("run.json", "drivers")):
                return describe_lost_folder(folder)
        except Exception as problem:
            return storage_failure(problem, folder)
    return None


def _cluster_failure(error: BaseException, client: Any) -> str | None:
    if client is None:
        return None
    from kmeans_dask.deploy.watchdog import cluster_failure  # already imported; without workers never needed

    return cluster_failure(error, client)
