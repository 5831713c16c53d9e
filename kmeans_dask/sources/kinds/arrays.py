"""Arrays of images: .npy, .npz, the IDX files of MNIST, zarr. Their rows are pixels already; nothing is decoded."""

from __future__ import annotations

import gzip
import os
import struct
import tokenize
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import prod
from typing import Any, BinaryIO, NamedTuple, cast

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from kmeans_dask.errors import UserError
from kmeans_dask.sources.kinds.locations import look_at, not_there, open_stream, shown
from kmeans_dask.sources.kinds.source_listing import ListRequest, SourceListing, found
from kmeans_dask.storage import zarr_groups

_IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_MOST_DEFLATED = 1032
"""Bytes that a byte of deflate can stand for at most."""
_BUFFER_BYTES = 4 * 2**20
"""Rows of a zarr array that are read at a time, at least its chunk: decompressing a chunk for one row is slow."""
_DAMAGE = (
    ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, struct.error, zlib.error,
    tokenize.TokenError,  # headers of .npy
    TypeError, RuntimeError,  # metadata and chunks of zarr; compression of .npz
)  # fmt: skip
"""What the libraries raise of damaged files."""

Read = Callable[[int, int], NDArray[Any]]
"""(start, stop) -> those rows."""


class Array(NamedTuple):
    """An array on disk whose rows can be read."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Read


def list_array(file: bytes, inside: str, wanted: ListRequest) -> SourceListing:
    """List the rows of an array of images.

    Parameters
    ----------
    file
        Full path or URL.
    inside
        ``npy``, ``npz``, ``idx`` or ``zarr``.
    wanted
        `column` names the array of an .npz or zarr group that has several. `columns`: other arrays of them; of a .npy
        file, .npy files beside it; of an IDX file, ``labels``, its file of labels.

    Returns
    -------
    SourceListing
        The path of an item is its row number, in as many digits as the last one needs.

    Raises
    ------
    UserError
        It cannot be read, or does not hold images.
    """
    try:
        member = _member_of(file, inside, wanted)
        with open_array(file, inside, member) as array:
            shape, dtype = array.shape, array.dtype
        if file.endswith(b".gz"):
            _check_sum(file)
        columns = {}
        for name in wanted.columns:
            with _column(file, inside, name) as values:
                column = values.read(0, values.shape[0])
                columns[name] = (column.ravel() if column.size == len(column) else column).tolist()  # (n, 1) too
        size, mtime_ns = look_at(file)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise not_there(error.filename or file) from None
    except _DAMAGE as error:
        raise UserError(f"{shown(file)} cannot be read as {inside}: {shown(error)}") from None
    _check_images(file, shape, dtype)
    if inside != "zarr":
        _check_bytes(file, inside, size, prod(shape) * dtype.itemsize)
    n = shape[0]
    for name, told in columns.items():
        if len(told) != n:
            raise UserError(f"{shown(file)}: {name} has {len(told):,} rows, the images are {n:,}; give one that fits")
    width = len(str(n - 1))
    items = found(
        n,
        file=file,
        inside=inside,
        member=member,
        position=np.arange(n),
        path=[f"{row:0{width}}" for row in range(n)],
        bytes=prod(shape[1:]) * dtype.itemsize,
        mtime_ns=mtime_ns,
    )
    return SourceListing(items, columns)


@contextmanager
def open_array(file: bytes, inside: str, member: str | None) -> Iterator[Array]:
    """Open an array whose rows are read one after the other without reading the rest."""
    if inside == "zarr":
        yield _open_zarr(file, member)
        return
    with open_stream(file) as stream:
        if inside == "npz":
            with zipfile.ZipFile(stream) as archive, archive.open(f"{member}.npy") as within:
                yield _open_npy(cast(BinaryIO, within))
        elif inside == "npy":
            yield _open_npy(stream)
        else:
            yield _open_idx(cast(BinaryIO, gzip.GzipFile(fileobj=stream)) if file.endswith(b".gz") else stream)


def _open_zarr(file: bytes, member: str | None) -> Array:
    shape, dtype, rows, read = zarr_groups.open_array(os.fsdecode(file), member)
    step = max(rows, _BUFFER_BYTES // max(1, prod(shape[1:]) * dtype.itemsize) // rows * rows)
    return Array(shape, dtype, _buffered(read, step))


def _open_npy(stream: BinaryIO) -> Array:
    version = npy.read_magic(stream)
    if version == (1, 0):
        shape, by_columns, dtype = npy.read_array_header_1_0(stream)
    else:
        shape, by_columns, dtype = npy.read_array_header_2_0(stream)
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not read; save numbers")
    if by_columns and len(shape) > 1:
        raise ValueError("it is in Fortran order; save numpy.ascontiguousarray(...) of it")
    return Array(shape, dtype, _row_reader(stream, shape, dtype))


def _open_idx(stream: BinaryIO) -> Array:
    zeros, kind, n_axes = struct.unpack(">HBB", stream.read(4))
    if zeros or kind not in _IDX_TYPES or not n_axes:
        raise ValueError("it does not begin as an IDX file does")
    shape = struct.unpack(f">{n_axes}I", stream.read(4 * n_axes))
    dtype = np.dtype(_IDX_TYPES[kind])
    return Array(shape, dtype, _row_reader(stream, shape, dtype))


def _row_reader(stream: BinaryIO, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Read:
    """Read rows that begin where the stream is now. Going back in a compressed file begins at its beginning."""
    begin = stream.tell()
    row_bytes = prod(shape[1:]) * dtype.itemsize

    def read(start: int, stop: int) -> NDArray[Any]:
        stream.seek(begin + start * row_bytes)
        data = stream.read((stop - start) * row_bytes)
        if len(data) < (stop - start) * row_bytes:
            raise EOFError("the file ends too early")
        return np.frombuffer(data, dtype).reshape(stop - start, *shape[1:])

    return read


def _buffered(read: Read, step: int) -> Read:
    begin, buffer = 0, read(0, 0)

    def read_rows(start: int, stop: int) -> NDArray[Any]:
        nonlocal begin, buffer
        if stop - start > step:
            return read(start, stop)
        if not begin <= start < stop <= begin + len(buffer):
            begin = start // step * step
            try:
                buffer = read(begin, max(begin + step, stop))
            except Exception:  # a damaged chunk near by, as libraries say it
                begin, buffer = start, read(start, stop)
        return buffer[start - begin : stop - begin]

    return read_rows


def _member_of(file: bytes, inside: str, wanted: ListRequest) -> str | None:
    """Name of the array that holds the images; None in a file that is a single array."""
    if inside == "npz":
        with open_stream(file) as stream, zipfile.ZipFile(stream) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
    elif inside == "zarr":
        with warnings.catch_warnings(action="ignore"):  # zarr tells of what it does not know in a damaged group
            names = zarr_groups.array_names(os.fsdecode(file))
    else:
        names = []
    if not names:
        return None
    return choose(file, names, wanted.column, "array")


def choose(file: bytes, names: Sequence[str], wanted: str | None, what: str) -> str:
    """Return the array or column that holds the images: the wanted one, else "images", "image" or the only one."""
    usual = [name for name in ("images", "image") if name in names]
    name = wanted or (usual[0] if usual else names[0] if len(names) == 1 else None)
    if name is None or name not in names:
        told = f"input.column={name}" if name else "input.column is not given"
        raise UserError(f"{told}: {shown(file)} has the {what}s {', '.join(names)}; choose one of them")
    return name


@contextmanager
def _column(file: bytes, inside: str, name: str) -> Iterator[Array]:
    """Open values that belong to the images of an array."""
    if inside in ("npz", "zarr"):
        with open_array(file, inside, name) as array:
            yield array
    elif inside == "npy":
        beside = os.path.join(os.path.dirname(file), os.fsencode(name))
        with open_array(beside, "npy", None) as array:
            yield array
    elif name == "labels":
        folder, base = os.path.split(file)
        with open_array(
            os.path.join(folder, base.replace(b"images", b"labels").replace(b"idx3", b"idx1")), "idx", None
        ) as array:
            yield array
    else:
        raise ValueError(f"an IDX file has no {name}, only labels")


def _check_images(file: bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    is_grey, is_colour = len(shape) == 3, len(shape) == 4 and shape[3] in (1, 3, 4)
    if not (is_grey or is_colour) or min(shape) < 1 or dtype.kind not in "uifb":
        first = len(shape) == 4 and shape[1] in (1, 3, 4)
        raise UserError(
            f"{shown(file)} holds {dtype} of shape {shape}, which are no images; allowed are numbers of shape "
            "(n, height, width) or (n, height, width, channels) with 1, 3 or 4 channels"
            + ("; save numpy.moveaxis(..., 1, 3) of it" if first else "")
        )


def _check_sum(file: bytes) -> None:
    """Decompress a file to its end, where its checksum stands: tasks read rows, and do not come there."""
    with open_stream(file) as stream, gzip.GzipFile(fileobj=stream) as plain:
        while plain.read(2**20):
            pass


def _check_bytes(file: bytes, inside: str, size: int, promised: int) -> None:
    """Refuse a header that promises more than the file holds: listing such rows might fill the memory."""
    deflated = inside == "npz" or file.endswith(b".gz")
    if 0 < size * (_MOST_DEFLATED if deflated else 1) < promised:  # some servers do not tell the size
        raise UserError(
            f"{shown(file)} has {size:,} bytes, too few for {promised:,} of pixels: it is cut off, or its header is "
            "wrong; make it anew"
        )
