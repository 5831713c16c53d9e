"""Folder trees and single files, local or remote. Local file names stay bytes, since not all are valid text."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from kmeans_dask.errors import UserError
from kmeans_dask.sources.kinds.locations import (
    file_system,
    is_remote,
    mtime_of,
    not_found,
    read_text,
    redacted,
    size_and_mtime,
)
from kmeans_dask.sources.kinds.names import SUFFIXES, decode_name, excludes_folder, is_hidden, item_filter, natural_key
from kmeans_dask.sources.kinds.source_listing import ListRequest, Sidecar, SourceListing, items_table


class _File(NamedTuple):
    """One file in a folder; tuples sort in natural order, then by the bytes of the path."""

    key: bytes
    path: bytes
    """Path relative to the folder."""
    bytes: int
    mtime_ns: int


def list_folder(folder: bytes, request: ListRequest) -> SourceListing:
    """List the images at any depth below a folder, in natural order.

    Hidden files and folders (with a leading dot) are skipped. A link to a file is an item; a link to a folder is not
    followed, which rules out cycles. A dangling link is an item too, later reported as missing.

    Parameters
    ----------
    folder
        Full path or URL.
    request
        Name patterns, and the sidecar files to read.

    Returns
    -------
    SourceListing

    Raises
    ------
    UserError
        The folder cannot be read, or contains no images.
    """
    chosen = item_filter(request.include, request.exclude)
    try:
        files = sorted(_walk_remote(folder, chosen) if is_remote(folder) else _walk(folder, chosen, request.exclude))
    except OSError as error:
        if is_remote(folder) and isinstance(error, FileNotFoundError):
            raise not_found(folder) from None
        name = error.filename or folder
        reason = error.strerror or type(error).__name__
        raise UserError(
            f"cannot read folder {redacted(name)}: {reason}; grant read permission, or exclude it"
        ) from None
    if not files:
        condition = "match input.include" if request.include else f"end in one of {' '.join(SUFFIXES)}"
        raise UserError(f"folder {redacted(folder)} contains no images; file names must {condition}")
    prefix = os.path.join(folder, b"")
    return _to_listing([prefix + file.path for file in files], files, request)


def list_files(files: Sequence[bytes], paths: Sequence[bytes], request: ListRequest) -> SourceListing:
    """List single image files in the given order; a missing file is an item too.

    Parameters
    ----------
    files
        Full paths or URLs.
    paths
        Item path of each file.
    request
        The sidecar files to read.

    Returns
    -------
    SourceListing
    """
    facts = []
    for file, path in zip(files, paths, strict=True):
        try:
            facts.append(_File(b"", path, *size_and_mtime(file)))
        except OSError:
            facts.append(_File(b"", path, 0, 0))
    return _to_listing(files, facts, request)


def _to_listing(names: Sequence[bytes], files: Sequence[_File], request: ListRequest) -> SourceListing:
    items = items_table(
        len(files),
        file=names,
        path=[decode_name(file.path) for file in files],
        bytes=[file.bytes for file in files],
        mtime_ns=[file.mtime_ns for file in files],
    )
    values = None if request.sidecar is None else [_sidecar_value(name, request.sidecar) for name in names]
    return SourceListing(items, sidecar_values=values)


def _sidecar_value(file: bytes, sidecar: Sidecar) -> Any:
    try:
        return sidecar.value(read_text(os.path.splitext(file)[0] + sidecar.suffix))
    except OSError:
        return None


def _walk(root: bytes, chosen: Callable[[bytes], bool], exclude: Sequence[str]) -> Iterator[_File]:
    """Yield the image files at any depth below a local folder, in arbitrary order."""
    excluded = excludes_folder(exclude)
    pending = [b""]
    while pending:
        below = pending.pop()
        key = natural_key(below)  # digits never span a slash, so a path's key is the concatenation of its parts' keys
        with os.scandir(os.path.join(root, below)) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith(b"."):
                    continue
                path = below + name
                if entry.is_dir(follow_symlinks=False):
                    if not excluded(path):
                        pending.append(path + b"/")
                elif chosen(path) and (facts := _size_and_mtime(entry)):
                    yield _File(key + natural_key(name), path, *facts)


def _size_and_mtime(entry: os.DirEntry[bytes]) -> tuple[int, int] | None:
    """Return size and modification time; None unless it is a regular file: reading a pipe would block."""
    try:
        facts = entry.stat()
    except OSError:  # a dangling or cyclic link, or a file deleted in the meantime
        return 0, 0
    return (facts.st_size, facts.st_mtime_ns) if stat.S_ISREG(facts.st_mode) else None


def _walk_remote(url: bytes, chosen: Callable[[bytes], bool]) -> Iterator[_File]:
    """Yield the image files below a URL, in arbitrary order."""
    fs, root = file_system(os.fsdecode(url).rstrip("/"))
    for name, facts in fs.find(root, detail=True).items():
        path = name[len(root) :].lstrip("/").encode()
        if facts.get("type") == "file" and chosen(path) and not is_hidden(path):
            yield _File(natural_key(path), path, int(facts.get("size") or 0), mtime_of(facts))
