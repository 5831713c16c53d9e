"""Command export: a model, its table of clusters, or the images, for other programs."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from kmeans_dask.collection.collection import read_names_and_settings
from kmeans_dask.collection.features import open_features
from kmeans_dask.config.sections import Config
from kmeans_dask.errors import JobError, UserError
from kmeans_dask.models.export import folder_names, write_images, write_npz, write_onnx, write_skops
from kmeans_dask.models.model import Model, column_prefix
from kmeans_dask.pipeline.console import say, show_line
from kmeans_dask.pipeline.finished import choose_model, config_of
from kmeans_dask.sources.kinds.locations import is_remote
from kmeans_dask.sources.manifest import MANIFEST_SCHEMA
from kmeans_dask.sources.reading import read_contents
from kmeans_dask.storage.object_store import is_local, location, readable
from kmeans_dask.storage.publish import publish
from kmeans_dask.storage.run_folder import RunFolder, run_folder

_SUFFIXES = (".npz", ".skops", ".onnx", ".csv", ".parquet")
_NO_LABEL = "no label"
"""Folder for clusters without a label."""


def export(
    run: str,
    target: str,
    by: str | None = None,
    k: int | None = None,
    algorithm: str | None = None,
    link: bool = False,
) -> None:
    """Export a model, its table of clusters, or the images of a finished run.

    Parameters
    ----------
    run
        Run folder.
    target
        With `by`, the parent of the folders of images. Otherwise a file: ``.npz``, ``.skops`` and ``.onnx`` hold the
        model, ``.csv`` and ``.parquet`` the cluster of every item.
    by
        ``cluster``, or ``label`` (the label of the cluster): export the images into one folder each; None: export a
        file.
    k, algorithm
        As for `finished.choose_model`.
    link
        Link the images instead of copying them.

    Raises
    ------
    UserError
        The run has no such model, or the target is not valid.
    JobError
        Some images no longer exist or cannot be read; all others were exported.
    """
    config = config_of(run)
    folder = run_folder(config)
    path = location(target)
    if by is not None and not is_local(path):
        raise UserError(f"{target}: images can only be copied to a local folder; give one")
    if by is None and path.suffix.lower() not in _SUFFIXES:
        raise UserError(f"{target}: give --by cluster or --by label, or a file that ends in {', '.join(_SUFFIXES)}")
    model = choose_model(config, folder, k, algorithm)
    if by is not None:
        _export_images(config, folder, model, path, by, link)
    elif path.suffix.lower() in (".csv", ".parquet"):
        _export_table(folder, model, path)
    else:
        _export_model(folder, model, path)


def _export_model(folder: RunFolder, model: Model, path: Path) -> None:
    kind = path.suffix.lower()
    if kind == ".npz":
        write_npz(path, model, *read_names_and_settings(folder.collection), open_features(folder.path).settings)
    else:
        (write_skops if kind == ".skops" else write_onnx)(path, model)
    show_line(f"model {model.algorithm}, K = {model.k}: {path}")


def _export_table(folder: RunFolder, model: Model, path: Path) -> None:
    """Write path, split, label, cluster, predicted label and distance of every item in one model."""
    prefix = column_prefix(model)
    names = ["path", "split", "label", f"{prefix}_cluster", f"{prefix}_label", f"{prefix}_distance"]
    fields = [pq.read_schema(readable(folder.clusters)).field(name) for name in names]
    exported = ["path", "split", "label", "cluster", "predicted", "distance"]
    schema = pa.schema([field.with_name(name) for field, name in zip(fields, exported, strict=True)])
    writer_of = pyarrow.csv.CSVWriter if path.suffix.lower() == ".csv" else pq.ParquetWriter
    with (
        publish(path) as partial,
        writer_of(partial, schema) as writer,
        pq.ParquetFile(readable(folder.clusters)) as file,
    ):
        for batch in file.iter_batches(columns=names):
            writer.write_table(pa.table([batch.column(name) for name in names], schema=schema))
    show_line(f"clusters of model {model.algorithm}, K = {model.k}: {path}")


def _export_images(config: Config, folder: RunFolder, model: Model, target: Path, by: str, link: bool) -> None:
    parents = [target.resolve(), *target.resolve().parents]
    for source in config.input.path or []:
        if Path(source).resolve() in parents:
            raise UserError(
                f"{target} is inside the input {source}, so the run would list the copies; choose another folder"
            )
    items, folders = _items(folder, model, by)
    if link and (items["inside"].null_count < len(items) or any(map(is_remote, items["file"].to_pylist()))):
        raise UserError("images inside archives, arrays and tables, and at URLs, cannot be linked; leave out --link")
    names = list(zip(items["path"].to_pylist(), folders, strict=True))
    counts = write_images(names, read_contents(items), target, link=link)
    existing = f", {counts['unchanged']:,} already existed" if counts["unchanged"] else ""
    show_line(f"{counts['written']:,} images {'linked' if link else 'copied'}{existing}: {target}")
    if counts["failed"]:
        raise JobError(
            f"{counts['failed']:,} images no longer exist or cannot be read; rerun the job to update the run"
        )


def _items(folder: RunFolder, model: Model, by: str) -> tuple[pa.Table, list[str]]:
    """Return every item that has a cluster, in the order of the collection, and the name of its folder."""
    class_names, _ = read_names_and_settings(folder.collection)
    assert model.label_map is not None
    if by == "cluster":
        folders = [f"{cluster:0{len(str(model.k - 1))}d}" for cluster in range(model.k)]
    else:
        *names, unlabelled = folder_names([*class_names, _NO_LABEL])
        folders = [names[c] if c >= 0 else unlabelled for c in model.label_map]
    column = f"{column_prefix(model)}_cluster"
    items = pq.read_table(readable(folder.collection / "items.parquet"), columns=MANIFEST_SCHEMA.names)
    clusters = pq.read_table(readable(folder.clusters), columns=["path", column])
    if not clusters["path"].equals(items["path"]):
        raise UserError(f"{folder.clusters} belongs to an older state of the collection; run fit and evaluate first")
    say(f"export: clusters of model {model.algorithm}, K = {model.k}")
    has_cluster = pc.is_valid(clusters[column])
    return items.filter(has_cluster), [folders[cluster] for cluster in clusters[column].filter(has_cluster).to_pylist()]
