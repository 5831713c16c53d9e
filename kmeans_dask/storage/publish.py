"""Everything is written under a temporary name and published by one rename; in an object store by one PUT."""

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
    """Write a file or folder under a temporary name and publish it by one rename; in an object store by one PUT.

    Parameters
    ----------
    path
        Final name. What stands there is replaced; a reader sees the old or the new, never a part. Of a folder in an
        object store the marker is removed first and written last: a reader without it takes the folder as not there.

    Yields
    ------
    Path
        Temporary name on this machine, in the same folder if that is a file system; nothing stands there. If the block
        raises, it is removed.
    """
    if not is_local(path):
        with TemporaryDirectory(prefix="kmeans-dask-") as folder:
            yield (partial := Path(folder, "partial"))
            upload(partial, path)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{uuid4().hex}.partial")  # nobody else's: a task may run twice at a time
    remove(partial)
    try:
        yield partial
        if partial.is_dir():
            remove(path)  # a folder cannot be renamed onto one that is not empty
        partial.replace(path)
    finally:
        remove(partial)


def create(path: Path, text: str) -> bool:
    """Write a small file unless there is one: of several processes that try, one succeeds.

    Parameters
    ----------
    path
        Its folder is made.
    text
        Content.

    Returns
    -------
    bool
        Whether this call has made it. A reader sees all of it; on a file system without links it can be seen empty for
        a moment. An object whose store's answer was lost on the way is asked for again, and the answer is no: whoever
        must know compares the content.
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
    """Write it under a temporary name and link it to its own: unlike a rename, that replaces nothing."""
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
    """Remove a file or a folder, if there is one."""
    if not is_local(path):
        delete(path)
    elif path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def remove_partials(folder: Path, leave: Sequence[str] = ()) -> None:
    """Remove what killed writers have left of `publish` below a folder; in an object store they leave nothing.

    Parameters
    ----------
    folder
        Nobody writes below it now but tasks of a driver that has died, which fail, or write anew what they lose.
    leave
        Names of folders in it that this is not true of; they are left alone.
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
        File.
    value
        Of dicts, lists, strings, finite numbers, booleans and None.
    """
    with publish(path) as partial:
        partial.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read a JSON file."""
    return json.loads(read(path))
