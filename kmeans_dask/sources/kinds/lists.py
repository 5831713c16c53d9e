"""Lists: text files with a path a line, CSV files with a column of paths, and tables that belong to the items."""

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
from kmeans_dask.sources.kinds.locations import full_name, is_remote, open_stream, shown, text_of
from kmeans_dask.sources.kinds.source_listing import ListRequest, SourceListing


def list_list(file: bytes, wanted: ListRequest) -> SourceListing:
    """List the image files that a text or CSV file names, in its order.

    Parameters
    ----------
    file
        Full path or URL. A name ending in ``.csv`` is a table with a line of column names; any other has a path in
        each line, empty lines are skipped. Paths are relative to the folder of the list, or full, or URLs; backslashes
        stand for slashes where no file has them in its name.
    wanted
        `column` of the paths, ``path`` if it is None; `columns` that are given back.

    Returns
    -------
    SourceListing

    Raises
    ------
    UserError
        It cannot be read, names no file, or lacks the column.
    """
    columns: dict[str, list[Any]] = {}
    if file.lower().endswith(b".csv"):
        columns = read_columns(file)
        key = wanted.column or "path"
        if key not in columns:
            raise UserError(f"{shown(file)} has no column {key}, but {', '.join(columns)}; name one as input.column")
        names = columns[key]
    else:
        try:
            names = [line.removesuffix("\r") for line in text_of(file).split("\n") if line.strip()]
        except OSError as error:
            raise UserError(f"cannot read {shown(file)}: {error.strerror or type(error).__name__}") from None
    if not names:
        raise UserError(f"{shown(file)} names no file; write a path in each line")
    if bad := next((row for row, name in enumerate(names, 1) if not name or "\0" in name), None):
        raise UserError(f"{shown(file)}: entry {bad} is no path, but {names[bad - 1]!r}; correct it, or take it out")
    folder = os.path.dirname(file)
    if not is_remote(folder):
        names = [_as_here(folder, name) if "\\" in name else name for name in names]
    files = (
        [
            full_name(name) if is_remote(name) else os.path.normpath(os.path.join(folder, os.fsencode(name)))
            for name in names
        ]
        if not is_remote(folder)
        else [name.encode() if is_remote(name) else folder + b"/" + name.encode() for name in names]
    )
    paths = [os.fsencode(name.partition("://")[2].partition("?")[0] or name).lstrip(b"/") for name in names]
    listed = list_files(files, paths, wanted)
    return SourceListing(
        listed.items, {name: columns[name] for name in wanted.columns if name in columns}, listed.beside
    )


def read_columns(file: bytes) -> dict[str, list[Any]]:
    """Read a CSV or Parquet file as columns under their names; values of CSV are text, empty ones None.

    Commas, semicolons or tabs stand between the values of a CSV file: what its first line has most of.

    Raises
    ------
    UserError
        It cannot be read.
    """
    try:
        if file.lower().endswith((b".parquet", b".pq")):
            with open_stream(file) as stream:
                table = pq.read_table(stream)
            return {name: table[name].to_pylist() for name in table.column_names}
        text = text_of(file)
        delimiter = max(",;\t", key=text.partition("\n")[0].count)  # of spreadsheets in some languages a semicolon
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        names = next(rows, [])
        if twice := next((name for name in names if name and names.count(name) > 1), None):
            raise ValueError(f"it has two columns {twice}")
        columns: dict[str, list[Any]] = {name: [] for name in names}
        for row in rows:
            if not row:
                continue
            if len(row) != len(names):
                raise ValueError(f"line {rows.line_num} has {len(row)} values, the first line {len(names)}")
            for name, value in zip(names, row, strict=True):
                columns[name].append(value or None)
    except (OSError, ValueError, csv.Error, pa.ArrowException) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise UserError(f"cannot read the table {shown(file)}: {reason or shown(error)}") from None
    return columns


def _as_here(folder: bytes, name: str) -> str:
    """Return a path that was written on Windows as one of this machine."""
    return name if os.path.lexists(os.path.join(folder, os.fsencode(name))) else name.replace("\\", "/")


def joined(file: bytes, paths: Sequence[str], names: Sequence[str]) -> dict[str, list[Any]]:
    """Read columns of a table and bring them into the order of the items, by its column ``path``.

    Parameters
    ----------
    file
        CSV or Parquet.
    paths
        Of the items.
    names
        Of the columns.

    Returns
    -------
    dict
        Name -> value of each item; None for items that the table does not have.

    Raises
    ------
    UserError
        The table cannot be read, lacks a column, has a path twice, or none of the paths.
    """
    table = read_columns(file)
    for name in ("path", *names):
        if name not in table:
            raise UserError(f"input.table={shown(file)} has no column {name}; it has {', '.join(table)}")
    places = {path: row for row, path in enumerate(table["path"])}
    if len(places) < len(table["path"]):
        raise UserError(f"input.table={shown(file)} has a path twice; give each path one row")
    rows = [places.get(path) for path in paths]
    if all(row is None for row in rows):
        raise UserError(
            f"input.table={shown(file)} has no path of the items, such as {paths[0]!r}; "
            "its column path must be as items.csv has it"
        )
    return {name: [None if row is None else table[name][row] for row in rows] for name in names}
