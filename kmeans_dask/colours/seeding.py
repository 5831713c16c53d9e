"""First centres for K-Means on weighted colours."""

from __future__ import annotations

from typing import Literal, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from kmeans_dask.colours.table import nearest

Init = Literal["k-means++", "k-means||", "random", "variance"]
Points = NDArray[np.float32]
Weights = NDArray[np.float64]

_SWAPS = 50
"""Swaps tried after the start, or K of them if that is more. Lattanzi and Sohler prove a bound for O(K log log K)."""

_jit_fast = numba.njit(nogil=True, cache=True, fastmath=True)


def choose_start(points: Points, weights: Weights, k: int, init: Init, rng: np.random.Generator) -> Points:
    """Choose the first centres.

    Parameters
    ----------
    points : (3, m) float32
        Distinct colours, at least `k`.
    weights : (m,) float64
        Above 0.
    k
        Number of centres.
    init
        ``k-means++``: squared-distance sampling (Arthur and Vassilvitskii 2007), then local search by swaps
        (Lattanzi and Sohler 2019). ``k-means||``: oversampling (Bahmani et al. 2012). ``random``: colours drawn by
        their weights. ``variance``: the cluster with the largest squared error is cut at its mean, across its
        widest axis, until there are K (Su and Dy 2007); nothing is drawn.
    rng
        Source of every draw.

    Returns
    -------
    (k, 3) float32
    """
    if init == "variance":
        return _split_by_variance(points, weights, k)
    if init == "k-means++":
        return _start_and_swap(points, weights, k, rng.random(k + max(_SWAPS, k)))
    if init == "k-means||":
        return _start_oversampled(points, weights, k, rng)
    rows = rng.choice(points.shape[1], k, replace=False, p=weights / weights.sum())
    return np.ascontiguousarray(points[:, rows].T)


def _split_by_variance(points: Points, weights: Weights, k: int) -> Points:
    """Cut clusters in two, (k, 3) float32 means; every point is looked at about log2 K times."""
    clusters = [_Cluster.of(points, weights, np.arange(points.shape[1]))]
    while len(clusters) < k:
        # every cluster of two different points has an axis with points on both sides of its mean
        worst = max(range(len(clusters)), key=lambda j: clusters[j].error if len(clusters[j].rows) > 1 else -1.0)
        cut = clusters.pop(worst)
        axis = int(np.argmax(cut.spread))
        low = points[axis, cut.rows] < cut.mean[axis]
        if not low.any():  # the mean of points a rounding apart
            low = points[axis, cut.rows] == points[axis, cut.rows].min()
        clusters += [_Cluster.of(points, weights, cut.rows[low]), _Cluster.of(points, weights, cut.rows[~low])]
    return np.array([cluster.mean for cluster in clusters], np.float32)


class _Cluster(NamedTuple):
    rows: NDArray[np.int64]
    mean: NDArray[np.float64]
    """(3,)"""
    spread: NDArray[np.float64]
    """(3,) squared error a channel."""
    error: float

    @classmethod
    def of(cls, points: Points, weights: Weights, rows: NDArray[np.int64]) -> _Cluster:
        inside, weight = points[:, rows].astype(np.float64), weights[rows]
        mean = (inside * weight).sum(axis=1) / weight.sum()
        spread = ((inside - mean[:, np.newaxis]) ** 2 * weight).sum(axis=1)
        return cls(rows, mean, spread, float(spread.sum()))


def _start_oversampled(points: Points, weights: Weights, k: int, rng: np.random.Generator) -> Points:
    """k-means||: five rounds, each draws about 2K points; then weighted k-means++ on what was drawn."""
    m = points.shape[1]
    drawn = [rng.choice(m, p=weights / weights.sum())]
    for _ in range(5):
        cost = weights * nearest(points, np.ascontiguousarray(points[:, drawn].T))[1]
        if not cost.any():  # every point is drawn
            break
        chance = 2 * k * cost / cost.sum()  # the drawn ones have chance 0
        drawn.extend(np.flatnonzero(rng.random(m) < chance))
    if len(drawn) < k:  # K is near the number of colours
        others = np.setdiff1d(np.arange(m), drawn)
        drawn.extend(rng.choice(others, k - len(drawn), replace=False))
    candidates = np.ascontiguousarray(points[:, drawn])
    labels, _ = nearest(points, np.ascontiguousarray(candidates.T))
    attracted = np.bincount(labels, weights, minlength=len(drawn))
    return _start_and_swap(candidates, attracted, k, rng.random(k))


@_jit_fast
def _start_and_swap(points, weights, k, uniforms):  # type: ignore[no-untyped-def]
    """k-means++ with the first K random numbers, then one try of a swap with each of the others.

    A swap draws a point by its share of the error, as k-means++ does, and puts a centre there in place of the one
    whose loss then costs least, if that lowers the error (algorithm LocalSearch++). The two nearest centres of
    every point are kept, so that a try costs one look at every point.
    """
    m = points.shape[1]
    centres = np.empty((k, 3), np.float32)
    first, second = np.empty(m, np.int32), np.empty(m, np.int32)
    near, next_near = np.full(m, np.float32(3e38)), np.full(m, np.float32(3e38))
    distance, loss, losses = np.empty(m, np.float32), np.empty(k), np.empty(k)
    for step in range(len(uniforms)):
        drawn = _draw(weights, near, uniforms[step])  # the first one by weight: all are as far from no centre
        _squared_distances(points, points[:, drawn].copy(), distance)
        taken = step
        if step >= k:
            loss[:] = losses
            gain = _try(weights, distance, near, next_near, first, loss)
            taken = int(np.argmin(loss))
            if gain <= loss[taken]:
                continue
        for channel in range(3):
            centres[taken, channel] = points[channel, drawn]
        for i in range(m):
            if step >= k and (first[i] == taken or second[i] == taken):
                first[i], near[i], second[i], next_near[i] = _two_nearest(points[:, i], centres)
            elif distance[i] < near[i]:
                second[i], next_near[i] = first[i], near[i]
                first[i], near[i] = taken, distance[i]
            elif distance[i] < next_near[i]:
                second[i], next_near[i] = taken, distance[i]
        if step >= k - 1:
            losses[:] = 0.0  # of the points of each centre, if it went and nothing came
            for i in range(m):
                losses[first[i]] += weights[i] * (next_near[i] - near[i])
    return centres


@_jit_fast
def _squared_distances(points, point, squared):  # type: ignore[no-untyped-def]
    red, green, blue = points[0], points[1], points[2]
    for i in range(len(squared)):
        dr, dg, db = red[i] - point[0], green[i] - point[1], blue[i] - point[2]
        squared[i] = dr * dr + dg * dg + db * db


@_jit_fast
def _try(weights, distance, near, next_near, first, loss):  # type: ignore[no-untyped-def]
    """Return what a new centre gains, and lower what the loss of each other one costs with it there."""
    gain = 0.0
    for i in range(len(weights)):
        if distance[i] < next_near[i]:
            closer = min(near[i], distance[i])
            gain += weights[i] * (near[i] - closer)
            loss[first[i]] += weights[i] * (distance[i] - closer - next_near[i] + near[i])
    return gain


@_jit_fast
def _draw(weights, squared, uniform):  # type: ignore[no-untyped-def]
    """Draw a row with the chance weight x squared distance; never one of chance 0."""
    total = 0.0
    for i in range(len(weights)):
        total += weights[i] * squared[i]
    passed, drawn = 0.0, 0
    for i in range(len(weights)):
        share = weights[i] * squared[i]
        passed += share
        if share > 0:
            drawn = i
            if passed > uniform * total:
                break
    return drawn


@_jit_fast
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
