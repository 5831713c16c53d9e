"""Lists of paths (text or CSV), and tables with columns to join to the items."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from kmeans_dask.errors import UserError
from kmeans_dask.sources.kinds.folders import list_files
from kmeans_dask.sources.kinds.locations import full_path, is_remote, open_stream, read_text, redacted
from kmeans_dask.sources.kinds.source_listing import ListRequest, SourceListing


def list_list(file: bytes, request: ListRequest) -> SourceListing:
    """List the image files named in a text or CSV file, in its order.

    Parameters
    ----------
    file
        Full path or URL. A ``.csv`` file is a table with a header line; any other file has one path per line, and
        empty lines are skipped. Paths are URLs, absolute, or relative to the folder of the list. Backslashes are read
        as slashes unless a file of that exact name exists.
    request
        `column` holds the paths, by default ``path``; `columns` are returned as well.

    Returns
    -------
    SourceListing

    Raises
    ------
    UserError
        The file cannot be read, names no files, or lacks the column.
    """
    columns: dict[str, list[Any]] = {}
    if file.lower().endswith(b".csv"):
        columns = read_columns(file)
        key = request.column or "path"
        if key not in columns:
            raise UserError(
                f"{redacted(file)} has no column {key}, only {', '.join(columns)}; set input.column to one of them"
            )
        names = columns[key]
    else:
        try:
            names = [line.removesuffix("\r") for line in read_text(file).split("\n") if line.strip()]
        except OSError as error:
            raise UserError(f"cannot read {redacted(file)}: {error.strerror or type(error).__name__}") from None
    if not names:
        raise UserError(f"{redacted(file)} names no files; write one path per line")
    if bad := next((row for row, name in enumerate(names, 1) if not name or "\0" in name), None):
        raise UserError(f"{redacted(file)}: entry {bad} is not a path: {names[bad - 1]!r}; correct or remove it")
    folder = os.path.dirname(file)
    if is_remote(folder):
        files = [name.encode() if is_remote(name) else folder + b"/" + name.encode() for name in names]
    else:
        names = [_to_posix(folder, name) if "\\" in name else name for name in names]
        files = [
            full_path(name) if is_remote(name) else os.path.normpath(os.path.join(folder, os.fsencode(name)))
            for name in names
        ]
    paths = [os.fsencode(name.partition("://")[2].partition("?")[0] or name).lstrip(b"/") for name in names]
    listed = list_files(files, paths, request)
    return SourceListing(
        listed.items, {name: columns[name] for name in request.columns if name in columns}, listed.sidecar_values
    )


def read_columns(file: bytes) -> dict[str, list[Any]]:
    """Read a CSV or Parquet file as a mapping from column name to values; CSV values are text, or None if empty.

    A CSV file is separated by commas, semicolons or tabs, whichever is most frequent in its first line.

    Raises
    ------
    UserError
        The file cannot be read.
    """
    try:
        if file.lower().endswith((b".parquet", b".pq")):
            with open_stream(file) as stream:
                table = pq.read_table(stream)
            return {name: table[name].to_pylist() for name in table.column_names}
        text = read_text(file)
        delimiter = max(",;\t", key=text.partition("\n")[0].count)  # spreadsheets use semicolons in some locales
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        names = next(rows, [])
        if duplicate := next((name for name in names if name and names.count(name) > 1), None):
            raise ValueError(f"it has two columns named {duplicate}")
        columns: dict[str, list[Any]] = {name: [] for name in names}
        for row in rows:
            if not row:
                continue
            if len(row) != len(names):
                raise ValueError(f"line {rows.line_num} has {len(row)} values, but the first line has {len(names)}")
            for name, value in zip(names, row, strict=True):
                columns[name].append(value or None)
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise UserError(f"cannot read the table {redacted(file)}: {reason or redacted(error)}") from None
    return columns


def _to_posix(folder: bytes, name: str) -> str:
    """Convert a path written on Windows, unless a file of that exact name exists."""
    return name if os.path.lexists(os.path.join(folder, os.fsencode(name))) else name.replace("\\", "/")


def join_table(file: bytes, paths: Sequence[str], names: Sequence[str]) -> dict[str, list[Any]]:
    """Join columns of a table to the items by its column ``path``.

    Parameters
    ----------
    file
        CSV or Parquet file.
    paths
        Paths of the items.
    names
        Names of the columns.

    Returns
    -------
    dict
        Column name -> values in the order of the items; None for items missing from the table.

    Raises
    ------
    UserError
        The table cannot be read, lacks a column, has duplicate paths, or has none of the item paths.
    """
    table = read_columns(file)
    for name in ("path", *names):
        if name not in table:
            raise UserError(
                f"input.table={redacted(file)} has no column {name}, only {', '.join(table)}; add the column"
            )
    row_of = {path: row for row, path in enumerate(table["path"])}
    if len(row_of) < len(table["path"]):
        raise UserError(f"input.table={redacted(file)} has duplicate paths; keep one row per path")
    rows = [row_of.get(path) for path in paths]
    if all(row is None for row in rows):
        raise UserError(
            f"input.table={redacted(file)} contains no item paths such as {paths[0]!r}; "
            "its column path must match that of items.csv"
        )
    return {name: [None if row is None else table[name][row] for row in rows] for name in names}
