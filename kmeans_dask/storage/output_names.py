"""Where the output of every image goes: the same relative path, no name twice, never outside the folder."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

from kmeans_dask.storage.publish import remove


def output_names(paths: Sequence[str], suffix: str = ".png") -> list[str]:
    """Name the output of every item: its path with the suffix of the format, inside the output folder.

    Items that would share a name (``a.jpg`` and ``a.png``; ``A.png`` and ``a.png``, which are one file on some
    systems; ``a.jpg`` and the folder ``a.png``) keep their suffix, ``a.jpg.png``; what still is taken gets a number,
    ``a~2.jpg.png``.

    Parameters
    ----------
    paths
        Relative, with ``/``.
    suffix
        Of the outputs, with its dot.

    Returns
    -------
    list of str
        Relative paths, all distinct, without ``..``.
    """
    safe = [_inside(path) for path in paths]  # strings: a million of pathlib's paths would take a minute
    plain = [plain_name(path, suffix) for path in safe]
    uses = Counter(name.casefold() for name in plain)
    uses.update({folder.casefold() for folder in _folders(safe)})
    taken = set(uses)
    names = []
    for path, name in zip(safe, plain, strict=True):
        if uses[name.casefold()] > 1:
            name, number = f"{path}{suffix}", 1
            stem, kind = os.path.splitext(path)
            while name.casefold() in taken:
                number += 1
                name = f"{stem}~{number}{kind}{suffix}"
            taken.add(name.casefold())
        names.append(name)
    return names


def plain_name(path: str, suffix: str) -> str:
    """Name the output of an item, if no other one would have this name: its path inside the folder, with the suffix."""
    return f"{os.path.splitext(_inside(path))[0]}{suffix}"


def renamed(paths: Sequence[str], names: Sequence[str]) -> list[tuple[str, str]]:
    """Return path and output name of the items that could not keep their name."""
    return [
        (path, name)
        for path, name in zip(paths, names, strict=True)
        if os.path.splitext(path)[0] != os.path.splitext(name)[0]
    ]


def write_file(path: str, data: bytes) -> None:
    """Publish a file as `publish.publish` does, with half of its calls of the system: there is one a millisecond.

    Parameters
    ----------
    path
        What stands there is replaced; its folder is made.
    data
        Content.

    Raises
    ------
    OSError
        The file cannot be written; nothing of it is left.
    """
    try:
        _write_file(path, data)
    except FileNotFoundError:  # the folder's first file; or a driver that has begun took what was unfinished away
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
    """Return every folder that one of the paths lies in, at any depth."""
    folders: set[str] = set()
    for path in paths:
        folder = os.path.dirname(path)
        while folder and folder not in folders:
            folders.add(folder)
            folder = os.path.dirname(folder)
    return folders


def _inside(path: str) -> str:
    """Make a path that stays in its folder: no root, no ``..``, no empty name."""
    kept = [part for part in path.split("/") if part not in ("", ".")]
    return "/".join("_" if part == ".." else part for part in kept or ["_"])
