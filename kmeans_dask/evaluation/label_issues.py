"""Items to review: probably wrong labels, and outliers far from their centre.

Each block yields a short list of both kinds per model: block = `label_issues_block` and `outliers_block`, combine =
`join_findings`, finalize = `label_issues_table` and `outliers_table`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from kmeans_dask.kmeans.kernels import Block, Stack, assign
from kmeans_dask.storage.publish import publish

MIN_SCORE = 0.1
"""Minimum score of a label issue."""

MIN_PURITY = 0.5
"""Minimum purity of a cluster whose label is trusted more than that of a differing item."""

MIN_DEVIATIONS = 3.0
"""Minimum score of an outlier: standard deviations above the mean distance of its cluster."""

MAX_LABEL_ISSUES, MAX_OUTLIERS = 10_000, 1_000
"""Maximum number of items listed per model, so that the result of a task does not grow with the collection."""

_ITEM = [("algorithm", pa.string()), ("k", pa.int32()), ("row", pa.int64()), ("path", pa.string())]
_ITEM += [("split", pa.string()), ("label", pa.string())]

LABEL_ISSUES_SCHEMA = pa.schema(
    [
        *_ITEM,
        ("suggested", pa.string()),  # label of the cluster
        ("cluster", pa.int32()),
        ("purity", pa.float64()),  # purity of the cluster
        ("score", pa.float64()),
        ("reason", pa.string()),
    ]
)

OUTLIERS_SCHEMA = pa.schema(
    [*_ITEM, ("cluster", pa.int32()), ("distance", pa.float64()), ("score", pa.float64()), ("reason", pa.string())]
)


@dataclass(frozen=True)
class Findings:
    """Items of one kind and model, highest score first; every array has shape (n,).

    Attributes
    ----------
    scores : float64
        Score that the items are ranked by.
    rows : int64
        Rows of the collection.
    clusters : int32
        Cluster of each item.
    values : float64
        For outliers the distance to the centre; for label issues 1 - that distance / distance to the nearest centre
        whose cluster has the label of the item.
    """

    scores: NDArray[np.float64]
    rows: NDArray[np.int64]
    clusters: NDArray[np.int32]
    values: NDArray[np.float64]

    def top(self, size: int) -> Findings:
        """Return the `size` items with the highest scores; ties go to the first rows."""
        order = np.lexsort((self.rows, -self.scores))[:size]
        return Findings(self.scores[order], self.rows[order], self.clusters[order], self.values[order])


def join_findings(parts: Sequence[Findings], size: int) -> Findings:
    """Combine several blocks; keep the `size` items with the highest scores."""
    return Findings(
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.clusters for part in parts]),
        np.concatenate([part.values for part in parts]),
    ).top(size)


def label_issues_block(
    block: Block,
    rows: NDArray[np.int64],
    labels: NDArray[np.int32],
    clusters: NDArray[np.int32],
    distances: NDArray[np.floating],
    centres: NDArray[np.floating],
    label_map: NDArray[np.int32],
    purities: NDArray[np.float64],
) -> Findings:
    """Find the items of one block whose label disagrees with that of a pure cluster.

    Parameters
    ----------
    block : (n, n_features)
        Rows of uint8, float32 or float64.
    rows : (n,) int64
        Rows of the collection.
    labels : (n,) int32
        Class of each item, -1 = none.
    clusters : (n,) int32
        Cluster of each item, -1 = none.
    distances : (n,)
        Distance of each item to its centre.
    centres : (k, n_features)
        Centres of the model.
    label_map : (k,) int32
        Class of each cluster, -1 = none.
    purities : (k,) float64
        Fraction of the labelled fitted items of each cluster that have its label.

    Returns
    -------
    Findings
        The score of an item is the purity of its cluster times 1 - own distance / distance to the nearest centre whose
        cluster has the item's label (times 1 if no cluster has it). It is close to 1 if the cluster is pure and the
        item is unlike the other items of its label. At most `MAX_LABEL_ISSUES` items with a score of at least
        `MIN_SCORE`, in clusters with a purity of at least `MIN_PURITY`.
    """
    known = (labels >= 0) & (clusters >= 0)
    mapped = np.where(known, label_map[clusters], -1)
    purity = np.where(known, purities[clusters], 0.0)
    (candidates,) = np.nonzero((mapped >= 0) & (mapped != labels) & (purity >= MIN_PURITY))
    margins = np.ones(len(candidates))
    # float features may be far from zero, where float32 has low absolute precision
    origin = None if block.dtype == np.uint8 else centres.mean(axis=0)
    for label in np.unique(labels[candidates]):
        (clusters_of_label,) = np.nonzero(label_map == label)
        if len(clusters_of_label):
            (positions,) = np.nonzero(labels[candidates] == label)
            items = candidates[positions]
            _, squared = assign(
                block[items], Stack.of([centres[clusters_of_label] - (0 if origin is None else origin)], origin)
            )
            other = np.sqrt(squared[0])
            margins[positions] = 1 - np.divide(distances[items], other, out=np.ones(len(items)), where=other > 0)
    scores = purity[candidates] * margins
    is_listed = scores >= MIN_SCORE
    listed = candidates[is_listed]
    return Findings(scores[is_listed], rows[listed], clusters[listed], margins[is_listed]).top(MAX_LABEL_ISSUES)


def outliers_block(
    rows: NDArray[np.int64],
    clusters: NDArray[np.int32],
    distances: NDArray[np.floating],
    means: NDArray[np.float64],
    deviations: NDArray[np.float64],
) -> Findings:
    """Find the items of one block that are much farther from their centre than the other items of their cluster.

    Parameters
    ----------
    rows : (n,) int64
        Rows of the collection.
    clusters : (n,) int32
        Cluster of each item, -1 = none.
    distances : (n,)
        Distance of each item to its centre.
    means, deviations : (k,) float64
        Mean and standard deviation of the distances of the fitted items of each cluster.

    Returns
    -------
    Findings
        The score is (distance - mean) / standard deviation. At most `MAX_OUTLIERS` items with a score of at least
        `MIN_DEVIATIONS`.
    """
    known = (clusters >= 0) & (deviations[clusters] > 0)
    scores = np.zeros(len(rows))
    own = clusters[known]
    scores[known] = (distances[known] - means[own]) / deviations[own]
    listed = scores >= MIN_DEVIATIONS
    values = distances[listed].astype(np.float64)
    return Findings(scores[listed], rows[listed], clusters[listed], values).top(MAX_OUTLIERS)


def label_issues_table(
    findings: Findings,
    items: pa.Table,
    algorithm: str,
    label_map: NDArray[np.int32],
    purities: NDArray[np.float64],
    class_names: Sequence[str],
) -> pa.Table:
    """Return the table of label issues of one model.

    Parameters
    ----------
    findings
        Label issues of all blocks.
    items
        Items table of the collection.
    algorithm
        Algorithm of the model.
    label_map, purities : (k,)
        As for `label_issues_block`.
    class_names
        Names of the classes.

    Returns
    -------
    pyarrow.Table
        Schema `LABEL_ISSUES_SCHEMA`.
    """
    names = [class_names[label_map[cluster]] for cluster in findings.clusters]
    columns = _item_columns(findings, items, algorithm, len(label_map))
    reasons = [
        f"{purities[cluster]:.1%} of its cluster are {name}; {_alternative(label, margin)}"
        for label, name, cluster, margin in zip(
            columns["label"].to_pylist(), names, findings.clusters, findings.values, strict=True
        )
    ]
    columns |= {"suggested": names, "cluster": findings.clusters, "purity": purities[findings.clusters]}
    return pa.table(columns | {"score": findings.scores, "reason": reasons}, schema=LABEL_ISSUES_SCHEMA)


def outliers_table(findings: Findings, items: pa.Table, algorithm: str, k: int) -> pa.Table:
    """Return the table of outliers of one model with k clusters; schema `OUTLIERS_SCHEMA`."""
    columns = _item_columns(findings, items, algorithm, k)
    reasons = [f"{score:.1f} standard deviations above the mean distance in its cluster" for score in findings.scores]
    columns |= {"cluster": findings.clusters, "distance": findings.values, "score": findings.scores, "reason": reasons}
    return pa.table(columns, schema=OUTLIERS_SCHEMA)


def write_csv(tables: Sequence[pa.Table], path: Path) -> None:
    """Concatenate tables and publish them as a CSV file."""
    with publish(path) as partial:
        pyarrow.csv.write_csv(pa.concat_tables(tables), partial)


def _item_columns(findings: Findings, items: pa.Table, algorithm: str, k: int) -> dict[str, Any]:
    n = len(findings.rows)
    facts = {name: items[name].take(pa.array(findings.rows)) for name in ("path", "split", "label")}
    return {"algorithm": [algorithm] * n, "k": np.full(n, k, np.int32), "row": findings.rows, **facts}


def _alternative(label: str, margin: float) -> str:
    """Describe the nearest cluster with the item's label, which is 1 / (1 - margin) times as far away as its own."""
    if margin >= 1:
        return "no cluster has its label"
    return f"the nearest {label} cluster is {1 / (1 - margin):.2f} times as far away"
