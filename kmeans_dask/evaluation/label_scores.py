"""Score the clusters of an estimator against labels: vote on a label for each cluster, then measure the agreement."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from kmeans_dask.evaluation.metrics import contingency_block, label_map, scores


def majority_label_map(labels: ArrayLike, clusters: Any, n_clusters: int | None = None) -> NDArray[np.int32]:
    """Map each cluster to the class of most of its items.

    Parameters
    ----------
    labels : (n,) array of int
        Class of each item; -1: none.
    clusters : (n,) array or da.Array of int
        Cluster of each item, as ``labels_`` or ``predict`` return it. A Dask array is computed.
    n_clusters
        Number of clusters; default: the highest cluster that occurs, plus 1.

    Returns
    -------
    (n_clusters,) int32
        Class of each cluster; ties go to the lowest class, and a cluster without labelled items gets -1.

    Raises
    ------
    ValueError
        The lengths differ, or a cluster is not below `n_clusters`.

    Examples
    --------
    >>> majority_label_map([0, 0, 1, 1, 1], [2, 2, 0, 0, 2]).tolist()
    [1, -1, 0]
    """
    labels, clusters = _aligned(labels, clusters)
    n_clusters = _extent(clusters) if n_clusters is None else n_clusters
    return label_map(contingency_block(clusters, labels, n_clusters, _extent(labels)))


def score_clusters(labels: ArrayLike, clusters: Any, label_map: ArrayLike) -> dict[str, float | None]:
    """Score clusters against labels.

    Vote on the label map with the fitted items, and score held-out items with the same map.

    Parameters
    ----------
    labels : (n,) array of int
        Class of each item; -1: none; such items are ignored.
    clusters : (n,) array or da.Array of int
        Cluster of each item, as ``labels_`` or ``predict`` return it. A Dask array is computed.
    label_map : (n_clusters,) array of int
        Class of each cluster, from `majority_label_map`; -1: none; its items count as wrong.

    Returns
    -------
    dict
        Keys ``accuracy`` (the fraction of items whose cluster is mapped to their class), ``purity``, ``homogeneity``,
        ``completeness``, ``v_measure``, ``adjusted_rand``, ``mutual_information``, ``normalized_mutual_information``
        and ``adjusted_mutual_information``. They equal scikit-learn's; `evaluation.metrics.scores` has the
        references. All are None if no item has a label.

    Raises
    ------
    ValueError
        The lengths differ, or a cluster is missing from `label_map`.

    Examples
    --------
    >>> score_clusters([0, 0, 1, 1], [0, 1, 1, 1], [0, 1])["accuracy"]
    0.75
    """
    labels, clusters = _aligned(labels, clusters)
    mapping = np.asarray(label_map, np.int32)
    return scores(contingency_block(clusters, labels, len(mapping), max(_extent(labels), _extent(mapping))), mapping)


def _aligned(labels: ArrayLike, clusters: Any) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    labels, clusters = np.asarray(labels), np.asarray(clusters)
    if labels.shape != clusters.shape or labels.ndim != 1:
        raise ValueError(f"labels have shape {labels.shape}, clusters {clusters.shape}; both must be (n,)")
    return labels, clusters


def _extent(values: NDArray[np.integer]) -> int:
    """Return the number of classes or clusters that values from -1 upwards can name."""
    return int(values.max(initial=-1)) + 1
