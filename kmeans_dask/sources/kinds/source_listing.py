"""The common interface of all kinds of sources: what is requested, and the items and values that are listed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from kmeans_dask.sources.manifest import MANIFEST_SCHEMA

_ADDED_LATER = ("label", "split", "black", "white")
"""Manifest columns that `sources.listing` adds to the listings of the sources."""

LISTING_SCHEMA = pa.schema([field for field in MANIFEST_SCHEMA if field.name not in _ADDED_LATER])
"""Columns of the items of one source."""


class Sidecar(NamedTuple):
    """Small files named like the images but with another suffix, which contain their labels."""

    suffix: bytes
    """For example ``.json``."""
    key: str | None = None
    """Key to read from a JSON mapping; None: the value is the whole text."""

    def value(self, text: str | bytes) -> Any:
        """Return the value in a file, or None if it has none."""
        try:
            if self.key is not None:
                return json.loads(text).get(self.key)
            return (text.decode() if isinstance(text, bytes) else text).strip()
        except (ValueError, AttributeError, RecursionError):  # not JSON, not a mapping, or not text
            return None


class ListRequest(NamedTuple):
    """What to list of a source."""

    include: Sequence[str] = ()
    """Patterns of paths to list; empty: names with the suffixes of images."""
    exclude: Sequence[str] = ()
    """Patterns of paths to skip."""
    column: str | None = None
    """Column, or array of a file with several, that contains the images; None: the default or only one."""
    columns: Sequence[str] = ()
    """Names of further columns to return."""
    sidecar: Sidecar | None = None
    """Sidecar files to read."""


class SourceListing(NamedTuple):
    """The items of a source, in its order."""

    items: pa.Table
    """`LISTING_SCHEMA`; paths are relative to the source."""
    columns: Mapping[str, Sequence[Any]] = {}
    """Values by item, for the requested columns that exist."""
    sidecar_values: Sequence[Any] | None = None
    """Value in the sidecar file of each item; None for items without one."""


def items_table(n: int, **columns: Any) -> pa.Table:
    """Build a table of n items; a single value applies to all of them, and an absent column is null."""
    arrays = []
    for field in LISTING_SCHEMA:
        values = columns.get(field.name)
        if values is None or isinstance(values, (bytes, str, int)):
            arrays.append(pa.repeat(pa.scalar(values, field.type), n))
        else:
            arrays.append(_array(values, field.type))
    return pa.table(arrays, schema=LISTING_SCHEMA)


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    try:
        return pa.array(values, kind)
    except OverflowError:  # a file dated after 2262 by a wrong clock, where 64-bit nanoseconds end
        return pa.array([min(max(value, -(2**63)), 2**63 - 1) for value in values], kind)
