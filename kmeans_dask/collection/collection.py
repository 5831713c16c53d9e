"""An open collection: its images as Dask arrays, and the table of its items."""

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
    """An open collection. Row i of every array is item i.

    Attributes
    ----------
    folder : Path
        Folder of the zarr group.
    images : (n, height, width, channels) da.Array of uint8
        One block per shard; items that failed are black.
    labels : (n,) int32
        Class of each item, as an index into `class_names`; -1 = none.
    class_names : tuple of str
        The classes in `input.classes`; if unset, all labels in natural order (2 before 10).
    items : pyarrow.Table of n rows
        One row per item, with the schema `decoding.ITEMS_SCHEMA`.
    chunk_rows : int
        Rows per block.
    fingerprint : str
        Hash of the items and settings that the pixels, labels and splits come from.
    """

    folder: Path
    images: da.Array
    labels: NDArray[np.int32]
    class_names: tuple[str, ...]
    items: pa.Table
    chunk_rows: int
    fingerprint: str

    def __repr__(self) -> str:
        """Summarize the size; the tables would fill a notebook."""
        shape = " x ".join(map(str, self.images.shape[1:]))
        chunks = self.images.numblocks[0]
        return f"Collection of {self.n_items:,} items of {shape}, {len(self.class_names)} labels, {chunks} chunks"

    @property
    def n_items(self) -> int:
        """Number of items, excluding removed ones."""
        return len(self.items) - self._count(REMOVED)

    @property
    def n_failed(self) -> int:
        """Number of items that could not be decoded."""
        return self.n_items - self._count("ok")

    def _count(self, status: str) -> int:
        return int(pc.sum(pc.equal(self.items["status"], status)).as_py() or 0)

    @property
    def changes(self) -> dict[str, int]:
        """Number of items by conversion applied to them, other than resizing, in the order of `normalize.POLICY`."""
        counted = {
            row["values"]: row["counts"] for row in pc.value_counts(pc.list_flatten(self.items["changes"])).to_pylist()
        }
        return {change: counted[change] for change in POLICY if change in counted}

    def rows(self, split: str) -> tuple[da.Array, NDArray[np.int64]]:
        """Return the decoded images of a split, one flattened image per row.

        Parameters
        ----------
        split
            ``train`` or ``holdout``.

        Returns
        -------
        X : (m, height * width * channels) da.Array of uint8
            Lazy; one task per block, at most one block per shard.
        index : (m,) int64
            Their rows in the collection, ascending.
        """
        if split not in ("train", "holdout"):
            raise ValueError(f"split={split!r}: must be train or holdout")
        wanted = pc.and_(pc.equal(self.items["split"], split), pc.equal(self.items["status"], "ok"))
        index = np.flatnonzero(wanted.to_numpy())
        return self.lazy_rows(index, _read_flat, int(np.prod(self.images.shape[1:])), np.uint8), index

    def lazy_rows(
        self,
        index: NDArray[np.int64],
        read: Callable[[Path, int, int], NDArray[Any]],
        n_features: int,
        dtype: DTypeLike,
    ) -> da.Array:
        """Make a lazy array from some rows of any stored data with one row per item.

        Parameters
        ----------
        index : (m,) int64
            Rows in the collection, ascending.
        read
            Called in a task with the collection's folder and a range of rows ``start, stop`` within a chunk; returns
            (stop - start, n_features) of `dtype`. It must tokenize deterministically, because it names the array.
        n_features, dtype
            Number of columns and dtype of what `read` returns.

        Returns
        -------
        (m, n_features) da.Array of dtype
            Chunked along the shards; a shard without any of the rows has no chunk.
        """
        if not len(index):
            return da.zeros((0, n_features), dtype=dtype, chunks=((0,), (n_features,)))
        _, firsts = np.unique(index // self.chunk_rows, return_index=True)
        pieces = np.split(index, firsts[1:])
        name = f"rows-{tokenize(self.images.name, index, read)}"
        spans = {(i, 0): _span(piece) for i, piece in enumerate(pieces)}
        chunks = (tuple(map(len, pieces)), (n_features,))
        return _lazy(partial(_read_piece, read=read), name, self.folder, spans, chunks, dtype)


def open_collection(folder: str | Path) -> Collection:
    """Open a collection. Images are read only when computed, each block inside its task.

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
        The folder is not a finished collection, or has another format version.
    """
    folder = location(folder).absolute()
    attrs = zarr_groups.read_attrs(folder)
    layout = zarr_groups.read_layout(folder)
    try:
        items = pq.read_table(readable(folder / "items.parquet"))
    except FileNotFoundError:
        raise UserError(f"{folder} is not finished: it has no items.parquet; run the stage ingest") from None
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
    """Read the class names of a collection and the settings with which its images were resized.

    Parameters
    ----------
    folder
        ``collection.zarr`` of a run folder.

    Returns
    -------
    class_names : tuple of str
    settings : Ingest

    Raises
    ------
    UserError
        The folder is not a finished collection, or has another format version.
    """
    attrs = zarr_groups.read_attrs(folder)
    return tuple(attrs["class_names"]), Ingest.model_validate(attrs["ingest"])


def read_items(folder: Path, start: int, stop: int) -> pa.Table:
    """Read the rows ``start:stop`` of the items table of a collection; schema `decoding.ITEMS_SCHEMA`."""
    return read_manifest(folder / "items.parquet", start, stop)


def write_items_csv(items: pa.Table, path: Path) -> None:
    """Publish the path, status and error of every item as a CSV file."""
    with publish(path) as unfinished:
        pyarrow.csv.write_csv(items.select(["path", "status", "error"]), unfinished)


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
    """Make an array from a blockwise layer. Dask fuses it with the next layers, so a block is read where it is used."""
    numblocks = tuple(map(len, chunks))
    index = "ijkl"[: len(chunks)]
    where = BlockwiseDepDict(dict(spans), numblocks=numblocks)
    layer = blockwise(read, name, index, where, index, folder, None, numblocks={})
    return da.Array(HighLevelGraph.from_collections(name, layer), name, chunks, dtype)


def _read_span(span: tuple[int, int], folder: Path) -> NDArray[np.uint8]:
    return zarr_groups.read_block(folder, *span)


def _span(piece: NDArray[np.int64]) -> tuple[int, int, NDArray[np.int64] | None]:
    """Return the first row of a piece, the row after its last, and, if it has gaps, the positions of its rows in it."""
    start, stop = int(piece[0]), int(piece[-1]) + 1
    return start, stop, None if stop - start == len(piece) else piece - start


def _read_piece(
    span: tuple[int, int, NDArray[np.int64] | None], folder: Path, *, read: Callable[[Path, int, int], NDArray[Any]]
) -> NDArray[Any]:
    start, stop, positions = span
    rows = read(folder, start, stop)
    return rows if positions is None else rows[positions]


def _read_flat(folder: Path, start: int, stop: int) -> NDArray[np.uint8]:
    return zarr_groups.read_block(folder, start, stop).reshape(stop - start, -1)
