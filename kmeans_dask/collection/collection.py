"""A collection, opened: Dask arrays of its images, and the tables of its items."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from dask.base import tokenize
from dask.blockwise import BlockwiseDepDict, blockwise
from dask.highlevelgraph import HighLevelGraph
from numpy.typing import DTypeLike, NDArray

from kmeans_dask.collection.chunks import ChunkPlan
from kmeans_dask.config.sections import Ingest
from kmeans_dask.errors import UserError
from kmeans_dask.sources.manifest import REMOVED, read_manifest
from kmeans_dask.sources.normalize import POLICY
from kmeans_dask.storage import zarr_groups
from kmeans_dask.storage.object_store import location, readable
from kmeans_dask.storage.publish import publish


@dataclass(frozen=True, repr=False)
class Collection:
    """An opened collection. Row i of every array is item i.

    Attributes
    ----------
    folder : Path
    images : (n, height, width, channels) da.Array of uint8
        One block a shard; an item that failed is black.
    labels : (n,) int32
        Index into `class_names`, -1 = none.
    class_names : tuple of str
        As `input.classes` names them, else in natural order: 2 before 10.
    items : (n) pyarrow.Table
        `ITEMS_SCHEMA`.
    chunk_rows : int
        Rows of a block.
    fingerprint : str
        Hash of the items and the settings that the pixels and labels are those of.
    """

    folder: Path
    images: da.Array
    labels: NDArray[np.int32]
    class_names: tuple[str, ...]
    items: pa.Table
    chunk_rows: int
    fingerprint: str

    def __repr__(self) -> str:
        """Say how large it is: the tables would fill a notebook."""
        shape = " x ".join(map(str, self.images.shape[1:]))
        chunks = self.images.numblocks[0]
        return f"Collection of {self.n_items:,} items of {shape}, {len(self.class_names)} labels, {chunks} chunks"

    @property
    def n_items(self) -> int:
        """Number of items, without those that have been removed."""
        return len(self.items) - self._count(REMOVED)

    @property
    def n_failed(self) -> int:
        """Number of items that could not be decoded."""
        return self.n_items - self._count("ok")

    def _count(self, status: str) -> int:
        return int(pc.sum(pc.equal(self.items["status"], status)).as_py() or 0)

    @property
    def changes(self) -> dict[str, int]:
        """What was done to the items beside resizing -> number of items, in the order of `normalize.POLICY`."""
        counted = {
            row["values"]: row["counts"] for row in pc.value_counts(pc.list_flatten(self.items["changes"])).to_pylist()
        }
        return {change: counted[change] for change in POLICY if change in counted}

    def rows(self, split: str) -> tuple[da.Array, NDArray[np.int64]]:
        """Return the images of a split that could be decoded, one flattened image a row.

        Parameters
        ----------
        split
            ``train`` or ``holdout``.

        Returns
        -------
        X : (m, height * width * channels) da.Array of uint8
            One task a block, at most one block a shard; computed only when asked.
        index : (m,) int64
            Row of each in the collection, ascending.
        """
        if split not in ("train", "holdout"):
            raise ValueError(f"split={split!r}: allowed are train and holdout")
        wanted = pc.and_(pc.equal(self.items["split"], split), pc.equal(self.items["status"], "ok"))
        index = np.flatnonzero(wanted.to_numpy())
        return self.lazy_rows(index, _read_flat, int(np.prod(self.images.shape[1:])), np.uint8), index

    def lazy_rows(
        self, index: NDArray[np.int64], read: Callable[[Path, int, int], NDArray[Any]], width: int, dtype: DTypeLike
    ) -> da.Array:
        """Make the array of some rows of whatever has a row for each item.

        Parameters
        ----------
        index : (m,) int64
            Row of each in the collection, ascending.
        read
            Called in a task with the collection's folder and the rows ``start, stop`` of a part of a chunk; returns
            (stop - start, width) of `dtype`. Equal functions must be equal values: the array is named after it.
        width, dtype
            Of what `read` returns.

        Returns
        -------
        (m, width) da.Array of dtype
            Cut where the shards are cut; a block without wanted rows is left out.
        """
        if not len(index):
            return da.zeros((0, width), dtype=dtype, chunks=((0,), (width,)))
        _, firsts = np.unique(index // self.chunk_rows, return_index=True)
        pieces = np.split(index, firsts[1:])
        name = f"rows-{tokenize(self.images.name, index, read)}"
        spans = {(i, 0): _span(piece) for i, piece in enumerate(pieces)}
        chunks = (tuple(map(len, pieces)), (width,))
        return _lazy(partial(_read_piece, read=read), name, self.folder, spans, chunks, dtype)


def open_collection(folder: str | Path) -> Collection:
    """Open a collection. Images are read when they are computed, each block inside its task.

    Parameters
    ----------
    folder
        ``collection.zarr`` of a run folder.

    Returns
    -------
    Collection

    Raises
    ------
    UserError
        The folder is no collection, or of another version of the format.
    """
    folder = location(folder).absolute()
    attrs = zarr_groups.read_attrs(folder)
    layout = zarr_groups.read_layout(folder)
    try:
        items = pq.read_table(readable(folder / "items.parquet"))
    except FileNotFoundError:
        raise UserError(f"{folder} has no items.parquet: it is not finished; run the stage ingest") from None
    return Collection(
        folder=folder,
        images=_read_images(folder, layout, attrs["content"]),
        labels=zarr_groups.read_labels(folder),
        class_names=tuple(attrs["class_names"]),
        items=items,
        chunk_rows=layout.chunk_rows,
        fingerprint=attrs["content"],
    )


def read_names_and_settings(folder: Path) -> tuple[tuple[str, ...], Ingest]:
    """Read the class names of a collection and the settings that its images were brought to one size with.

    Parameters
    ----------
    folder
        ``collection.zarr`` of a run folder.

    Returns
    -------
    class_names, settings

    Raises
    ------
    UserError
        The folder is no collection, or of another version of the format.
    """
    attrs = zarr_groups.read_attrs(folder)
    return tuple(attrs["class_names"]), Ingest.model_validate(attrs["ingest"])


def read_items(folder: Path, start: int, stop: int) -> pa.Table:
    """Read the rows ``start:stop`` of the items table of a collection: `ITEMS_SCHEMA`."""
    return read_manifest(folder / "items.parquet", start, stop)


def write_items_csv(items: pa.Table, path: Path) -> None:
    """Write path, status and error of every item as a CSV file, published by a rename."""
    with publish(path) as partial:
        pyarrow.csv.write_csv(items.select(["path", "status", "error"]), partial)


def _read_images(folder: Path, layout: zarr_groups.Layout, fingerprint: str) -> da.Array:
    n_items, *row_shape = layout.shape
    starts = ChunkPlan(n_items, layout.chunk_rows).starts
    stops = [min(start + starts.step, n_items) for start in starts]
    name = f"images-{tokenize(str(folder), fingerprint)}"
    spans = {(i, 0, 0, 0): span for i, span in enumerate(zip(starts, stops, strict=True))}
    sizes = tuple(stop - start for start, stop in spans.values())
    return _lazy(_read_span, name, folder, spans, (sizes, *((size,) for size in row_shape)))


def _lazy(
    read: Callable[[Any, Path], NDArray[Any]],
    name: str,
    folder: Path,
    spans: Mapping[Any, Any],
    chunks: tuple[tuple[int, ...], ...],
    dtype: DTypeLike = np.uint8,
) -> da.Array:
    """Make an array whose blocks are read in the task that uses them: a blockwise layer is fused with what follows."""
    numblocks = tuple(map(len, chunks))
    index = "ijkl"[: len(chunks)]
    where = BlockwiseDepDict(dict(spans), numblocks=numblocks)
    layer = blockwise(read, name, index, where, index, folder, None, numblocks={})
    return da.Array(HighLevelGraph.from_collections(name, layer), name, chunks, dtype)


def _read_span(span: tuple[int, int], folder: Path) -> NDArray[np.uint8]:
    return zarr_groups.read_block(folder, *span)


def _span(piece: NDArray[np.int64]) -> tuple[int, int, NDArray[np.int64] | None]:
    """First row and end of a piece, and the positions in it, which are only sent when there are gaps."""
    start, stop = int(piece[0]), int(piece[-1]) + 1
    return start, stop, None if stop - start == len(piece) else piece - start


def _read_piece(
    span: tuple[int, int, NDArray[np.int64] | None], folder: Path, *, read: Callable[[Path, int, int], NDArray[Any]]
) -> NDArray[Any]:
    start, stop, keep = span
    rows = read(folder, start, stop)
    return rows if keep is None else rows[keep]


def _read_flat(folder: Path, start: int, stop: int) -> NDArray[np.uint8]:
    return zarr_groups.read_block(folder, start, stop).reshape(stop - start, -1)
