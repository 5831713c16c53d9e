"""Files here and elsewhere: one way to open and name them. Elsewhere is what fsspec reaches: s3://, https:// ..."""

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
    """Say whether a location is a URL; everything else is a path of this machine."""
    text = os.fsdecode(location)
    return re.match(r"[a-zA-Z][a-zA-Z0-9+.-]+://", text) is not None


def full_name(location: str) -> bytes:
    """Return a URL as it is, a path in full, ``~`` expanded; as the operating system spells it."""
    if is_remote(location):
        return location.removeprefix("file://").encode() if location.startswith("file://") else location.encode()
    return os.fsencode(os.path.abspath(os.path.expanduser(location)))


def shown(text: object) -> str:
    """Return a name or an error as text for people, without the secrets of its URLs."""
    return without_secrets(os.fsdecode(text) if isinstance(text, bytes) else str(text))


def file_system(url: str) -> tuple[Any, str]:
    """Return the fsspec file system of a URL, and the path in it.

    Raises
    ------
    UserError
        There is no such scheme, or the package that reads it is not installed.
    """
    try:
        fs, path = fsspec.core.url_to_fs(url)
    except (ImportError, ValueError) as error:
        scheme = url.partition("://")[0]
        known = isinstance(error, ImportError)
        fix = "pip install 'kmeans-dask[remote]'" if known else "use a path, s3://, gs:// or https://"
        raise UserError(f"cannot read {scheme}://: {shown(error)}; {fix}") from None
    return fs, path


def open_stream(file: bytes) -> BinaryIO:
    """Open a file of a manifest for reading at any position; a remote one is read in blocks of 5 MiB."""
    if is_remote(file):
        fs, path = file_system(os.fsdecode(file))
        stream: BinaryIO = fs.open(path, "rb")
        return stream
    if not stat.S_ISREG(os.stat(file).st_mode):
        raise OSError("not a regular file")
    return open(file, "rb")


def not_there(file: str | bytes) -> UserError:
    """Say that there is no such file; to fsspec a server that does not answer is the same."""
    return UserError(f"{shown(file)}: there is no such file{', or no answer' if is_remote(file) else ''}")


def look_at(file: bytes) -> tuple[int, int]:
    """Return the size in bytes and the time of change in nanoseconds of a file.

    Raises
    ------
    OSError
        It is missing or cannot be read.
    """
    if is_remote(file):
        fs, path = file_system(os.fsdecode(file))
        info = fs.info(path)
        return int(info.get("size") or 0), time_of(info)
    facts = os.stat(file)
    return facts.st_size, facts.st_mtime_ns


def lost_place(file: bytes) -> str | None:
    """Name the folder of a file that was there, if that is why the file cannot be read any more.

    Parameters
    ----------
    file
        Full path or URL.

    Returns
    -------
    str or None
        The folder, and why it cannot be used: it is not there, or empty as one whose file system is not mounted, or a
        store does not let anybody see it. None if it is as ever, and for https://, where files have no folder.
    """
    if is_remote(file):
        url = os.fsdecode(file)
        fs, path = file_system(url)
        if url.startswith(("http://", "https://")) or _answers(fs, path):
            return None
        folder = fs._parent(path)
        fs.invalidate_cache()
        try:
            fs.info(folder)  # by a listing of one object, where there are no folders
        except Exception as error:
            return f"{shown(fs.unstrip_protocol(folder))} ({' '.join(shown(error).split()) or type(error).__name__})"
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
    with suppress(Exception):
        fs.info(path)
        return True
    return False


def time_of(info: Mapping[str, Any]) -> int:
    """Return the time of change that a remote file system tells, in nanoseconds since 1970; 0 if it tells none."""
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


def text_of(file: bytes) -> str:
    """Read a small text file, such as a list of paths, in UTF-8, or in UTF-16 where it says so as Windows writes it."""
    with open_stream(file) as stream:
        data = stream.read()
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16", "replace")
    return data.decode("utf-8-sig", "surrogateescape")
