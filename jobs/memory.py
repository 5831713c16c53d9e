"""The memory plan of a job: of its listed items, on the workers that it has."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc

from kmeans_dask.chunks import ChunkPlan, plan_chunks
from kmeans_dask.config import Config
from kmeans_dask.memory_plan import MemoryPlan, Workers, chunk_limit, plan_memory
from kmeans_dask.runs import RunFolder
from kmeans_dask.sources import read_manifest


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
    largest = int(pc.max(items["bytes"]).as_py() or 0)
    chunks = None
    if config.ingest:
        chunks = plan_chunks(len(items), config.ingest, chunk_limit(config, workers, largest))
    return chunks, plan_memory(config, workers, len(items), chunks.chunk_rows if chunks else 0, largest)
