"""Sizes of the listed images, and the memory plan of the job that follows from them."""

from __future__ import annotations

import subprocess
import sys
from functools import lru_cache

import numpy as np
import pyarrow as pa

from kmeans_dask.collection.chunks import ChunkPlan, plan_chunks
from kmeans_dask.config.sections import Config
from kmeans_dask.deploy.workers import Workers
from kmeans_dask.pipeline.plan.memory import PIXELS_PER_BYTE, Largest, MemoryPlan, chunk_limit, plan_memory
from kmeans_dask.sources.kinds.locations import is_remote
from kmeans_dask.sources.manifest import read_manifest
from kmeans_dask.storage.run_folder import RunFolder

_HEADERS = 32
"""Number of the largest files, and of evenly spaced ones, whose headers are read; 0.3 s including the child process."""
_SECONDS = 3
"""Time limit for reading headers, as a file system may hang; what was read by then is used."""

_CHILD = f"""
import signal, sys
signal.alarm({_SECONDS})
from kmeans_dask.sources.images import header_pixels
for path in sys.stdin.buffer.read().split(b"\\0"):
    print(header_pixels(path), flush=True)
"""


def check_memory(config: Config, folder: RunFolder, workers: Workers) -> None:
    """Refuse a job that does not fit into the memory of its workers (see `MemoryPlan.check`)."""
    _, plan = plan_of(config, read_manifest(folder.manifest), workers)
    plan.check()


def plan_of(config: Config, items: pa.Table, workers: Workers) -> tuple[ChunkPlan | None, MemoryPlan]:
    """Plan chunks that fit the workers, and the memory of every stage.

    Parameters
    ----------
    config
        Checked config.
    items
        Manifest (`sources.manifest.MANIFEST_SCHEMA`).
    workers
        Number, threads and memory limit of the workers.

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
    """Estimate how large the images are from the headers of some local files: the largest, and evenly spaced ones.

    Parameters
    ----------
    items
        Manifest (`sources.manifest.MANIFEST_SCHEMA`).

    Returns
    -------
    Largest
        Where no header is read (archives, object stores), pixels are estimated from the size of the largest item.
    """
    if not len(items):
        return Largest(0, 0, 0)
    sizes = items["bytes"].to_numpy()
    largest = np.argpartition(sizes, -min(_HEADERS, len(sizes)))[-_HEADERS:]
    inspected = items.take(np.union1d(largest, np.linspace(0, len(sizes) - 1, _HEADERS, dtype=np.int64)))
    files = zip(inspected["file"].to_pylist(), inspected["inside"].to_pylist(), strict=True)
    local = tuple(file for file, inside in files if not inside and not is_remote(file))
    pixels = _most_pixels(local) if local else 0
    return Largest(int(sizes.max()), pixels or PIXELS_PER_BYTE * int(sizes.max()), int(sizes.sum()))


@lru_cache(maxsize=1)  # called when the plan is checked, and by ingest
def _most_pixels(files: tuple[bytes, ...]) -> int:
    """Return the most pixels that a header claims; a child process reads the headers, as a bad file may crash it."""
    child = [sys.executable, "-c", _CHILD]
    silent = subprocess.DEVNULL
    output = subprocess.run(child, input=b"\0".join(files), stdout=subprocess.PIPE, stderr=silent, check=False).stdout
    return max(map(int, output.split()), default=0)
