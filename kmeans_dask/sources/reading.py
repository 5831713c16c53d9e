"""Read the contents of manifest rows from any kind of source, in the form that `images.open_image` takes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from typing import Any, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kmeans_dask.errors import JobError
from kmeans_dask.sources.images import Content, ImageError, Plain, Ranged, open_image
from kmeans_dask.sources.kinds.archives import member_reader
from kmeans_dask.sources.kinds.arrays import open_array
from kmeans_dask.sources.kinds.locations import file_system, is_remote, open_stream, redacted, unavailable_folder
from kmeans_dask.sources.kinds.tables import row_reader
from kmeans_dask.sources.normalize import to_array
from kmeans_dask.sources.sandbox import probe_items
from kmeans_dask.storage.object_store import location, path_or_bytes

_MAX_BATCH, _MAX_BATCH_BYTES = 64, 32 * 2**20
"""Remote files fetched together, to overlap their latencies; a single file may exceed the byte limit."""
_MAX_BYTES = 2**30
"""Remote files above 1 GiB are refused, as each is held in memory in full."""


def read_image(
    file: str | os.PathLike[str], *, mode: Literal["L", "RGB"] = "RGB", max_pixels: int = 200_000_000
) -> NDArray[np.uint8]:
    """Read an image file of any format and mode, upright according to EXIF and composited over white.

    Parameters
    ----------
    file
        Path, or URL in an object store.
    mode
        ``L``: grey. ``RGB``: colour.
    max_pixels
        Largest image (width x height, in pixels) that is decoded.

    Returns
    -------
    (height, width, 1 or 3) uint8

    Raises
    ------
    ImageError
        A ValueError: the file is missing, too large or not a readable image.
    """
    return to_array(open_image(path_or_bytes(location(file)), max_pixels=max_pixels), mode=mode)


def read_contents(rows: pa.Table, errors: Mapping[int, ImageError] | None = None) -> Iterator[tuple[int, Content]]:
    """Yield the content of each row of a manifest slice.

    Parameters
    ----------
    rows
        `manifest.MANIFEST_SCHEMA`; a slice, such as the rows of a chunk.
    errors
        Index in `rows` -> error, for items known to be bad; these are not read.

    Yields
    ------
    row : int
        Index in `rows`. Rows of the same file come in file order, so that each file is opened once and read forwards.
    content
        Input for `images.open_image` and `images.decode`, which raise it if it is an `images.ImageError`.
    """
    if rows["black"].null_count == len(rows):
        yield from _plain_contents(rows, errors or {})
        return
    ranges = list(zip(rows["black"].to_pylist(), rows["white"].to_pylist(), strict=True))
    for row, content in _plain_contents(rows, errors or {}):
        yield row, content if ranges[row][0] is None else Ranged(content, ranges[row])


def _plain_contents(rows: pa.Table, errors: Mapping[int, ImageError]) -> Iterator[tuple[int, Plain]]:
    yield from errors.items()
    plain, remote = [], []
    containers: dict[tuple[str, bytes, str | None], list[tuple[int, int, int]]] = {}
    columns = (rows[name].to_pylist() for name in ("file", "inside", "member", "position", "bytes"))
    for row, (file, inside, member, position, size) in enumerate(zip(*columns, strict=True)):
        if row in errors:
            continue
        if inside is not None:
            containers.setdefault((inside, file, member), []).append((position, row, size))
        elif is_remote(file):
            remote.append((row, file, size))
        else:
            plain.append((row, file))
    yield from plain
    yield from _fetch(remote)
    for (inside, file, member), members in containers.items():
        yield from _read_container(inside, file, member, sorted(members))


def find_unreadable(rows: pa.Table, work: Callable[[Content], Any]) -> dict[int, ImageError]:
    """Find the rows that fail or kill a child process doing `work`; see `sandbox.probe_items`.

    The result is the argument `errors` of `read_contents`.
    """
    return probe_items(partial(_selected_contents, rows), len(rows), work)


def raise_if_source_lost(rows: pa.Table, row: int, error: ImageError) -> None:
    """Fail the job if an item is unreadable because its whole source is unavailable: that is not a bad image.

    Parameters
    ----------
    rows
        As for `read_contents`.
    row
        Index in `rows` of an item that could not be read.
    error
        Error of this item.

    Raises
    ------
    JobError
        The item existed when it was listed, and its folder is unavailable now.
    """
    file, n_bytes, mtime_ns = (rows[name][row].as_py() for name in ("file", "bytes", "mtime_ns"))
    if error.status not in ("missing", "unreadable") or not (n_bytes or mtime_ns):
        return
    if lost := unavailable_folder(file):
        raise JobError(f"the input became unavailable: {lost}; rerun the same command to resume")


def _selected_contents(rows: pa.Table, selection: Sequence[int]) -> Iterator[tuple[int, Content]]:
    for position, content in read_contents(rows.take(selection)):
        yield selection[position], content


def _read_container(
    inside: str, file: bytes, member: str | None, members: Sequence[tuple[int, int, int]]
) -> Iterator[tuple[int, Plain]]:
    remaining = iter(members)
    try:
        with _open_container(inside, file, member) as read:
            for position, row, size in remaining:
                try:
                    content: Plain = read(position, size)
                # damaged archives, tables and connections raise almost anything; none may fail the other images' task
                except Exception as error:
                    content = _image_error(error)
                yield row, content
    except Exception as error:  # opening it failed
        for _, row, _ in remaining:
            yield row, _image_error(error)


@contextmanager
def _open_container(inside: str, file: bytes, member: str | None) -> Iterator[Callable[[int, int], Plain]]:
    """Open a file that contains many items; yields a function (position, bytes) -> content."""
    if inside in ("tar", "tar.gz", "zip"):
        with open_stream(file) as stream:
            yield member_reader(stream, inside)
    elif inside == "parquet":
        with open_stream(file) as stream:
            read = row_reader(stream, member or "")
            yield lambda row, _: read(row)
    else:
        with open_array(file, inside, member) as array:
            yield lambda row, _: array.read(row, row + 1)[0]


def _fetch(files: list[tuple[int, bytes, int]]) -> Iterator[tuple[int, Plain]]:
    """Fetch remote files, a batch at a time."""
    while files:
        batch = [files.pop(0)]
        total = batch[0][2]
        while files and len(batch) < _MAX_BATCH and total + files[0][2] <= _MAX_BATCH_BYTES:
            batch.append(files.pop(0))
            total += batch[-1][2]
        small = [(row, file) for row, file, size in batch if size <= _MAX_BYTES]
        yield from (
            (row, ImageError("too large", f"{size:,} bytes, more than {_MAX_BYTES:,}"))
            for row, _, size in batch
            if size > _MAX_BYTES
        )
        try:
            fs, _ = file_system(os.fsdecode(small[0][1]))
            names = [fs._strip_protocol(os.fsdecode(file)) for _, file in small]
            results = fs.cat_ranges(names, [None] * len(names), [None] * len(names), on_error="return")
        except Exception as error:
            results = [error] * len(small)
        for (row, _), content in zip(small, results, strict=True):
            yield row, _image_error(content) if isinstance(content, Exception) else BytesIO(content)


def _image_error(error: Exception) -> ImageError:
    if isinstance(error, ImageError):
        return error
    if isinstance(error, FileNotFoundError):
        return ImageError("missing", "no such file")
    reason = " ".join(redacted(error).split()) or type(error).__name__
    return ImageError("unreadable", f"{type(error).__name__}: {reason}"[:200])
