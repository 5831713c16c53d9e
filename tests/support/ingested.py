"""Ingest a source into a collection, for tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import dask

from kmeans_dask.collection.collection import Collection
from kmeans_dask.collection.ingest import finish_collection, ingest_tasks
from kmeans_dask.config.sections import Ingest, Input
from kmeans_dask.sources.listing import list_items
from kmeans_dask.sources.manifest import write_manifest

CONFIG = Ingest(size=(12, 10), mode="L", chunk_mib=0.001)


def ingested(folder: Path, **options: Any) -> Collection:
    """Ingest the source given by `options` of the section ``input`` into a collection in `folder`."""
    source = Input(**options)
    write_manifest(list_items(source, 0, folder), folder / "manifest.parquet")
    arguments = folder / "manifest.parquet", folder / "collection.zarr", CONFIG, source
    dask.compute(*ingest_tasks(*arguments), scheduler="threads")
    return finish_collection(*arguments)


def files_of(collection: Collection) -> dict[str, bytes]:
    """Return the files of the arrays: relative path -> content."""
    return {
        str(path.relative_to(collection.folder)): path.read_bytes()
        for name in ("images", "labels")
        for path in sorted((collection.folder / name).rglob("*"))
        if path.is_file()
    }
