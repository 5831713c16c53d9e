"""What every kind of source gives: its items as a table, and what else it tells about them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa

from kmeans_dask.sources.manifest import MANIFEST_SCHEMA

_TOLD_LATER = ("label", "split", "black", "white")

FOUND_SCHEMA = pa.schema([field for field in MANIFEST_SCHEMA if field.name not in _TOLD_LATER])


class Sidecar(NamedTuple):
    """Small files with the names of the images and another ending, which tell their labels."""

    ending: bytes
    """For example ``.json``."""
    key: str | None = None
    """Of the mapping in a JSON file; None: the text itself is what is told."""

    def value(self, text: str | bytes) -> Any:
        """Return what a file tells; None if it tells nothing."""
        try:
            if self.key is not None:
                return json.loads(text).get(self.key)
            return (text.decode() if isinstance(text, bytes) else text).strip()
        except (ValueError, AttributeError, RecursionError):  # no JSON, no mapping, no text
            return None


class ListRequest(NamedTuple):
    """What is asked of a source."""

    include: Sequence[str] = ()
    """Patterns of paths; none: the endings of images."""
    exclude: Sequence[str] = ()
    column: str | None = None
    """Of a table, or array of a file that has several: where the images are; None: the one that is there."""
    columns: Sequence[str] = ()
    """Names of columns that are asked for beside the images."""
    beside: Sidecar | None = None
    """The files beside the images that are asked for."""


class SourceListing(NamedTuple):
    """The items of a source, in its order."""

    items: pa.Table
    """`FOUND_SCHEMA`; paths are relative to the source."""
    columns: Mapping[str, Sequence[Any]] = {}
    """Value of each item, for the columns that were asked for and are there."""
    beside: Sequence[Any] | None = None
    """What the file beside each item tells; None for items that have none."""


def found(n: int, **columns: Any) -> pa.Table:
    """Make a table of n items; a single value holds for all of them, an absent one is null."""
    arrays = []
    for field in FOUND_SCHEMA:
        values = columns.get(field.name)
        if values is None or isinstance(values, (bytes, str, int)):
            arrays.append(pa.repeat(pa.scalar(values, field.type), n))
        else:
            arrays.append(_array(values, field.type))
    return pa.table(arrays, schema=FOUND_SCHEMA)


def _array(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    try:
        return pa.array(values, kind)
    except OverflowError:  # the time of a file after the year 2262, by a clock that was wrong: 64 bits end there
        return pa.array([min(max(value, -(2**63)), 2**63 - 1) for value in values], kind)
