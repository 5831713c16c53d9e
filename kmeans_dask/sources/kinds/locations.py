"""Open and name local and remote files alike; remote means any URL that fsspec supports: s3://, https:// ..."""

from __future__ import annotations

import codecs
import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from datetime import datetime
from typing import Any, BinaryIO

import fsspec

from kmeans_dask.errors import UserError, without_secrets


def is_remote(location: str | bytes) -> bool:
    """Return whether a location is a URL; anything else is a local path."""
    text = os.fsdecode(location)
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", text) is not None


def full_path(location: str) -> bytes:
    """Return a URL unchanged, or an absolute path with ``~`` expanded, in the OS encoding."""
    if is_remote(location):
        return location.removeprefix("file://").encode() if location.startswith("file://") else location.encode()
    return os.fsencode(os.path.abspath(os.path.expanduser(location)))


def redacted(text: object) -> str:
    """Return a name or an error as text to display, with the secrets removed from its URLs."""
    return without_secrets(os.fsdecode(text) if isinstance(text, bytes) else str(text))


def file_system(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, and the path within it.

    Raises
    ------
    UserError
        The scheme is unknown, or the package for it is not installed.
    """
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        scheme = url.partition("://")[0]
        is_package_missing = isinstance(error, ImportError)
        fix = "pip install 'kmeans-dask[remote]'" if is_package_missing else "use a path, s3://, gs:// or https://"
        raise UserError(f"cannot read {scheme}://: {redacted(error)}; {fix}") from None
    return fs, path


def open_stream(file: bytes) -> BinaryIO:
    """Open a file of a manifest for random access; a remote file is read in blocks of 5 MiB."""
    if is_remote(file):
        fs, path = file_system(os.fsdecode(file))
        stream: BinaryIO = fs.open(path, "rb")
        return stream
    if not stat.S_ISREG(os.stat(file).st_mode):
        raise OSError("not a regular file")
    return open(file, "rb")


def not_found(file: str | bytes) -> UserError:
    """Return the error for a missing file; fsspec reports an unreachable server in the same way."""
    return UserError(f"{redacted(file)}: no such file{', or no response' if is_remote(file) else ''}")


def size_and_mtime(file: bytes) -> tuple[int, int]:
    """Return the size of a file in bytes and its modification time in nanoseconds since 1970; 0 if unknown.

    Raises
    ------
    OSError
        The file is missing or cannot be read.
    """
    if is_remote(file):
        fs, path = file_system(os.fsdecode(file))
        info = fs.info(path)
        return int(info.get("size") or 0), mtime_of(info)
    facts = os.stat(file)
    return facts.st_size, facts.st_mtime_ns


def unavailable_folder(file: bytes) -> str | None:
    """Check whether a file that used to exist is unreadable because its folder is unavailable.

    Parameters
    ----------
    file
        Full path or URL.

    Returns
    -------
    str or None
        The folder, and why it is unavailable: missing, empty (as when its file system is not mounted), or inaccessible
        in an object store. None if it is available, and for https://, where files have no folder.
    """
    if is_remote(file):
        url = os.fsdecode(file)
        fs, path = file_system(url)
        if url.startswith(("http://", "https://")) or _answers(fs, path):
            return None
        folder = fs._parent(path)
        fs.invalidate_cache()
        try:
            fs.info(folder)  # object stores have no folders; this lists one object
        except Exception as error:
            return (
                f"{redacted(fs.unstrip_protocol(folder))} ({' '.join(redacted(error).split()) or type(error).__name__})"
            )
        return None
    folder = os.path.dirname(file)
    try:
        with os.scandir(folder) as entries:
            if os.path.exists(file) or next(entries, None):
                return None
        return f"{os.fsdecode(folder)} (it is empty; is its file system still mounted?)"
    except OSError as error:
        return f"{os.fsdecode(folder)} ({error.strerror}; is its file system still mounted?)"


def _answers(fs: Any, path: str) -> bool:
    """Return whether a file system knows a path."""
    with suppress(Exception):
        fs.info(path)
        return True
    return False


def mtime_of(info: Mapping[str, Any]) -> int:
    """Return the modification time from fsspec file info, in nanoseconds since 1970; 0 if unknown."""
    for key in ("LastModified", "mtime", "updated", "last_modified"):
        value = info.get(key)
        if isinstance(value, str):
            try:
                value = datetime.fromisoformat(value)
            except ValueError:
                continue
        if isinstance(value, datetime):
            return int(value.timestamp() * 1_000_000) * 1000
        if isinstance(value, (int, float)):
            return int(value * 1e9)
    return 0


def read_text(file: bytes) -> str:
    """Read a small text file, such as a list of paths: UTF-16 if a byte order mark says so (Windows), else UTF-8."""
    with open_stream(file) as stream:
        data = stream.read()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace")
    return data.decode("utf-8-sig", "surrogateescape")
