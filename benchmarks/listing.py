"""Seconds and memory of listing and planning a folder of many files, in a dedicated process.

``python -m benchmarks.listing [FILES]``
"""

from __future__ import annotations

import os
import resource
import sys
import tempfile
from multiprocessing import get_context
from pathlib import Path

from benchmarks.common import machine, seconds, table
from kmeans_dask.collection.ingest import ingest_tasks
from kmeans_dask.config.sections import Ingest, Input
from kmeans_dask.sources.listing import list_items
from kmeans_dask.sources.manifest import write_manifest

PER_FOLDER = 1000


def plan(folder: str, scratch: str) -> tuple[float, float, int, float]:
    """Return seconds of listing, seconds of planning, the number of tasks and the peak memory in MiB."""
    source, config = Input(path=[folder]), Ingest(size=(28, 28), mode="L")
    manifest = Path(scratch) / "manifest.parquet"
    listing = seconds(lambda: write_manifest(list_items(source, 0, Path(scratch)), manifest))[0]
    planning, tasks = seconds(lambda: ingest_tasks(manifest, Path(scratch) / "collection.zarr", config, source))
    return listing, planning, len(tasks), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Create empty files, and list them in a fresh process."""
    n = int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000
    print(machine())
    with tempfile.TemporaryDirectory() as scratch, get_context("spawn").Pool(1) as pool:
        folder = os.path.join(scratch, "images")
        for first in range(0, n, PER_FOLDER):
            below = os.path.join(folder, f"{first // PER_FOLDER:05d}")
            os.makedirs(below)
            for i in range(first, min(first + PER_FOLDER, n)):
                os.close(os.open(os.path.join(below, f"{i}.png"), os.O_CREAT | os.O_WRONLY))
        listing, planning, tasks, peak = pool.apply(plan, (folder, scratch))
    rows = [(f"{n:,}", f"{listing:.1f}", f"{planning:.1f}", f"{tasks:,}", f"{peak:,.0f}")]
    table("Listing", ("files", "seconds of listing", "seconds of planning", "tasks", "peak MiB"), rows)


if __name__ == "__main__":
    main()
