"""Items that a person should look at: labels that are probably wrong, and items far from their centre.

What a block finds is a short list of each kind and model: block = `label_issues_block` and `outliers_block`, combine =
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

LEAST_SUSPICION = 0.1
"""Score from which an item is a suspect."""

LEAST_PURITY = 0.5
"""Of a cluster whose label is believed rather than those of its other items."""

LEAST_DEVIATION = 3.0
"""Standard deviations above the mean distance of its cluster from which an item is an outlier."""

MAX_LABEL_ISSUES, MAX_OUTLIERS = 10_000, 1_000
"""Items of a model that are listed: what a task returns does not grow with the collection."""

_ITEM = [("algorithm", pa.string()), ("k", pa.int32()), ("row", pa.int64()), ("path", pa.string())]
_ITEM += [("split", pa.string()), ("label", pa.string())]

SUSPECTS_SCHEMA = pa.schema(
    [
        *_ITEM,
        ("suggested", pa.string()),  # label of the cluster
        ("cluster", pa.int32()),
        ("purity", pa.float64()),  # of the cluster's fitted items
        ("score", pa.float64()),
        ("reason", pa.string()),
    ]
)

OUTLIERS_SCHEMA = pa.schema(
    [*_ITEM, ("cluster", pa.int32()), ("distance", pa.float64()), ("score", pa.float64()), ("reason", pa.string())]
)


@dataclass(frozen=True)
class Findings:
    """Items of one kind and model, best first; every array is (n,).

    Attributes
    ----------
    scores : float64
    rows : int64
        Of the collection.
    clusters : int32
    values : float64
        Distance to the centre of an outlier; how much farther the nearest centre with its label is, for a suspect.
    """

    scores: NDArray[np.float64]
    rows: NDArray[np.int64]
    clusters: NDArray[np.int32]
    values: NDArray[np.float64]

    def first(self, size: int) -> Findings:
        """Return the `size` best; of equal scores those of the first rows."""
        order = np.lexsort((self.rows, -self.scores))[:size]
        return Findings(self.scores[order], self.rows[order], self.clusters[order], self.values[order])


def join_findings(parts: Sequence[Findings], size: int) -> Findings:
    """Keep the `size` best of several blocks."""
    return Findings(
        np.concatenate([part.scores for part in parts]),
        np.concatenate([part.rows for part in parts]),
        np.concatenate([part.clusters for part in parts]),
        np.concatenate([part.values for part in parts]),
    ).first(size)


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
        Their rows in the collection.
    labels : (n,) int32
        Class of each, -1 = none.
    clusters : (n,) int32
        Cluster of each, -1 = none.
    distances : (n,)
        Distance of each to its centre.
    centres : (k, n_features)
        Of the model.
    label_map, purities : (k,)
        Class of each cluster, -1 = none, and the share of its labelled fitted items that are of it.

    Returns
    -------
    Findings
        The score of an item is the purity of its cluster times 1 - own distance / distance to the nearest centre whose
        cluster has the item's label (1 where no cluster has it): near to 1 if the cluster is sure, and the item nothing
        like what it is called. Those with at least `LEAST_SUSPICION`, in
        clusters with at least `LEAST_PURITY`; at most `MAX_LABEL_ISSUES`.
    """
    known = (labels >= 0) & (clusters >= 0)
    mapped = np.where(known, label_map[clusters], -1)
    purity = np.where(known, purities[clusters], 0.0)
    (doubtful,) = np.nonzero((mapped >= 0) & (mapped != labels) & (purity >= LEAST_PURITY))
    farther = np.ones(len(doubtful))
    # float rows may lie far from zero, where float32 has few digits
    origin = None if block.dtype == np.uint8 else centres.mean(axis=0)
    for label in np.unique(labels[doubtful]):
        (own,) = np.nonzero(label_map == label)
        if len(own):
            (here,) = np.nonzero(labels[doubtful] == label)
            found = doubtful[here]
            _, squared = assign(block[found], Stack.of([centres[own] - (0 if origin is None else origin)], origin))
            other = np.sqrt(squared[0])
            farther[here] = 1 - np.divide(distances[found], other, out=np.ones(len(found)), where=other > 0)
    scores = purity[doubtful] * farther
    listed = scores >= LEAST_SUSPICION
    chosen = doubtful[listed]
    return Findings(scores[listed], rows[chosen], clusters[chosen], farther[listed]).first(MAX_LABEL_ISSUES)


def outliers_block(
    rows: NDArray[np.int64],
    clusters: NDArray[np.int32],
    distances: NDArray[np.floating],
    means: NDArray[np.float64],
    deviations: NDArray[np.float64],
) -> Findings:
    """Find the items of one block that are far from their centre, compared with the others of their cluster.

    Parameters
    ----------
    rows : (n,) int64
        Rows of the collection.
    clusters : (n,) int32
        Cluster of each, -1 = none.
    distances : (n,)
        Distance of each to its centre.
    means, deviations : (k,) float64
        Mean and standard deviation of the distances of each cluster's fitted items.

    Returns
    -------
    Findings
        The score is (distance - mean) / standard deviation: those with at least `LEAST_DEVIATION`, at most
        `MAX_OUTLIERS`.
    """
    known = (clusters >= 0) & (deviations[clusters] > 0)
    scores = np.zeros(len(rows))
    mine = clusters[known]
    scores[known] = (distances[known] - means[mine]) / deviations[mine]
    listed = scores >= LEAST_DEVIATION
    values = distances[listed].astype(np.float64)
    return Findings(scores[listed], rows[listed], clusters[listed], values).first(MAX_OUTLIERS)


def label_issues_table(
    found: Findings,
    items: pa.Table,
    algorithm: str,
    label_map: NDArray[np.int32],
    purities: NDArray[np.float64],
    class_names: Sequence[str],
) -> pa.Table:
    """Make the list of label_issues of one model.

    Parameters
    ----------
    found
        Suspects of all blocks.
    items
        Items of the collection.
    algorithm
        Of the model.
    label_map, purities : (k,)
        As for `label_issues_block`.
    class_names
        Names of the classes.

    Returns
    -------
    pyarrow.Table
        `SUSPECTS_SCHEMA`.
    """
    names = [class_names[label_map[cluster]] for cluster in found.clusters]
    columns = _item_columns(found, items, algorithm, len(label_map))
    reasons = []
    for label, name, cluster, farther in zip(
        columns["label"].to_pylist(), names, found.clusters, found.values, strict=True
    ):
        farness = "no cluster has its label" if farther >= 1 else f"the nearest of {label} is {_times(farther)} as far"
        reasons.append(f"{purities[cluster]:.1%} of its cluster are {name}; {farness}")
    columns |= {"suggested": names, "cluster": found.clusters, "purity": purities[found.clusters]}
    return pa.table(columns | {"score": found.scores, "reason": reasons}, schema=SUSPECTS_SCHEMA)


def outliers_table(found: Findings, items: pa.Table, algorithm: str, k: int) -> pa.Table:
    """Make the list of outliers of one model with k clusters: `OUTLIERS_SCHEMA`."""
    columns = _item_columns(found, items, algorithm, k)
    reasons = [
        f"{score:.1f} standard deviations farther from its centre than its cluster on average" for score in found.scores
    ]
    columns |= {"cluster": found.clusters, "distance": found.values, "score": found.scores, "reason": reasons}
    return pa.table(columns, schema=OUTLIERS_SCHEMA)


def write_csv(tables: Sequence[pa.Table], path: Path) -> None:
    """Publish tables of the same columns, one under the other, as CSV."""
    with publish(path) as partial:
        pyarrow.csv.write_csv(pa.concat_tables(tables), partial)


def _item_columns(found: Findings, items: pa.Table, algorithm: str, k: int) -> dict[str, Any]:
    n = len(found.rows)
    named = {name: items[name].take(pa.array(found.rows)) for name in ("path", "split", "label")}
    return {"algorithm": [algorithm] * n, "k": np.full(n, k, np.int32), "row": found.rows, **named}


def _times(farther: float) -> str:
    return f"{1 / (1 - farther):.2f} times"
