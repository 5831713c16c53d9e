"""Failures of the file system below a job give one line."""

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
        (OSError(errno.ESTALE, "Stale file handle"), "the file system is not available"),
        (PermissionError(errno.EACCES, "Permission denied", "/run/y"), "no permission (/run/y)"),
        (OSError(errno.EROFS, "Read-only file system"), "the file system is read-only"),
    ],
)
def test_file_system_errors_are_one_line(tmp_path: Path, error: OSError, reason: str):
    with pytest.raises(JobError) as raised, explained(tmp_path):
        raise error

    assert str(raised.value).startswith(f"cannot write in {tmp_path}: {reason}")
    assert str(raised.value).endswith("rerun the same command to resume")


def test_missing_run_folder(tmp_path: Path):
    with pytest.raises(JobError, match=r"no longer exists \(is its file system still mounted\?\)"), explained(tmp_path):
        os.stat(tmp_path / "collection.zarr")


def test_other_errors_pass_through(tmp_path: Path):
    (tmp_path / "run.json").touch()
    with pytest.raises(FileNotFoundError), explained(tmp_path):
        os.stat(tmp_path / "collection.zarr")
    with pytest.raises(ZeroDivisionError), explained(tmp_path):
        raise ZeroDivisionError
    with pytest.raises(UserError, match="yours"), explained(tmp_path):
        raise UserError("yours")
