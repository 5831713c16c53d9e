"""Value ranges of arrays that do not hold bytes, inferred once so that all images are scaled alike.

In an array of floats 0-255, a nearly black image may have no value above 1; only the other images show its scale.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from math import prod
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from kmeans_dask.errors import UserError
from kmeans_dask.sources.kinds.arrays import Array, open_array
from kmeans_dask.sources.kinds.locations import unavailable_folder
from kmeans_dask.sources.normalize import Range, extremes, infer_range

_ARRAYS = ("npy", "npz", "idx", "zarr")
_READ_BYTES = 64 * 2**20
"""Bytes of an array held in memory at a time."""


class _ArrayKey(NamedTuple):
    """Identifies one array of a manifest."""

    file: bytes
    inside: str
    member: str | None


def with_ranges(
    items: pa.Table, *, given: Range | None = None, previous: pa.Table | None = None, preferred: Range | None = None
) -> pa.Table:
    """Fill in the columns ``black`` and ``white``: one range for all float arrays, one for all integer arrays.

    White is 1 if all values are within 0-1 (floats only), 255 if within 0-255, and 65535 if within 0-65535 (integers
    only); otherwise black and white are the minimum and maximum. To find out, the arrays are read once in full. Byte
    arrays have no range, and neither do image files, each of which is scaled on its own.

    Parameters
    ----------
    items
        `manifest.MANIFEST_SCHEMA`, without ranges.
    given
        Range of all items, including image files; nothing is read.
    previous
        Earlier manifest of the same source; if its arrays are unchanged, its ranges are reused without reading.
    preferred
        Range to use unless some value exceeds it by more than its width.

    Returns
    -------
    pyarrow.Table
        `manifest.MANIFEST_SCHEMA`.

    Raises
    ------
    UserError
        The source of an array disappeared while it was read.
    """
    if given is not None:
        return _set_ranges(items, np.zeros(len(items), np.int64), [given])
    facts = _array_facts(items)
    if not facts:
        return items
    arrays, earlier = list(facts), _array_facts(previous) if previous is not None else {}
    if {array: fact[:3] for array, fact in earlier.items()} == {array: fact[:3] for array, fact in facts.items()}:
        ranges = [earlier[array][3] for array in arrays]
    else:
        ranges = _infer_ranges(arrays, preferred)
    where = pc.index_in(_keys(items), value_set=pa.array([_encode_key(array) for array in arrays], pa.binary()))
    return _set_ranges(items, pc.fill_null(where, -1).to_numpy(), ranges)


def count_ranges(items: pa.Table) -> dict[Range, int]:
    """Return each value range in a manifest with its number of items."""
    counted = items.select(["black", "white"]).group_by(["black", "white"]).aggregate([([], "count_all")])
    rows = counted.to_pylist()
    return {(row["black"], row["white"]): row["count_all"] for row in rows if row["black"] is not None}


def _infer_ranges(arrays: Sequence[_ArrayKey], preferred: Range | None) -> list[Range | None]:
    """Read arrays in full and return the range of each; None for byte arrays."""
    kinds: list[np.dtype[np.generic] | None] = []
    spans: dict[str, list[Range]] = {"f": [], "i": []}
    for key in arrays:
        with open_array(*key) as array:
            is_bytes = array.dtype == np.uint8 or array.dtype == np.bool_
            kinds.append(None if is_bytes else array.dtype)
            if not is_bytes:
                spans[_kind(array.dtype)] += [extremes(block) for block in _blocks(array)]
        if lost := unavailable_folder(key.file):  # then rows were skipped, or read as zeros
            raise UserError(f"the input became unavailable while it was read: {lost}; rerun when it is back")
    return [None if dtype is None else _range(dtype, spans[_kind(dtype)], preferred) for dtype in kinds]


def _kind(dtype: np.dtype[np.generic]) -> str:
    return "f" if dtype.kind == "f" else "i"


def _range(dtype: np.dtype[np.generic], spans: Sequence[Range], preferred: Range | None) -> Range:
    low, high = min((low for low, _ in spans), default=np.inf), max((high for _, high in spans), default=-np.inf)
    if preferred is not None and 2 * preferred[0] - preferred[1] <= low and high <= 2 * preferred[1] - preferred[0]:
        return preferred
    return infer_range(dtype, low, high, is_one_image=False)


def _blocks(array: Array) -> Iterator[NDArray[np.generic]]:
    """Read an array block by block. Unreadable rows are skipped: they are reported later, as items."""
    n, *row = array.shape
    step = max(1, _READ_BYTES // (prod(row) * array.dtype.itemsize))
    for start in range(0, n, step):
        stop = min(start + step, n)
        try:
            block = array.read(start, stop)
        except Exception:  # damaged files raise almost anything
            for each in range(start, stop):
                with suppress(Exception):
                    yield array.read(each, each + 1)
        else:
            yield block


def _array_facts(items: pa.Table) -> dict[_ArrayKey, tuple[int, int, int, Range | None]]:
    """Return number of rows, bytes per row, modification time and range of each array in a manifest."""
    rows = items.filter(pc.is_in(items["inside"], pa.array(_ARRAYS)))
    columns = ["file", "inside", "member", "bytes", "mtime_ns", "black", "white"]
    counted = rows.select(columns).group_by(columns).aggregate([([], "count_all")])
    return {
        _ArrayKey(row["file"], row["inside"], row["member"]): (
            row["count_all"], row["bytes"], row["mtime_ns"],
            None if row["black"] is None else (row["black"], row["white"]),
        )
        for row in counted.to_pylist()
    }  # fmt: skip


def _keys(items: pa.Table) -> pa.ChunkedArray:
    names = (pc.fill_null(items[name].cast(pa.binary()), b"") for name in _ArrayKey._fields)
    return pc.binary_join_element_wise(*names, b"\0")


def _encode_key(array: _ArrayKey) -> bytes:
    return b"\0".join((array.file, array.inside.encode(), (array.member or "").encode()))


def _set_ranges(items: pa.Table, where: NDArray[np.int64], ranges: Sequence[Range | None]) -> pa.Table:
    """Set the range of each item to ``ranges[where]``; -1 means none."""
    table = np.array([*(each or (np.nan, np.nan) for each in ranges), (np.nan, np.nan)])
    for column, name in enumerate(("black", "white")):
        values = pa.array(table[where, column], from_pandas=True)  # NaN becomes null
        items = items.set_column(items.schema.get_field_index(name), name, values)
    return items
