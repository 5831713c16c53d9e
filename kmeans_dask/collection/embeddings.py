"""Precomputed rows of numbers, from a .npy, .zarr or .parquet file: which row belongs to which item."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from kmeans_dask.collection.extractors import check_finite
from kmeans_dask.errors import UserError
from kmeans_dask.storage.zarr_groups import read_rows, shape_of_array

_PATH = "path"
"""Column of a Parquet file that says which item a row belongs to."""


@dataclass(frozen=True)
class Embeddings:
    """Rows of a file, matched to the items of a collection.

    Attributes
    ----------
    path
        Of the file.
    width
        Numbers a row.
    positions : (n_items,) int64
        Row of the file for each item, -1 = none, which only items have that could not be read.
    """

    path: Path
    width: int
    positions: NDArray[np.int64]


def file_stamp(name: str) -> list[int]:
    """Return size in bytes and time in nanoseconds of the file that ``features.path`` names, or raise `UserError`."""
    path = _path_of(name)
    try:
        facts = path.stat()
    except OSError:
        raise UserError(
            f"features.path={name}: there is no such file ({path}); give a .npy, .zarr or .parquet file"
        ) from None
    return [facts.st_size, facts.st_mtime_ns]


def _path_of(name: str) -> Path:
    return Path(name).expanduser().absolute()


def match_embeddings(name: str, items: pa.Table) -> Embeddings:
    """Open a file of embeddings and find the row of each item.

    Parameters
    ----------
    name
        ``features.path`` of the config. A Parquet file holds the numbers in one column of lists or in columns of
        numbers; if it has a column ``path``, rows are matched by it, in any order. Else row i is item i.
    items
        `collection.ITEMS_SCHEMA`.

    Returns
    -------
    Embeddings

    Raises
    ------
    UserError
        There is no such file, it holds no rows of numbers, or its rows are not those of the items.
    """
    path = _path_of(name)
    shape, paths = _look_at(path, name)
    if len(shape) != 2 or 0 in shape:
        raise UserError(f"features.path={name} holds an array of shape {shape}; give one row of numbers an item")
    if paths is not None:
        return Embeddings(path, shape[1], _match_paths(name, paths, items))
    if shape[0] != len(items):
        raise UserError(
            f"features.path={name} has {shape[0]:,} rows, and there are {len(items):,} items; give a row for each item "
            "in the order of items.csv, or a Parquet file with a column path"
        )
    return Embeddings(path, shape[1], np.arange(len(items)))


def read_embeddings(path: Path, positions: NDArray[np.int64], width: int) -> NDArray[np.float32]:
    """Read rows of a file of embeddings.

    Parameters
    ----------
    path
        Of the file.
    positions : (m,) int64
        Rows of the file, -1 = none.
    width
        Numbers a row.

    Returns
    -------
    (m, width) float32
        Zeros for -1.

    Raises
    ------
    UserError
        A row has a NaN or an infinity, or another number of numbers.
    """
    rows = np.zeros((len(positions), width), np.float32)
    there = positions >= 0
    if there.any():
        found = _read(path, positions[there])
        if found.shape[1] != width:
            raise UserError(f"{path} has rows of {found.shape[1]} numbers beside rows of {width}; give all the same")
        rows[there] = check_finite(found.astype(np.float32), str(path))
    return rows


def _look_at(path: Path, name: str) -> tuple[tuple[int, ...], pa.ChunkedArray | None]:
    """Shape of the rows, and the column of paths if there is one."""
    file_stamp(name)
    if path.suffix == ".zarr":
        return shape_of_array(path), None
    try:
        if path.suffix == ".npy":
            array = np.load(path, mmap_mode="r")
            if array.dtype.kind not in "biuf":
                raise UserError(f"features.path={name} holds {array.dtype}; give an array of numbers")
            return array.shape, None
        if path.suffix == ".parquet":
            with pq.ParquetFile(path) as file:
                n_rows, names = file.metadata.num_rows, file.schema_arrow.names
                paths = file.read([_PATH])[_PATH] if _PATH in names else None
            return (n_rows, _read_parquet(path, np.arange(1)).shape[1] if n_rows else 0), paths
    except (OSError, ValueError, EOFError) as error:  # pyarrow's errors are ValueErrors
        raise UserError(f"features.path={name} cannot be read: {' '.join(str(error).split())}") from None
    raise UserError(f"features.path={name}: allowed are .npy, .zarr and .parquet")


def _match_paths(name: str, paths: pa.ChunkedArray, items: pa.Table) -> NDArray[np.int64]:
    """Row of the file for each item, by the path of the item."""
    paths = paths.cast(pa.string()).combine_chunks()
    readable = pc.equal(items["status"], "ok")
    wanted = items["path"].filter(readable)
    for what, column in ((f"features.path={name}", paths), ("the collection", wanted)):
        repeated = pc.value_counts(column).filter(pc.greater(pc.value_counts(column).field("counts"), 1))
        if len(repeated):
            first = repeated[0]["values"].as_py()
            raise UserError(f"{what} has {first!r} more than once, so its rows cannot be matched by path")
    positions = pc.fill_null(pc.index_in(items["path"], paths), -1).to_numpy().astype(np.int64)
    missing = items["path"].filter(pc.and_(readable, pa.chunked_array([positions < 0])))
    if len(missing):
        raise UserError(
            f"features.path={name} has no row for {len(missing):,} of {len(wanted):,} items, first "
            f"{missing[0].as_py()!r}; its column path holds the paths that items.csv has"
        )
    return positions


def _read(path: Path, positions: NDArray[np.int64]) -> NDArray[np.generic]:
    if path.suffix == ".npy":
        return np.load(path, mmap_mode="r")[positions]
    if path.suffix == ".zarr":  # in the order of the items
        return read_rows(path, int(positions[0]), int(positions[-1]) + 1)[positions - positions[0]]
    return _read_parquet(path, positions)


def _read_parquet(path: Path, positions: NDArray[np.int64]) -> NDArray[np.generic]:
    """Read rows at any positions; of the file, only the row groups that they lie in."""
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        lists = [f.name for f in schema if pa.types.is_list(f.type) or pa.types.is_fixed_size_list(f.type)]
        numbers = [f.name for f in schema if pa.types.is_floating(f.type) or pa.types.is_integer(f.type)]
        columns = lists if len(lists) == 1 else numbers
        if not columns or len(lists) > 1:
            raise UserError(f"{path} has columns {schema.names}; give one column of lists, or columns of numbers")
        sizes = np.array([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)], np.int64)
        group_of = np.searchsorted(np.cumsum(sizes), positions, side="right")
        groups, which = np.unique(group_of, return_inverse=True)
        table = file.read_row_groups(groups.tolist(), columns=columns)
    first_in_file, first_in_table = (np.cumsum(part) - part for part in (sizes, sizes[groups]))
    table = table.take(pa.array(positions - first_in_file[group_of] + first_in_table[which]))
    if not lists:
        return np.stack([table[column].to_numpy() for column in columns], axis=1)
    lengths = pc.unique(pc.list_value_length(table[columns[0]])).to_pylist()
    if len(lengths) != 1 or lengths[0] is None:
        raise UserError(f"{path}: the lists of column {columns[0]} have lengths {lengths[:4]}; give all the same")
    return pc.list_flatten(table[columns[0]]).to_numpy().reshape(len(positions), -1)
