"""Arrays of images: .npy, .npz, IDX (the MNIST format) and zarr. Rows are pixels already; nothing is decoded."""

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
from kmeans_dask.sources.kinds.locations import not_found, open_stream, redacted, size_and_mtime
from kmeans_dask.sources.kinds.source_listing import ListRequest, SourceListing, items_table
from kmeans_dask.storage import zarr_groups

_IDX_TYPES = {8: ">u1", 9: ">i1", 11: ">i2", 12: ">i4", 13: ">f4", 14: ">f8"}
_MAX_DEFLATE_RATIO = 1032
"""Highest compression ratio of deflate."""
_BUFFER_BYTES = 4 * 2**20
"""Bytes of zarr rows read at a time, at least one chunk: decompressing a chunk for a single row is slow."""
_DAMAGE_ERRORS = (
    ValueError, KeyError, OSError, EOFError, zipfile.BadZipFile, struct.error, zlib.error,
    tokenize.TokenError,  # .npy headers
    TypeError, RuntimeError,  # zarr metadata and chunks; .npz compression
)  # fmt: skip
"""Exceptions that the libraries raise for damaged files."""

Read = Callable[[int, int], NDArray[Any]]
"""(start, stop) -> the rows ``start:stop``."""


class Array(NamedTuple):
    """An array on disk with random access to its rows."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    read: Read


def list_array(file: bytes, inside: str, request: ListRequest) -> SourceListing:
    """List the rows of an array of images.

    Parameters
    ----------
    file
        Full path or URL.
    inside
        ``npy``, ``npz``, ``idx`` or ``zarr``.
    request
        `column` selects the array of an .npz file or zarr group with several. `columns` are other arrays in the same
        file or group; for a .npy file, .npy files in the same folder; for an IDX file, ``labels`` for its label file.

    Returns
    -------
    SourceListing
        The path of an item is its row number, zero-padded to the width of the last one.

    Raises
    ------
    UserError
        The file cannot be read, or does not contain images.
    """
    try:
        member = _member_of(file, inside, request)
        with open_array(file, inside, member) as array:
            shape, dtype = array.shape, array.dtype
        if file.endswith(b".gz"):
            _verify_checksum(file)
        columns = {}
        for name in request.columns:
            with _column(file, inside, name) as array:
                column = array.read(0, array.shape[0])
                columns[name] = (column.ravel() if column.size == len(column) else column).tolist()  # (n, 1) too
        size, mtime_ns = size_and_mtime(file)
    except UserError:
        raise
    except FileNotFoundError as error:
        raise not_found(error.filename or file) from None
    except _DAMAGE_ERRORS as error:
        raise UserError(f"{redacted(file)} cannot be read as {inside}: {redacted(error)}") from None
    _check_images(file, shape, dtype)
    if inside != "zarr":
        _check_bytes(file, inside, size, prod(shape) * dtype.itemsize)
    n = shape[0]
    for name, values in columns.items():
        if len(values) != n:
            raise UserError(
                f"{redacted(file)}: {name} has {len(values):,} rows for {n:,} images; the lengths must be equal"
            )
    width = len(str(n - 1))
    items = items_table(
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
    """Open an array whose rows can be read without reading the rest."""
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
        shape, is_fortran_order, dtype = npy.read_array_header_1_0(stream)
    else:
        shape, is_fortran_order, dtype = npy.read_array_header_2_0(stream)
    if dtype.hasobject:
        raise ValueError("it contains Python objects, which are not supported; save numbers")
    if is_fortran_order and len(shape) > 1:
        raise ValueError("it is in Fortran order; save numpy.ascontiguousarray(array)")
    return Array(shape, dtype, _row_reader(stream, shape, dtype))


def _open_idx(stream: BinaryIO) -> Array:
    zeros, kind, n_axes = struct.unpack(">HBB", stream.read(4))
    if zeros or kind not in _IDX_TYPES or not n_axes:
        raise ValueError("it is not an IDX file (wrong first bytes)")
    shape = struct.unpack(f">{n_axes}I", stream.read(4 * n_axes))
    dtype = np.dtype(_IDX_TYPES[kind])
    return Array(shape, dtype, _row_reader(stream, shape, dtype))


def _row_reader(stream: BinaryIO, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Read:
    """Return a reader of the rows that begin at the current position. Seeking back in a compressed file starts over."""
    data_offset = stream.tell()
    row_bytes = prod(shape[1:]) * dtype.itemsize

    def read(start: int, stop: int) -> NDArray[Any]:
        stream.seek(data_offset + start * row_bytes)
        data = stream.read((stop - start) * row_bytes)
        if len(data) < (stop - start) * row_bytes:
            raise EOFError("the file is truncated")
        return np.frombuffer(data, dtype).reshape(stop - start, *shape[1:])

    return read


def _buffered(read: Read, step: int) -> Read:
    """Return a reader that reads `step` rows at a time, and serves fewer from memory."""
    first, buffer = 0, read(0, 0)

    def read_rows(start: int, stop: int) -> NDArray[Any]:
        nonlocal first, buffer
        if stop - start > step:
            return read(start, stop)
        if not first <= start < stop <= first + len(buffer):
            first = start // step * step
            try:
                buffer = read(first, max(first + step, stop))
            except Exception:  # a neighbouring chunk may be damaged, reported by any exception
                first, buffer = start, read(start, stop)
        return buffer[start - first : stop - first]

    return read_rows


def _member_of(file: bytes, inside: str, request: ListRequest) -> str | None:
    """Return the name of the array with the images; None for a file that is a single array."""
    if inside == "npz":
        with open_stream(file) as stream, zipfile.ZipFile(stream) as archive:
            names = [name.removesuffix(".npy") for name in archive.namelist()]
    elif inside == "zarr":
        with warnings.catch_warnings(action="ignore"):  # zarr warns about unknown entries in a damaged group
            names = zarr_groups.array_names(os.fsdecode(file))
    else:
        names = []
    if not names:
        return None
    return choose(file, names, request.column, "array")


def choose(file: bytes, names: Sequence[str], requested: str | None, what: str) -> str:
    """Return the array or column with the images: the requested one, else "images", "image" or the only one."""
    defaults = [name for name in ("images", "image") if name in names]
    name = requested or (defaults[0] if defaults else names[0] if len(names) == 1 else None)
    if name is None or name not in names:
        setting = f"input.column={name}" if name else "input.column is not set"
        raise UserError(f"{setting}: {redacted(file)} has the {what}s {', '.join(names)}; choose one of them")
    return name


@contextmanager
def _column(file: bytes, inside: str, name: str) -> Iterator[Array]:
    """Open an array of values, one per image."""
    if inside in ("npz", "zarr"):
        with open_array(file, inside, name) as array:
            yield array
    elif inside == "npy":
        sibling = os.path.join(os.path.dirname(file), os.fsencode(name))
        with open_array(sibling, "npy", None) as array:
            yield array
    elif name == "labels":
        folder, base = os.path.split(file)
        with open_array(
            os.path.join(folder, base.replace(b"images", b"labels").replace(b"idx3", b"idx1")), "idx", None
        ) as array:
            yield array
    else:
        raise ValueError(f"an IDX file has no column {name}, only labels")


def _check_images(file: bytes, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    is_grey, is_colour = len(shape) == 3, len(shape) == 4 and shape[3] in (1, 3, 4)
    if not (is_grey or is_colour) or min(shape) < 1 or dtype.kind not in "uifb":
        is_channels_first = len(shape) == 4 and shape[1] in (1, 3, 4)
        raise UserError(
            f"{redacted(file)} has dtype {dtype} and shape {shape}, which are not images; must be numbers of shape "
            "(n, height, width) or (n, height, width, channels) with 1, 3 or 4 channels"
            + ("; save numpy.moveaxis(array, 1, 3)" if is_channels_first else "")
        )


def _verify_checksum(file: bytes) -> None:
    """Verify the checksum at the end of a gzip file: tasks that read single rows never get there."""
    with open_stream(file) as stream, gzip.GzipFile(fileobj=stream) as plain:
        while plain.read(2**20):
            pass


def _check_bytes(file: bytes, inside: str, size: int, claimed: int) -> None:
    """Refuse a header that claims more than the file can contain: listing that many rows might exhaust the memory."""
    deflated = inside == "npz" or file.endswith(b".gz")
    if 0 < size * (_MAX_DEFLATE_RATIO if deflated else 1) < claimed:  # some servers do not report the size
        raise UserError(
            f"{redacted(file)} has {size:,} bytes, too few for {claimed:,} bytes of pixels: it is truncated, or its "
            "header is wrong; recreate the file"
        )
