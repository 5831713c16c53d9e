"""Internal metrics: how compact and how well separated clusters are, without labels, for all models at once.

To add a metric, compute it in `internal_scores` from the sums within clusters; new sums belong in `WithinSums`.
tests/evaluation/test_internal_metrics.py compares metrics with scikit-learn.

Two reductions over the rows. The first: block = `within_sums_block`, combine = `add_within_sums`. The second needs the
cluster means from the first: block = `scatter_block`, combine = addition. `internal_scores` finalizes both. Arrays have
one row per centre of the stacked models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from kmeans_dask.kmeans.kernels import Block, NearestTwo, Stack, Sums, distances_to, sum_rows
from kmeans_dask.kmeans.lloyd import add_sums

N_SPLITS = 2
"""Fitted and held-out items."""


@dataclass(frozen=True)
class WithinSums:
    """Sizes of clusters, and sums over the items within them.

    Attributes
    ----------
    sizes : (2, k_total) int64
        Number of items of each split, fitted and held out.
    squared_distances, distances, max_distances : (2, k_total) float64
        Sum of squared distances to the centre (the within-cluster sum of squared deviations), sum of distances, and
        maximum distance.
    silhouettes : (2, k_total) float64
        Sum of simplified silhouettes.
    fitted : Sums
        Number and sum of the fitted rows.
    """

    sizes: NDArray[np.int64]
    squared_distances: NDArray[np.float64]
    distances: NDArray[np.float64]
    max_distances: NDArray[np.float64]
    silhouettes: NDArray[np.float64]
    fitted: Sums

    @property
    def fitted_silhouettes(self) -> NDArray[np.float64]:
        """Sum of the simplified silhouettes of the fitted items, (k_total,) float64.

        Clusters of a single item count as 0, as in Rousseeuw 1987 and scikit-learn: such an item lies on its centre, so
        its silhouette would be 1 however near the other clusters are.
        """
        return np.where(self.sizes[0] > 1, self.silhouettes[0], 0.0)


def within_sums_block(block: Block, splits: NDArray[np.int8], nearest: NearestTwo, stack: Stack) -> WithinSums:
    """Compute the sums within clusters of one block.

    Parameters
    ----------
    block : (rows, n_features)
        Rows of uint8, float32 or float64.
    splits : (rows,) int8
        0 fitted, 1 held out, -1 ignored.
    nearest
        Nearest centres of every row, from `kernels.assign_two`.
    stack
        Centres of the models.

    Returns
    -------
    WithinSums
        The simplified silhouette of a row is (b - a) / max(a, b), where a and b are its distances to the nearest and
        second-nearest centre (Hruschka et al. 2004); 0 if both are 0, or if the model has a single cluster. Clusters of
        a single item are only known at the end, see `WithinSums.fitted_silhouettes`.
    """
    shape = N_SPLITS, len(stack.centres)
    sizes = np.zeros(shape, np.int64)
    squared, distances, max_distances, silhouettes = (np.zeros(shape) for _ in range(4))
    stacked = nearest.clusters + stack.offsets[:-1, None].astype(np.int32)
    _add_distances(
        splits, stacked, nearest.squared, nearest.second_squared, sizes, squared, distances, max_distances, silhouettes
    )
    fitted = splits == 0
    rows, clusters = (block, stacked) if fitted.all() else (block[fitted], stacked[:, fitted])
    return WithinSums(sizes, squared, distances, max_distances, silhouettes, sum_rows(rows, clusters, shape[1]))


@numba.njit(nogil=True, cache=True)
def _add_distances(  # type: ignore[no-untyped-def]
    splits, stacked, first, second, sizes, squared, distances, max_distances, silhouettes
):
    """Add the items to the last five arrays; `first` and `second` are squared distances to the two nearest centres."""
    for m in range(stacked.shape[0]):
        for i in range(stacked.shape[1]):
            split = splits[i]
            if split < 0:
                continue
            cluster = stacked[m, i]
            near, far = np.sqrt(first[m, i]), np.sqrt(second[m, i])
            sizes[split, cluster] += 1
            squared[split, cluster] += first[m, i]
            distances[split, cluster] += near
            max_distances[split, cluster] = max(max_distances[split, cluster], near)
            if 0 < far < np.inf:
                # the order was decided in float32: the "second" centre may be the nearer one by a rounding error
                silhouettes[split, cluster] += (far - near) / max(far, near)


def add_within_sums(parts: Sequence[WithinSums]) -> WithinSums:
    """Combine the sums of several blocks."""
    return WithinSums(
        np.sum([part.sizes for part in parts], axis=0),
        np.sum([part.squared_distances for part in parts], axis=0),
        np.sum([part.distances for part in parts], axis=0),
        np.max([part.max_distances for part in parts], axis=0),
        np.sum([part.silhouettes for part in parts], axis=0),
        add_sums([part.fitted for part in parts]),
    )


def cluster_means(within: WithinSums, stack: Stack) -> NDArray[np.float64]:
    """Return the mean of the fitted rows of every cluster, (k_total, n_features) float64; its centre if it is empty."""
    counts = within.fitted.counts[:, None]
    return np.where(counts > 0, within.fitted.sums / np.maximum(counts, 1), stack.centres)


def scatter_block(
    block: Block, splits: NDArray[np.int8], clusters: NDArray[np.int32], means: Stack
) -> NDArray[np.float64]:
    """Sum the distances of the fitted rows of one block to the means of their clusters.

    Parameters
    ----------
    block : (rows, n_features)
        Rows of uint8, float32 or float64.
    splits : (rows,) int8
        0 fitted; other rows are ignored.
    clusters : (n_models, rows) int32
        Cluster of every row, from the first reduction.
    means
        Stack of the `cluster_means`.

    Returns
    -------
    (k_total,) float64
        Sums of Euclidean distances.
    """
    fitted = splits == 0
    rows, clusters = (block, clusters) if fitted.all() else (block[fitted], clusters[:, fitted])
    stacked = clusters + means.offsets[:-1, None].astype(np.int32)
    distances = np.sqrt(distances_to(rows, means.centres, stacked))
    return np.asarray(np.bincount(stacked.ravel(), distances.ravel(), minlength=len(means.centres)), np.float64)


def internal_scores(
    sizes: NDArray[np.int64],
    squared_distances: NDArray[np.float64],
    silhouettes: NDArray[np.float64],
    scatter: NDArray[np.float64],
    centres: NDArray[np.floating],
    means: NDArray[np.float64],
) -> dict[str, float | None]:
    """Compute the internal metrics of one model on its fitted rows.

    Parameters
    ----------
    sizes : (k,) int64
        Number of items of each cluster.
    squared_distances : (k,) float64
        Sum of squared distances to the centre.
    silhouettes : (k,) float64
        `WithinSums.fitted_silhouettes`.
    scatter : (k,) float64
        Sum of distances to the mean, from `scatter_block`.
    centres, means : (k, n_features)
        Centres of the model, and means of the rows of each cluster.

    Returns
    -------
    dict
        ``explained_variance``, 1 - inertia / total sum of squares; ``silhouette``, the mean simplified silhouette, 0
        for an item that is alone in its cluster; ``davies_bouldin`` (Davies and Bouldin 1979) and ``calinski_harabasz``
        (Calinski and Harabasz 1974), both relative to the means and without empty clusters, equal to scikit-learn's.
        None if a score is undefined.
    """
    used = sizes > 0
    n, k = int(sizes.sum()), int(used.sum())
    if n == 0:
        return dict.fromkeys(("explained_variance", "silhouette", "davies_bouldin", "calinski_harabasz"))
    sizes, means = sizes[used], means[used]
    shifts = ((centres[used].astype(np.float64) - means) ** 2).sum(axis=1)
    inertia = float(squared_distances.sum())
    within = float((squared_distances[used] - sizes * shifts).sum())  # about the means
    if within <= 1e-12 * inertia:  # rounding error for clusters of equal rows
        within = 0.0
    between = float(sizes @ ((means - sizes @ means / n) ** 2).sum(axis=1))
    total = within + between
    is_defined = 1 < k < n
    return {
        "explained_variance": 1 - inertia / total if total else None,
        "silhouette": float(silhouettes.sum()) / n if len(used) > 1 else None,
        "davies_bouldin": _davies_bouldin(scatter[used] / sizes, means) if is_defined else None,
        "calinski_harabasz": (between * (n - k) / (within * (k - 1)) if within else 1.0) if is_defined else None,
    }


def _davies_bouldin(scatter: NDArray[np.float64], means: NDArray[np.float64]) -> float:
    distances = cdist(means, means)
    if np.allclose(scatter, 0) or np.allclose(distances, 0):
        return 0.0
    distances[distances == 0] = np.inf  # a cluster with itself, or with one of the same mean
    return float(((scatter[:, None] + scatter) / distances).max(axis=1).mean())
