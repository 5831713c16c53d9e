"""Folder trees and single files, here or elsewhere. Names of files here stay bytes: not all are text."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from kmeans_dask.errors import UserError
from kmeans_dask.sources.kinds.locations import file_system, is_remote, look_at, not_there, shown, text_of, time_of
from kmeans_dask.sources.kinds.names import SUFFIXES, excludes_folder, is_hidden, item_filter, natural_key, text_of_name
from kmeans_dask.sources.kinds.source_listing import ListRequest, Sidecar, SourceListing, found


class _File(NamedTuple):
    """One file found; tuples sort in natural order, then by the bytes of the path."""

    key: bytes
    path: bytes
    """Relative to the folder."""
    bytes: int
    mtime_ns: int


def list_folder(folder: bytes, wanted: ListRequest) -> SourceListing:
    """List the images at any depth below a folder, in natural order.

    Hidden files and folders (a leading dot) are skipped; a link to a file is an item, a link to a folder is not
    followed, so that there are no loops. A link to nothing is an item too: it will be reported as missing.

    Parameters
    ----------
    folder
        Full path or URL.
    wanted
        Patterns, and whether files beside the images are read.

    Returns
    -------
    SourceListing

    Raises
    ------
    UserError
        The folder cannot be read, or holds no image.
    """
    chosen = item_filter(wanted.include, wanted.exclude)
    try:
        files = sorted(_find(folder, chosen) if is_remote(folder) else _walk(folder, chosen, wanted.exclude))
    except OSError as error:
        if is_remote(folder) and isinstance(error, FileNotFoundError):
            raise not_there(folder) from None
        name = error.filename or folder
        reason = error.strerror or type(error).__name__
        raise UserError(f"cannot read folder {shown(name)}: {reason}; give read permission, or exclude it") from None
    if not files:
        told = "match input.include" if wanted.include else f"end in one of {' '.join(SUFFIXES)}"
        raise UserError(f"folder {shown(folder)} holds no image; files must {told}")
    above = os.path.join(folder, b"")
    return _listed([above + file.path for file in files], files, wanted)


def list_files(files: Sequence[bytes], paths: Sequence[bytes], wanted: ListRequest) -> SourceListing:
    """List single image files in the given order; one that is not there is an item too.

    Parameters
    ----------
    files
        Full paths or URLs.
    paths
        Name of each.
    wanted
        Whether files beside the images are read.

    Returns
    -------
    SourceListing
    """
    facts = []
    for file, path in zip(files, paths, strict=True):
        try:
            facts.append(_File(b"", path, *look_at(file)))
        except OSError:
            facts.append(_File(b"", path, 0, 0))
    return _listed(files, facts, wanted)


def _listed(names: Sequence[bytes], files: Sequence[_File], wanted: ListRequest) -> SourceListing:
    items = found(
        len(files),
        file=names,
        path=[text_of_name(file.path) for file in files],
        bytes=[file.bytes for file in files],
        mtime_ns=[file.mtime_ns for file in files],
    )
    told = None if wanted.beside is None else [_told(name, wanted.beside) for name in names]
    return SourceListing(items, beside=told)


def _told(file: bytes, beside: Sidecar) -> Any:
    try:
        return beside.value(text_of(os.path.splitext(file)[0] + beside.ending))
    except OSError:
        return None


def _walk(root: bytes, chosen: Callable[[bytes], bool], exclude: Sequence[str]) -> Iterator[_File]:
    """Yield the image files at any depth below a folder of this machine, in no order."""
    excluded = excludes_folder(exclude)
    pending = [b""]
    while pending:
        below = pending.pop()
        key = natural_key(below)  # no number goes beyond a slash: the key of a path is that of its parts
        with os.scandir(os.path.join(root, below)) as entries:
            for entry in entries:
                name = entry.name
                if name.startswith(b"."):
                    continue
                path = below + name
                if entry.is_dir(follow_symlinks=False):
                    if not excluded(path):
                        pending.append(path + b"/")
                elif chosen(path) and (facts := _look_at(entry)):
                    yield _File(key + natural_key(name), path, *facts)


def _look_at(entry: os.DirEntry[bytes]) -> tuple[int, int] | None:
    """Size and time of a file; None for what is none: a pipe (reading it would wait), a link to a folder."""
    try:
        facts = entry.stat()
    except OSError:  # a link to nothing or in a circle, or a file that went away meanwhile
        return 0, 0
    return (facts.st_size, facts.st_mtime_ns) if stat.S_ISREG(facts.st_mode) else None


def _find(url: bytes, chosen: Callable[[bytes], bool]) -> Iterator[_File]:
    """Yield the image files below a URL, in no order."""
    fs, root = file_system(os.fsdecode(url).rstrip("/"))
    for name, facts in fs.find(root, detail=True).items():
        path = name[len(root) :].lstrip("/").encode()
        if facts.get("type") == "file" and chosen(path) and not is_hidden(path):
            yield _File(natural_key(path), path, int(facts.get("size") or 0), time_of(facts))
