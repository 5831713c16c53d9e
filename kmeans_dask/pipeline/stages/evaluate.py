"""Stage evaluate: clusters to labels, and the figures of every model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from dask.delayed import Delayed

from kmeans_dask.collection.collection import Collection, open_collection
from kmeans_dask.collection.features import Features, open_features
from kmeans_dask.config.sections import Config
from kmeans_dask.deploy.tasks import run_tree
from kmeans_dask.evaluation.cluster_facts import cluster_facts, write_cluster_facts
from kmeans_dask.evaluation.duplicates import Pairs, duplicates_table, duplicates_tasks, join_pairs
from kmeans_dask.evaluation.first_pass import chunk_starts, evaluation_tasks, join_clusters, join_first_passes
from kmeans_dask.evaluation.label_issues import label_issues_table, outliers_table, write_csv
from kmeans_dask.evaluation.metrics import (
    confusion_table,
    write_confusion,
)
from kmeans_dask.evaluation.model_scores import EvaluatedModel, choose_models, metrics_row, split_by_model
from kmeans_dask.evaluation.second_pass import SecondPass, join_second_passes, second_pass_tasks
from kmeans_dask.models.model import Model, column_prefix, read_model, write_model
from kmeans_dask.pipeline.console import progress, say
from kmeans_dask.pipeline.tables import show_metrics
from kmeans_dask.storage.publish import write_json
from kmeans_dask.storage.run_folder import RunFolder, run_folder

if TYPE_CHECKING:
    from distributed import Client


def run(config: Config, client: Client) -> dict[str, Any]:
    """Assign every item in every model, vote on the labels, score both splits, and say what stands out.

    Parameters
    ----------
    config
        With the section ``fit``; the run folder has its models.
    client
        Of the workers.

    Returns
    -------
    dict
        models, label_issues, outliers, duplicates; choice: an entry an algorithm where K is to be chosen.
    """
    assert config.fit is not None
    folder = run_folder(config)
    collection = open_collection(folder.collection)
    models = [read_model(folder.model(a, k)) for a in config.fit.algorithm for k in config.fit.ks]
    features = open_features(folder.path)
    parts = folder.path / "clusters.parts"
    look = _over_chunks(
        client,
        collection,
        "evaluate",
        evaluation_tasks(collection, features, models, parts, config.seed),
        join_first_passes,
    )
    evaluated = split_by_model(models, look)
    known = [of_model.known for of_model in evaluated]
    again = _over_chunks(
        client, collection, "look again", second_pass_tasks(collection, features, known, parts), join_second_passes
    )
    pairs = _duplicates(client, collection, features, parts, evaluated)
    maps = {column_prefix(of_model.model): of_model.numbers.label_map for of_model in evaluated}
    join_clusters(parts, folder.clusters, maps, collection.class_names)
    found = _write_tables(folder, collection, evaluated, again, pairs)
    for of_model in evaluated:
        _write_labels(folder, of_model)
    ends = np.cumsum([of_model.model.k for of_model in evaluated])[:-1]
    rows = [metrics_row(*of_model) for of_model in zip(evaluated, np.split(again.scatter, ends), strict=True)]
    choices = choose_models(config.fit.algorithm, rows) if config.fit.k == "auto" else []
    write_json(folder.metrics, rows)
    show_metrics(config.name, rows)
    for choice in choices:
        say(f"{choice['algorithm']}: {choice['reason']}")
    return {"models": len(models), **found, "choice": choices}


def _over_chunks(
    client: Client, collection: Collection, title: str, tasks: Sequence[Delayed], combine: Callable[..., Any]
) -> Any:
    """Run a task a chunk, and combine what they return."""
    sizes = [stop - start for start, stop in chunk_starts(collection)]
    with progress(title, len(collection.labels), "items") as advance:
        return run_tree(client, tasks, combine, lambda position: advance(sizes[position]))


def _duplicates(
    client: Client, collection: Collection, features: Features, parts: Path, evaluated: Sequence[EvaluatedModel]
) -> Pairs:
    finest = max(evaluated, key=lambda of_model: of_model.model.k)  # the first of them, as the sketches take it
    sizes = finest.numbers.sizes
    radii = np.sqrt(finest.numbers.squared / np.maximum(sizes[0], 1))
    tasks = duplicates_tasks(collection, features, parts, sizes.sum(axis=0), radii)
    with progress("duplicates", len(tasks), "ranges of clusters") as advance:
        return run_tree(client, tasks, join_pairs, lambda _: advance(1))


def _write_labels(folder: RunFolder, of_model: EvaluatedModel) -> None:
    model, numbers = of_model.model, of_model.numbers
    labelled = replace(model, label_map=numbers.label_map, counts=numbers.sizes[0])
    if not _says_the_same(model, labelled):
        write_model(folder.model(model.algorithm, model.k), labelled)


def _says_the_same(old: Model, new: Model) -> bool:
    return old.label_map is not None and all(
        np.array_equal(getattr(old, name), getattr(new, name)) for name in ("label_map", "counts")
    )


def _write_tables(
    folder: RunFolder, collection: Collection, evaluated: Sequence[EvaluatedModel], again: SecondPass, pairs: Pairs
) -> dict[str, int]:
    """Write what a person wants to know of clusters and items; return how many items stand out."""
    names, items = collection.class_names, collection.items
    write_cluster_facts(cluster_facts([of_model.numbers for of_model in evaluated], names), folder.cluster_facts)
    write_confusion(
        [
            confusion_table(of_model.tables, of_model.numbers.label_map, of_model.model.algorithm, names)
            for of_model in evaluated
        ],
        folder.confusion,
    )
    label_issues = [
        label_issues_table(found, items, of_model.model.algorithm, of_model.numbers.label_map, of_model.purities, names)
        for found, of_model in zip(again.label_issues, evaluated, strict=True)
    ]
    outliers = [
        outliers_table(found, items, of_model.model.algorithm, of_model.model.k)
        for found, of_model in zip(again.outliers, evaluated, strict=True)
    ]
    duplicates = duplicates_table(pairs, items)
    write_csv(label_issues, folder.label_issues)
    write_csv(outliers, folder.outliers)
    write_csv([duplicates], folder.duplicates)
    return {
        "label_issues": sum(map(len, label_issues)),
        "outliers": sum(map(len, outliers)),
        "duplicates": len(duplicates),
    }
