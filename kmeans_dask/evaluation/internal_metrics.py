"""How tight and how far apart clusters are, without labels, reduced on the workers for all models at once.

Two reductions over the rows. Of the first, block = `spread_block`, combine = `add_spreads`, finalize = `spread_scores`.
The second needs the means that the first one finds: block = `scatter_block`, combine = addition, and its sum is an
argument of `spread_scores`. Arrays have a row a centre of the stacked models.
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


@dataclass(frozen=True)
class Spread:
    """What rows say of the clusters that they are in.

    Attributes
    ----------
    sizes : (2, k_total) int64
        Items of each split, fitted and held out.
    squared, distances, largest, silhouettes : (2, k_total) float64
        Sum of squared distances to the centre, sum and maximum of distances, sum of simplified silhouettes.
    fitted : Sums
        Sum of the fitted rows of each cluster.
    """

    sizes: NDArray[np.int64]
    squared: NDArray[np.float64]
    distances: NDArray[np.float64]
    largest: NDArray[np.float64]
    silhouettes: NDArray[np.float64]
    fitted: Sums

    @property
    def fitted_silhouettes(self) -> NDArray[np.float64]:
        """Sums of the simplified silhouettes of the fitted items, (k_total,) float64.

        That of a cluster of one item is 0, as in Rousseeuw 1987 and scikit-learn: such an item lies on its centre, and
        would be 1 however near the others are.
        """
        return np.where(self.sizes[0] > 1, self.silhouettes[0], 0.0)


def spread_block(block: Block, splits: NDArray[np.int8], nearest: NearestTwo, stack: Stack) -> Spread:
    """Measure one block.

    Parameters
    ----------
    block : (rows, n_features)
        Rows of uint8, float32 or float64.
    splits : (rows,) int8
        0 fitted, 1 held out, -1 not counted.
    nearest
        Of every row, from `kernels.assign_two`.
    stack
        Centres of the models.

    Returns
    -------
    Spread
        The simplified silhouette of a row is (b - a) / max(a, b) with a and b its distances to the nearest and the
        second nearest centre (Hruschka et al. 2004); 0 where both are 0, and in a model of one cluster. Clusters of one
        item are known at the end: `Spread.fitted_silhouettes`.
    """
    shape = N_SPLITS, len(stack.centres)
    sizes = np.zeros(shape, np.int64)
    squared, distances, largest, silhouettes = (np.zeros(shape) for _ in range(4))
    stacked = nearest.clusters + stack.offsets[:-1, None].astype(np.int32)
    _gather(splits, stacked, nearest.squared, nearest.squared_seconds, sizes, squared, distances, largest, silhouettes)
    fitted = splits == 0
    rows, clusters = (block, stacked) if fitted.all() else (block[fitted], stacked[:, fitted])
    return Spread(sizes, squared, distances, largest, silhouettes, sum_rows(rows, clusters, shape[1]))


@numba.njit(nogil=True, cache=True)
def _gather(splits, stacked, first, second, sizes, squared, distances, largest, silhouettes):  # type: ignore[no-untyped-def]
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
            largest[split, cluster] = max(largest[split, cluster], near)
            if 0 < far < np.inf:
                # scores in float32 may take for second what the differences say is nearer by some digits
                silhouettes[split, cluster] += (far - near) / max(far, near)


def add_spreads(parts: Sequence[Spread]) -> Spread:
    """Combine the spreads of several blocks."""
    return Spread(
        np.sum([part.sizes for part in parts], axis=0),
        np.sum([part.squared for part in parts], axis=0),
        np.sum([part.distances for part in parts], axis=0),
        np.max([part.largest for part in parts], axis=0),
        np.sum([part.silhouettes for part in parts], axis=0),
        add_sums([part.fitted for part in parts]),
    )


def means_of(spread: Spread, stack: Stack) -> NDArray[np.float64]:
    """Mean of the fitted rows of every cluster, (k_total, n_features) float64; of an empty one its centre."""
    counts = spread.fitted.counts[:, None]
    return np.where(counts > 0, spread.fitted.sums / np.maximum(counts, 1), stack.centres)


def scatter_block(
    block: Block, splits: NDArray[np.int8], clusters: NDArray[np.int32], means: Stack
) -> NDArray[np.float64]:
    """Sum the distances of the fitted rows of one block to the means of their clusters.

    Parameters
    ----------
    block : (rows, n_features)
        Rows of uint8, float32 or float64.
    splits : (rows,) int8
        0 fitted.
    clusters : (n_models, rows) int32
        Cluster of every row, as the first reduction has found it.
    means
        Stacked `means_of`.

    Returns
    -------
    (k_total,) float64
        Sums of Euclidean distances.
    """
    fitted = splits == 0
    rows, mine = (block, clusters) if fitted.all() else (block[fitted], clusters[:, fitted])
    stacked = mine + means.offsets[:-1, None].astype(np.int32)
    distances = np.sqrt(distances_to(rows, means.centres, stacked))
    return np.asarray(np.bincount(stacked.ravel(), distances.ravel(), minlength=len(means.centres)), np.float64)


def spread_scores(
    sizes: NDArray[np.int64],
    squared: NDArray[np.float64],
    silhouettes: NDArray[np.float64],
    scatter: NDArray[np.float64],
    centres: NDArray[np.floating],
    means: NDArray[np.float64],
) -> dict[str, float | None]:
    """Scores of one model on its fitted rows.

    Parameters
    ----------
    sizes, squared, silhouettes, scatter : (k,)
        Items, sums of squared distances to the centres, `Spread.fitted_silhouettes`, sums of distances to the means.
    centres, means : (k, n_features)
        Of the model, and of the rows of each cluster.

    Returns
    -------
    dict
        ``explained_variance`` 1 - inertia / total sum of squares. ``silhouette``, the mean of the simplified one,
        in which an item that is alone in its cluster counts 0.
        ``davies_bouldin`` (Davies and Bouldin 1979) and ``calinski_harabasz`` (1974), equal to scikit-learn's: clusters
        without rows are no part of them, and they are measured from the means. None where a score is not defined.
    """
    used = sizes > 0
    n, k = int(sizes.sum()), int(used.sum())
    if n == 0:
        return dict.fromkeys(("explained_variance", "silhouette", "davies_bouldin", "calinski_harabasz"))
    sizes, means = sizes[used], means[used]
    shifts = ((centres[used].astype(np.float64) - means) ** 2).sum(axis=1)
    within = float((squared[used] - sizes * shifts).sum())
    if within <= 1e-12 * float(squared.sum()):  # what rounding leaves of clusters of equal rows
        within = 0.0
    between = float(sizes @ ((means - sizes @ means / n) ** 2).sum(axis=1))
    total = within + between
    several = 1 < k < n
    return {
        "explained_variance": 1 - float(squared.sum()) / total if total else None,
        "silhouette": float(silhouettes.sum()) / n if len(used) > 1 else None,
        "davies_bouldin": _davies_bouldin(scatter[used] / sizes, means) if several else None,
        "calinski_harabasz": (between * (n - k) / (within * (k - 1)) if within else 1.0) if several else None,
    }


def _davies_bouldin(scatter: NDArray[np.float64], means: NDArray[np.float64]) -> float:
    apart = cdist(means, means)
    if np.allclose(scatter, 0) or np.allclose(apart, 0):
        return 0.0
    apart[apart == 0] = np.inf  # a cluster and itself, or one with the same mean
    return float(((scatter[:, None] + scatter) / apart).max(axis=1).mean())
