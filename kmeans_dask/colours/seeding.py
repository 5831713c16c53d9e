"""Initial centres for K-Means on weighted colours."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from kmeans_dask.colours.table import jit_fast, nearest

Init = Literal["k-means++", "k-means||", "random", "variance"]
Points = NDArray[np.float32]
Weights = NDArray[np.float64]

_SWAPS = 50
"""Minimum number of swaps tried after k-means++; otherwise K. Lattanzi and Sohler prove a bound for O(K log log K)."""


def initial_centres(points: Points, weights: Weights, k: int, init: Init, rng: np.random.Generator) -> Points:
    """Choose initial centres.

    Parameters
    ----------
    points : (3, m) float32
        At least `k` distinct colours.
    weights : (m,) float64
        Positive weights.
    k
        Number of centres.
    init
        ``k-means++``: D^2 sampling (Arthur and Vassilvitskii 2007), then local search by swaps (Lattanzi and Sohler
        2019). ``k-means||``: oversampling (Bahmani et al. 2012). ``random``: colours drawn in proportion to their
        weights. ``variance``: repeatedly split the cluster with the largest squared error at its mean along the axis
        of largest variance, until there are K (Su and Dy 2007); deterministic.
    rng
        Random generator.

    Returns
    -------
    (k, 3) float32
    """
    if init == "variance":
        return _split_by_variance(points, weights, k)
    if init == "k-means++":
        return _plus_plus_with_swaps(points, weights, k, rng.random(k + max(_SWAPS, k)))
    if init == "k-means||":
        return _oversample(points, weights, k, rng)
    rows = rng.choice(points.shape[1], k, replace=False, p=weights / weights.sum())
    return np.ascontiguousarray(points[:, rows].T)


def _split_by_variance(points: Points, weights: Weights, k: int) -> Points:
    """Split clusters until there are K, and return their means; every point is visited about log2 K times."""
    clusters = [_Cluster.of(points, weights, np.arange(points.shape[1]))]
    while len(clusters) < k:
        # a cluster of two or more distinct points has an axis with points on both sides of its mean
        worst = max(range(len(clusters)), key=lambda j: clusters[j].error if len(clusters[j].rows) > 1 else -1.0)
        split = clusters.pop(worst)
        axis = int(np.argmax(split.axis_errors))
        low = points[axis, split.rows] < split.mean[axis]
        if not low.any():  # points so close that the mean rounds to the lowest
            low = points[axis, split.rows] == points[axis, split.rows].min()
        clusters += [_Cluster.of(points, weights, split.rows[low]), _Cluster.of(points, weights, split.rows[~low])]
    return np.array([cluster.mean for cluster in clusters], np.float32)


class _Cluster(NamedTuple):
    """A cluster of weighted points."""

    rows: NDArray[np.int64]
    """Columns of its points."""
    mean: NDArray[np.float64]
    """(3,) weighted mean."""
    axis_errors: NDArray[np.float64]
    """(3,) weighted sum of squared deviations per channel."""
    error: float
    """Sum of `axis_errors`."""

    @classmethod
    def of(cls, points: Points, weights: Weights, rows: NDArray[np.int64]) -> _Cluster:
        inside, weight = points[:, rows].astype(np.float64), weights[rows]
        mean = (inside * weight).sum(axis=1) / weight.sum()
        axis_errors = ((inside - mean[:, np.newaxis]) ** 2 * weight).sum(axis=1)
        return cls(rows, mean, axis_errors, float(axis_errors.sum()))


def _oversample(points: Points, weights: Weights, k: int, rng: np.random.Generator) -> Points:
    """Run k-means||: five rounds of about 2K draws each, then weighted k-means++ on the points drawn."""
    m = points.shape[1]
    drawn = [rng.choice(m, p=weights / weights.sum())]
    for _ in range(5):
        cost = weights * nearest(points, np.ascontiguousarray(points[:, drawn].T))[1]
        if not cost.any():  # all points have been drawn
            break
        probability = 2 * k * cost / cost.sum()  # 0 for points already drawn
        drawn.extend(np.flatnonzero(rng.random(m) < probability))
    if len(drawn) < k:  # K is close to the number of colours
        others = np.setdiff1d(np.arange(m), drawn)
        drawn.extend(rng.choice(others, k - len(drawn), replace=False))
    candidates = np.ascontiguousarray(points[:, drawn])
    labels, _ = nearest(points, np.ascontiguousarray(candidates.T))
    attracted = np.bincount(labels, weights, minlength=len(drawn))
    return _plus_plus_with_swaps(candidates, attracted, k, rng.random(k))


@jit_fast
def _plus_plus_with_swaps(points, weights, k, uniforms):  # type: ignore[no-untyped-def]
    """Run k-means++ with the first K uniforms, then try one swap per remaining uniform (LocalSearch++).

    A swap draws a point in proportion to its error, as k-means++ does, and moves there the centre whose removal costs
    least, provided that the error falls. The two nearest centres of every point are tracked, so that a trial takes one
    pass over the points.
    """
    m = points.shape[1]
    centres = np.empty((k, 3), np.float32)
    first, second = np.empty(m, np.int32), np.empty(m, np.int32)
    near, next_near = np.full(m, np.float32(3e38)), np.full(m, np.float32(3e38))
    distance, loss, losses = np.empty(m, np.float32), np.empty(k), np.empty(k)
    for step in range(len(uniforms)):
        drawn = _draw(weights, near, uniforms[step])  # the first draw is by weight alone: all distances are equal
        _squared_distances(points, points[:, drawn].copy(), distance)
        replaced = step
        if step >= k:
            loss[:] = losses
            gain = _try_swap(weights, distance, near, next_near, first, loss)
            replaced = int(np.argmin(loss))
            if gain <= loss[replaced]:
                continue
        for channel in range(3):
            centres[replaced, channel] = points[channel, drawn]
        for i in range(m):
            if step >= k and (first[i] == replaced or second[i] == replaced):
                first[i], near[i], second[i], next_near[i] = _two_nearest(points[:, i], centres)
            elif distance[i] < near[i]:
                second[i], next_near[i] = first[i], near[i]
                first[i], near[i] = replaced, distance[i]
            elif distance[i] < next_near[i]:
                second[i], next_near[i] = replaced, distance[i]
        if step >= k - 1:
            losses[:] = 0.0  # increase in error if a centre were removed without replacement
            for i in range(m):
                losses[first[i]] += weights[i] * (next_near[i] - near[i])
    return centres


@jit_fast
def _squared_distances(points, point, squared):  # type: ignore[no-untyped-def]
    red, green, blue = points[0], points[1], points[2]
    for i in range(len(squared)):
        dr, dg, db = red[i] - point[0], green[i] - point[1], blue[i] - point[2]
        squared[i] = dr * dr + dg * dg + db * db


@jit_fast
def _try_swap(weights, distance, near, next_near, first, loss):  # type: ignore[no-untyped-def]
    """Return the gain of adding a centre, and reduce in place the loss of removing each other one accordingly."""
    gain = 0.0
    for i in range(len(weights)):
        if distance[i] < next_near[i]:
            closer = min(near[i], distance[i])
            gain += weights[i] * (near[i] - closer)
            loss[first[i]] += weights[i] * (distance[i] - closer - next_near[i] + near[i])
    return gain


@jit_fast
def _draw(weights, squared, uniform):  # type: ignore[no-untyped-def]
    """Draw a row with probability proportional to weight x squared distance; never one of probability 0."""
    total = 0.0
    for i in range(len(weights)):
        total += weights[i] * squared[i]
    cumulative, drawn = 0.0, 0
    for i in range(len(weights)):
        mass = weights[i] * squared[i]
        cumulative += mass
        if mass > 0:
            drawn = i
            if cumulative > uniform * total:
                break
    return drawn


@jit_fast
def _two_nearest(point, centres):  # type: ignore[no-untyped-def]
    first, second = np.int32(0), np.int32(0)
    near = next_near = np.float32(3e38)
    for j in range(len(centres)):
        red, green, blue = point[0] - centres[j, 0], point[1] - centres[j, 1], point[2] - centres[j, 2]
        distance = red * red + green * green + blue * blue
        if distance < near:
            first, second, near, next_near = np.int32(j), first, distance, near
        elif distance < next_near:
            second, next_near = np.int32(j), distance
    return first, near, second, next_near
