"""Command predict: label new images with a finished run."""

from __future__ import annotations

import os
import re
from itertools import count
from pathlib import Path

from kmeans_dask.collection.collection import read_names_and_settings
from kmeans_dask.collection.features import open_features
from kmeans_dask.config.sections import Config, Input
from kmeans_dask.deploy.client import connect
from kmeans_dask.deploy.security import open_to_others
from kmeans_dask.deploy.tasks import run_tasks
from kmeans_dask.errors import JobError, UserError
from kmeans_dask.models.model import Model
from kmeans_dask.models.prediction import (
    Predictor,
    PredictSummary,
    farthest_fitted,
    join_predicted,
    predict_tasks,
    source_of_table,
)
from kmeans_dask.pipeline.console import progress, say, show_line
from kmeans_dask.pipeline.driver.failures import explained
from kmeans_dask.pipeline.finished import choose_model, config_of
from kmeans_dask.pipeline.stages.listing import say_ranges
from kmeans_dask.sources.kinds.locations import full_name, shown
from kmeans_dask.sources.listing import list_items
from kmeans_dask.sources.manifest import read_manifest
from kmeans_dask.sources.ranges import ranges_of
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
    """Find the cluster of every image of a source in a model of a finished run, and write a table.

    Parameters
    ----------
    run
        Run folder.
    source
        Images, as for ``input.path``.
    k, algorithm
        As for `finished.choose_model`.
    cluster
        As for `config_files.load_config`.
    output
        File of the table, ``.parquet`` or ``.csv``; None: ``predictions/<source>-<algorithm>-k<k>.parquet`` in the run
        folder, ``<source>~2-...`` where that is of another source of this name.
    column
        As ``input.column``; None: that of the run.

    Returns
    -------
    Path
        File of the table, `prediction.PREDICTED_SCHEMA`.

    Raises
    ------
    UserError
        The run has no such model, the source is missing or has no image, or the file's name has another ending.
    JobError
        More than ``input.max_failed`` of the images could not be read; the table is written.
    """
    config = config_of(run, cluster)
    folder = run_folder(config)
    model = choose_model(config, folder, k, algorithm)
    column = column or config.input.column
    told = _told_of(source, column)
    path = _output_of(output, folder, source, column, told, model)
    features = open_features(folder.path)
    features.check_new_images()
    class_names, ingest = read_names_and_settings(folder.collection)
    new = Input(path=[source], labels="none", column=column, range=config.input.range)
    ranges = list(ranges_of(read_manifest(folder.manifest)))
    usual = ranges[0] if len(ranges) == 1 else None  # numbers mean what they mean in the run
    items = list_items(new, config.seed, folder.path / "input", usual=usual)
    say_ranges(config, items)
    farthest = farthest_fitted(folder.clusters, model)
    parts = path.with_name(f".{path.name}.parts")
    predictor = Predictor(model, class_names, farthest, ingest, config.input.max_pixels, features)
    with explained(folder.path):
        tasks = predict_tasks(items, parts, predictor)
        say(f"predict: {len(items):,} images in model {model.algorithm}, K = {model.k}; {len(tasks)} tasks to do")
        if tasks:
            with connect(config.cluster, say) as client, explained(folder.path, client):
                if risk := open_to_others(client):
                    say(f"warning: {risk}")
                with progress("predict", len(items), "images") as advance:
                    run_tasks(client, tasks, lambda summary: advance(summary.items))
        total = join_predicted(parts, path, told)
    show_line(f"predicted: {path}")
    _judge(config, total, path)
    return path


def _told_of(source: str, column: str | None) -> str:
    """Write what tells one source from another into its table: of URLs without their secrets."""
    return shown(full_name(source)) + (f" column {column}" if column else "")


def _output_of(output: str | None, folder: RunFolder, source: str, column: str | None, told: str, model: Model) -> Path:
    if output is None:
        base = os.path.basename(shown(full_name(source)).rstrip("/"))
        name = re.sub(r"[^\w.-]+", "_", f"{base}-{column}" if column else base) or "images"
        for number in count(1):
            of_its_own = f"{name}~{number}" if number > 1 else name
            path = folder.path / "predictions" / f"{of_its_own}-{model.algorithm}-k{model.k}.parquet"
            if source_of_table(path) in (None, told):
                return path
    assert output is not None
    path = location(output)
    if path.suffix.lower() not in (".parquet", ".csv"):
        raise UserError(f"--output={output}: the name must end in .parquet or .csv")
    return path


def _judge(config: Config, total: PredictSummary, path: Path) -> None:
    """Say how it went, and fail if too many images could not be read."""
    said = f"{total.failed:,} of {total.items:,} images could not be read"
    if total.failed == total.items or total.failed > config.input.max_failed * total.items:
        raise JobError(
            f"{said}, more than input.max_failed={config.input.max_failed:g} allows; the reasons are in {path}"
        )
    if total.failed:
        say(f"predict: {said}; the reasons are in {path}")
    say(f"predict: {total.farther:,} are farther from their centre than every fitted item of the cluster")
