"""One pass over one block: the loops of K-Means, without Dask.

A block is a (rows, n_features) array of uint8, float32 or float64. It is worked through in slices that stay in
cache: a slice is converted to floating point, multiplied with the centres by one call of BLAS, and the result is
consumed by a numba loop before the next slice is touched. Several models share a pass: their centres are stacked,
so that one conversion and one product serve them all. Rows of three float32, which are colours, are measured directly.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import DTypeLike, NDArray

Block = NDArray[Any]
Floats = NDArray[np.floating[Any]]

_SLICE_BYTES = 4 * 2**20
"""A slice of 1,024 rows of 784 float32 is 3.2 MB: it shares the second-level cache with its scores."""

_COLOUR_SLICE = 2**14
"""Rows of three that are measured at a time, a multiple of `slice_rows`: 256 kB with labels and distances."""


def slice_rows(n_features: int) -> int:
    """Rows that are converted and multiplied at a time.

    Parameters
    ----------
    n_features
        Numbers a row.

    Returns
    -------
    int
        A power of two between 16 and 1,024 for which a slice in float32 has at most 4 MiB. Chunks whose rows are
        a multiple of it give bitwise the same centres.
    """
    rows = 1024
    while rows > 16 and rows * n_features * 4 > _SLICE_BYTES:
        rows //= 2
    return rows


@dataclass(frozen=True)
class Stack:
    """The centres of several models, one under the other.

    Attributes
    ----------
    centres : (k_total, n_features) float32 or float64
        In the coordinates of the data minus `origin`.
    offsets : (n_models + 1,) int64
        Model m owns the rows ``offsets[m]:offsets[m + 1]``.
    origin : (n_features,) or None
        Subtracted from every row before anything is computed, so that a common offset of the data costs no digits.
        None for uint8, whose sums are integers.
    """

    centres: Floats
    offsets: NDArray[np.int64]
    origin: Floats | None

    @classmethod
    def of(cls, models: Sequence[Floats], origin: Floats | None = None) -> Stack:
        """Stack the (k, n_features) centres of `models`; they are already shifted by `origin`."""
        offsets = np.cumsum([0, *(len(centres) for centres in models)])
        return cls(np.ascontiguousarray(np.concatenate(models)), offsets, origin)


@dataclass(frozen=True)
class Sums:
    """What one Lloyd pass keeps of a block.

    Attributes
    ----------
    sums : (k_total, n_features) int32, int64 or float64
        Sum of the (shifted) rows that are nearest to each centre.
    counts : (k_total,) int64 or float64
        Number, or total weight, of these rows.
    """

    sums: NDArray[Any]
    counts: NDArray[Any]


def sum_by_cluster(block: Block, weights: NDArray[np.float64] | None = None, *, stack: Stack) -> Sums:
    """Assign every row to its nearest centre and sum the rows of each cluster (Lloyd 1982, both steps).

    Parameters
    ----------
    block : (rows, n_features)
        Rows of uint8, float32 or float64.
    weights : (rows,) float64, optional
        Weight of every row; absent: 1.
    stack
        Centres of the models.

    Returns
    -------
    Sums
        Integers for unweighted uint8 (int32 holds 8.4 million rows of 255), else float64: the order of summation
        then shows only in the last bits.
    """
    exact = stack.origin is None and weights is None
    k_total, n_features = stack.centres.shape
    sums = np.zeros((k_total, n_features), np.int32 if exact else np.float64)
    counts = np.zeros(k_total, np.int64 if exact else np.float64)
    for start, rows, labels in _labelled_slices(block, stack):
        if exact:
            _add_rows(block[start : start + len(rows)], labels, sums, counts)
        else:
            slice_weights = np.ones(len(rows)) if weights is None else weights[start : start + len(rows)]
            _add_weighted_rows(rows, slice_weights, labels, sums, counts)
    return Sums(sums, counts)


def assign(block: Block, stack: Stack) -> tuple[NDArray[np.int32], NDArray[np.float64]]:
    """Find the nearest centre of every row, and how far it is.

    Parameters
    ----------
    block : (rows, n_features)
        Rows of uint8, float32 or float64.
    stack
        Centres of the models.

    Returns
    -------
    clusters : (n_models, rows) int32
        Index of the nearest centre within its model; of equally near ones the lowest.
    distances : (n_models, rows) float64
        Squared Euclidean distance to it, from the differences themselves: the expansion
        ``x² - 2xc + c²`` in float32 has an error of several units near a centre.
    """
    n_models = len(stack.offsets) - 1
    clusters = np.empty((n_models, len(block)), np.int32)
    distances = np.empty((n_models, len(block)), np.float64)
    for start, rows, labels in _labelled_slices(block, stack):
        stop = start + len(rows)
        clusters[:, start:stop] = labels
        _squared_distances(rows, stack.centres, clusters[:, start:stop], distances[:, start:stop])
    clusters -= stack.offsets[:-1, None].astype(np.int32)
    return clusters, distances


class NearestTwo(NamedTuple):
    """The two nearest centres of every row, in every model; all arrays are (n_models, rows)."""

    clusters: NDArray[np.int32]
    """Index of the nearest centre within its model; of equally near ones the lowest."""
    squared: NDArray[np.float64]
    """Squared Euclidean distance to it."""
    seconds: NDArray[np.int32]
    """Index of the nearest of the others; -1 where there is no other."""
    squared_seconds: NDArray[np.float64]
    """Squared Euclidean distance to that; infinite where there is none."""


def assign_two(block: Block, stack: Stack) -> NearestTwo:
    """Find the two nearest centres of every row, and how far they are.

    Parameters
    ----------
    block : (rows, n_features)
        Rows of uint8, float32 or float64.
    stack
        Centres of the models.

    Returns
    -------
    NearestTwo
        Distances are summed from the differences themselves, as in `assign`.
    """
    shape = len(stack.offsets) - 1, len(block)
    found = NearestTwo(np.empty(shape, np.int32), np.empty(shape), np.full(shape, -1, np.int32), np.full(shape, np.inf))
    offsets = stack.offsets[:-1, None].astype(np.int32)
    (pairs,) = np.nonzero(np.diff(stack.offsets) > 1)  # models that have a second centre
    for start, rows, scores in _scored_slices(block, stack):
        part = slice(start, start + len(rows))
        _argmax(scores, stack.offsets, found.clusters[:, part])
        _squared_distances(rows, stack.centres, found.clusters[:, part], found.squared[:, part])
        # the scores are used up: without the best ones, the best that are left are the second ones
        _forget(scores, found.clusters[:, part])
        seconds = np.empty((shape[0], len(rows)), np.int32)
        _argmax(scores, stack.offsets, seconds)
        squared = np.empty(seconds.shape)
        _squared_distances(rows, stack.centres, seconds, squared)
        found.seconds[pairs, part] = (seconds - offsets)[pairs]
        found.squared_seconds[pairs, part] = squared[pairs]
    found.clusters[...] -= offsets
    return found


def distances_to(block: Block, centres: Floats, clusters: NDArray[np.int32]) -> NDArray[np.float64]:
    """Measure how far every row is from one centre of each model.

    Parameters
    ----------
    block : (rows, n_features)
        Rows of uint8, float32 or float64.
    centres : (k_total, n_features)
        Stacked, in the coordinates of the rows.
    clusters : (n_models, rows) int32
        Stacked row of the centre to measure from.

    Returns
    -------
    (n_models, rows) float64
        Squared Euclidean distances, from the differences themselves.
    """
    distances = np.empty(clusters.shape)
    _squared_distances(block, centres, clusters, distances)
    return distances


def sum_rows(block: Block, clusters: NDArray[np.int32], k_total: int) -> Sums:
    """Sum the rows of every cluster, where the clusters are known.

    Parameters
    ----------
    block : (rows, n_features)
        Rows of uint8, float32 or float64.
    clusters : (n_models, rows) int32
        Stacked row of each model's cluster.
    k_total
        Clusters of all models.

    Returns
    -------
    Sums
        Integers for uint8 (int32 holds 8.4 million rows of 255), else float64.
    """
    sums = np.zeros((k_total, block.shape[1]), np.int32 if block.dtype == np.uint8 else np.float64)
    counts = np.zeros(k_total, np.int64)
    _add_rows(block, clusters, sums, counts)
    return Sums(sums, counts)


def all_distances(block: Block, *, stack: Stack, dtype: DTypeLike) -> Floats:
    """Measure how far every row is from every centre.

    Parameters
    ----------
    block : (rows, n_features)
        Rows of uint8, float32 or float64.
    stack
        Centres in float64: near a centre the expansion ``x² - 2xc + c²`` has no digit left in float32.
    dtype
        Of the result.

    Returns
    -------
    (rows, k_total)
        Euclidean distances.
    """
    distances = np.empty((len(block), len(stack.centres)), dtype)
    for start, rows, scores in _scored_slices(block, stack):
        squares = np.einsum("ij,ij->i", rows, rows)[:, None] - 2 * scores
        distances[start : start + len(rows)] = np.sqrt(np.maximum(squares, 0.0))
    return distances


def unit_block(rows: Block) -> Floats:
    """Divide every row of a block, (rows, n_features), by its length; rows of zeros stay."""
    floats = rows.astype(np.float64 if rows.dtype == np.float64 else np.float32)
    lengths = np.linalg.norm(floats, axis=1)
    return np.divide(floats, lengths[:, None], out=floats, where=lengths[:, None] > 0)


def _labelled_slices(block: Block, stack: Stack) -> Iterator[tuple[int, Floats, NDArray[np.int32]]]:
    """Yield (start, slice as floating point, (n_models, rows) stacked index of the nearest centre); all are reused."""
    n_models = len(stack.offsets) - 1
    if block.shape[1] == 3 and stack.centres.dtype == np.float32:
        yield from _labelled_colours(block, stack)
        return
    labels = np.empty((n_models, slice_rows(block.shape[1])), np.int32)
    for start, rows, scores in _scored_slices(block, stack):
        _argmax(scores, stack.offsets, labels)
        yield start, rows, labels[:, : len(rows)]


def _labelled_colours(block: Block, stack: Stack) -> Iterator[tuple[int, Floats, NDArray[np.int32]]]:
    """Do as `_labelled_slices` for rows of three: without BLAS, whose sums have three terms here, 14 times as fast.

    5 million colours, K = 256, one core: 0.2 s a pass.
    """
    for start in range(0, len(block), _COLOUR_SLICE):
        rows = block[start : start + _COLOUR_SLICE].astype(np.float32)
        if stack.origin is not None:
            rows -= stack.origin
        points, squared = np.ascontiguousarray(rows.T), np.empty(len(rows), np.float32)
        labels = np.empty((len(stack.offsets) - 1, len(rows)), np.int32)
        for model, begin in enumerate(stack.offsets[:-1]):
            assign_in_space(points, stack.centres[begin : stack.offsets[model + 1]], labels[model], squared)
            labels[model] += np.int32(begin)
        yield start, rows, labels


def _scored_slices(block: Block, stack: Stack) -> Iterator[tuple[int, Floats, Floats]]:
    """Yield (start, slice as floating point, slice · centresᵀ - |centres|²/2); the arrays are reused."""
    centres = stack.centres
    step = min(slice_rows(block.shape[1]), len(block))
    half_norms = (np.einsum("ij,ij->i", centres, centres, dtype=np.float64) / 2).astype(centres.dtype)
    rows = _scratch("rows", (step, block.shape[1]), centres.dtype)
    scores = _scratch("scores", (step, len(centres)), centres.dtype)
    for start in range(0, len(block), max(step, 1)):
        part = block[start : start + step]
        n = len(part)
        if stack.origin is None:
            rows[:n] = part
        else:
            np.subtract(part, stack.origin, out=rows[:n])
        np.matmul(rows[:n], centres.T, out=scores[:n])
        scores[:n] -= half_norms
        yield start, rows[:n], scores[:n]


_kept = threading.local()
"""Arrays that a thread writes slice after slice, task after task: a worker gives freed memory back at once, and
fetching 5 MB anew for every task costs a pass over 60,000 rows an eighth of its time."""


def _scratch(name: str, shape: tuple[int, int], dtype: DTypeLike) -> Floats:
    array: Floats | None = getattr(_kept, name, None)
    if array is None or array.shape != shape or array.dtype != dtype:
        array = np.empty(shape, dtype)
        setattr(_kept, name, array)
    return array


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz", "nnan", "ninf"})
def _argmax(scores, offsets, labels):  # type: ignore[no-untyped-def]
    """labels[m, i] = first stacked row of model m with the highest score of row i.

    The maximum is a reduction that the compiler vectorizes; the index is then looked up.
    """
    for i in range(scores.shape[0]):
        row = scores[i]
        for m in range(offsets.shape[0] - 1):
            begin, end = offsets[m], offsets[m + 1]
            best = row[begin]
            for j in range(begin + 1, end):
                best = max(best, row[j])
            j = begin
            while row[j] != best and j < end - 1:
                j += 1
            labels[m, i] = j


@numba.njit(nogil=True, cache=True)
def _forget(scores, labels):  # type: ignore[no-untyped-def]
    for m in range(labels.shape[0]):
        for i in range(labels.shape[1]):
            scores[i, labels[m, i]] = -np.finfo(np.float32).max  # no infinity: the search assumes finite numbers


@numba.njit(nogil=True, cache=True)
def _add_rows(rows, labels, sums, counts):  # type: ignore[no-untyped-def]
    for m in range(labels.shape[0]):
        for i in range(rows.shape[0]):
            total = sums[labels[m, i]]
            row = rows[i]
            for j in range(row.shape[0]):
                total[j] += row[j]
            counts[labels[m, i]] += 1


@numba.njit(nogil=True, cache=True)
def _add_weighted_rows(rows, weights, labels, sums, counts):  # type: ignore[no-untyped-def]
    for m in range(labels.shape[0]):
        for i in range(rows.shape[0]):
            total = sums[labels[m, i]]
            row = rows[i]
            weight = weights[i]
            for j in range(row.shape[0]):
                total[j] += weight * row[j]
            counts[labels[m, i]] += weight


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz"})
def _squared_distances(rows, centres, labels, distances):  # type: ignore[no-untyped-def]
    for m in range(labels.shape[0]):
        for i in range(rows.shape[0]):
            row = rows[i]
            centre = centres[labels[m, i]]
            total = 0.0
            for j in range(row.shape[0]):
                difference = np.float64(row[j]) - np.float64(centre[j])
                total += difference * difference
            distances[m, i] = total


_jit_fast = numba.njit(nogil=True, cache=True, fastmath=True)  # lets LLVM use the vector units in reductions


_BLOCK = 512
"""Points whose distances stay in the first-level cache while all centres pass by: 512 x (3 + 2) x 4 bytes."""


@_jit_fast
def assign_in_space(points, centres, labels, squared):  # type: ignore[no-untyped-def]
    """Write label and squared distance of every point; points in three dimensions only."""
    for start in range(0, points.shape[1], _BLOCK):
        stop = min(start + _BLOCK, points.shape[1])
        red, green, blue = points[0, start:stop], points[1, start:stop], points[2, start:stop]
        best, label = squared[start:stop], labels[start:stop]
        best[:] = np.float32(np.finfo(np.float32).max)
        label[:] = 0
        for j in range(len(centres)):
            r, g, b, j32 = centres[j, 0], centres[j, 1], centres[j, 2], np.int32(j)
            for i in range(stop - start):  # no branch: 8 or 16 points at a time
                dr, dg, db = red[i] - r, green[i] - g, blue[i] - b
                distance = dr * dr + dg * dg + db * db
                closer = distance < best[i]
                best[i] = distance if closer else best[i]
                label[i] = j32 if closer else label[i]
