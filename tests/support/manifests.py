"""Build small manifests, for tests."""

from __future__ import annotations

import os

import pyarrow as pa

from kmeans_dask.sources.manifest import MANIFEST_SCHEMA


def manifest_of(folder, paths):
    """Return a manifest of some files in `folder`, all unlabelled train items; missing files have size and time 0."""
    rows = []
    for path in paths:
        facts = os.stat(folder / path) if (folder / path).exists() else None
        size, mtime = (facts.st_size, facts.st_mtime_ns) if facts else (0, 0)
        rows.append((os.fsencode(folder / path), None, None, None, path, size, mtime, None, "train", None, None))
    columns = list(zip(*rows, strict=True))
    arrays = [pa.array(values, field.type) for values, field in zip(columns, MANIFEST_SCHEMA, strict=True)]
    return pa.table(arrays, schema=MANIFEST_SCHEMA)
