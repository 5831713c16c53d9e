"""Embeddings: precomputed features in a .npy, .zarr or .parquet file, matched to the items of a collection."""

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
from kmeans_dask.storage.zarr_groups import array_shape, read_rows

_PATH = "path"
"""Column of a Parquet file with the path of the item that a row belongs to."""


@dataclass(frozen=True)
class Embeddings:
    """Rows of a file, matched to the items of a collection.

    Attributes
    ----------
    path : Path
        The file.
    n_features : int
        Features per row.
    positions : (n_items,) int64
        Row of the file for each item; -1 = none, which is allowed only for items that could not be read.
    """

    path: Path
    n_features: int
    positions: NDArray[np.int64]


def file_stamp(name: str) -> list[int]:
    """Return what identifies the current content of a file of embeddings.

    Parameters
    ----------
    name
        ``features.path`` of the config.

    Returns
    -------
    list of int
        Size in bytes, and modification time in nanoseconds.

    Raises
    ------
    UserError
        There is no such file.
    """
    path = _path_of(name)
    try:
        status = path.stat()
    except OSError:
        raise UserError(f"features.path={name}: no such file ({path}); give a .npy, .zarr or .parquet file") from None
    return [status.st_size, status.st_mtime_ns]


def _path_of(name: str) -> Path:
    return Path(name).expanduser().absolute()


def match_embeddings(name: str, items: pa.Table) -> Embeddings:
    """Find the row of each item in a file of embeddings.

    Parameters
    ----------
    name
        ``features.path`` of the config. A Parquet file has its features in one column of lists or in numeric columns;
        if it has a column ``path``, rows are matched by it, in any order. Otherwise row i is item i.
    items
        Items table of the collection; schema `decoding.ITEMS_SCHEMA`.

    Returns
    -------
    Embeddings

    Raises
    ------
    UserError
        There is no such file, its rows are not numeric, or they do not match the items.
    """
    path = _path_of(name)
    shape, paths = _inspect(path, name)
    if len(shape) != 2 or 0 in shape:
        raise UserError(f"features.path={name} has shape {shape}; give one row of features per item")
    if paths is not None:
        return Embeddings(path, shape[1], _match_paths(name, paths, items))
    if shape[0] != len(items):
        raise UserError(
            f"features.path={name} has {shape[0]:,} rows for {len(items):,} items; give one row per item in the order "
            "of items.csv, or a Parquet file with a column path"
        )
    return Embeddings(path, shape[1], np.arange(len(items)))


def read_embeddings(path: Path, positions: NDArray[np.int64], n_features: int) -> NDArray[np.float32]:
    """Read rows of a file of embeddings.

    Parameters
    ----------
    path
        The file.
    positions : (m,) int64
        Rows of the file, -1 = none.
    n_features
        Expected number of features per row.

    Returns
    -------
    (m, n_features) float32
        Zeros where the position is -1.

    Raises
    ------
    UserError
        A row contains NaN or infinity, or has another number of features.
    """
    rows = np.zeros((len(positions), n_features), np.float32)
    has_row = positions >= 0
    if has_row.any():
        values = _read(path, positions[has_row])
        if values.shape[1] != n_features:
            raise UserError(
                f"{path} has rows of {values.shape[1]} and of {n_features} features; make them equally long"
            )
        rows[has_row] = check_finite(values.astype(np.float32), str(path))
    return rows


def _inspect(path: Path, name: str) -> tuple[tuple[int, ...], pa.ChunkedArray | None]:
    """Return the shape of the rows, and the column of paths if there is one."""
    file_stamp(name)
    if path.suffix == ".zarr":
        return array_shape(path), None
    try:
        if path.suffix == ".npy":
            array = np.load(path, mmap_mode="r")
            if array.dtype.kind not in "biuf":
                raise UserError(f"features.path={name} has dtype {array.dtype}; give a numeric array")
            return array.shape, None
        if path.suffix == ".parquet":
            with pq.ParquetFile(path) as file:
                n_rows, names = file.metadata.num_rows, file.schema_arrow.names
                paths = file.read([_PATH])[_PATH] if _PATH in names else None
            return (n_rows, _read_parquet(path, np.arange(1)).shape[1] if n_rows else 0), paths
    except (OSError, ValueError, EOFError) as error:  # pyarrow's errors are ValueErrors
        raise UserError(f"features.path={name} cannot be read: {' '.join(str(error).split())}") from None
    raise UserError(f"features.path={name}: must be a .npy, .zarr or .parquet file")


def _match_paths(name: str, paths: pa.ChunkedArray, items: pa.Table) -> NDArray[np.int64]:
    """Return the row of the file for each item, matched by path; -1 = none."""
    paths = paths.cast(pa.string()).combine_chunks()
    readable = pc.equal(items["status"], "ok")
    wanted = items["path"].filter(readable)
    for owner, column in ((f"features.path={name}", paths), ("the collection", wanted)):
        repeated = pc.value_counts(column).filter(pc.greater(pc.value_counts(column).field("counts"), 1))
        if len(repeated):
            first = repeated[0]["values"].as_py()
            raise UserError(f"{owner} has the path {first!r} more than once, so rows cannot be matched by path")
    positions = pc.fill_null(pc.index_in(items["path"], paths), -1).to_numpy().astype(np.int64)
    missing = items["path"].filter(pc.and_(readable, pa.chunked_array([positions < 0])))
    if len(missing):
        raise UserError(
            f"features.path={name} has no row for {len(missing):,} of {len(wanted):,} items, for example "
            f"{missing[0].as_py()!r}; its column path must contain the paths in items.csv"
        )
    return positions


def _read(path: Path, positions: NDArray[np.int64]) -> NDArray[np.generic]:
    if path.suffix == ".npy":
        return np.load(path, mmap_mode="r")[positions]
    if path.suffix == ".zarr":  # row i is item i, so the positions are contiguous
        return read_rows(path, int(positions[0]), int(positions[-1]) + 1)[positions - positions[0]]
    return _read_parquet(path, positions)


def _read_parquet(path: Path, positions: NDArray[np.int64]) -> NDArray[np.generic]:
    """Read the rows at any positions; only the row groups that contain them are read."""
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        lists = [f.name for f in schema if pa.types.is_list(f.type) or pa.types.is_fixed_size_list(f.type)]
        numbers = [f.name for f in schema if pa.types.is_floating(f.type) or pa.types.is_integer(f.type)]
        columns = lists if len(lists) == 1 else numbers
        if not columns or len(lists) > 1:
            raise UserError(f"{path} has columns {schema.names}; give one column of lists, or numeric columns")
        sizes = np.array([file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)], np.int64)
        group_of = np.searchsorted(np.cumsum(sizes), positions, side="right")
        groups, group_index = np.unique(group_of, return_inverse=True)
        table = file.read_row_groups(groups.tolist(), columns=columns)
    first_in_file, first_in_table = (np.cumsum(part) - part for part in (sizes, sizes[groups]))
    table = table.take(pa.array(positions - first_in_file[group_of] + first_in_table[group_index]))
    if not lists:
        return np.stack([table[column].to_numpy() for column in columns], axis=1)
    lengths = pc.unique(pc.list_value_length(table[columns[0]])).to_pylist()
    if len(lengths) != 1 or lengths[0] is None:
        raise UserError(f"{path}: the lists in column {columns[0]} have lengths {lengths[:4]}; make them equally long")
    return pc.list_flatten(table[columns[0]]).to_numpy().reshape(len(positions), -1)
