"""Items become a collection: one task a chunk decodes them, one rename (or a marker) publishes the whole.

While it is made, the collection has a temporary name. A task writes its shard, then, as its marker, its part
of the table of items; an interrupted ingest goes on with the chunks that have no marker.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import dask
import dask.array as da
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from dask.base import tokenize
from dask.blockwise import BlockwiseDepDict, blockwise
from dask.delayed import Delayed
from dask.highlevelgraph import HighLevelGraph
from numpy.typing import DTypeLike, NDArray

from kmeans_dask import store
from kmeans_dask.careful import attempt
from kmeans_dask.config import Ingest, Input
from kmeans_dask.decoding import decode_rows, row_shape
from kmeans_dask.errors import JobError, UserError
from kmeans_dask.kernels import slice_rows
from kmeans_dask.normalize import POLICY
from kmeans_dask.object_store import is_local, location, make_folder, move, readable
from kmeans_dask.publish import publish, remove
from kmeans_dask.reduction import task_key
from kmeans_dask.relisting import REMOVED
from kmeans_dask.sources import read_manifest, write_manifest
from kmeans_dask.updating import Base, base_of, is_changed, join_items, mark_changed, update_rows

_MIN_CHUNKS = 8
"""Chunks that a collection has at least when it has as many slices: both cores, or four, get even shares."""


class ChunkPlan(NamedTuple):
    """How the items are cut into chunks; it does not depend on the workers."""

    n_items: int
    chunk_rows: int
    """Items a chunk; the last one may have fewer."""

    @property
    def starts(self) -> range:
        """First row of each chunk."""
        return range(0, self.n_items, self.chunk_rows)

    @property
    def stops(self) -> list[int]:
        """Row after the last one of each chunk."""
        return [min(start + self.chunk_rows, self.n_items) for start in self.starts]


class ChunkSummary(NamedTuple):
    """What an ingest task returns."""

    start: int
    """First row of the chunk."""
    items: int
    failed: int
    bytes: int
    """Of the image files."""
    seconds: float


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


def chunk_rows(n_items: int, row_bytes: int, chunk_bytes: float, n_features: int) -> int:
    """Choose the items a chunk.

    Parameters
    ----------
    n_items
        Items of the collection.
    row_bytes
        Bytes of one item's pixels.
    chunk_bytes
        Upper limit of one chunk, unless a single slice of the kernels is larger.
    n_features
        Numbers an item.

    Returns
    -------
    int
        The largest power-of-two multiple of the kernels' slice within the limit that leaves 8 chunks or more,
        so that small collections keep several workers busy; at least one slice.
    """
    rows = slice_rows(n_features)
    while 2 * rows * row_bytes <= chunk_bytes and 2 * rows * _MIN_CHUNKS <= n_items:
        rows *= 2
    return rows


def plan_chunks(n_items: int, config: Ingest, chunk_bytes: float | None = None) -> ChunkPlan:
    """Cut `n_items` items into chunks for a config, or into smaller ones of at most `chunk_bytes`."""
    row_bytes = int(np.prod(row_shape(config)))
    return ChunkPlan(n_items, chunk_rows(n_items, row_bytes, chunk_bytes or config.chunk_mib * 2**20, row_bytes))


def plan_of(folder: Path) -> ChunkPlan:
    """Return how the items of the collection that `ingest_tasks` began, or found finished, are cut into chunks."""
    partial = _partial_of(folder)
    return _plan_of(partial if _fingerprint_of(partial) else folder)


def ingest_tasks(
    manifest_path: Path, folder: Path, config: Ingest, source: Input, chunk_bytes: float | None = None
) -> list[Delayed]:
    """Make the tasks that are still needed to ingest a manifest, one a chunk.

    What an earlier call began is continued if it has the same manifest and settings, else it is removed.

    Parameters
    ----------
    manifest_path
        File of the items, written by `sources.write_manifest`, readable by all workers.
    folder
        Of the collection, which `finish_collection` will publish; writable by all workers.
    config
        Size, mode and chunks.
    source
        Its `max_pixels` is the limit of one image.
    chunk_bytes
        Of a chunk at most, in a collection that is begun; None: as the config says.

    Returns
    -------
    list of Delayed
        Each returns a `ChunkSummary`. Empty when every chunk is there.
    """
    fingerprint = _fingerprint(manifest_path, config, source)
    folder = folder.absolute()
    partial = _partial_of(folder)
    if _is_made_from(fingerprint, folder) or _is_joined(fingerprint, partial):
        return []
    manifest = read_manifest(manifest_path)
    base = base_of(manifest, folder, _settings(config, source))
    if not _is_made_from(fingerprint, partial):
        _create(partial, manifest, config, source, fingerprint, base, chunk_bytes)
    task = dask.delayed(ingest_chunk, pure=False, traverse=False)
    plan = _plan_of(partial)
    old = base.folder if base else None
    todo = set(base.touched(manifest) if base else plan.starts) - set(_starts_written(partial))
    job = (config, source.max_pixels, old)
    return [
        task(manifest_path.absolute(), partial, start, stop, *job, dask_key_name=task_key("ingest_chunk", start, stop))
        for start, stop in zip(plan.starts, plan.stops, strict=True)
        if start in todo
    ]


def ingest_chunk(
    manifest_path: Path, folder: Path, start: int, stop: int, config: Ingest, max_pixels: int, base: Path | None = None
) -> ChunkSummary:
    """Decode the items ``start:stop`` one after the other, write their shard, then their part of the items.

    A bad image is a black row and its reason in the table. Of a chunk that a finished collection, `base`, has in part
    or in an older state, only the items that are new or changed are decoded.
    """
    begun = time.perf_counter()
    manifest = read_manifest(manifest_path, start, stop)
    part = _part_of(folder, start)
    with attempt(part.with_suffix(".begun")) as careful:
        if base is None:
            block, items = decode_rows(manifest, config, max_pixels, careful=careful)
            changed = True
        else:
            block, items, changed = update_rows(manifest, base, start, config, max_pixels, careful=careful)
        store.write_block(folder, start, block)
        with publish(part) as unfinished:
            pq.write_table(mark_changed(items, changed), unfinished)
    failed = len(items) - pc.count(items["error"], mode="only_null").as_py()
    n_bytes = int(pc.sum(manifest["bytes"]).as_py())
    return ChunkSummary(start, len(manifest), failed, n_bytes, time.perf_counter() - begun)


def finish_collection(manifest_path: Path, folder: Path, config: Ingest, source: Input) -> Collection:
    """Join the parts of the items table and publish the collection; nothing is done if that has happened.

    Parameters
    ----------
    manifest_path, folder, config, source
        As given to `ingest_tasks`.

    Returns
    -------
    Collection

    Raises
    ------
    JobError
        A chunk has not been written.
    """
    fingerprint = _fingerprint(manifest_path, config, source)
    folder = folder.absolute()
    if not _is_made_from(fingerprint, folder):
        partial = _partial_of(folder)
        if not _is_made_from(fingerprint, partial):
            raise JobError(f"{folder} has not been ingested from {manifest_path}; run the stage ingest")
        if not _is_joined(fingerprint, partial):
            _join_parts(manifest_path, folder, base_of(read_manifest(manifest_path), folder, _settings(config, source)))
        _put_in_place(partial, folder)
    return open_collection(folder)


def _join_parts(manifest_path: Path, folder: Path, base: Base | None) -> None:
    """Write the items table of an unpublished collection, its last file."""
    partial, manifest = _partial_of(folder), read_manifest(manifest_path)
    starts = base.touched(manifest) if base else _plan_of(partial).starts
    missing = len(set(starts) - _starts_written(partial))
    if missing:
        raise JobError(f"{missing} of {len(starts)} chunks of {folder} are not written; run ingest again")
    parts = {start: pq.read_table(readable(_part_of(partial, start))) for start in starts}
    if base and not is_changed(manifest, base, parts.values()):
        store.set_attrs(partial, {"content": base.content})
    items = join_items(manifest, base, parts) if base else pa.concat_tables(parts.values())
    write_manifest(items, partial / "items.parquet")


def _put_in_place(partial: Path, folder: Path) -> None:
    """Replace what is there; killed in between, the next call does the rest."""
    if not is_local(folder):
        remove(partial / "items")
        move(partial, folder)
        return
    old = folder.with_name(folder.name + ".old")
    remove(old)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    remove(old)
    remove(folder / "items")


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
    attrs = store.read_attrs(folder)
    layout = store.read_layout(folder)
    try:
        items = pq.read_table(readable(folder / "items.parquet"))
    except FileNotFoundError:
        raise UserError(f"{folder} has no items.parquet: it is not finished; run the stage ingest") from None
    return Collection(
        folder=folder,
        images=_read_images(folder, layout, attrs["content"]),
        labels=store.read_labels(folder),
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
    attrs = store.read_attrs(folder)
    return tuple(attrs["class_names"]), Ingest.model_validate(attrs["ingest"])


def read_items(folder: Path, start: int, stop: int) -> pa.Table:
    """Read the rows ``start:stop`` of the items table of a collection: `ITEMS_SCHEMA`."""
    return read_manifest(folder / "items.parquet", start, stop)


def write_items_csv(items: pa.Table, path: Path) -> None:
    """Write path, status and error of every item as a CSV file, published by a rename."""
    with publish(path) as partial:
        pyarrow.csv.write_csv(items.select(["path", "status", "error"]), partial)


def _read_images(folder: Path, layout: store.Layout, fingerprint: str) -> da.Array:
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
    return store.read_block(folder, *span)


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
    return store.read_block(folder, start, stop).reshape(stop - start, -1)


def _create(
    folder: Path,
    manifest: pa.Table,
    config: Ingest,
    source: Input,
    fingerprint: str,
    base: Base | None,
    chunk_bytes: float | None,
) -> None:
    """Make the empty collection, or what an update leaves as it is; labels and attrs are known beforehand."""
    labels = pc.if_else(pc.equal(manifest["split"], REMOVED), None, manifest["label"])
    class_names = list(source.classes) or sorted(pc.unique(labels.drop_null()).to_pylist(), key=_natural)
    index = pc.fill_null(pc.index_in(labels, pa.array(class_names, pa.string())), -1)
    rows = base.chunk_rows if base else plan_chunks(len(manifest), config, chunk_bytes).chunk_rows
    layout = store.Layout((len(manifest), *row_shape(config)), rows)
    attrs = {
        "class_names": class_names,
        "mode": config.mode,
        "policy": POLICY,
        "ingest": config.model_dump(mode="json"),
        "settings": _settings(config, source),
        "fingerprint": fingerprint,
        "content": fingerprint,
    }
    make_folder(folder.parent)
    blocks = base.blocks_kept(manifest) if base else None
    store.create_collection(folder, layout, index.to_numpy().astype(np.int32), attrs, blocks)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key: digits compare as numbers, the rest as text; "2" before "10"."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), part) if i % 2 else (0, part) for i, part in enumerate(parts)]


def _settings(config: Ingest, source: Input) -> str:
    """Hash what decides about every image: an update goes on from a collection of the same settings."""
    settings = [config.model_dump(), source.max_pixels, source.classes, POLICY, store.FORMAT_VERSION]
    return hashlib.sha256(json.dumps(settings).encode()).hexdigest()


def _fingerprint(manifest_path: Path, config: Ingest, source: Input) -> str:
    """Hash everything that decides about the collection: the items, the settings, the layout."""
    with manifest_path.open("rb") as file:
        items = hashlib.file_digest(file, "sha256").hexdigest()
    return hashlib.sha256(f"{items} {_settings(config, source)}".encode()).hexdigest()


def _is_joined(fingerprint: str, partial: Path) -> bool:
    """Whether a collection lacks nothing but its name."""
    return (partial / "items.parquet").exists() and _is_made_from(fingerprint, partial)


def _is_made_from(fingerprint: str, folder: Path) -> bool:
    return _fingerprint_of(folder) == fingerprint


def _fingerprint_of(folder: Path) -> str | None:
    try:
        return str(store.read_attrs(folder)["fingerprint"])
    except UserError:  # nothing there, or its creation or removal was interrupted
        return None


def _plan_of(folder: Path) -> ChunkPlan:
    layout = store.read_layout(folder)
    return ChunkPlan(layout.shape[0], layout.chunk_rows)


def _partial_of(folder: Path) -> Path:
    return folder.with_name(folder.name + ".partial")


def _starts_written(folder: Path) -> set[int]:
    """First rows of the chunks that have their part of the items table, by one look at all."""
    return {int(path.stem.removeprefix("part-")) for path in (folder / "items").glob("part-*.parquet")}


def _part_of(folder: Path, start: int) -> Path:
    return folder / "items" / f"part-{start:012d}.parquet"
