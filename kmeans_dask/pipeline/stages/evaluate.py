"""Stage evaluate: label the clusters, score every model, and find items that stand out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dask.delayed import Delayed

from kmeans_dask.collection.collection import Collection, open_collection
from kmeans_dask.collection.features import Features, open_features
from kmeans_dask.config.sections import Config
from kmeans_dask.deploy.tasks import run_tree
from kmeans_dask.evaluation.duplicates import Pairs, duplicates_tasks, join_pairs
from kmeans_dask.evaluation.first_pass import chunk_bounds, first_pass_tasks, join_clusters, join_first_passes
from kmeans_dask.evaluation.model_scores import EvaluatedModel, choose_models, metrics_rows, split_by_model
from kmeans_dask.evaluation.second_pass import join_second_passes, second_pass_tasks
from kmeans_dask.evaluation.tables import write_labels, write_tables
from kmeans_dask.models.model import column_prefix, read_model
from kmeans_dask.pipeline.console import progress, say
from kmeans_dask.pipeline.tables import show_metrics
from kmeans_dask.storage.publish import write_json
from kmeans_dask.storage.run_folder import run_folder

if TYPE_CHECKING:
    from distributed import Client


def run(config: Config, client: Client) -> dict[str, Any]:
    """Evaluate all models of a run in two passes over the collection, and write metrics and tables.

    Parameters
    ----------
    config
        Checked config with the section ``fit``; its models are in the run folder.
    client
        Client connected to the workers.

    Returns
    -------
    dict
        Number of ``models``, ``label_issues``, ``outliers`` and ``duplicates``; ``choice``, with one entry per
        algorithm if K is chosen automatically.
    """
    assert config.fit is not None
    folder = run_folder(config)
    collection = open_collection(folder.collection)
    models = [read_model(folder.model(a, k)) for a in config.fit.algorithm for k in config.fit.ks]
    features = open_features(folder.path)
    parts = folder.path / "clusters.parts"

    tasks = first_pass_tasks(collection, features, models, parts, config.seed)
    evaluated = split_by_model(models, _run_pass(client, collection, "evaluate", tasks, join_first_passes))
    tasks = second_pass_tasks(collection, features, [each.statistics for each in evaluated], parts)
    second_pass = _run_pass(client, collection, "second pass", tasks, join_second_passes)
    duplicates = _find_duplicates(client, collection, features, parts, evaluated)

    label_maps = {column_prefix(each.model): each.clusters.label_map for each in evaluated}
    join_clusters(parts, folder.clusters, label_maps, collection.class_names)
    counts = write_tables(folder, collection, evaluated, second_pass, duplicates)
    write_labels(folder, evaluated)
    rows = metrics_rows(evaluated, second_pass)
    choices = choose_models(config.fit.algorithm, rows) if config.fit.k == "auto" else []
    write_json(folder.metrics, rows)
    show_metrics(config.name, rows)
    for choice in choices:
        say(f"{choice['algorithm']}: {choice['reason']}")
    return {"models": len(models), **counts, "choice": choices}


def _run_pass(
    client: Client, collection: Collection, title: str, tasks: Sequence[Delayed], combine: Callable[..., Any]
) -> Any:
    """Run the tasks of a pass, one per chunk, and combine their results."""
    sizes = [stop - start for start, stop in chunk_bounds(collection)]
    with progress(title, len(collection.labels), "items") as advance:
        return run_tree(client, tasks, combine, lambda position: advance(sizes[position]))


def _find_duplicates(
    client: Client, collection: Collection, features: Features, parts: Path, evaluated: Sequence[EvaluatedModel]
) -> Pairs:
    """Search the clusters of the model with the largest K for duplicates; ties go to the first, as for the sketches."""
    clusters = max(evaluated, key=lambda each: each.model.k).clusters
    tasks = duplicates_tasks(collection, features, parts, clusters.sizes.sum(axis=0), clusters.radii)
    with progress("duplicates", len(tasks), "ranges of clusters") as advance:
        return run_tree(client, tasks, join_pairs, lambda _: advance(1))
