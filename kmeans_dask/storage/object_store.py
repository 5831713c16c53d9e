"""A run folder in an object store: its paths behave like those of a file system, as far as a run needs.

Paths of this machine stay `pathlib.Path`, at no cost. Those of an object store are `upath.UPath`, which is no subclass
of it but has its methods; everything annotated ``Path`` that belongs to a run folder may be one. An object appears
whole or not at all (one PUT, or a multipart upload that is completed last), but there is neither a rename nor a folder.
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

from kmeans_dask.config.base import check_location
from kmeans_dask.errors import STORAGE_ERRORS, JobError, UserError, without_secrets

_BLOCK = 2**20
"""Bytes that a reader of a table fetches ahead; s3fs would take 50 MiB for a few rows of a manifest."""

_MARKERS = ("zarr.json", "rows.json")
"""Objects by which a folder is known to be complete: removed first, uploaded last."""

_OF_OBJECTS = (errno.ENOENT, errno.EEXIST, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR)
"""What a store says of one object, and not of itself."""

_OF_DISKS = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""What only a disk of a machine says: files on their way to a store are written there first."""

_CLIENTS = {"botocore", "aiobotocore", "aiohttp", "s3fs", "gcsfs", "google", "adlfs", "azure", "fsspec", "urllib3"}
"""Packages that reach object stores. Of what they raise not all is an OSError."""


class UnreachableError(UserError):
    """An object store refuses a request, or does not answer: at the start of a command the user's mistake.

    Attributes
    ----------
    args
        A clause that says which store, and why.
    """

    def __str__(self) -> str:
        """Return the clause and the fix."""
        return f"{super().__str__()}; check the bucket and the credentials, which are found as fsspec finds them"


def location(text: str | os.PathLike[str]) -> Path:
    """Make the path of a run folder.

    Parameters
    ----------
    text
        A path of this machine, or a URL of one of `SCHEMES`; paths are returned as they are.

    Returns
    -------
    Path
        Of an object store, a `UPath` that never believes an older listing: other processes write there.

    Raises
    ------
    UserError
        It is another URL, or the package that reaches the object store is not installed.
    """
    if not isinstance(text, str):
        return cast(Path, text)
    try:
        check_location(text)
    except ValueError as error:
        raise UserError(f"{text}: a run folder {error}") from None
    if "://" not in text:
        return Path(text)
    from upath import UPath  # 0.1 s that only an object store costs

    # s3fs would ask for the size of each object first, to read large ones in parts at a time
    options: dict[str, Any] = {"max_concurrency": 1} if text.startswith("s3://") else {}
    path = UPath(text, use_listings_cache=False, **options)
    try:
        assert path.fs
    except ImportError as error:
        raise UserError(f"cannot reach {text}: {error}; pip install 'kmeans-dask[remote]'") from None
    return cast(Path, path)


def is_local(path: Path) -> bool:
    """Say whether a path is one of this machine, a shared file system included."""
    return isinstance(cast(object, path), Path)


def make_folder(path: Path) -> None:
    """Make a folder and those above it; an object store has none, and is asked for none: it might make a bucket."""
    if is_local(path):
        path.mkdir(parents=True, exist_ok=True)


def readable(path: Path) -> Path | BinaryIO:
    """Return what pyarrow reads: a path of this machine, or an open object."""
    return path if is_local(path) else cast(Any, path).open("rb", block_size=_BLOCK)


def read(path: Path) -> bytes:
    """Return the content of a small file; of an object by one request, as it is before or after it is replaced.

    An open object is first looked at and then read, and s3fs refuses to read what has been replaced meanwhile.
    """
    if is_local(path):
        return path.read_bytes()
    fs, name = _parts(path)
    return bytes(fs.cat_file(name))


def content_of(path: Path) -> Path | BinaryIO:
    """Return what an image is opened from: a path of this machine, or the whole object."""
    return path if is_local(path) else BytesIO(read(path))


def bytes_below(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder; of an object store by one listing."""
    if is_local(path):
        files = path.rglob("*") if path.is_dir() else [path]
        return sum(file.stat().st_size for file in files if file.is_file())
    fs, name = _parts(path)
    return sum(int(facts["size"]) for facts in fs.find(name, detail=True).values())


def put(folder: Path, name: str, data: bytes, *, replace: bool = True) -> None:
    """Write an object by one request.

    Parameters
    ----------
    folder
        Of an object store.
    name
        Of the object in it, with ``/``; any characters.
    data
        Content.
    replace
        Whether one that is there is replaced.

    Raises
    ------
    FileExistsError
        There is one, and it is not to be replaced.
    """
    fs, above = _parts(folder)
    fs.pipe_file(f"{above}/{name}", data, **({} if replace else {"mode": "create"}))


def upload(source: Path, target: Path) -> None:
    """Write a file as an object, or a folder as objects of which its marker is the last.

    Parameters
    ----------
    source
        File or folder of this machine.
    target
        Of an object store; what stands there is replaced.
    """
    fs, name = _parts(target)
    if not source.is_dir():
        fs.put_file(str(source), name)
        return
    delete(target)
    files = [str(path.relative_to(source)) for path in source.rglob("*") if path.is_file()]
    for marks in (False, True):
        some = [file for file in files if (file in _MARKERS) == marks]
        if some:
            fs.put([str(source / file) for file in some], [f"{name}/{file}" for file in some])


def copy(source: Path, target: Path, names: Iterable[str]) -> None:
    """Copy objects inside the store, several at a time, without reading them.

    Parameters
    ----------
    source, target
        Folders of the same object store.
    names
        Of the objects in both folders; those that `source` does not have are left out.
    """
    fs, old = _parts(source)
    _, new = _parts(target)
    there = set(fs.find(old))
    names = [name for name in names if f"{old}/{name}" in there]
    if names:
        fs.copy([f"{old}/{name}" for name in names], [f"{new}/{name}" for name in names])


def move(source: Path, target: Path) -> None:
    """Put a complete folder in the place of another: copied inside the store, its marker last, then removed.

    Killed in between, there is a complete `source`, or a complete `target`, or both: a second call does the rest.
    """
    fs, old = _parts(source)
    delete(target)
    names = [name.removeprefix(f"{old}/") for name in fs.find(old)]
    copy(source, target, [name for name in names if name not in _MARKERS])
    copy(source, target, [name for name in names if name in _MARKERS])
    delete(source)


def delete(path: Path) -> None:
    """Remove an object, or a folder of them, its marker first; nothing if there is none."""
    fs, name = _parts(path)
    for marker in _MARKERS:
        with suppress(FileNotFoundError):
            fs.rm_file(f"{name}/{marker}")
    with suppress(FileNotFoundError):
        fs.rm(name, recursive=True)


@contextmanager
def reached(path: Path) -> Iterator[None]:
    """Make one line of whatever an object store refuses: a missing bucket, wrong credentials, no answer.

    Raises
    ------
    UnreachableError
        In place of the errors of the store. Those of paths of this machine are left as they are.
    """
    try:
        yield
    except (UserError, JobError):
        raise
    except Exception as error:
        if is_local(path):
            raise
        raise UnreachableError(f"cannot use {path}: {_reason(error)}") from None


def failure_of(error: BaseException, path: Path) -> str | None:
    """Say what an error tells of the place that is written to, if it is of the place and not of what is written.

    Parameters
    ----------
    error
        Of this process or of a worker, which sends it without its cause.
    path
        That was written to, or read.

    Returns
    -------
    str or None
        A clause for people; None if the place is as it was, as far as the error tells.
    """
    if isinstance(error, OSError):
        named = re.search(r"\[errno (\d+)\]", str(error), re.IGNORECASE)  # pyarrow only says it in words
        number = error.errno or (int(named[1]) if named else 0)
        if number in STORAGE_ERRORS and (is_local(path) or number in _OF_DISKS):
            return f"cannot write in {path}: {STORAGE_ERRORS[number]} ({error.filename or path})"
        of_object = number in _OF_OBJECTS or isinstance(error, (FileNotFoundError, FileExistsError))
        of_store = number > 0 or isinstance(error, (PermissionError, ConnectionError, TimeoutError))
    else:
        of_object, of_store = False, type(error).__module__.partition(".")[0] in _CLIENTS
    if not is_local(path) and of_store and not of_object:
        return f"cannot use {path}: {_reason(error)}"
    return None


def _reason(error: BaseException) -> str:
    """Return the message of an error of a store as one line, or its name."""
    return " ".join(without_secrets(str(error)).split()).rstrip(".") or type(error).__name__


def _parts(path: Path) -> tuple[Any, str]:
    """Return the file system and the name in it of a path of an object store."""
    return cast(Any, path).fs, cast(Any, path).path
