"""Arrays on disk: collections, models and colour tables are zarr v3 groups. Only this module imports zarr.

A chunk of a collection is one zarr shard and one Dask block. A shard is written by a single call of `write_block`: two
writers to the same shard would silently lose each other's rows. Groups hold only numbers and JSON, so opening one
executes nothing.
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

FORMAT_VERSION = 4
"""Version of the groups' arrays and attrs; raised when a reader of one version would misread another."""

_FEW_THREADS = {"async.concurrency": 4, "threading.max_workers": 2}
"""By default, zarr makes ten requests at a time and starts one thread per core in every process. Dask already uses the
cores, and reading one shard at a time is just as fast with two threads."""

_INNER_BYTES = 2**20
"""Upper limit of a chunk inside a shard, which is the least that is read to get a few rows. With one row per inner
chunk, reading a shard of 28 x 28 images would be 88 times slower."""

_CODEC = ZstdCodec(level=1)
"""MNIST shrinks to 1/4.5 and is written at 0.6 GB/s per core (zarr's default, level 3: same size, 0.34 GB/s; Blosc LZ4:
1/3.0, 1.0 GB/s); photos of 224 x 224 shrink to 1/1.1 at 0.7 GB/s (level 3: 1/1.13, 0.28 GB/s). Reading runs at
0.75 GB/s per core (LZ4: 1.0 GB/s; uncompressed: 1.7 GB/s), while a K-Means pass at K = 256 processes 0.3 GB/s."""


class Layout(NamedTuple):
    """Layout of the images of a collection on disk."""

    shape: tuple[int, int, int, int]
    """Number of items, height, width, channels."""
    chunk_rows: int
    """Rows per shard; the last one may have fewer."""


def create_collection(
    folder: Path,
    layout: Layout,
    labels: NDArray[np.int32],
    attrs: Mapping[str, Any],
    blocks: tuple[Path, Sequence[int]] | None = None,
) -> None:
    """Create a collection without its images, replacing anything in the folder.

    Parameters
    ----------
    folder
        Folder of the zarr group; a temporary name until all blocks are written.
    layout
        Shape of the images and rows per shard.
    labels : (n,) int32
        Class index of each item, -1 = none.
    attrs
        JSON values, to which the format, its version and the software versions are added. They are written last, so a
        group that has attrs lacks only images.
    blocks
        Another collection with the same image size and rows per shard, and the first rows of the shards to reuse. They
        become hard links to its files, which are never written again; in an object store they are copied.
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
            _reuse_shards(*blocks, folder, chunk_rows)
        group.attrs.update(_format_of("collection") | dict(attrs))


def set_attrs(folder: Path, attrs: Mapping[str, Any]) -> None:
    """Update some attrs of a group in a single write."""
    zarr.open_group(_at(folder), mode="r+").attrs.update(dict(attrs))


def write_block(folder: Path, start: int, block: NDArray[np.uint8]) -> None:
    """Write one whole shard of a collection.

    Parameters
    ----------
    folder
        Folder of a group made by `create_collection`.
    start
        Row of the first item, a multiple of the rows per shard.
    block : (rows, height, width, channels) uint8
        All rows of one shard; only the last shard may have fewer.

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
    """Read the images of the rows ``start:stop``: (rows, height, width, channels) uint8."""
    with zarr.config.set(_FEW_THREADS):
        return np.asarray(zarr.open_array(_at(folder / "images"), mode="r")[start:stop])


def read_labels(folder: Path) -> NDArray[np.int32]:
    """Read the class index of every item: (n,) int32, -1 = none."""
    with zarr.config.set(_FEW_THREADS):
        return np.asarray(zarr.open_array(_at(folder / "labels"), mode="r")[:])


def read_layout(folder: Path) -> Layout:
    """Read the shape of the images and the rows per shard."""
    return _layout_of(zarr.open_array(_at(folder / "images"), mode="r"))


def array_names(location: str) -> list[str]:
    """List the arrays in any zarr group; those in nested groups are named ``a/b``.

    Parameters
    ----------
    location
        Folder or URL of a group or an array.

    Returns
    -------
    list of str
        Sorted names; empty if the location is itself an array.

    Raises
    ------
    ValueError
        There is no array or group, or the group has no arrays.
    """
    with zarr.config.set(_FEW_THREADS):
        opened = _open_any(location)
        if isinstance(opened, zarr.Array):
            return []
        names = sorted(name for name, member in opened.members(max_depth=None) if isinstance(member, zarr.Array))
    if not names:
        raise ValueError("the group has no arrays")
    return names


def open_array(
    location: str, name: str | None
) -> tuple[tuple[int, ...], np.dtype[Any], int, Callable[[int, int], NDArray[Any]]]:
    """Open any zarr array, in format 2 or 3.

    Parameters
    ----------
    location
        Folder or URL of the array, or of a group.
    name
        Name of the array in the group; None if the location is itself the array.

    Returns
    -------
    shape : tuple of int
    dtype : numpy.dtype
    rows : int
        Number of rows per file, which are best read together.
    read : callable
        (start, stop) -> the rows ``start:stop``.

    Raises
    ------
    ValueError, KeyError
        There is no such array.
    """
    with zarr.config.set(_FEW_THREADS):
        opened = _open_any(location)
        array = opened[name] if name is not None and isinstance(opened, zarr.Group) else opened
    if not isinstance(array, zarr.Array):
        raise ValueError(f"{name} is not a zarr array")

    def read(start: int, stop: int) -> NDArray[Any]:
        with zarr.config.set(_FEW_THREADS):
            return np.asarray(array[start:stop])

    return array.shape, np.dtype(array.dtype), (array.shards or array.chunks or (1,))[0], read


def read_attrs(folder: Path, kind: Kind = "collection") -> dict[str, Any]:
    """Read the attrs of a group and check its kind.

    Parameters
    ----------
    folder
        Folder of the zarr group.
    kind
        Expected kind.

    Returns
    -------
    dict
        JSON values.

    Raises
    ------
    UserError
        There is no such group, or it has another kind or format version.
    """
    return _open(folder, kind).attrs.asdict()


def write_model(folder: Path, arrays: Mapping[str, NDArray[Any]], attrs: Mapping[str, Any]) -> None:
    """Publish a small group of arrays.

    Parameters
    ----------
    folder
        Folder of the zarr group; anything there is replaced.
    arrays
        Name -> array of any numeric dtype and shape.
    attrs
        JSON values, to which the format, its version and the software versions are added.
    """
    with zarr.config.set(_FEW_THREADS), publish(folder) as partial:
        group = zarr.create_group(partial, attributes=_format_of("model") | dict(attrs))
        for name, array in arrays.items():
            group.create_array(name, data=np.asarray(array))


def read_model(folder: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Read the arrays and attrs that `write_model` wrote.

    Parameters
    ----------
    folder
        Folder of the zarr group.

    Returns
    -------
    arrays
        Name -> array.
    attrs
        JSON values.

    Raises
    ------
    UserError
        There is no such model, or it has another format version.
    """
    group = _open(folder, "model")
    with zarr.config.set(_FEW_THREADS):
        return {name: np.asarray(array[...]) for name, array in group.arrays()}, group.attrs.asdict()


def write_colours(
    folder: Path, colours: NDArray[np.uint8], weights: NDArray[Any], chunk_rows: int, attrs: Mapping[str, Any]
) -> None:
    """Publish a colour table.

    Parameters
    ----------
    folder
        Folder of the zarr group; anything there is replaced.
    colours : (m, 3) uint8
        Distinct RGB colours.
    weights : (m,) int64 or float64
        Weight of each colour.
    chunk_rows
        Rows per chunk.
    attrs
        JSON values, to which the format, its version and the software versions are added.
    """
    with zarr.config.set(_FEW_THREADS), publish(folder) as partial:
        group = zarr.create_group(partial, attributes=_format_of("colour table") | dict(attrs))
        for name, array, axes in (("colours", colours, ("colour", "channel")), ("weights", weights, ("colour",))):
            chunks = (chunk_rows, *array.shape[1:])
            group.create_array(name, data=array, chunks=chunks, compressors=_CODEC, dimension_names=axes)


def read_colours(
    folder: Path, start: int = 0, stop: int | None = None
) -> tuple[NDArray[np.uint8], NDArray[np.int64] | NDArray[np.float64]]:
    """Read the rows ``start:stop`` of a colour table, by default all of them.

    Returns
    -------
    colours : (rows, 3) uint8
    weights : (rows,) int64 or float64
    """
    with zarr.config.set(_FEW_THREADS):
        arrays = [zarr.open_array(_at(folder / name), mode="r")[start:stop] for name in ("colours", "weights")]
    return np.asarray(arrays[0]), np.asarray(arrays[1])


def create_rows(folder: Path, shape: tuple[int, int], chunk_rows: int) -> None:
    """Create a (n, n_features) float32 array of zeros, replacing anything there, with chunks of `chunk_rows` rows."""
    remove(folder)
    with zarr.config.set(_FEW_THREADS):
        zarr.create_array(
            _at(folder), shape=shape, dtype="float32", chunks=(chunk_rows, shape[1]), compressors=_CODEC, fill_value=0
        )


def write_rows(folder: Path, start: int, rows: NDArray[np.float32]) -> None:
    """Write one whole chunk of an array made by `create_rows`; `start` is a multiple of its rows per chunk."""
    with zarr.config.set(_FEW_THREADS):
        zarr.open_array(_at(folder), mode="r+")[start : start + len(rows)] = rows


def read_rows(folder: Path, start: int, stop: int) -> NDArray[Any]:
    """Read the rows ``start:stop`` of any zarr array."""
    with zarr.config.set(_FEW_THREADS):
        return np.asarray(zarr.open_array(_at(folder), mode="r")[start:stop])


def array_shape(folder: Path) -> tuple[int, ...]:
    """Read the shape of any zarr array.

    Raises
    ------
    UserError
        The folder is not a zarr array.
    """
    try:
        return zarr.open_array(_at(folder), mode="r").shape
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{folder} is not a zarr array ({reason}); give an array with one row per item") from None


def software_versions() -> dict[str, str]:
    """Return the versions of the packages that determine the numbers in a group."""
    return {name: _version(name) for name in ("kmeans-dask", "numpy", "pillow", "zarr")}


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # run from a source checkout
        return "not installed"


def _format_of(kind: Kind) -> dict[str, Any]:
    return {"format": _format_name(kind), "format_version": FORMAT_VERSION, "software": software_versions()}


def _format_name(kind: Kind) -> str:
    return f"kmeans-dask {kind}"


def _open(folder: Path, kind: Kind) -> zarr.Group:
    example = {
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
        raise UserError(f"{folder} is not a finished {kind}; give the {example}")
    if attrs.get("format_version") != FORMAT_VERSION:
        raise UserError(
            f"{folder} has format version {attrs.get('format_version')}, expected {FORMAT_VERSION}; "
            "recreate it, or use the version of kmeans-dask that its attrs name"
        )
    return group


def _open_any(location: str) -> zarr.Array | zarr.Group:
    try:
        return zarr.open(location, mode="r")
    except (FileNotFoundError, TypeError) as error:
        raise ValueError("there is no zarr array or group") from error


def _at(path: Path) -> Path | FsspecStore:
    """Return something zarr can open: a local path, or a zarr store for a path in an object store."""
    if is_local(path):
        return path
    options = {"asynchronous": True, **cast(Any, path).storage_options}
    return FsspecStore.from_url(str(path), storage_options=options)


def _reuse_shards(source: Path, starts: Sequence[int], folder: Path, chunk_rows: int) -> None:
    names = [f"images/c/{start // chunk_rows}/0/0/0" for start in starts]
    if not is_local(folder):
        copy(source, folder, names)
        return
    for name in names:
        if not (source / name).exists():  # all-black blocks have no file
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
    """Return the rows per inner chunk: those of the shard, halved until they have at most `_INNER_BYTES`."""
    rows = layout.chunk_rows
    while rows % 2 == 0 and rows * int(np.prod(layout.shape[1:])) > _INNER_BYTES:
        rows //= 2
    return rows
