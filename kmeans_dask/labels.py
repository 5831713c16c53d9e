"""Clusters to labels: the majority vote, and one to one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment


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
