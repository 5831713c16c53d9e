"""The memory plan of a job: of its listed items, on the workers that it has."""

from __future__ import annotations

import subprocess
import sys
from functools import lru_cache

import numpy as np
import pyarrow as pa

from kmeans_dask.collection.chunks import ChunkPlan, plan_chunks
from kmeans_dask.config.sections import Config
from kmeans_dask.deploy.workers import Workers
from kmeans_dask.pipeline.plan.memory import PIXELS_A_BYTE, Largest, MemoryPlan, chunk_limit, plan_memory
from kmeans_dask.sources.kinds.locations import is_remote
from kmeans_dask.sources.manifest import read_manifest
from kmeans_dask.storage.run_folder import RunFolder

_LOOKED_AT = 32
"""Files whose headers are read: so many of the largest, and so many of all; 0.3 s, for the process that does it."""
_SECONDS = 3
"""For that: a file system may hang, and what has been read by then will do."""

_CHILD = f"""
import signal, sys
signal.alarm({_SECONDS})
from kmeans_dask.sources.images import pixels_of
for path in sys.stdin.buffer.read().split(b"\\0"):
    print(pixels_of(path), flush=True)
"""


def check_memory(config: Config, folder: RunFolder, workers: Workers) -> None:
    """Refuse a job that does not fit into the memory of its workers: `memory_plan.MemoryPlan.check`."""
    _, plan = plan_of(config, read_manifest(folder.manifest), workers)
    plan.check()


def plan_of(config: Config, items: pa.Table, workers: Workers) -> tuple[ChunkPlan | None, MemoryPlan]:
    """Cut the items into chunks that fit the workers, and work out what the stages take of them.

    Parameters
    ----------
    config
        Checked config.
    items
        `sources.MANIFEST_SCHEMA`.
    workers
        Of the cluster.

    Returns
    -------
    chunks : ChunkPlan, or None
        None without the section ``ingest``.
    memory : MemoryPlan
    """
    largest = largest_image(items)
    chunks = None
    if config.ingest:
        chunks = plan_chunks(len(items), config.ingest, chunk_limit(config, workers, largest))
    return chunks, plan_memory(config, workers, len(items), chunks.chunk_rows if chunks else 0, largest)


def largest_image(items: pa.Table) -> Largest:
    """Say how large the images are, by the headers of some local files: the largest ones, and some of all.

    Parameters
    ----------
    items
        `sources.MANIFEST_SCHEMA`.

    Returns
    -------
    Largest
        Where no header can be read, as in an archive or an object store, by the bytes of the largest item.
    """
    if not len(items):
        return Largest(0, 0, 0)
    sizes = items["bytes"].to_numpy()
    first = np.argpartition(sizes, -min(_LOOKED_AT, len(sizes)))[-_LOOKED_AT:]
    some = items.take(np.union1d(first, np.linspace(0, len(sizes) - 1, _LOOKED_AT, dtype=np.int64)))
    files = zip(some["file"].to_pylist(), some["inside"].to_pylist(), strict=True)
    local = tuple(file for file, inside in files if not inside and not is_remote(file))
    pixels = _most_pixels(local) if local else 0
    return Largest(int(sizes.max()), pixels or PIXELS_A_BYTE * int(sizes.max()), int(sizes.sum()))


@lru_cache(maxsize=1)  # asked for when the plan is checked, and by ingest
def _most_pixels(files: tuple[bytes, ...]) -> int:
    """Pixels of the largest of some files, by their headers, which another process reads: one may end it."""
    child = [sys.executable, "-c", _CHILD]
    silent = subprocess.DEVNULL
    told = subprocess.run(child, input=b"\0".join(files), stdout=subprocess.PIPE, stderr=silent, check=False).stdout
    return max(map(int, told.split()), default=0)
