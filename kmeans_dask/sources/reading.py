"""The rows of a manifest become what `images.open_image` reads, whatever source they come from."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from io import BytesIO
from typing import Any

import pyarrow as pa

from kmeans_dask.errors import JobError
from kmeans_dask.sources.images import Content, ImageError, Plain, Ranged
from kmeans_dask.sources.kinds.archives import member_reader
from kmeans_dask.sources.kinds.arrays import open_array
from kmeans_dask.sources.kinds.locations import file_system, is_remote, lost_place, open_stream, shown
from kmeans_dask.sources.kinds.tables import row_reader
from kmeans_dask.sources.sandbox import ended_by

_AT_A_TIME, _BYTES_AT_A_TIME = 64, 32 * 2**20
"""Remote files that are asked for together, so that their latencies overlap; a single one may be larger."""
_MOST_BYTES = 2**30
"""A remote file above 1 GiB is not read: it would be in memory as a whole."""


def read_contents(rows: pa.Table, errors: Mapping[int, ImageError] | None = None) -> Iterator[tuple[int, Content]]:
    """Yield the content of each row of a part of a manifest.

    Parameters
    ----------
    rows
        `manifest.MANIFEST_SCHEMA`; a slice, such as the rows of a chunk.
    errors
        Number in `rows` -> its error, of items that are known to be bad: they are not read.

    Yields
    ------
    row : int
        Number in `rows`. Rows of one file come in the order in which they lie in it, whatever their order here: each
        file is opened once and read forwards.
    content
        What `images.open_image` and `images.decode` take. They raise what is an `images.ImageError`.
    """
    if rows["black"].null_count == len(rows):
        yield from _plain_contents(rows, errors or {})
        return
    ranges = list(zip(rows["black"].to_pylist(), rows["white"].to_pylist(), strict=True))
    for row, content in _plain_contents(rows, errors or {}):
        yield row, content if ranges[row][0] is None else Ranged(content, ranges[row])


def _plain_contents(rows: pa.Table, known: Mapping[int, ImageError]) -> Iterator[tuple[int, Plain]]:
    yield from known.items()
    plain, remote = [], []
    containers: dict[tuple[str, bytes, str | None], list[tuple[int, int, int]]] = {}
    columns = (rows[name].to_pylist() for name in ("file", "inside", "member", "position", "bytes"))
    for row, (file, inside, member, position, size) in enumerate(zip(*columns, strict=True)):
        if row in known:
            continue
        if inside is not None:
            containers.setdefault((inside, file, member), []).append((position, row, size))
        elif is_remote(file):
            remote.append((row, file, size))
        else:
            plain.append((row, file))
    yield from plain
    yield from _fetched(remote)
    for (inside, file, member), places in containers.items():
        yield from _contained(inside, file, member, sorted(places))


def unreadable(rows: pa.Table, work: Callable[[Content], Any]) -> dict[int, ImageError]:
    """Do some work on every row in another process: `careful.ended_by`; returns what `read_contents` takes."""
    return ended_by(partial(_some_contents, rows), len(rows), work)


def refuse_outage(rows: pa.Table, row: int, error: ImageError) -> None:
    """Raise an error of the source in place of an item's: one whose place has gone is not a bad image.

    Parameters
    ----------
    rows
        As for `read_contents`.
    row
        Number in `rows` of an item that could not be read.
    error
        What it told.

    Raises
    ------
    JobError
        The item was there when it was listed, and its folder cannot be used now.
    """
    file, n_bytes, mtime_ns = (rows[name][row].as_py() for name in ("file", "bytes", "mtime_ns"))
    if error.status not in ("missing", "unreadable") or not (n_bytes or mtime_ns):
        return
    if place := lost_place(file):
        raise JobError(f"the input went away: {place}; the same command goes on from here")


def _some_contents(rows: pa.Table, wanted: Sequence[int]) -> Iterator[tuple[int, Content]]:
    for position, content in read_contents(rows.take(wanted)):
        yield wanted[position], content


def _contained(
    inside: str, file: bytes, member: str | None, places: Sequence[tuple[int, int, int]]
) -> Iterator[tuple[int, Plain]]:
    left = iter(places)
    try:
        with _opened(inside, file, member) as read:
            for position, row, size in left:
                try:
                    content: Plain = read(position, size)
                # damaged archives, tables and connections raise anything; none may end the task of the other images
                except Exception as error:
                    content = _image_error(error)
                yield row, content
    except Exception as error:  # it could not be opened
        for _, row, _ in left:
            yield row, _image_error(error)


@contextmanager
def _opened(inside: str, file: bytes, member: str | None) -> Iterator[Callable[[int, int], Plain]]:
    """Open a file that holds many items; yields (position, bytes) -> content."""
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


def _fetched(files: list[tuple[int, bytes, int]]) -> Iterator[tuple[int, Plain]]:
    """Fetch remote files, several at a time."""
    while files:
        batch = [files.pop(0)]
        total = batch[0][2]
        while files and len(batch) < _AT_A_TIME and total + files[0][2] <= _BYTES_AT_A_TIME:
            batch.append(files.pop(0))
            total += batch[-1][2]
        small = [(row, file) for row, file, size in batch if size <= _MOST_BYTES]
        yield from ((row, ImageError("too large", f"{size:,} bytes")) for row, _, size in batch if size > _MOST_BYTES)
        try:
            fs, _ = file_system(os.fsdecode(small[0][1]))
            names = [fs._strip_protocol(os.fsdecode(file)) for _, file in small]
            told = fs.cat_ranges(names, [None] * len(names), [None] * len(names), on_error="return")
        except Exception as error:
            told = [error] * len(small)
        for (row, _), content in zip(small, told, strict=True):
            yield row, _image_error(content) if isinstance(content, Exception) else BytesIO(content)


def _image_error(error: Exception) -> ImageError:
    if isinstance(error, ImageError):
        return error
    if isinstance(error, FileNotFoundError):
        return ImageError("missing", "no such file")
    reason = " ".join(shown(error).split()) or type(error).__name__
    return ImageError("unreadable", f"{type(error).__name__}: {reason}"[:200])
