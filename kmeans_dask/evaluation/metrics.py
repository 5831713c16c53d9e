"""How well clusters agree with labels, reduced on the workers: no row is ever gathered.

The reduction is a contingency table, items of each cluster and class: block = `contingency_block`, combine = addition,
finalize = `scores`, `confusion`, or `agreement` where the classes are the clusters of another model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from scipy.sparse import csr_matrix

from kmeans_dask.storage.publish import publish


def contingency_block(
    clusters: NDArray[np.integer], labels: NDArray[np.integer], n_clusters: int, n_classes: int
) -> NDArray[np.int64]:
    """Count the items of each cluster and class in one block.

    Parameters
    ----------
    clusters
        (m,) integer cluster of each item; -1: none.
    labels
        (m,) integer class of each item; -1: none. Items without a cluster or a label are not counted.
    n_clusters, n_classes
        Shape of the table.

    Returns
    -------
    ndarray
        (n_clusters, n_classes) int64.

    Raises
    ------
    ValueError
        A cluster or a label lies outside the table, or the lengths differ.
    """
    counted = (clusters >= 0) & (labels >= 0)
    rows, columns = clusters[counted].astype(np.int64), labels[counted].astype(np.int64)
    # unchecked, a class too high would be counted in the next cluster's row
    for name, values, limit in (("cluster", rows, n_clusters), ("label", columns, n_classes)):
        if values.size and values.max() >= limit:
            raise ValueError(f"{name} {values.max()} in a table of {limit}; allowed are -1 to {limit - 1}")
    cells = np.bincount(rows * n_classes + columns, minlength=n_clusters * n_classes)
    return cells.astype(np.int64, copy=False).reshape(n_clusters, n_classes)


def scores(contingency: NDArray[np.int64], label_map: NDArray[np.int32]) -> dict[str, float | None]:
    """Scores of a clustering against labels, from its contingency table alone.

    Equal to scikit-learn's functions on the label vectors.

    Parameters
    ----------
    contingency
        (n_clusters, n_classes) int64 items of each cluster and class.
    label_map
        (n_clusters,) int32 class of each cluster, as voted on the fitted part; -1: none.

    Returns
    -------
    dict
        ``homogeneity``, ``completeness``, ``v_measure`` (Rosenberg and Hirschberg 2007),
        ``adjusted_rand`` (Hubert and Arabie 1985), ``mutual_information`` in nats,
        ``normalized_mutual_information`` and ``adjusted_mutual_information`` (Vinh, Epps and Bailey 2010), both by
        the arithmetic mean of the entropies, ``purity``, the share of items that are of their cluster's largest
        class here, and ``accuracy``, the share of items whose cluster's label is theirs: items in clusters without
        a label count as wrong. All are None when no item has a label (JSON has no NaN).
    """
    items = int(contingency.sum())
    if items == 0:
        return dict.fromkeys((*_AGREEMENTS, "purity", "accuracy"))
    return {
        **agreement(contingency),
        "purity": int(contingency.max(axis=1).sum()) / items,
        "accuracy": share_right(contingency, label_map),
    }


def share_right(contingency: NDArray[np.int64], mapping: NDArray[np.int32]) -> float | None:
    """Share of the items of a (n_clusters, n_classes) table whose cluster is mapped to their class; -1: to none."""
    items = int(contingency.sum())
    named = np.flatnonzero(mapping >= 0)
    return int(contingency[named, mapping[named]].sum()) / items if items else None


def confusion(contingency: NDArray[np.int64], label_map: NDArray[np.int32]) -> NDArray[np.int64]:
    """Count the items of each class by the label of their cluster.

    Parameters
    ----------
    contingency
        (n_clusters, n_classes) items of each cluster and class.
    label_map
        (n_clusters,) int32 class of each cluster; -1: none.

    Returns
    -------
    ndarray
        (n_classes, n_classes + 1) int64: a row a class of the items, a column a label; the last column counts the
        items in clusters without a label.
    """
    n_classes = contingency.shape[1]
    counts = np.zeros((n_classes, n_classes + 1), np.int64)
    np.add.at(counts.T, label_map, contingency)  # -1 is the last one
    return counts


_EXACT_ITEMS = 2**22
"""Above, the expected mutual information is the first term of its expansion in 1 / items (Miller 1955): the exact sum
takes time and memory in proportion to the items, 32 GB for a billion."""

CONFUSION_SCHEMA = pa.schema(
    [
        ("algorithm", pa.string()),
        ("k", pa.int32()),
        ("split", pa.string()),
        ("label", pa.string()),
        ("predicted", pa.string()),  # null = the cluster has no label
        ("items", pa.int64()),  # above 0
    ]
)


def confusion_table(
    tables: NDArray[np.int64], label_map: NDArray[np.int32], algorithm: str, class_names: Sequence[str]
) -> pa.Table:
    """Make the rows of the confusion matrices of one model, one for each cell that has items.

    Parameters
    ----------
    tables
        (2, n_clusters, n_classes) int64, of the fitted and of the held-out part.
    label_map
        (n_clusters,) int32 class of each cluster; -1: none.
    algorithm
        Of the model.
    class_names
        Names of the classes.

    Returns
    -------
    pyarrow.Table
        `CONFUSION_SCHEMA`.
    """
    names = [*class_names, None]
    cells = [
        (algorithm, len(label_map), split, names[label], names[predicted], int(counts[label, predicted]))
        for split, counts in zip(("train", "holdout"), (confusion(table, label_map) for table in tables), strict=True)
        for label, predicted in np.argwhere(counts)
    ]
    return pa.table([list(column) for column in zip(*cells, strict=True)] or [[]] * 6, schema=CONFUSION_SCHEMA)


def write_confusion(tables: Sequence[pa.Table], path: Path) -> None:
    """Publish tables from `confusion_table`, one under the other, as Parquet."""
    with publish(path) as partial:
        pq.write_table(pa.concat_tables(tables), partial)


_AGREEMENTS = (
    "homogeneity",
    "completeness",
    "v_measure",
    "adjusted_rand",
    "mutual_information",
    "normalized_mutual_information",
    "adjusted_mutual_information",
)


def agreement(contingency: NDArray[np.int64]) -> dict[str, float]:
    """Scores of two partitions of the same items, from the table that counts their pairs.

    Equal to scikit-learn's functions on the label vectors. Pairs are counted with Python integers, so the
    adjusted Rand index stays exact for any number of items.

    Parameters
    ----------
    contingency
        (n_clusters, n_classes) int64, not all zero; the classes may be the clusters of another model.

    Returns
    -------
    dict
        The scores of `scores`, without purity and accuracy, which need labels. Above 4 million items the expected
        information of the adjusted one is approximated.
    """
    from sklearn.metrics import mutual_info_score  # a second that the tasks, which count, are spared

    # absent clusters and classes are no part of the clustering: scikit-learn never sees them
    table = contingency[contingency.any(axis=1)][:, contingency.any(axis=0)]
    cluster_entropy, class_entropy = _entropy(table.sum(axis=1)), _entropy(table.sum(axis=0))
    information = mutual_info_score(None, None, contingency=table)
    homogeneity = float(information / class_entropy) if class_entropy else 1.0
    completeness = float(information / cluster_entropy) if cluster_entropy else 1.0
    both = homogeneity + completeness
    v_measure = min(2 * homogeneity * completeness / both, 1.0) if both else 0.0
    return {
        "homogeneity": homogeneity,
        "completeness": completeness,
        "v_measure": v_measure,
        "adjusted_rand": _adjusted_rand(table),
        "mutual_information": float(information),
        # normalized by the arithmetic mean, mutual information is the V-measure, edge cases included
        "normalized_mutual_information": v_measure,
        "adjusted_mutual_information": _adjusted_information(table, (cluster_entropy + class_entropy) / 2),
    }


def _entropy(counts: NDArray[np.int64]) -> float:
    """Entropy in nats of positive counts; exactly 0 for a single one."""
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def _adjusted_information(table: NDArray[np.int64], entropy: float) -> float:
    """Mutual information above its expectation, as a share of the most that it could be."""
    from sklearn.metrics import mutual_info_score
    from sklearn.metrics.cluster import expected_mutual_information

    if 1 in table.shape:
        return float(table.shape == (1, 1))
    # a sparse table with a row a class, as scikit-learn makes it: where nothing is left but rounding, the order counts
    cells = csr_matrix(table.T)
    items = int(table.sum())
    if items <= _EXACT_ITEMS:
        expected = expected_mutual_information(cells, items)
    else:
        expected = (table.shape[0] - 1) * (table.shape[1] - 1) / (2 * items)
    above, most = mutual_info_score(None, None, contingency=cells) - expected, entropy - expected
    least = np.finfo(np.float64).eps
    return float(np.copysign(max(abs(above), least), above) / np.copysign(max(abs(most), least), most))


def _adjusted_rand(table: NDArray[np.int64]) -> float:
    """Compare the pairs of items that clusters, classes or both put together."""
    items = int(table.sum())
    together = _ordered_pairs(table)
    same_cluster_only = _ordered_pairs(table.sum(axis=1)) - together
    same_class_only = _ordered_pairs(table.sum(axis=0)) - together
    apart = items * (items - 1) - together - same_cluster_only - same_class_only
    if same_cluster_only == same_class_only == 0:
        return 1.0
    agreement = 2 * (together * apart - same_cluster_only * same_class_only)
    by_class = (together + same_class_only) * (same_class_only + apart)
    by_cluster = (together + same_cluster_only) * (same_cluster_only + apart)
    return agreement / (by_class + by_cluster)


def _ordered_pairs(counts: NDArray[np.int64]) -> int:
    """Ordered pairs inside groups of these sizes, exact."""
    return sum(count * (count - 1) for count in counts.ravel().tolist())


@dataclass(frozen=True)
class Comparison:
    """How well two clusterings agree; nothing here depends on the numbers that the clusters have.

    Attributes
    ----------
    items : int
        Items that both have, which is what the scores are of.
    only_first, only_second : int
        Items that one of them lacks.
    adjusted_rand, adjusted_mutual_information, v_measure : float
        As in `metrics.agreement`; 1: the same clusters.
    one_to_one : float
        Share of the items (0-1) in the same cluster, when each cluster has at most one counterpart in the other
        clustering, chosen such that the share is largest.
    """

    items: int
    only_first: int
    only_second: int
    adjusted_rand: float
    adjusted_mutual_information: float
    v_measure: float
    one_to_one: float


def compare_clusters(first: pa.Table, second: pa.Table) -> Comparison:
    """Compare the clusters of two tables.

    Parameters
    ----------
    first, second
        Columns ``path``, ``split`` and ``cluster``, null where an item has none: such items do not count. Items are the
        same if their path is; where a table has a path twice, as folders of fitted and of held-out items may, if path
        and split are.

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError
        They have no item in common, or a table has two items of the same path and split.
    """
    first, second = (table.filter(pc.is_valid(table["cluster"])) for table in (first, second))
    keys = ["path"] if all(map(_paths_are_unique, (first, second))) else ["path", "split"]
    both = first.select([*keys, "cluster"]).join(
        second.select([*keys, "cluster"]), keys, join_type="inner", right_suffix="_of_second"
    )
    if not len(both):
        raise ValueError("they have no item in common")
    ours, theirs = (both[name].to_numpy() for name in ("cluster", "cluster_of_second"))
    table = contingency_block(ours, theirs, int(ours.max()) + 1, int(theirs.max()) + 1)
    scores, matched = agreement(table), share_right(table, one_to_one(table))
    assert matched is not None  # only of no item
    return Comparison(
        len(both), len(first) - len(both), len(second) - len(both),
        scores["adjusted_rand"], scores["adjusted_mutual_information"], scores["v_measure"], matched,
    )  # fmt: skip


def _paths_are_unique(table: pa.Table) -> bool:
    if pc.count_distinct(table["path"]).as_py() == len(table):
        return True
    items = table.group_by(["path", "split"]).aggregate([([], "count_all")])
    twice = items.filter(pc.greater(items["count_all"], 1))
    if len(twice):
        raise ValueError(f"one of them has two items {twice['path'][0].as_py()!r}, which cannot be told apart")
    return False


def label_map(contingency: NDArray[np.int64]) -> NDArray[np.int32]:
    """Label of each cluster: the class that most of its items have.

    Vote on the fitted part, and score the held-out part with the same map.

    Parameters
    ----------
    contingency
        (n_clusters, n_classes) items of each cluster and class.

    Returns
    -------
    ndarray
        (n_clusters,) int32 class indices. A tie goes to the lowest class index; a cluster without
        labelled items gets -1, which is never a right answer.
    """
    n_clusters, n_classes = contingency.shape
    if n_classes == 0:
        return np.full(n_clusters, -1, np.int32)
    winners = np.where(contingency.any(axis=1), contingency.argmax(axis=1), -1)
    return winners.astype(np.int32)


def one_to_one(contingency: NDArray[np.int64]) -> NDArray[np.int32]:
    """Label of each cluster where no two clusters may have the same: the choice with the most items right.

    Parameters
    ----------
    contingency
        (n_clusters, n_classes) items of each cluster and class.

    Returns
    -------
    ndarray
        (n_clusters,) int32 class indices, -1 for the clusters that are left over (Kuhn 1955).
    """
    chosen = np.full(len(contingency), -1, np.int32)
    clusters, classes = linear_sum_assignment(contingency, maximize=True)
    chosen[clusters] = classes
    return chosen
