"""Stage evaluate: clusters to labels, and the figures of every model."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from dask.delayed import Delayed
from distributed import Client
from numpy.typing import NDArray

from jobs.console import progress, say
from jobs.tables import show_metrics
from kmeans_dask.choice import choose_k
from kmeans_dask.cluster import run_tree
from kmeans_dask.cluster_facts import ClusterNumbers, cluster_facts, write_cluster_facts
from kmeans_dask.collection import Collection, open_collection
from kmeans_dask.config import Config
from kmeans_dask.duplicates import Pairs, duplicates_table, duplicates_tasks, join_pairs
from kmeans_dask.evaluation import (
    FirstLook,
    chunk_starts,
    column_prefix,
    evaluation_tasks,
    join_clusters,
    join_first_looks,
)
from kmeans_dask.features import Features, open_features
from kmeans_dask.kernels import Stack
from kmeans_dask.labels import label_map, one_to_one
from kmeans_dask.metrics import agreement, confusion_table, scores, share_right, write_confusion
from kmeans_dask.models import Model, read_model, write_model
from kmeans_dask.publish import write_json
from kmeans_dask.runs import RunFolder, run_folder
from kmeans_dask.second_look import Known, SecondLook, join_looks, second_look_tasks
from kmeans_dask.spread import means_of, spread_scores
from kmeans_dask.suspects import outliers_table, suspects_table, write_csv


@dataclass(frozen=True)
class _Evaluated:
    """One model with what the first look has told of it."""

    model: Model
    numbers: ClusterNumbers
    means: NDArray[np.float64]
    tables: NDArray[np.int64]
    inertias: NDArray[np.float64]
    stability: float | None

    @property
    def purities(self) -> NDArray[np.float64]:
        """Share of the labelled fitted items of each cluster that are of its label."""
        return self.tables[0].max(axis=1, initial=0) / np.maximum(self.tables[0].sum(axis=1), 1)

    @property
    def known(self) -> Known:
        """What the second look wants to know."""
        n = np.maximum(self.numbers.sizes[0], 1)
        mean = self.numbers.distances / n
        deviation = np.sqrt(np.maximum(self.numbers.squared / n - mean**2, 0.0))
        # of two equal distances rounding leaves a deviation that would make any item an outlier
        deviation = np.where(deviation > 1e-6 * mean, deviation, 0.0)
        return Known(
            column_prefix(self.model), self.model.centres, self.means, self.numbers.label_map, self.purities,
            mean, deviation,
        )  # fmt: skip


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
        models, suspects, outliers, duplicates; choice: an entry an algorithm where K is to be chosen.
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
        join_first_looks,
    )
    evaluated = _by_model(models, look)
    known = [of_model.known for of_model in evaluated]
    again = _over_chunks(
        client, collection, "look again", second_look_tasks(collection, features, known, parts), join_looks
    )
    pairs = _duplicates(client, collection, features, parts, evaluated)
    maps = {column_prefix(of_model.model): of_model.numbers.label_map for of_model in evaluated}
    join_clusters(parts, folder.clusters, maps, collection.class_names)
    found = _write_tables(folder, collection, evaluated, again, pairs)
    for of_model in evaluated:
        _write_labels(folder, of_model)
    ends = np.cumsum([of_model.model.k for of_model in evaluated])[:-1]
    rows = [_metrics_row(*of_model) for of_model in zip(evaluated, np.split(again.scatter, ends), strict=True)]
    choices = _choose(config.fit.algorithm, rows) if config.fit.k == "auto" else []
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
    client: Client, collection: Collection, features: Features, parts: Path, evaluated: Sequence[_Evaluated]
) -> Pairs:
    finest = max(evaluated, key=lambda of_model: of_model.model.k)  # the first of them, as the sketches take it
    sizes = finest.numbers.sizes
    radii = np.sqrt(finest.numbers.squared / np.maximum(sizes[0], 1))
    tasks = duplicates_tasks(collection, features, parts, sizes.sum(axis=0), radii)
    with progress("duplicates", len(tasks), "ranges of clusters") as advance:
        return run_tree(client, tasks, join_pairs, lambda _: advance(1))


def _by_model(models: Sequence[Model], look: FirstLook) -> list[_Evaluated]:
    """Cut what was counted of the stacked clusters into models, and vote on the labels."""
    spread, tables, extremes = look.counts.spread, look.counts.tables, look.extremes
    centres = [*(model.centres for model in models), *(m.rival for m in models if m.rival is not None)]
    means = means_of(spread, Stack.of(centres))
    rivals = iter(look.counts.rivals)
    evaluated, start = [], 0
    for model in models:
        mine = slice(start, start := start + model.k)
        table = tables[0, mine]
        numbers = ClusterNumbers(
            model.algorithm, model.centres, label_map(table), table, spread.sizes[:, mine], spread.squared[0, mine],
            spread.distances[0, mine], spread.largest[0, mine], spread.fitted_silhouettes[mine],
            extremes.nearest.rows[mine], extremes.farthest.rows[mine], extremes.sample.rows[mine],
        )  # fmt: skip
        stability = None if model.rival is None else agreement(next(rivals))["adjusted_rand"]
        inertias = spread.squared[:, mine].sum(axis=1)
        evaluated.append(_Evaluated(model, numbers, means[mine], tables[:, mine], inertias, stability))
    return evaluated


def _write_labels(folder: RunFolder, of_model: _Evaluated) -> None:
    model, numbers = of_model.model, of_model.numbers
    labelled = replace(model, label_map=numbers.label_map, counts=numbers.sizes[0])
    if not _says_the_same(model, labelled):
        write_model(folder.model(model.algorithm, model.k), labelled)


def _says_the_same(old: Model, new: Model) -> bool:
    return old.label_map is not None and all(
        np.array_equal(getattr(old, name), getattr(new, name)) for name in ("label_map", "counts")
    )


def _write_tables(
    folder: RunFolder, collection: Collection, evaluated: Sequence[_Evaluated], again: SecondLook, pairs: Pairs
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
    suspects = [
        suspects_table(found, items, of_model.model.algorithm, of_model.numbers.label_map, of_model.purities, names)
        for found, of_model in zip(again.suspects, evaluated, strict=True)
    ]
    outliers = [
        outliers_table(found, items, of_model.model.algorithm, of_model.model.k)
        for found, of_model in zip(again.outliers, evaluated, strict=True)
    ]
    duplicates = duplicates_table(pairs, items)
    write_csv(suspects, folder.suspects)
    write_csv(outliers, folder.outliers)
    write_csv([duplicates], folder.duplicates)
    return {
        "suspects": sum(map(len, suspects)),
        "outliers": sum(map(len, outliers)),
        "duplicates": len(duplicates),
    }


def _metrics_row(of_model: _Evaluated, scatter: NDArray[np.float64]) -> dict[str, Any]:
    model, numbers = of_model.model, of_model.numbers
    n_train, n_holdout = (int(n) for n in numbers.sizes.sum(axis=1))
    train = scores(of_model.tables[0], numbers.label_map)
    holdout = scores(of_model.tables[1], numbers.label_map)
    accuracy = train.pop("accuracy")
    matched = one_to_one(of_model.tables[0])
    return {
        "algorithm": model.algorithm,
        "k": model.k,
        "seconds": model.seconds,
        "iterations": model.iterations,
        "inertia": model.inertia,
        "inertia_per_sample": model.inertia / n_train,
        "inertia_per_sample_holdout": float(of_model.inertias[1]) / n_holdout if n_holdout else None,
        "empty_clusters": int((numbers.sizes[0] == 0).sum()),
        **train,
        "accuracy_train": accuracy,
        "accuracy_holdout": holdout["accuracy"],
        "accuracy_one_to_one": share_right(of_model.tables[0], matched),
        "accuracy_one_to_one_holdout": share_right(of_model.tables[1], matched),
        **spread_scores(numbers.sizes[0], numbers.squared, numbers.silhouettes, scatter, model.centres, of_model.means),
        "stability": of_model.stability,
        "chosen": None,
    }


def _choose(algorithms: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Choose the K of each algorithm, and mark it in its row."""
    choices = []
    for algorithm in algorithms:
        mine = [row for row in rows if row["algorithm"] == algorithm]
        columns = ([row[key] for row in mine] for key in ("k", "inertia", "silhouette", "stability"))
        choice = choose_k(*columns)
        for row in mine:
            row["chosen"] = row["k"] == choice.k
        choices.append({"algorithm": algorithm, **asdict(choice)})
    return choices


def main(argv: Sequence[str] | None = None) -> int:
    """Run this stage from the command line: CONFIG [KEY=VALUE ...] [--cluster ...]."""
    from jobs import cli

    return cli.main(["evaluate", *(sys.argv[1:] if argv is None else argv)])


if __name__ == "__main__":
    sys.exit(main())
