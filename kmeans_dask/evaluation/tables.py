"""Write the results of an evaluation to the run folder: tables of clusters and items, and the labels of the models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from kmeans_dask.collection.collection import Collection
from kmeans_dask.evaluation.cluster_facts import cluster_facts, write_cluster_facts
from kmeans_dask.evaluation.duplicates import Pairs, duplicates_table
from kmeans_dask.evaluation.label_issues import label_issues_table, outliers_table, write_csv
from kmeans_dask.evaluation.metrics import confusion_table, write_confusion
from kmeans_dask.evaluation.model_scores import EvaluatedModel
from kmeans_dask.evaluation.second_pass import SecondPass
from kmeans_dask.models.model import Model, write_model
from kmeans_dask.storage.run_folder import RunFolder


def write_tables(
    folder: RunFolder,
    collection: Collection,
    evaluated: Sequence[EvaluatedModel],
    second: SecondPass,
    duplicates: Pairs,
) -> dict[str, int]:
    """Write the tables of clusters, confusions, label issues, outliers and duplicates.

    Parameters
    ----------
    folder
        Run folder to write to.
    collection
        The collection that was evaluated.
    evaluated
        Models with their results from the first pass.
    second
        Result of the second pass for all chunks.
    duplicates
        Duplicates in all clusters.

    Returns
    -------
    dict
        Number of ``label_issues``, ``outliers`` and ``duplicates``.
    """
    names, items = collection.class_names, collection.items
    write_cluster_facts(cluster_facts([each.clusters for each in evaluated], names), folder.cluster_facts)
    write_confusion(
        [confusion_table(each.tables, each.clusters.label_map, each.model.algorithm, names) for each in evaluated],
        folder.confusion,
    )
    label_issues = [
        label_issues_table(
            findings, items, each.model.algorithm, each.clusters.label_map, each.clusters.purities, names
        )
        for findings, each in zip(second.label_issues, evaluated, strict=True)
    ]  # fmt: skip
    outliers = [
        outliers_table(findings, items, each.model.algorithm, each.model.k)
        for findings, each in zip(second.outliers, evaluated, strict=True)
    ]
    pairs = duplicates_table(duplicates, items)
    write_csv(label_issues, folder.label_issues)
    write_csv(outliers, folder.outliers)
    write_csv([pairs], folder.duplicates)
    return {
        "label_issues": sum(map(len, label_issues)),
        "outliers": sum(map(len, outliers)),
        "duplicates": len(pairs),
    }


def write_labels(folder: RunFolder, evaluated: Sequence[EvaluatedModel]) -> None:
    """Store the label and the number of fitted items of each cluster in the models, unless they are unchanged.

    Parameters
    ----------
    folder
        Run folder of the models.
    evaluated
        Models with their results from the first pass.
    """
    for each in evaluated:
        labelled = replace(each.model, label_map=each.clusters.label_map, counts=each.clusters.sizes[0])
        if not _have_same_labels(each.model, labelled):
            write_model(folder.model(labelled.algorithm, labelled.k), labelled)


def _have_same_labels(old: Model, new: Model) -> bool:
    return old.label_map is not None and all(
        np.array_equal(getattr(old, name), getattr(new, name)) for name in ("label_map", "counts")
    )
