"""What every kind of source gives: its items as a table, and what else it tells about them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from kmeans_dask.sources.manifest import MANIFEST_SCHEMA

FOUND_SCHEMA = pa.schema([field for field in MANIFEST_SCHEMA if field.name not in ("label", "split")])


class Wanted(NamedTuple):
    """What is asked of a source."""

    include: Sequence[str] = ()
    """Patterns of paths; none: the endings of images."""
    exclude: Sequence[str] = ()
    column: str | None = None
    """Of a table, or array of a file that has several: where the images are; None: the one that is there."""
    columns: Sequence[str] = ()
    """Names of columns that are asked for beside the images."""
    json: str | None = None
    """Key of the JSON file beside an image whose value is asked for."""


class Listed(NamedTuple):
    """The items of a source, in its order."""

    items: pa.Table
    """`FOUND_SCHEMA`; paths are relative to the source."""
    columns: Mapping[str, Sequence[Any]] = {}
    """Value of each item, for the columns that were asked for and are there."""
    json: Sequence[Any] | None = None
    """Value of each item's JSON file; None for items that have none."""


def found(n: int, **columns: Any) -> pa.Table:
    """Make a table of n items; a single value holds for all of them, an absent one is null."""
    arrays = []
    for field in FOUND_SCHEMA:
        values = columns.get(field.name)
        if values is None or isinstance(values, (bytes, str, int)):
            arrays.append(pa.repeat(pa.scalar(values, field.type), n))
        else:
            arrays.append(pa.array(values, field.type))
    return pa.table(arrays, schema=FOUND_SCHEMA)
