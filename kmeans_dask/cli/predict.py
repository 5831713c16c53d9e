"""Command predict: assign new images to the clusters of a finished run."""

from __future__ import annotations

import os
import re
from itertools import count
from pathlib import Path

from kmeans_dask.collection.collection import read_names_and_settings
from kmeans_dask.collection.features import open_features
from kmeans_dask.config.sections import Input
from kmeans_dask.deploy.client import connect
from kmeans_dask.deploy.security import exposure_warning
from kmeans_dask.deploy.tasks import run_tasks
from kmeans_dask.errors import UserError
from kmeans_dask.models.model import Model
from kmeans_dask.models.prediction import (
    Predictor,
    farthest_fitted,
    join_predicted,
    predict_tasks,
    read_source,
)
from kmeans_dask.pipeline.console import progress, say, show_line
from kmeans_dask.pipeline.driver.failures import explained
from kmeans_dask.pipeline.failed_items import report_failed
from kmeans_dask.pipeline.finished import choose_model, config_of
from kmeans_dask.pipeline.stages.listing import say_ranges
from kmeans_dask.sources.kinds.locations import full_path, redacted
from kmeans_dask.sources.listing import list_items
from kmeans_dask.sources.manifest import read_manifest
from kmeans_dask.sources.ranges import count_ranges
from kmeans_dask.storage.object_store import location
from kmeans_dask.storage.run_folder import RunFolder, run_folder


def predict(
    run: str,
    source: str,
    k: int | None = None,
    algorithm: str | None = None,
    cluster: str | None = None,
    output: str | None = None,
    column: str | None = None,
) -> Path:
    """Assign every image of a source to a cluster of a finished run, and write a table.

    Parameters
    ----------
    run
        Run folder.
    source
        Images, as for ``input.path``.
    k, algorithm
        As for `finished.choose_model`.
    cluster
        As for `config.loading.load_config`.
    output
        Table to write, ``.parquet`` or ``.csv``; None: ``predictions/<source>-<algorithm>-k<k>.parquet`` in the run
        folder, or ``<source>~2-...`` if that file belongs to another source of the same name.
    column
        As ``input.column``; None: the column of the run.

    Returns
    -------
    Path
        File of the table, whose schema is `prediction.PREDICTED_SCHEMA`.

    Raises
    ------
    UserError
        The run has no such model, the source is missing or holds no images, or the suffix of `output` is not valid.
    JobError
        More than ``input.max_failed`` of the images could not be read; the table is written nevertheless.
    """
    config = config_of(run, cluster)
    folder = run_folder(config)
    model = choose_model(config, folder, k, algorithm)
    column = column or config.input.column
    origin = _origin(source, column)
    path = _output_of(output, folder, source, column, origin, model)
    features = open_features(folder.path)
    features.check_new_images()
    class_names, ingest = read_names_and_settings(folder.collection)
    request = Input(path=[source], labels="none", column=column, range=config.input.range)
    ranges = list(count_ranges(read_manifest(folder.manifest)))
    run_range = ranges[0] if len(ranges) == 1 else None  # pixel values are read as in the run
    items = list_items(request, config.seed, folder.path / "input", preferred_range=run_range)
    say_ranges(config, items)
    farthest = farthest_fitted(folder.clusters, model)
    parts = path.with_name(f".{path.name}.parts")
    predictor = Predictor(model, class_names, farthest, ingest, config.input.max_pixels, features)
    with explained(folder.path):
        tasks = predict_tasks(items, parts, predictor)
        say(f"predict: {len(items):,} images in model {model.algorithm}, K = {model.k}; {len(tasks)} tasks to do")
        if tasks:
            with connect(config.cluster, say) as client, explained(folder.path, client):
                if risk := exposure_warning(client):
                    say(f"warning: {risk}")
                with progress("predict", len(items), "images") as advance:
                    run_tasks(client, tasks, lambda summary: advance(summary.items))
        totals = join_predicted(parts, path, origin)
    show_line(f"predicted: {path}")
    report_failed("predict", "read", totals.failed, totals.items, max_failed=config.input.max_failed, table=path)
    say(f"predict: {totals.farther:,} items are farther from their centre than any fitted item of that cluster")
    return path


def _origin(source: str, column: str | None) -> str:
    """Return the text that identifies a source in its table, without the secrets of URLs."""
    return redacted(full_path(source)) + (f" column {column}" if column else "")


def _output_of(
    output: str | None, folder: RunFolder, source: str, column: str | None, origin: str, model: Model
) -> Path:
    if output is None:
        base = os.path.basename(redacted(full_path(source)).rstrip("/"))
        name = re.sub(r"[^\w.-]+", "_", f"{base}-{column}" if column else base) or "images"
        for number in count(1):
            unique = f"{name}~{number}" if number > 1 else name
            path = folder.path / "predictions" / f"{unique}-{model.algorithm}-k{model.k}.parquet"
            if read_source(path) in (None, origin):
                return path
    assert output is not None
    path = location(output)
    if path.suffix.lower() not in (".parquet", ".csv"):
        raise UserError(f"--output={output}: the name must end in .parquet or .csv")
    return path
