"""Arrays on disk: the collection, the models and colour tables are zarr v3 groups. Only this module knows zarr.

One chunk of a collection is one shard, and a shard is written by one call of `write_block`: two writers in
one shard would lose each other's rows, without an error. Opening a group executes nothing: it holds numbers
and JSON.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import ZstdCodec
from zarr.storage import FsspecStore

from kmeans_dask.errors import UserError
from kmeans_dask.storage.object_store import copy, is_local
from kmeans_dask.storage.publish import publish, remove

Kind = Literal["collection", "model", "colour table"]

FORMAT_VERSION = 3
"""Of the layout in the groups; raised when a reader of the old one would misread the new one."""

_FEW_THREADS = {"async.concurrency": 4, "threading.max_workers": 2}
"""zarr would start ten requests at a time and a thread a core in every process; the cores are taken by Dask
already, and reading one shard at a time is as fast with two threads."""

_INNER_BYTES = 2**20
"""A chunk inside a shard: what is read at least when a few rows are wanted. One row each would make reading a
shard of 28 x 28 images 88 times slower."""

_CODEC = ZstdCodec(level=1)
"""MNIST becomes 4.5 times smaller and is written at 0.6 GB/s a core (zarr's default, level 3: as small, 0.34 GB/s;
Blosc LZ4: 3.0 times, 1.0 GB/s), photos of 224 x 224 1.1 times at 0.7 GB/s (1.13 times, 0.28 GB/s). It is read at
0.75 GB/s a core (LZ4: 1.0 GB/s; none: 1.7 GB/s); one pass of K-Means at K = 256 takes 0.3 GB/s."""


class Layout(NamedTuple):
    """How the images of a collection lie on disk."""

    shape: tuple[int, int, int, int]
    """Items, height, width, channels."""
    chunk_rows: int
    """Rows of a shard; the last one may have fewer."""


def create_collection(
    folder: Path,
    layout: Layout,
    labels: NDArray[np.int32],
    attrs: Mapping[str, Any],
    blocks: tuple[Path, Sequence[int]] | None = None,
) -> None:
    """Create a collection whose images are still to be written, in the place of what was there.

    Parameters
    ----------
    folder
        Of the zarr group; a temporary name until all blocks are written.
    layout
        Shape of the images and rows of a shard.
    labels : (n,) int32
        Index of the class of each item, -1 = none.
    attrs
        JSON values; format, version of the format and of the software are added. They are written last: a
        group that has them is complete but for its images.
    blocks
        Another collection of the same image size and rows a shard, and the first rows of the shards that are taken
        over from it; they share its files, which nobody writes to any more. An object store copies them.
    """
    remove(folder)
    shape, chunk_rows = layout
    with zarr.config.set(_FEW_THREADS):
        group = zarr.create_group(_at(folder))
        group.create_array(
            "images",
            shape=shape,
            dtype="uint8",
            shards=(chunk_rows, *shape[1:]),
            chunks=(_inner_rows(layout), *shape[1:]),
            compressors=_CODEC,
            dimension_names=("item", "height", "width", "channel"),
        )
        group.create_array("labels", data=labels, dimension_names=("item",))
        if blocks is not None:
            _share_blocks(*blocks, folder, chunk_rows)
        group.attrs.update(_format_of("collection") | dict(attrs))


def set_attrs(folder: Path, attrs: Mapping[str, Any]) -> None:
    """Replace some attrs of a group, by one write."""
    zarr.open_group(_at(folder), mode="r+").attrs.update(dict(attrs))


def write_block(folder: Path, start: int, block: NDArray[np.uint8]) -> None:
    """Write one whole shard of a collection.

    Parameters
    ----------
    folder
        Of a group made by `create_collection`.
    start
        Row of the first item; a multiple of the shard's rows.
    block : (rows, height, width, channels) uint8
        The rows of one shard, fewer only at the end of the collection.

    Raises
    ------
    ValueError
        The block is not exactly one shard.
    """
    with zarr.config.set(_FEW_THREADS):
        images = zarr.open_array(_at(folder / "images"), mode="r+")
        (n, *_), chunk_rows = _layout_of(images)
        if start % chunk_rows or len(block) != min(chunk_rows, n - start):
            raise ValueError(f"rows {start}:{start + len(block)} are not one shard of {chunk_rows} rows")
        images[start : start + len(block)] = block


def read_block(folder: Path, start: int, stop: int) -> NDArray[np.uint8]:
    """Read the images of the rows ``start:stop``, (rows, height, width, channels) uint8."""
    with zarr.config.set(_FEW_THREADS):
        return np.asarray(zarr.open_array(_at(folder / "images"), mode="r")[start:stop])


def read_labels(folder: Path) -> NDArray[np.int32]:
    """Read the (n,) int32 class index of every item, -1 = none."""
    with zarr.config.set(_FEW_THREADS):
        return np.asarray(zarr.open_array(_at(folder / "labels"), mode="r")[:])


def read_layout(folder: Path) -> Layout:
    """Read the shape of the images and the rows of a shard."""
    return _layout_of(zarr.open_array(_at(folder / "images"), mode="r"))


def array_names(location: str) -> list[str]:
    """Names of the arrays of a zarr group that somebody else has written, ``a/b`` in a group in it.

    There are none if it is a single array.

    Raises
    ------
    ValueError
        There is neither.
    """
    with zarr.config.set(_FEW_THREADS):
        found = _open_any(location)
        if isinstance(found, zarr.Array):
            return []
        names = sorted(name for name, member in found.members(max_depth=None) if isinstance(member, zarr.Array))
    if not names:
        raise ValueError("it is a group without arrays")
    return names


def open_array(
    location: str, name: str | None
) -> tuple[tuple[int, ...], np.dtype[Any], int, Callable[[int, int], NDArray[Any]]]:
    """Open an array that somebody else has written, of zarr format 2 or 3.

    Parameters
    ----------
    location
        Folder or URL of the array, or of a group.
    name
        Array of the group; None: the location is the array.

    Returns
    -------
    shape : tuple of int
    dtype : numpy.dtype
    rows : int
        That lie in one file, and are best read together.
    read : callable
        (start, stop) -> those rows.

    Raises
    ------
    ValueError, KeyError
        There is none.
    """
    with zarr.config.set(_FEW_THREADS):
        found = _open_any(location)
        array = found[name] if name is not None and isinstance(found, zarr.Group) else found
    if not isinstance(array, zarr.Array):
        raise ValueError(f"{name} is no zarr array")

    def read(start: int, stop: int) -> NDArray[Any]:
        with zarr.config.set(_FEW_THREADS):
            return np.asarray(array[start:stop])

    return array.shape, np.dtype(array.dtype), (array.shards or array.chunks or (1,))[0], read


def read_attrs(folder: Path, kind: Kind = "collection") -> dict[str, Any]:
    """Read the attrs of a group and check what it is.

    Parameters
    ----------
    folder
        Of the zarr group.
    kind
        What it must be.

    Returns
    -------
    dict
        JSON values.

    Raises
    ------
    UserError
        There is no such group, it is not of this kind, or its format is of another version.
    """
    return _open(folder, kind).attrs.asdict()


def write_model(folder: Path, arrays: Mapping[str, NDArray[Any]], attrs: Mapping[str, Any]) -> None:
    """Write a small group of arrays, published by a rename.

    Parameters
    ----------
    folder
        Of the zarr group; what is there is replaced.
    arrays
        Name to array of any numeric dtype and shape.
    attrs
        JSON values; format, version of the format and of the software are added.
    """
    with zarr.config.set(_FEW_THREADS), publish(folder) as partial:
        group = zarr.create_group(partial, attributes=_format_of("model") | dict(attrs))
        for name, array in arrays.items():
            group.create_array(name, data=np.asarray(array))


def read_model(folder: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read what `write_model` wrote. Nothing is executed.

    Parameters
    ----------
    folder
        Of the zarr group.

    Returns
    -------
    arrays
        Name to array.
    attrs
        JSON values.

    Raises
    ------
    UserError
        There is no such model, or its format is of another version.
    """
    group = _open(folder, "model")
    with zarr.config.set(_FEW_THREADS):
        return {name: np.asarray(array[...]) for name, array in group.arrays()}, group.attrs.asdict()


def write_colours(
    folder: Path, colours: NDArray[np.uint8], weights: NDArray[Any], chunk_rows: int, attrs: Mapping[str, Any]
) -> None:
    """Write a colour table, published by a rename.

    Parameters
    ----------
    folder
        Of the zarr group; what is there is replaced.
    colours : (m, 3) uint8
    weights : (m,) int64 or float64
    chunk_rows
        Rows that are read at a time.
    attrs
        JSON values; format, version of the format and of the software are added.
    """
    with zarr.config.set(_FEW_THREADS), publish(folder) as partial:
        group = zarr.create_group(partial, attributes=_format_of("colour table") | dict(attrs))
        for name, array, axes in (("colours", colours, ("colour", "channel")), ("weights", weights, ("colour",))):
            chunks = (chunk_rows, *array.shape[1:])
            group.create_array(name, data=array, chunks=chunks, compressors=_CODEC, dimension_names=axes)


def read_colours(
    folder: Path, start: int = 0, stop: int | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.int64] | NDArray[np.float64]]:
    """Read the rows ``start:stop`` of a colour table, absent: all.

    Returns
    -------
    colours : (rows, 3) uint8
    weights : (rows,) int64 or float64
    """
    with zarr.config.set(_FEW_THREADS):
        arrays = [zarr.open_array(_at(folder / name), mode="r")[start:stop] for name in ("colours", "weights")]
    return np.asarray(arrays[0]), np.asarray(arrays[1])


def create_rows(folder: Path, shape: tuple[int, int], chunk_rows: int) -> None:
    """Create an empty (n, n_features) float32 array in the place of what was there; a shard has `chunk_rows` rows."""
    remove(folder)
    with zarr.config.set(_FEW_THREADS):
        zarr.create_array(
            _at(folder), shape=shape, dtype="float32", chunks=(chunk_rows, shape[1]), compressors=_CODEC, fill_value=0
        )


def write_rows(folder: Path, start: int, rows: NDArray[np.float32]) -> None:
    """Write the rows of one whole chunk of an array made by `create_rows`; `start` is a multiple of its rows."""
    with zarr.config.set(_FEW_THREADS):
        zarr.open_array(_at(folder), mode="r+")[start : start + len(rows)] = rows


def read_rows(folder: Path, start: int, stop: int) -> NDArray[Any]:
    """Read the rows ``start:stop`` of any zarr array."""
    with zarr.config.set(_FEW_THREADS):
        return np.asarray(zarr.open_array(_at(folder), mode="r")[start:stop])


def shape_of_array(folder: Path) -> tuple[int, ...]:
    """Read the shape of a zarr array of anyone.

    Raises
    ------
    UserError
        It is no zarr array.
    """
    try:
        return zarr.open_array(_at(folder), mode="r").shape
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{folder} is no zarr array ({' '.join(str(error).split())}); give an array of rows") from None


def software_versions() -> dict[str, str]:
    """Versions of what decides about the numbers in a group."""
    return {name: _version(name) for name in ("kmeans-dask", "numpy", "pillow", "zarr")}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # the project's own code, run from its folder
        return "not installed"


def _format_of(kind: Kind) -> dict[str, Any]:
    return {"format": _format_name(kind), "format_version": FORMAT_VERSION, "software": software_versions()}


def _format_name(kind: Kind) -> str:
    return f"kmeans-dask {kind}"


def _open(folder: Path, kind: Kind) -> zarr.Group:
    article = {
        "collection": "collection.zarr of a run",
        "model": "model of a run, models/.../k=10.zarr",
        "colour table": "colours.zarr of a run",
    }[kind]
    try:
        group = zarr.open_group(_at(folder), mode="r")
        attrs = group.attrs.asdict()
    except (OSError, ValueError, TypeError, KeyError):  # missing, or its JSON is not zarr's
        attrs = {}
    if attrs.get("format") != _format_name(kind):
        raise UserError(f"{folder} is no {kind} that is finished; give the {article}")
    if attrs.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{folder} has format version {attrs.get('format_version')}, allowed is {FORMAT_VERSION}; "
            "make it anew, or use the version of kmeans-dask that its attrs name"
        )
    return group


def _open_any(location: str) -> zarr.Array | zarr.Group:
    try:
        return zarr.open(location, mode="r")
    except (FileNotFoundError, TypeError) as error:
        raise ValueError("there is no zarr array or group") from error


def _at(path: Path) -> Path | FsspecStore:
    """Return what zarr opens: a path of this machine, or a store of its own kind for an object store."""
    if is_local(path):
        return path
    options = {"asynchronous": True, **cast(Any, path).storage_options}
    return FsspecStore.from_url(str(path), storage_options=options)


def _share_blocks(source: Path, starts: Sequence[int], folder: Path, chunk_rows: int) -> None:
    names = [f"images/c/{start // chunk_rows}/0/0/0" for start in starts]
    if not is_local(folder):
        copy(source, folder, names)
        return
    for name in names:
        if not (source / name).exists():  # a black block has no file
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            os.link(source / name, folder / name)
        except OSError:  # a file system without links
            shutil.copyfile(source / name, folder / name)


def _layout_of(images: zarr.Array) -> Layout:
    n, height, width, channels = images.shape
    return Layout((n, height, width, channels), (images.shards or images.chunks)[0])


def _inner_rows(layout: Layout) -> int:
    """Rows of a chunk inside a shard: the shard halved until it has at most `_INNER_BYTES`."""
    rows = layout.chunk_rows
    while rows % 2 == 0 and rows * int(np.prod(layout.shape[1:])) > _INNER_BYTES:
        rows //= 2
    return rows
