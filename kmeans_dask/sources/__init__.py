"""Where the images lie. Every kind of source becomes rows of one manifest; tasks read the rows by `read_contents`."""

from kmeans_dask.sources.items import list_items
from kmeans_dask.sources.manifest import MANIFEST_SCHEMA, read_manifest, write_manifest
from kmeans_dask.sources.ranges import ranges_of
from kmeans_dask.sources.reading import read_contents, refuse_outage, unreadable

__all__ = [
    "MANIFEST_SCHEMA",
    "list_items",
    "ranges_of",
    "read_contents",
    "read_manifest",
    "refuse_outage",
    "unreadable",
    "write_manifest",
]
