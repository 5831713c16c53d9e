"""External metrics: how well clusters agree with labels, or with the clusters of another model.

To add a metric, compute it from the contingency table in `agreement` (or `scores`, if it needs the label map), and name
it in `_AGREEMENTS`. It then appears in metrics.json; tests/evaluation/test_metrics.py compares with scikit-learn.

The reduction is a contingency table, the number of items of each cluster and class, so no rows are gathered: block =
`contingency_block`, combine = addition, finalize = `scores`, `confusion` or `agreement`.
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
    clusters : (n,) integer
        Cluster of each item, -1 = none.
    labels : (n,) integer
        Class of each item, -1 = none. Items without a cluster or a label are not counted.
    n_clusters, n_classes
        Shape of the contingency table.

    Returns
    -------
    (n_clusters, n_classes) int64

    Raises
    ------
    ValueError
        A cluster or a label is outside the table, or the lengths differ.
    """
    counted = (clusters >= 0) & (labels >= 0)
    rows, columns = clusters[counted].astype(np.int64), labels[counted].astype(np.int64)
    # without this check a class that is too high would be counted for the next cluster
    for name, values, limit in (("cluster", rows, n_clusters), ("label", columns, n_classes)):
        if values.size and values.max() >= limit:
            raise ValueError(f"{name} {values.max()} in a table of {limit}: must be -1 to {limit - 1}")
    cells = np.bincount(rows * n_classes + columns, minlength=n_clusters * n_classes)
    return cells.astype(np.int64, copy=False).reshape(n_clusters, n_classes)


def scores(contingency: NDArray[np.int64], label_map: NDArray[np.int32]) -> dict[str, float | None]:
    """Compute the scores of a clustering against labels from its contingency table.

    Equal to scikit-learn's functions on the label vectors.

    Parameters
    ----------
    contingency : (n_clusters, n_classes) int64
        Items of each cluster and class.
    label_map : (n_clusters,) int32
        Class of each cluster by majority vote of the fitted items, -1 = none.

    Returns
    -------
    dict
        ``homogeneity``, ``completeness``, ``v_measure`` (Rosenberg and Hirschberg 2007), ``adjusted_rand`` (Hubert and
        Arabie 1985), ``mutual_information`` in nats, ``normalized_mutual_information`` and
        ``adjusted_mutual_information`` (Vinh, Epps and Bailey 2010), both by the arithmetic mean of the entropies;
        ``purity``, the fraction of items in the largest class of their cluster; and ``accuracy``, the fraction of items
        whose cluster is mapped to their class (items in clusters without a label count as errors). All are None if no
        item has a label, because JSON has no NaN.
    """
    items = int(contingency.sum())
    if items == 0:
        return dict.fromkeys((*_AGREEMENTS, "purity", "accuracy"))
    return {
        **agreement(contingency),
        "purity": int(contingency.max(axis=1).sum()) / items,
        "accuracy": mapped_accuracy(contingency, label_map),
    }


def mapped_accuracy(contingency: NDArray[np.int64], mapping: NDArray[np.int32]) -> float | None:
    """Compute the fraction of items whose cluster is mapped to their class.

    Parameters
    ----------
    contingency : (n_clusters, n_classes) int64
        Items of each cluster and class.
    mapping : (n_clusters,) int32
        Class of each cluster, -1 = none; its items count as errors.

    Returns
    -------
    float or None
        0-1; None if there are no items.
    """
    items = int(contingency.sum())
    mapped = np.flatnonzero(mapping >= 0)
    return int(contingency[mapped, mapping[mapped]].sum()) / items if items else None


def confusion(contingency: NDArray[np.int64], label_map: NDArray[np.int32]) -> NDArray[np.int64]:
    """Compute the confusion matrix: items by class and by label of their cluster.

    Parameters
    ----------
    contingency : (n_clusters, n_classes) int64
        Items of each cluster and class.
    label_map : (n_clusters,) int32
        Class of each cluster, -1 = none.

    Returns
    -------
    (n_classes, n_classes + 1) int64
        Rows are true classes, columns predicted ones; the last column counts items in clusters without a label.
    """
    n_classes = contingency.shape[1]
    counts = np.zeros((n_classes, n_classes + 1), np.int64)
    np.add.at(counts.T, label_map, contingency)  # -1 is the last column
    return counts


_EXACT_ITEMS = 2**22
"""Number of items above which the expected mutual information is approximated by the first term of its expansion in
1 / items (Miller 1955), because time and memory of the exact sum are proportional to the items: 32 GB for a billion."""

CONFUSION_SCHEMA = pa.schema(
    [
        ("algorithm", pa.string()),
        ("k", pa.int32()),
        ("split", pa.string()),
        ("label", pa.string()),
        ("predicted", pa.string()),  # null if the cluster has no label
        ("items", pa.int64()),  # above 0
    ]
)


def confusion_table(
    tables: NDArray[np.int64], label_map: NDArray[np.int32], algorithm: str, class_names: Sequence[str]
) -> pa.Table:
    """Return the confusion matrices of one model as a table, one row per non-empty cell.

    Parameters
    ----------
    tables : (2, n_clusters, n_classes) int64
        Contingency tables of the fitted and of the held-out items.
    label_map : (n_clusters,) int32
        Class of each cluster, -1 = none.
    algorithm
        Algorithm of the model.
    class_names
        Names of the classes.

    Returns
    -------
    pyarrow.Table
        Schema `CONFUSION_SCHEMA`.
    """
    names = [*class_names, None]
    cells = [
        (algorithm, len(label_map), split, names[label], names[predicted], int(counts[label, predicted]))
        for split, counts in zip(("train", "holdout"), (confusion(table, label_map) for table in tables), strict=True)
        for label, predicted in np.argwhere(counts)
    ]
    return pa.table([list(column) for column in zip(*cells, strict=True)] or [[]] * 6, schema=CONFUSION_SCHEMA)


def write_confusion(tables: Sequence[pa.Table], path: Path) -> None:
    """Concatenate tables from `confusion_table` and publish them as a Parquet file."""
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
    """Compute the scores of two partitions of the same items from their contingency table.

    Equal to scikit-learn's functions on the label vectors. Pairs are counted with Python integers, so the adjusted Rand
    index is exact for any number of items.

    Parameters
    ----------
    contingency : (n_clusters, n_classes) int64
        Number of items of each cluster and class, not all zero; the classes may be the clusters of another model.

    Returns
    -------
    dict
        The scores of `scores` without purity and accuracy, which require a label map. Above 4 million items the
        expected mutual information is approximated.
    """
    from sklearn.metrics import mutual_info_score  # the import takes a second, which tasks that only count do not need

    # drop empty clusters and classes, which scikit-learn never sees
    table = contingency[contingency.any(axis=1)][:, contingency.any(axis=0)]
    cluster_entropy, class_entropy = _entropy(table.sum(axis=1)), _entropy(table.sum(axis=0))
    information = mutual_info_score(None, None, contingency=table)
    homogeneity = float(information / class_entropy) if class_entropy else 1.0
    completeness = float(information / cluster_entropy) if cluster_entropy else 1.0
    total = homogeneity + completeness
    v_measure = min(2 * homogeneity * completeness / total, 1.0) if total else 0.0
    return {
        "homogeneity": homogeneity,
        "completeness": completeness,
        "v_measure": v_measure,
        "adjusted_rand": _adjusted_rand(table),
        "mutual_information": float(information),
        # mutual information normalized by the arithmetic mean is the V-measure, including edge cases
        "normalized_mutual_information": v_measure,
        "adjusted_mutual_information": _adjusted_information(table, (cluster_entropy + class_entropy) / 2),
    }


def _entropy(counts: NDArray[np.int64]) -> float:
    """Return the entropy in nats of positive counts; exactly 0 for a single count."""
    fractions = counts / counts.sum()
    return float(-(fractions * np.log(fractions)).sum())


def _adjusted_information(table: NDArray[np.int64], entropy: float) -> float:
    """Return the mutual information minus its expectation, divided by the maximum of that difference."""
    from sklearn.metrics import mutual_info_score
    from sklearn.metrics.cluster import expected_mutual_information

    if 1 in table.shape:
        return float(table.shape == (1, 1))
    # sparse, with classes as rows, as in scikit-learn: if only rounding errors remain, the order of summation matters
    cells = csr_matrix(table.T)
    items = int(table.sum())
    if items <= _EXACT_ITEMS:
        expected = expected_mutual_information(cells, items)
    else:
        expected = (table.shape[0] - 1) * (table.shape[1] - 1) / (2 * items)
    difference, maximum = mutual_info_score(None, None, contingency=cells) - expected, entropy - expected
    epsilon = np.finfo(np.float64).eps
    return float(
        np.copysign(max(abs(difference), epsilon), difference) / np.copysign(max(abs(maximum), epsilon), maximum)
    )


def _adjusted_rand(table: NDArray[np.int64]) -> float:
    """Compute the adjusted Rand index from counts of ordered pairs of items that share a cluster, a class, or both."""
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
    """Count the ordered pairs within groups of these sizes, exactly."""
    return sum(count * (count - 1) for count in counts.ravel().tolist())


@dataclass(frozen=True)
class Comparison:
    """How well two clusterings agree, whatever the indices of their clusters.

    Attributes
    ----------
    items : int
        Number of items in both clusterings, on which the scores are computed.
    only_first, only_second : int
        Number of items in only one of them.
    adjusted_rand, adjusted_mutual_information, v_measure : float
        See `agreement`; 1 if the clusters are the same.
    one_to_one : float
        Fraction of items (0-1) in corresponding clusters, for the best one-to-one matching of clusters.
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
        Columns ``path``, ``split`` and ``cluster``; items whose cluster is null are ignored. Items are matched by path,
        or by path and split if a table has a path twice, as separate folders of fitted and held-out items may.

    Returns
    -------
    Comparison

    Raises
    ------
    ValueError
        The tables have no item in common, or one has two items of the same path and split.
    """
    first, second = (table.filter(pc.is_valid(table["cluster"])) for table in (first, second))
    keys = ["path"] if all(map(_paths_are_unique, (first, second))) else ["path", "split"]
    joined = first.select([*keys, "cluster"]).join(
        second.select([*keys, "cluster"]), keys, join_type="inner", right_suffix="_of_second"
    )
    if not len(joined):
        raise ValueError("they have no item in common")
    first_clusters, second_clusters = (joined[name].to_numpy() for name in ("cluster", "cluster_of_second"))
    table = contingency_block(
        first_clusters, second_clusters, int(first_clusters.max()) + 1, int(second_clusters.max()) + 1
    )
    scores, matched = agreement(table), mapped_accuracy(table, one_to_one(table))
    assert matched is not None  # only None without items
    return Comparison(
        items=len(joined),
        only_first=len(first) - len(joined),
        only_second=len(second) - len(joined),
        adjusted_rand=scores["adjusted_rand"],
        adjusted_mutual_information=scores["adjusted_mutual_information"],
        v_measure=scores["v_measure"],
        one_to_one=matched,
    )


def _paths_are_unique(table: pa.Table) -> bool:
    if pc.count_distinct(table["path"]).as_py() == len(table):
        return True
    items = table.group_by(["path", "split"]).aggregate([([], "count_all")])
    repeated = items.filter(pc.greater(items["count_all"], 1))
    if len(repeated):
        raise ValueError(f"one of them has two items {repeated['path'][0].as_py()!r}, which cannot be told apart")
    return False


def label_map(contingency: NDArray[np.int64]) -> NDArray[np.int32]:
    """Label each cluster with the class of most of its items.

    Vote on the fitted items, and score the held-out items with the same map.

    Parameters
    ----------
    contingency : (n_clusters, n_classes) int64
        Items of each cluster and class.

    Returns
    -------
    (n_clusters,) int32
        Class indices. Ties go to the lowest index; clusters without labelled items get -1.
    """
    n_clusters, n_classes = contingency.shape
    if n_classes == 0:
        return np.full(n_clusters, -1, np.int32)
    winners = np.where(contingency.any(axis=1), contingency.argmax(axis=1), -1)
    return winners.astype(np.int32)


def one_to_one(contingency: NDArray[np.int64]) -> NDArray[np.int32]:
    """Label each cluster so that no two share a class and as many items as possible are right (Kuhn 1955).

    Parameters
    ----------
    contingency : (n_clusters, n_classes) int64
        Items of each cluster and class.

    Returns
    -------
    (n_clusters,) int32
        Class indices; -1 for clusters without a class.
    """
    chosen = np.full(len(contingency), -1, np.int32)
    clusters, classes = linear_sum_assignment(contingency, maximize=True)
    chosen[clusters] = classes
    return chosen
