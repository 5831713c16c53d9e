"""Parquet files with a column of encoded images, including the struct<bytes, path> of Hugging Face."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from kmeans_dask.errors import UserError
from kmeans_dask.sources.images import ImageError
from kmeans_dask.sources.kinds.arrays import choose
from kmeans_dask.sources.kinds.locations import not_found, open_stream, redacted, size_and_mtime
from kmeans_dask.sources.kinds.source_listing import ListRequest, SourceListing, items_table

_BATCH_ROWS = 64
"""Rows of a row group held in memory at a time."""


def list_table(file: bytes, request: ListRequest) -> SourceListing:
    """List the rows of a Parquet file without reading the images.

    Parameters
    ----------
    file
        Full path or URL.
    request
        `column` contains the images; by default ``images``, ``image`` or the only binary column.

    Returns
    -------
    SourceListing
        The path of an item is the one in its struct if all rows have distinct paths, else the row number.

    Raises
    ------
    UserError
        The file cannot be read, or has no such column.
    """
    try:
        with open_stream(file) as stream, pq.ParquetFile(stream) as table:
            names = [field.name for field in table.schema_arrow if _holds_bytes(field.type)]
            if not names:
                raise ValueError("it has no column of type binary or struct<bytes, path>")
            member = choose(file, names, request.column, "column")
            paths = _paths(table, member)
            sizes = _row_sizes(table, member)
            columns = {name: _values(table, name) for name in request.columns if name in table.schema_arrow.names}
        _, mtime_ns = size_and_mtime(file)
    except UserError:
        raise
    except FileNotFoundError:
        raise not_found(file) from None
    except (pa.ArrowException, ValueError, OSError) as error:
        raise UserError(f"{redacted(file)} cannot be read as Parquet: {redacted(error)}") from None
    n = len(sizes)
    if n == 0:
        raise UserError(f"{redacted(file)} has no rows; use a file with images")
    items = items_table(
        n,
        file=file,
        inside="parquet",
        member=member,
        position=np.arange(n),
        path=paths or [f"{row:0{len(str(n - 1))}}" for row in range(n)],
        bytes=sizes,
        mtime_ns=mtime_ns,
    )
    return SourceListing(items, columns)


def row_reader(stream: BinaryIO, member: str) -> Callable[[int], BytesIO]:
    """Return a function that reads the image of a row as a file object; fastest for rows in ascending order.

    It raises `images.ImageError` for a row without an image.
    """
    table = pq.ParquetFile(stream)
    groups = [table.metadata.row_group(i).num_rows for i in range(table.metadata.num_row_groups)]
    group_starts = np.cumsum([0, *groups])
    batches: Any = iter(())
    group, first, rows = -1, 0, pa.array([])

    def read(row: int) -> BytesIO:
        nonlocal batches, group, first, rows
        target = int(np.searchsorted(group_starts, row, "right")) - 1
        if target != group or row < first:
            batches = table.iter_batches(_BATCH_ROWS, row_groups=[target], columns=[member], use_threads=False)
            group, first, rows = target, int(group_starts[target]), pa.array([])
        while row >= first + len(rows):
            first += len(rows)
            rows = next(batches).column(0)
        value = rows[row - first].as_py()
        data = value["bytes"] if isinstance(value, dict) else value
        if data is None:
            has_path = value is not None and value.get("path")
            raise ImageError("missing", f"no image in this row of the table{', only a path' if has_path else ''}")
        return BytesIO(data)

    return read


def _holds_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_struct(kind):
        return any(field.name == "bytes" and _holds_bytes(field.type) for field in kind)
    if pa.types.is_dictionary(kind):
        return _holds_bytes(kind.value_type)
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_binary_view(kind)


def _paths(table: pq.ParquetFile, member: str) -> list[str] | None:
    kind = table.schema_arrow.field(member).type
    if not pa.types.is_struct(kind) or "path" not in [field.name for field in kind]:
        return None
    column = table.read(columns=[f"{member}.path"]).column(0).combine_chunks()
    paths = [str(path) for path in column.field("path").to_pylist() if path]
    return paths if len(set(paths)) == len(column) else None


def _row_sizes(table: pq.ParquetFile, member: str) -> list[int]:
    """Estimate the bytes of each row as an equal fraction of its row group."""
    sizes: list[int] = []
    for i in range(table.metadata.num_row_groups):
        group = table.metadata.row_group(i)
        columns = (group.column(c) for c in range(group.num_columns))
        total = sum(c.total_compressed_size for c in columns if c.path_in_schema.partition(".")[0] == member)
        sizes += [total // max(1, group.num_rows)] * group.num_rows
    return sizes


def _values(table: pq.ParquetFile, name: str) -> Sequence[Any]:
    """Return the values of a column; Hugging Face class labels become the names in the metadata."""
    values = table.read(columns=[name]).column(0).to_pylist()
    try:
        features = json.loads(table.schema_arrow.metadata[b"huggingface"])["info"]["features"]
        names = features[name]["names"]
    except (KeyError, TypeError, ValueError):
        return values
    return [names[value] if isinstance(value, int) and 0 <= value < len(names) else None for value in values]
