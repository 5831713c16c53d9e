"""Predict the clusters of new images: one task per chunk decodes and assigns them, and writes its rows of the table.

Only counts return to the driver. An interrupted prediction resumes with the chunks that have no rows yet.
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
from kmeans_dask.models.model import Model, column_prefix, stack_models
from kmeans_dask.reduction import broadcast, task_key
from kmeans_dask.sources.manifest import read_manifest, write_manifest
from kmeans_dask.sources.sandbox import attempt
from kmeans_dask.storage.object_store import readable
from kmeans_dask.storage.publish import create, publish, remove

PREDICTED_SCHEMA = pa.schema(
    [
        ("path", pa.string()),  # path of the image, relative to its source
        ("cluster", pa.int32()),  # null if the image could not be read
        ("label", pa.string()),  # label of the cluster; null if it has none
        ("distance", pa.float32()),  # Euclidean distance to the centre, on the scale of the features
        ("farther", pa.bool_()),  # whether it is farther than every fitted item of the cluster
        ("status", pa.string()),  # "ok", or the status of the ImageError
        ("error", pa.string()),  # why it failed; null if it did not
    ]
)
"""One row per image, in manifest order."""

_SOURCE = b"kmeans-dask source"
"""Metadata key of the source in a table."""


@dataclass(frozen=True)
class Predictor:
    """Everything that prediction tasks need from a finished run.

    Attributes
    ----------
    model : Model
        Model with a label map.
    class_names : sequence of str
        Class names that the label map refers to.
    farthest : (k,) float32
        Largest distance of a fitted item in each cluster; minus infinity if it has none.
    ingest : Ingest
        Size and mode of the collection that the model was fitted to.
    max_pixels : int
        Images with more pixels are not decoded.
    features : Features
        Features that the model was fitted to.
    """

    model: Model
    class_names: Sequence[str]
    farthest: NDArray[np.float32]
    ingest: Ingest
    max_pixels: int
    features: Features

    def predict(self, manifest: pa.Table, *, careful: bool = False) -> pa.Table:
        """Decode images and find their clusters.

        Parameters
        ----------
        manifest : pyarrow.Table of n rows
            The images; schema `sources.MANIFEST_SCHEMA`.
        careful
            As for `decoding.decode_rows`.

        Returns
        -------
        pyarrow.Table of n rows
            Schema `PREDICTED_SCHEMA`.
        """
        assert self.model.label_map is not None
        block, items = decode_rows(manifest, self.ingest, self.max_pixels, careful=careful)
        rows = self.features.transform_block(block)
        (clusters,), (squared,) = assign(rows, stack_models([self.model], self.features))
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
        """Hash of everything that the table depends on, except the images."""
        label_map = np.asarray(self.model.label_map).tolist()
        values = [self.class_names, self.ingest.model_dump(), self.max_pixels, label_map, self.features.fingerprint]
        digest = hashlib.sha256(repr(values).encode())
        digest.update(self.model.centres.tobytes())
        digest.update(self.farthest.tobytes())
        return digest.hexdigest()


class PredictSummary(NamedTuple):
    """Result of a prediction task."""

    items: int
    """Number of images."""
    failed: int
    """Number of images that could not be read."""
    farther: int
    """Number of images that are farther from their centre than every fitted item of the cluster."""


def farthest_fitted(clusters: Path, model: Model) -> NDArray[np.float32]:
    """Read the largest distance of a fitted item in each cluster from the cluster table of a run.

    Parameters
    ----------
    clusters
        ``clusters.parquet`` of the run.
    model
        Model with columns in that table.

    Returns
    -------
    (k,) float32
        Minus infinity for a cluster without fitted items.
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
    """Make the remaining tasks that label new images, one per chunk.

    Parameters
    ----------
    items
        The images; schema `sources.MANIFEST_SCHEMA`.
    parts
        Folder for the rows of the tasks, writable by all workers. Rows of an earlier call with the same images and
        model are kept; anything else there is removed.
    predictor
        The model and everything it needs.

    Returns
    -------
    list of Delayed
        Each returns a `PredictSummary`.
    """
    parts = parts.absolute()  # workers may have another working directory
    manifest = parts / "manifest.parquet"
    marker = parts / predictor.fingerprint
    if not (marker.exists() and read_manifest(manifest).equals(items)):
        remove(parts)
        write_manifest(items, manifest)
        create(marker, "")
    plan = plan_chunks(len(items), predictor.ingest)
    shared = broadcast(predictor)
    task = dask.delayed(predict_chunk, pure=False, traverse=False)
    return [
        task(
            manifest, start, stop, shared, _part_of(parts, start), dask_key_name=task_key("predict_chunk", start, stop)
        )
        for start, stop in zip(plan.starts, plan.stops, strict=True)
        if not _part_of(parts, start).exists()
    ]


def predict_chunk(manifest: Path, start: int, stop: int, predictor: Predictor, part: Path) -> PredictSummary:
    """Label the images of the manifest rows ``start:stop`` and publish their rows of the table."""
    with attempt(part.with_suffix(".begun")) as careful:
        table = predictor.predict(read_manifest(manifest, start, stop), careful=careful)
        with publish(part) as partial:
            pq.write_table(table, partial)
    return _summary_of(table)


def read_source(path: Path) -> str | None:
    """Return the source that `join_predicted` stored in a table, or None if there is no table."""
    try:
        return (pq.read_schema(readable(path)).metadata or {}).get(_SOURCE, b"").decode()
    except FileNotFoundError:
        return None


def join_predicted(parts: Path, output: Path, source: str = "") -> PredictSummary:
    """Join the rows of all chunks into one table, and remove the parts.

    Parameters
    ----------
    parts
        Folder with the rows of the tasks.
    output
        Parquet file, or CSV file if its name ends in ``.csv``; an existing file is replaced.
    source
        Name of the source of the images, for the metadata of a Parquet file.

    Returns
    -------
    PredictSummary
        Totals over all images.
    """
    writer_of = pyarrow.csv.CSVWriter if output.suffix.lower() == ".csv" else pq.ParquetWriter
    total = PredictSummary(0, 0, 0)
    schema = PREDICTED_SCHEMA.with_metadata({_SOURCE: source})
    with publish(output) as partial, writer_of(partial, schema) as writer:
        for part in sorted(parts.glob("part-*.parquet")):  # one by one, as the table may exceed memory
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
