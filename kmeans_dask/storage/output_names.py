"""Names of output files: the relative path of the image, unique, and never outside the output folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

from kmeans_dask.storage.publish import remove


def output_names(paths: Sequence[str], suffix: str = ".png") -> list[str]:
    """Name the output of every item: its path with the suffix of the format, inside the output folder.

    Items that would share a name (``a.jpg`` and ``a.png``; ``A.png`` and ``a.png``, which are the same file on some
    systems; ``a.jpg`` and the folder ``a.png``) keep their own suffix: ``a.jpg.png``. If that is taken too, they get a
    number: ``a~2.jpg.png``.

    Parameters
    ----------
    paths
        Relative paths, with ``/``.
    suffix
        Suffix of the output format, with its dot.

    Returns
    -------
    list of str
        Relative paths, all distinct, without ``..``, in the order of `paths`.
    """
    safe = [_inside(path) for path in paths]  # strings, because a million pathlib paths would take a minute
    plain = [plain_name(path, suffix) for path in safe]
    uses = Counter(name.casefold() for name in plain)
    uses.update({folder.casefold() for folder in _folders(safe)})
    taken = set(uses)
    names = []
    for path, name in zip(safe, plain, strict=True):
        if uses[name.casefold()] > 1:
            name, number = f"{path}{suffix}", 1
            stem, extension = os.path.splitext(path)
            while name.casefold() in taken:
                number += 1
                name = f"{stem}~{number}{extension}{suffix}"
            taken.add(name.casefold())
        names.append(name)
    return names


def plain_name(path: str, suffix: str) -> str:
    """Return the output name of an item that collides with no other: its path with the new suffix."""
    return f"{os.path.splitext(_inside(path))[0]}{suffix}"


def renamed(paths: Sequence[str], names: Sequence[str]) -> list[tuple[str, str]]:
    """Return the path and output name of each item whose name had to change."""
    return [
        (path, name)
        for path, name in zip(paths, names, strict=True)
        if os.path.splitext(path)[0] != os.path.splitext(name)[0]
    ]


def write_file(path: str, data: bytes) -> None:
    """Publish a file as `publish.publish` does, but with half the system calls, for a thousand files per second.

    Parameters
    ----------
    path
        Local path; an existing file is replaced, and missing folders are created.
    data
        Content.

    Raises
    ------
    OSError
        The file cannot be written; no part of it remains.
    """
    try:
        _write_file(path, data)
    except FileNotFoundError:  # first file of its folder, or a driver that just started removed the partial file
        os.makedirs(os.path.dirname(path), exist_ok=True)
        _write_file(path, data)


def _write_file(path: str, data: bytes) -> None:
    partial = f"{os.path.dirname(path)}/.{uuid4().hex}.partial"
    try:
        file = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(file, rest) :]
        finally:
            os.close(file)
        os.replace(partial, path)
    except BaseException:
        remove(Path(partial))
        raise


def _folders(paths: Sequence[str]) -> set[str]:
    """Return all parent folders of the paths, at any depth."""
    folders: set[str] = set()
    for path in paths:
        folder = os.path.dirname(path)
        while folder and folder not in folders:
            folders.add(folder)
            folder = os.path.dirname(folder)
    return folders


def _inside(path: str) -> str:
    """Return a path that stays inside its folder: no root, no ``..``, no empty name."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return "/".join("_" if part == ".." else part for part in parts or ["_"])
