"""New images in a finished model: one task a chunk decodes them, finds their clusters and writes its rows of the table.

Nothing but counts comes back to the driver. What was interrupted goes on with the chunks that have no rows yet.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import dask
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq
from dask.delayed import Delayed
from numpy.typing import NDArray

from kmeans_dask.collection.chunks import plan_chunks
from kmeans_dask.collection.decoding import decode_rows
from kmeans_dask.collection.features import Features
from kmeans_dask.config.sections import Ingest
from kmeans_dask.kmeans.kernels import assign
from kmeans_dask.models.model import Model, column_prefix, stack_of
from kmeans_dask.reduction import broadcast, task_key
from kmeans_dask.sources.manifest import read_manifest, write_manifest
from kmeans_dask.sources.sandbox import attempt
from kmeans_dask.storage.object_store import readable
from kmeans_dask.storage.publish import create, publish, remove

PREDICTED_SCHEMA = pa.schema(
    [
        ("path", pa.string()),  # of the image, relative to its source
        ("cluster", pa.int32()),  # null when the image could not be read
        ("label", pa.string()),  # of the cluster; null = none
        ("distance", pa.float32()),  # to the centre, Euclidean, on the scale of the features
        ("farther", pa.bool_()),  # than every fitted item of that cluster
        ("status", pa.string()),  # "ok", or the status of the ImageError
        ("error", pa.string()),  # its reason; null = none
    ]
)
"""One row an image, in the order of the manifest."""

_SOURCE = b"kmeans-dask source"
"""Key in the metadata of a table."""


@dataclass(frozen=True)
class Predictor:
    """What every task needs to know of a finished run.

    Attributes
    ----------
    model : Model
        With its label map.
    class_names : sequence of str
        Names of the classes that the label map speaks of.
    farthest : (k,) float32
        Largest distance of a fitted item of each cluster; minus infinity where there is none.
    ingest : Ingest
        Size and mode of the collection that the model was fitted to.
    max_pixels : int
        Pixels of one image above which it is not decoded.
    features : Features
        That the model was fitted on.
    """

    model: Model
    class_names: Sequence[str]
    farthest: NDArray[np.float32]
    ingest: Ingest
    max_pixels: int
    features: Features

    def table(self, manifest: pa.Table, *, careful: bool = False) -> pa.Table:
        """Decode the images of some manifest rows and say where they belong: `PREDICTED_SCHEMA`.

        `careful` is that of `decoding.decode_rows`.
        """
        assert self.model.label_map is not None
        block, items = decode_rows(manifest, self.ingest, self.max_pixels, careful=careful)
        (clusters,), (squared,) = assign(self.features.transform_block(block), stack_of([self.model], self.features))
        distances = np.sqrt(squared).astype(np.float32)
        failed = items["status"].to_numpy() != "ok"
        names = pa.array([self.class_names[c] if c >= 0 else None for c in self.model.label_map], pa.string())
        cluster = pa.array(clusters, mask=failed)
        farther = pa.array(distances > self.farthest[clusters], mask=failed)
        distance = pa.array(distances, mask=failed)
        columns = [items["path"], cluster, names.take(cluster), distance, farther, items["status"], items["error"]]
        return pa.table(columns, schema=PREDICTED_SCHEMA)

    @property
    def fingerprint(self) -> str:
        """Hash of everything that decides about the table but the images."""
        told = [self.class_names, self.ingest.model_dump(), self.max_pixels, np.asarray(self.model.label_map).tolist()]
        told.append(self.features.fingerprint)
        digest = hashlib.sha256(repr(told).encode())
        digest.update(self.model.centres.tobytes())
        digest.update(self.farthest.tobytes())
        return digest.hexdigest()


class PredictSummary(NamedTuple):
    """What a predict task returns."""

    items: int
    failed: int
    farther: int


def farthest_fitted(clusters: Path, model: Model) -> NDArray[np.float32]:
    """Read from the cluster table of a run how far its fitted items lie from their centres.

    Parameters
    ----------
    clusters
        ``clusters.parquet``, which has columns of this model.
    model

    Returns
    -------
    (k,) float32
        Largest distance of each cluster; minus infinity for a cluster without items.
    """
    prefix = column_prefix(model)
    farthest = np.full(model.k, -np.inf, np.float32)
    with pq.ParquetFile(readable(clusters)) as file:
        for batch in file.iter_batches(columns=["split", f"{prefix}_cluster", f"{prefix}_distance"]):
            fitted = pa.table(batch.columns, ["split", "cluster", "distance"]).filter(
                (pc.field("split") == "train") & pc.field("cluster").is_valid()
            )
            np.maximum.at(farthest, fitted["cluster"].to_numpy(), fitted["distance"].to_numpy())
    return farthest


def predict_tasks(items: pa.Table, parts: Path, predictor: Predictor) -> list[Delayed]:
    """Make the tasks that are still needed to label new images, one a chunk.

    Parameters
    ----------
    items
        The images, `sources.MANIFEST_SCHEMA`.
    parts
        Folder for the tasks' rows, which all workers can write to. What an earlier call with the same images and model
        left there is kept, anything else is removed.
    predictor
        The finished model.

    Returns
    -------
    list of Delayed
        Each returns a `PredictSummary`.
    """
    parts = parts.absolute()  # workers of a running cluster have other current folders
    manifest = parts / "manifest.parquet"
    marker = parts / predictor.fingerprint
    if not (marker.exists() and read_manifest(manifest).equals(items)):
        remove(parts)
        write_manifest(items, manifest)
        create(marker, "")
    plan = plan_chunks(len(items), predictor.ingest)
    known = broadcast(predictor)
    task = dask.delayed(predict_chunk, pure=False, traverse=False)
    return [
        task(manifest, start, stop, known, _part_of(parts, start), dask_key_name=task_key("predict_chunk", start, stop))
        for start, stop in zip(plan.starts, plan.stops, strict=True)
        if not _part_of(parts, start).exists()
    ]


def predict_chunk(manifest: Path, start: int, stop: int, predictor: Predictor, part: Path) -> PredictSummary:
    """Label the images of the manifest rows ``start:stop`` and publish their rows of the table."""
    with attempt(part.with_suffix(".begun")) as careful:
        table = predictor.table(read_manifest(manifest, start, stop), careful=careful)
        with publish(part) as partial:
            pq.write_table(table, partial)
    return _summary_of(table)


def source_of_table(path: Path) -> str | None:
    """Return what `join_predicted` was told of the source of a table; None if there is no table."""
    try:
        return (pq.read_schema(readable(path)).metadata or {}).get(_SOURCE, b"").decode()
    except FileNotFoundError:
        return None


def join_predicted(parts: Path, output: Path, source: str = "") -> PredictSummary:
    """Join the rows of all chunks to one table, and remove the parts.

    Parameters
    ----------
    parts
        Folder that the tasks wrote to.
    output
        Parquet file, or CSV file if its name ends in ``.csv``; what stands there is replaced.
    source
        Of the images; stands in the metadata of a Parquet file.

    Returns
    -------
    PredictSummary
        Of all images.
    """
    writer_of = pyarrow.csv.CSVWriter if output.suffix.lower() == ".csv" else pq.ParquetWriter
    total = PredictSummary(0, 0, 0)
    schema = PREDICTED_SCHEMA.with_metadata({_SOURCE: source})
    with publish(output) as partial, writer_of(partial, schema) as writer:
        for part in sorted(parts.glob("part-*.parquet")):  # one at a time: the table may be larger than memory
            table = pq.read_table(readable(part)).replace_schema_metadata(schema.metadata)
            writer.write_table(table)
            total = PredictSummary(*(a + b for a, b in zip(total, _summary_of(table), strict=True)))
    remove(parts)
    return total


def _summary_of(table: pa.Table) -> PredictSummary:
    failed = len(table) - pc.count(table["cluster"]).as_py()
    return PredictSummary(len(table), failed, pc.sum(table["farther"]).as_py() or 0)


def _part_of(parts: Path, start: int) -> Path:
    return parts / f"part-{start:012d}.parquet"
