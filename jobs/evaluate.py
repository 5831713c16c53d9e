"""Stage evaluate: clusters to labels, and the figures of every model."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from distributed import Client
from numpy.typing import NDArray

from jobs.console import progress, show_table
from kmeans_dask.cluster import run_tasks
from kmeans_dask.collection import open_collection
from kmeans_dask.config import Config
from kmeans_dask.evaluation import Counts, column_prefix, evaluation_tasks, join_clusters
from kmeans_dask.features import open_features
from kmeans_dask.labels import label_map
from kmeans_dask.metrics import scores
from kmeans_dask.models import Model, read_model, write_model
from kmeans_dask.publish import write_json
from kmeans_dask.runs import run_folder


def run(config: Config, client: Client) -> dict[str, Any]:
    """Assign every item in every model, vote on the labels, score both splits.

    Parameters
    ----------
    config
        With the section ``fit``; the run folder has its models.
    client
        Of the workers.

    Returns
    -------
    dict
        models.
    """
    assert config.fit is not None
    folder = run_folder(config)
    collection = open_collection(folder.collection)
    models = [read_model(folder.model(a, k)) for a in config.fit.algorithm for k in config.fit.k]
    parts = folder.path / "clusters.parts"
    tasks = evaluation_tasks(collection, open_features(folder.path), models, parts)
    chunks: list[Counts] = []
    with progress("evaluate", len(collection.labels), "items") as advance:

        def add(counts: Counts) -> None:
            # what is kept is a sum: the driver's memory grows by two numbers a model and chunk, not by tables
            chunks[:] = [chunks[0] + counts] if chunks else [counts]
            advance(counts.rows)

        run_tasks(client, tasks, add)
    (counts,) = chunks
    maps = [label_map(table[0]) for table in counts.tables]
    prefixes = [column_prefix(model) for model in models]
    join_clusters(parts, folder.clusters, dict(zip(prefixes, maps, strict=True)), collection.class_names)
    rows = []
    totals = counts.total_inertias()
    for m, model in enumerate(models):
        tables, sizes, inertias = counts.tables[m], counts.sizes[m], totals[m]
        labelled = replace(model, label_map=maps[m], counts=sizes[0])
        if not _says_the_same(model, labelled):  # else it was evaluated before, beside other models
            write_model(folder.model(model.algorithm, model.k), labelled)
        rows.append(_metrics_row(labelled, tables, sizes, inertias))
    write_json(folder.metrics, rows)
    _show(config.name, rows)
    return {"models": len(models)}


def _says_the_same(old: Model, new: Model) -> bool:
    return old.label_map is not None and all(
        np.array_equal(getattr(old, name), getattr(new, name)) for name in ("label_map", "counts")
    )


def _metrics_row(
    model: Model, tables: NDArray[np.int64], sizes: NDArray[np.int64], inertias: NDArray[np.float64]
) -> dict[str, Any]:
    assert model.label_map is not None
    n_train, n_holdout = (int(n) for n in sizes.sum(axis=1))
    train = scores(tables[0], model.label_map)
    holdout = scores(tables[1], model.label_map)
    accuracy = train.pop("accuracy")
    return {
        "algorithm": model.algorithm,
        "k": model.k,
        "seconds": model.seconds,
        "iterations": model.iterations,
        "inertia": model.inertia,
        "inertia_per_sample": model.inertia / n_train,
        "inertia_per_sample_holdout": float(inertias[1]) / n_holdout if n_holdout else None,
        "empty_clusters": int((sizes[0] == 0).sum()),
        **train,
        "accuracy_train": accuracy,
        "accuracy_holdout": holdout["accuracy"],
    }


def _show(name: str, rows: Sequence[dict[str, Any]]) -> None:
    columns = {
        "K": ("k", "d"),
        "seconds": ("seconds", ".2f"),
        "passes": ("iterations", "d"),
        "inertia": ("inertia", ",.0f"),
        "homogeneity": ("homogeneity", ".4f"),
        "V": ("v_measure", ".4f"),
        "accuracy, train": ("accuracy_train", ".4f"),
        "accuracy, held-out": ("accuracy_holdout", ".4f"),
    }
    cells = [
        [
            row["algorithm"],
            *("–" if row[key] is None else format(row[key], form) for key, form in columns.values()),
        ]
        for row in rows
    ]
    show_table(f"{name}: {len(rows)} models", ["algorithm", *columns], cells)


def main(argv: Sequence[str] | None = None) -> int:
    """Run this stage from the command line: CONFIG [KEY=VALUE ...] [--cluster ...]."""
    from jobs import cli

    return cli.main(["evaluate", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
