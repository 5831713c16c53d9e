"""What a job stands on fails: one line, and what was half-written counts for nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from kmeans_dask.errors import JobError, UserError
from kmeans_dask.pipeline.driver.failures import explained


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/run/x"), "no space left on the disk (/run/x)"),
        (OSError("[Errno 28] Error writing bytes. Detail: [errno 28] No space left on device"), "no space left on the"),
        (OSError(errno.ESTALE, "Stale file handle"), "the file system went away"),
        (PermissionError(errno.EACCES, "Permission denied", "/run/y"), "no permission (/run/y)"),
        (OSError(errno.EROFS, "Read-only file system"), "the file system is read-only now"),
    ],
)
def test_errors_of_the_file_system_are_one_line(tmp_path: Path, error: OSError, reason: str):
    with pytest.raises(JobError) as said, explained(tmp_path):
        raise error

    assert str(said.value).startswith(f"cannot write in {tmp_path}: {reason}")
    assert str(said.value).endswith("the same command goes on from here")


def test_a_run_folder_that_went_away(tmp_path: Path):
    with pytest.raises(JobError, match=r"went away \(is its file system still mounted\?\)"), explained(tmp_path):
        os.stat(tmp_path / "collection.zarr")


def test_other_errors_are_left_as_they_are(tmp_path: Path):
    (tmp_path / "run.json").touch()
    with pytest.raises(FileNotFoundError), explained(tmp_path):
        os.stat(tmp_path / "collection.zarr")
    with pytest.raises(ZeroDivisionError), explained(tmp_path):
        raise ZeroDivisionError
    with pytest.raises(UserError, match="yours"), explained(tmp_path):
        raise UserError("yours")
