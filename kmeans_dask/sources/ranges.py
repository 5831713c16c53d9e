"""Which numbers are black and white in arrays that are not of bytes: judged once, so that all images are read alike.

A nearly black image of an array of floats 0-255 may have nothing above 1: what its numbers mean is told by the others.
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
from kmeans_dask.sources.kinds.locations import lost_place
from kmeans_dask.sources.normalize import Range, extremes, range_of

_ARRAYS = ("npy", "npz", "idx", "zarr")
_READ_BYTES = 64 * 2**20
"""Of an array that are in memory at a time."""


class _Place(NamedTuple):
    file: bytes
    inside: str
    member: str | None


def with_ranges(
    items: pa.Table, *, stated: Range | None = None, known: pa.Table | None = None, usual: Range | None = None
) -> pa.Table:
    """Fill in the columns ``black`` and ``white`` of arrays: one range for all of floats, one for all of integers.

    Where no number is beyond 0-1 (floats alone), 1 is white; beyond 0-255, 255; beyond 0-65535 (integers alone), 65535;
    else black is the least number of all and white the greatest. For that the arrays are read once as a whole. Arrays
    of bytes have no range, nor have image files: each is judged for itself.

    Parameters
    ----------
    items
        `manifest.MANIFEST_SCHEMA`, without ranges.
    stated
        Range of all items, also of image files; nothing is read.
    known
        An older manifest of the same source: while its arrays are what they were, they are not read again.
    usual
        Range that is taken if no number is beyond it by more than its width.

    Returns
    -------
    pyarrow.Table
        `manifest.MANIFEST_SCHEMA`.

    Raises
    ------
    UserError
        The source of an array has gone.
    """
    if stated is not None:
        return _filled(items, np.zeros(len(items), np.int64), [stated])
    facts = _facts_of(items)
    if not facts:
        return items
    places, were = list(facts), _facts_of(known) if known is not None else {}
    if {place: told[:3] for place, told in were.items()} == {place: told[:3] for place, told in facts.items()}:
        ranges = [were[place][3] for place in places]
    else:
        ranges = _judged(places, usual)
    where = pc.index_in(_keys(items), value_set=pa.array([_key(place) for place in places], pa.binary()))
    return _filled(items, pc.fill_null(where, -1).to_numpy(), ranges)


def ranges_of(items: pa.Table) -> dict[Range, int]:
    """Count the items of every range that a manifest has."""
    counted = items.select(["black", "white"]).group_by(["black", "white"]).aggregate([([], "count_all")])
    rows = counted.to_pylist()
    return {(row["black"], row["white"]): row["count_all"] for row in rows if row["black"] is not None}


def _judged(places: Sequence[_Place], usual: Range | None) -> list[Range | None]:
    """Read arrays as a whole and return the range of each; None for those of bytes."""
    kinds: list[np.dtype[np.generic] | None] = []
    spans: dict[str, list[Range]] = {"f": [], "i": []}
    for place in places:
        with open_array(*place) as array:
            is_plain = array.dtype == np.uint8 or array.dtype == np.bool_
            kinds.append(None if is_plain else array.dtype)
            if not is_plain:
                spans[_kind(array.dtype)] += [extremes(block) for block in _blocks(array)]
        if gone := lost_place(place.file):  # what could not be read was left out, or read as zeros
            raise UserError(f"the input went away while it was read: {gone}; give the same command when it is back")
    return [None if dtype is None else _range(dtype, spans[_kind(dtype)], usual) for dtype in kinds]


def _kind(dtype: np.dtype[np.generic]) -> str:
    return "f" if dtype.kind == "f" else "i"


def _range(dtype: np.dtype[np.generic], spans: Sequence[Range], usual: Range | None) -> Range:
    low, high = min((low for low, _ in spans), default=np.inf), max((high for _, high in spans), default=-np.inf)
    if usual is not None and 2 * usual[0] - usual[1] <= low and high <= 2 * usual[1] - usual[0]:
        return usual
    return range_of(dtype, low, high, is_one_image=False)


def _blocks(array: Array) -> Iterator[NDArray[np.generic]]:
    """Read an array part by part. Rows that cannot be read are left out: they will be told as items."""
    n, *row = array.shape
    step = max(1, _READ_BYTES // (prod(row) * array.dtype.itemsize))
    for start in range(0, n, step):
        stop = min(start + step, n)
        try:
            block = array.read(start, stop)
        except Exception:  # damaged files raise anything
            for each in range(start, stop):
                with suppress(Exception):
                    yield array.read(each, each + 1)
        else:
            yield block


def _facts_of(items: pa.Table) -> dict[_Place, tuple[int, int, int, Range | None]]:
    """Rows, bytes of a row, time of change and range of every array of a manifest."""
    rows = items.filter(pc.is_in(items["inside"], pa.array(_ARRAYS)))
    columns = ["file", "inside", "member", "bytes", "mtime_ns", "black", "white"]
    counted = rows.select(columns).group_by(columns).aggregate([([], "count_all")])
    return {
        _Place(row["file"], row["inside"], row["member"]): (
            row["count_all"], row["bytes"], row["mtime_ns"],
            None if row["black"] is None else (row["black"], row["white"]),
        )
        for row in counted.to_pylist()
    }  # fmt: skip


def _keys(items: pa.Table) -> pa.ChunkedArray:
    names = (pc.fill_null(items[name].cast(pa.binary()), b"") for name in _Place._fields)
    return pc.binary_join_element_wise(*names, b"\0")


def _key(place: _Place) -> bytes:
    return b"\0".join((place.file, place.inside.encode(), (place.member or "").encode()))


def _filled(items: pa.Table, where: NDArray[np.int64], ranges: Sequence[Range | None]) -> pa.Table:
    """Give each item the range of its number in `ranges`; -1: none."""
    table = np.array([*(each or (np.nan, np.nan) for each in ranges), (np.nan, np.nan)])
    for column, name in enumerate(("black", "white")):
        values = pa.array(table[where, column], from_pandas=True)  # NaN becomes null
        items = items.set_column(items.schema.get_field_index(name), name, values)
    return items
