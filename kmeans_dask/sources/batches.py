"""Divide the rows of a manifest into batches, one for each task that opens images."""

from __future__ import annotations

import pyarrow as pa

_BATCHES = 8
"""Minimum number of batches per thread: threads finish at about the same time, and a killed worker loses little."""
_ITEMS, _BYTES = (64, 1024), (2**18, 2**22)
"""Lower and upper limits of a batch. 1,024 images of 28 x 28 take 1.2 s, of which Dask's scheduler takes 4 ms; 4 MiB of
JPEG are about 24 megapixels, 2 s."""


def batch_limits(n_items: int, n_bytes: int, threads: int) -> tuple[int, int]:
    """Return the maximum number of items and of file bytes per batch, which are lower for small jobs.

    Parameters
    ----------
    n_items, n_bytes
        Number of items of the job, and total size of their files.
    threads
        Number of threads of all workers together.

    Returns
    -------
    max_items, max_bytes : int
    """
    pieces = _BATCHES * max(threads, 1)
    items, n_bytes = (
        min(max(-(-total // pieces), least), most) for total, (least, most) in ((n_items, _ITEMS), (n_bytes, _BYTES))
    )
    return items, n_bytes


def plan_batches(manifest: pa.Table, threads: int = 1) -> list[tuple[int, int]]:
    """Divide the items into batches, one per task; the outputs do not depend on the division.

    Parameters
    ----------
    manifest
        Table of `manifest.MANIFEST_SCHEMA`.
    threads
        Number of threads of all workers together.

    Returns
    -------
    list of (start, stop)
        Ranges of manifest rows. A batch exceeds `batch_limits` only if it is a single item.
    """
    sizes = manifest["bytes"].to_pylist()
    max_items, max_bytes = batch_limits(len(sizes), sum(sizes), threads)
    batches, start, total = [], 0, 0
    for row, size in enumerate(sizes):
        if row > start and (row - start == max_items or total + size > max_bytes):
            batches.append((start, row))
            start, total = row, 0
        total += size
    return [*batches, (start, len(manifest))] if len(manifest) else []
