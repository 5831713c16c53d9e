"""Run folders in an object store: their paths behave like those of a file system, as far as a run needs.

Local paths stay `pathlib.Path`, at no cost. Paths in an object store are `upath.UPath`, which is not a subclass but has
the same methods; any parameter annotated ``Path`` that belongs to a run folder may be one. An object appears whole or
not at all (one PUT, or a multipart upload that is completed last), but there are no renames and no folders.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, cast

from kmeans_dask.config.location import check_location
from kmeans_dask.errors import STORAGE_ERRORS, JobError, UserError, without_secrets

_BLOCK = 2**20
"""Read-ahead of a table in bytes; s3fs would fetch 50 MiB for a few rows of a manifest."""

_MARKERS = ("zarr.json", "rows.json")
"""Objects that mark a folder as complete: removed first, uploaded last."""

_OBJECT_ERRNOS = (errno.ENOENT, errno.EEXIST, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR)
"""Errors about a single object, not about the store."""

_DISK_ERRNOS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors that only a local disk raises; files are written there before they are uploaded to a store."""

_CLIENTS = {"botocore", "aiobotocore", "aiohttp", "s3fs", "gcsfs", "google", "adlfs", "azure", "fsspec", "urllib3"}
"""Packages that talk to object stores. Not all of their exceptions are OSErrors."""


class UnreachableError(UserError):
    """An object store refuses a request or does not respond; at the start of a command, this is a mistake of the user.

    Attributes
    ----------
    args
        A clause that names the store and the reason.
    """

    def __str__(self) -> str:
        """Return the clause and the fix."""
        return f"{super().__str__()}; check the bucket and the credentials, which are found as fsspec finds them"


def location(text: str | os.PathLike[str]) -> Path:
    """Return the path of a run folder.

    Parameters
    ----------
    text
        A local path, or a URL with one of `SCHEMES`; path objects are returned unchanged.

    Returns
    -------
    Path
        For an object store, a `UPath` without a cache of listings, because other processes write there too.

    Raises
    ------
    UserError
        The URL has another scheme, or the package for the object store is not installed.
    """
    if not isinstance(text, str):
        return cast(Path, text)
    try:
        check_location(text)
    except ValueError as error:
        raise UserError(f"{text}: a run folder {error}") from None
    if "://" not in text:
        return Path(text)
    from upath import UPath  # 0.1 s, needed only for object stores

    # otherwise s3fs asks for the size of each object first, so as to read large ones in concurrent parts
    options: dict[str, Any] = {"max_concurrency": 1} if text.startswith("s3://") else {}
    path = UPath(text, use_listings_cache=False, **options)
    try:
        assert path.fs
    except ImportError as error:
        raise UserError(f"cannot reach {text}: {error}; pip install 'kmeans-dask[remote]'") from None
    return cast(Path, path)


def is_local(path: Path) -> bool:
    """Return whether a path is in a file system of this machine, which may be a shared one."""
    return isinstance(cast(object, path), Path)


def make_folder(path: Path) -> None:
    """Create a folder and its parents; does nothing in an object store, where it might create a bucket."""
    if is_local(path):
        path.mkdir(parents=True, exist_ok=True)


def readable(path: Path) -> Path | BinaryIO:
    """Return something pyarrow can read: a local path, or an open object."""
    return path if is_local(path) else cast(Any, path).open("rb", block_size=_BLOCK)


def read(path: Path) -> bytes:
    """Return the content of a small file; an object is read in a single request, so it is never a mix of two versions.

    Opening an object takes a request of its own, and s3fs refuses to read one that has been replaced since.
    """
    if is_local(path):
        return path.read_bytes()
    fs, name = _parts(path)
    return bytes(fs.cat_file(name))


def path_or_bytes(path: Path) -> Path | BinaryIO:
    """Return something an image can be opened from: a local path, or the whole object."""
    return path if is_local(path) else BytesIO(read(path))


def total_bytes(path: Path) -> int:
    """Return the size in bytes of a file, or of all files below a folder; takes one listing in an object store."""
    if is_local(path):
        files = path.rglob("*") if path.is_dir() else [path]
        return sum(file.stat().st_size for file in files if file.is_file())
    fs, name = _parts(path)
    return sum(int(facts["size"]) for facts in fs.find(name, detail=True).values())


def put(folder: Path, name: str, data: bytes, *, replace: bool = True) -> None:
    """Write an object in a single request.

    Parameters
    ----------
    folder
        Folder in an object store.
    name
        Name of the object within the folder, with ``/``; any characters are allowed.
    data
        Content.
    replace
        Whether to replace an existing object.

    Raises
    ------
    FileExistsError
        The object exists and `replace` is false.
    """
    fs, parent = _parts(folder)
    fs.pipe_file(f"{parent}/{name}", data, **({} if replace else {"mode": "create"}))


def upload(source: Path, target: Path) -> None:
    """Upload a file as an object, or a folder as objects, its marker last.

    Parameters
    ----------
    source
        Local file or folder.
    target
        Path in an object store; anything there is replaced.
    """
    fs, name = _parts(target)
    if not source.is_dir():
        fs.put_file(str(source), name)
        return
    delete(target)
    files = [str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()]
    for is_marker in (False, True):
        batch = [file for file in files if (file in _MARKERS) == is_marker]
        if batch:
            fs.put([str(source / file) for file in batch], [f"{name}/{file}" for file in batch])


def copy(source: Path, target: Path, names: Iterable[str]) -> None:
    """Copy objects within the store, several at a time, without downloading them.

    Parameters
    ----------
    source, target
        Folders of the same object store.
    names
        Names of the objects within both folders; those missing from `source` are skipped.
    """
    fs, old = _parts(source)
    _, new = _parts(target)
    existing = set(fs.find(old))
    names = [name for name in names if f"{old}/{name}" in existing]
    if names:
        fs.copy([f"{old}/{name}" for name in names], [f"{new}/{name}" for name in names])


def move(source: Path, target: Path) -> None:
    """Replace a folder by another, complete one: copy it within the store, its marker last, then delete the source.

    If this is killed half-way, `source` or `target` or both are complete, and a second call finishes the job.
    """
    fs, old = _parts(source)
    delete(target)
    names = [name.removeprefix(f"{old}/") for name in fs.find(old)]
    copy(source, target, [name for name in names if name not in _MARKERS])
    copy(source, target, [name for name in names if name in _MARKERS])
    delete(source)


def delete(path: Path) -> None:
    """Delete an object, or a folder of them, its marker first; does nothing if there is none."""
    fs, name = _parts(path)
    for marker in _MARKERS:
        with suppress(FileNotFoundError):
            fs.rm_file(f"{name}/{marker}")
    with suppress(FileNotFoundError):
        fs.rm(name, recursive=True)


@contextmanager
def reporting_unreachable(path: Path) -> Iterator[None]:
    """Turn any error of an object store into one line: a missing bucket, wrong credentials, no response.

    Raises
    ------
    UnreachableError
        In place of the store's own errors. Errors of local paths are left as they are.
    """
    try:
        yield
    except (UserError, JobError):
        raise
    except Exception as error:
        if is_local(path):
            raise
        raise UnreachableError(f"cannot use {path}: {_reason(error)}") from None


def storage_failure(error: BaseException, path: Path) -> str | None:
    """Describe a failure of the disk or object store, as opposed to one of the data that was written or read.

    Parameters
    ----------
    error
        An exception of this process or of a worker; workers send it without its cause.
    path
        The path that was written or read.

    Returns
    -------
    str or None
        A clause for a message; None if the error does not point to the storage.
    """
    if isinstance(error, OSError):
        in_message = re.search(r"\[errno (\d+)\]", str(error), re.IGNORECASE)  # pyarrow has it only in the message
        number = error.errno or (int(in_message[1]) if in_message else 0)
        if number in STORAGE_ERRORS and (is_local(path) or number in _DISK_ERRNOS):
            return f"cannot write in {path}: {STORAGE_ERRORS[number]} ({error.filename or path})"
        is_about_object = number in _OBJECT_ERRNOS or isinstance(error, (FileNotFoundError, FileExistsError))
        is_from_store = number > 0 or isinstance(error, (PermissionError, ConnectionError, TimeoutError))
    else:
        is_about_object, is_from_store = False, type(error).__module__.partition(".")[0] in _CLIENTS
    if not is_local(path) and is_from_store and not is_about_object:
        return f"cannot use {path}: {_reason(error)}"
    return None


def _reason(error: BaseException) -> str:
    """Return the message of a store's error as one line, or the name of its type if it has none."""
    return " ".join(without_secrets(str(error)).split()).rstrip(".") or type(error).__name__


def _parts(path: Path) -> tuple[Any, str]:
    """Return the file system of a path in an object store, and its name there."""
    return cast(Any, path).fs, cast(Any, path).path
