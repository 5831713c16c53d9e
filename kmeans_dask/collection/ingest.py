"""Items become a collection: one task a chunk decodes them, one rename (or a marker) publishes the whole.

While it is made, the collection has a temporary name. A task writes its shard, then, as its marker, its part
of the table of items; an interrupted ingest goes on with the chunks that have no marker.
"""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import NamedTuple

import dask
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from dask.delayed import Delayed

from kmeans_dask.collection.chunks import ChunkPlan, plan_chunks
from kmeans_dask.collection.collection import Collection, open_collection
from kmeans_dask.collection.decoding import decode_rows, row_shape
from kmeans_dask.collection.update import Base, base_of, is_changed, join_items, mark_changed, update_rows
from kmeans_dask.config.sections import Ingest, Input
from kmeans_dask.errors import JobError, UserError
from kmeans_dask.reduction import task_key
from kmeans_dask.sources.manifest import REMOVED, read_manifest, write_manifest
from kmeans_dask.sources.normalize import POLICY
from kmeans_dask.sources.sandbox import attempt
from kmeans_dask.storage import zarr_groups
from kmeans_dask.storage.fingerprint import file_digest, fingerprint_of
from kmeans_dask.storage.object_store import is_local, make_folder, move, readable
from kmeans_dask.storage.publish import publish, remove


class ChunkSummary(NamedTuple):
    """What an ingest task returns."""

    start: int
    """First row of the chunk."""
    items: int
    failed: int
    bytes: int
    """Of the image files."""
    seconds: float


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
        zarr_groups.write_block(folder, start, block)
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
        zarr_groups.set_attrs(partial, {"content": base.content})
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
    layout = zarr_groups.Layout((len(manifest), *row_shape(config)), rows)
    attrs = {
        "class_names": class_names,
        "mode": config.mode,
        "policy": POLICY,
        "ingest": config.model_dump(mode="json"),
        "settings": _settings(config, source),
        "fingerprint": fingerprint,
        # of the same items, some of which can be read now
        "content": fingerprint_of(fingerprint, base.content) if base and base.again else fingerprint,
    }
    make_folder(folder.parent)
    blocks = base.blocks_kept(manifest) if base else None
    zarr_groups.create_collection(folder, layout, index.to_numpy().astype(np.int32), attrs, blocks)


def _natural(name: str) -> list[tuple[int, str]]:
    """Sort key: digits compare as numbers, the rest as text; "2" before "10"."""
    parts = re.split(r"([0-9]+)", name)
    return [(int(part), part) if i % 2 else (0, part) for i, part in enumerate(parts)]


def _settings(config: Ingest, source: Input) -> str:
    """Fingerprint of what decides about every image: an update continues from a collection of the same settings."""
    return fingerprint_of(config.model_dump(), source.max_pixels, source.classes, POLICY, zarr_groups.FORMAT_VERSION)


def _fingerprint(manifest_path: Path, config: Ingest, source: Input) -> str:
    """Fingerprint of everything that decides about the collection: the items, the settings, the layout."""
    return fingerprint_of(file_digest(manifest_path), _settings(config, source))


def _is_joined(fingerprint: str, partial: Path) -> bool:
    """Whether a collection lacks nothing but its name."""
    return (partial / "items.parquet").exists() and _is_made_from(fingerprint, partial)


def _is_made_from(fingerprint: str, folder: Path) -> bool:
    return _fingerprint_of(folder) == fingerprint


def _fingerprint_of(folder: Path) -> str | None:
    try:
        return str(zarr_groups.read_attrs(folder)["fingerprint"])
    except UserError:  # nothing there, or its creation or removal was interrupted
        return None


def _plan_of(folder: Path) -> ChunkPlan:
    layout = zarr_groups.read_layout(folder)
    return ChunkPlan(layout.shape[0], layout.chunk_rows)


def _partial_of(folder: Path) -> Path:
    return folder.with_name(folder.name + ".partial")


def _starts_written(folder: Path) -> set[int]:
    """First rows of the chunks that have their part of the items table, by one look at all."""
    return {int(path.stem.removeprefix("part-")) for path in (folder / "items").glob("part-*.parquet")}


def _part_of(folder: Path, start: int) -> Path:
    return folder / "items" / f"part-{start:012d}.parquet"
