"""Atomic publishing: everything is written under a temporary name, then renamed, or uploaded by one PUT."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from uuid import uuid4

from kmeans_dask.storage.object_store import delete, is_local, put, read, upload


@contextmanager
def publish(path: Path) -> Iterator[Path]:
    """Write a file or folder under a temporary name, then publish it: by a rename, or by one PUT to an object store.

    Parameters
    ----------
    path
        Final name; anything there is replaced. Readers see the old content or the new, never a part of it. For a folder
        in an object store, the marker is removed first and written last; a folder without its marker does not count.

    Yields
    ------
    Path
        Local temporary path where nothing exists yet; in the same folder, unless that is in an object store. It is
        removed if the block raises.
    """
    if not is_local(path):
        with TemporaryDirectory(prefix="kmeans-dask-") as folder:
            yield (partial := Path(folder, "partial"))
            upload(partial, path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{uuid4().hex}.partial")  # unique, because a task may run twice at the same time
    remove(partial)
    try:
        yield partial
        if partial.is_dir():
            remove(path)  # a folder cannot be renamed onto a non-empty one
        partial.replace(path)
    finally:
        remove(partial)


def create(path: Path, text: str) -> bool:
    """Create a small file exclusively: if several processes try, exactly one succeeds.

    Parameters
    ----------
    path
        The file; missing folders are created.
    text
        Content.

    Returns
    -------
    bool
        Whether this call created the file. Readers see all of it, except on a file system without links, where it can
        be empty for a moment. If the response of an object store is lost, the request is repeated and returns False
        although the first one succeeded; compare the content where this matters.
    """
    try:
        if is_local(path):
            _create_file(path, text)
        else:
            put(path.parent, path.name, text.encode(), replace=False)  # If-None-Match: *
    except FileExistsError:
        return False
    return True


def _create_file(path: Path, text: str) -> None:
    """Write a temporary file and link it to the final name; unlike a rename, a link replaces nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{uuid4().hex}.partial")
    try:
        partial.write_text(text, encoding="utf-8")
        os.link(partial, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    finally:
        remove(partial)


def remove(path: Path) -> None:
    """Remove a file or folder, if it exists."""
    if not is_local(path):
        delete(path)
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_partials(folder: Path, leave: Sequence[str] = ()) -> None:
    """Remove the partial files of killed writers below a folder; in an object store there are none.

    Parameters
    ----------
    folder
        Folder to which nobody is writing, except tasks of a dead driver; those fail, or rewrite what they lose.
    leave
        Names of subfolders to leave alone, because they are still written to.
    """
    if not is_local(folder):
        return
    for parent, folders, files in os.walk(folder):
        if Path(parent) == folder:
            folders[:] = [name for name in folders if name not in leave]
        for name in [*folders, *files]:
            if re.fullmatch(r"\.[0-9a-f]{32}\.partial", name):
                remove(Path(parent, name))


def write_json(path: Path, value: Any) -> None:
    """Publish a value as JSON.

    Parameters
    ----------
    path
        Destination.
    value
        Dicts, lists, strings, finite numbers, booleans and None.
    """
    with publish(path) as partial:
        partial.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(read(path))
