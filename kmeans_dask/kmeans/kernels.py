"""Kernels: one pass of K-Means over one block, without Dask.

To add a kernel (for a GPU, or for rows of another shape), write a generator like `_labelled_colours` and dispatch to it
in `_labelled_slices`; `sum_by_cluster` and `assign` then use it. tests/kmeans/test_kernels.py compares it with NumPy.

A block is an array of shape (n_rows, n_features) and dtype uint8, float32 or float64. It is processed in slices that
fit in cache: a slice is converted to floating point and multiplied by the centres in one BLAS call, and a numba loop
consumes the result before the next slice is touched. Several models share a pass: their centres are stacked, so one
conversion and one product serve all of them. Rows of three features, such as colours, bypass BLAS.
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
"""Maximum size of a float32 slice. 1,024 rows of 784 features are 3.2 MB, which fits in the second-level cache together
with their scores."""

_COLOUR_SLICE = 2**14
"""Rows of three features per slice, a multiple of `slice_rows`: 256 kB including labels and distances."""


def slice_rows(n_features: int) -> int:
    """Return the number of rows per slice.

    Parameters
    ----------
    n_features
        Features per row.

    Returns
    -------
    int
        A power of two from 16 to 1,024; a float32 slice takes at most 4 MiB, except at 16 rows. Chunk sizes that are
        multiples of it give bitwise identical centres.
    """
    rows = 1024
    while rows > 16 and rows * n_features * 4 > _SLICE_BYTES:
        rows //= 2
    return rows


@dataclass(frozen=True)
class Stack:
    """The concatenated centres of several models.

    Attributes
    ----------
    centres : (k_total, n_features) float32 or float64
        In the coordinates of the data minus `origin`.
    offsets : (n_models + 1,) int64
        Model m owns the rows ``offsets[m]:offsets[m + 1]``.
    origin : (n_features,) or None
        Subtracted from every row first, so that a common offset of the data costs no precision. None for uint8, which
        is summed as integers.
    """

    centres: Floats
    offsets: NDArray[np.int64]
    origin: Floats | None

    @classmethod
    def of(cls, models: Sequence[Floats], origin: Floats | None = None) -> Stack:
        """Stack the (k, n_features) centres of `models`, which are already shifted by `origin`."""
        offsets = np.cumsum([0, *(len(centres) for centres in models)])
        return cls(np.ascontiguousarray(np.concatenate(models)), offsets, origin)


@dataclass(frozen=True)
class Sums:
    """Result of one Lloyd pass over a block.

    Attributes
    ----------
    sums : (k_total, n_features) int32, int64 or float64
        Sum of the shifted rows nearest to each centre.
    counts : (k_total,) int64 or float64
        Number, or total weight, of these rows.
    """

    sums: NDArray[Any]
    counts: NDArray[Any]


def sum_by_cluster(block: Block, weights: NDArray[np.float64] | None = None, *, stack: Stack) -> Sums:
    """Assign every row to its nearest centre and sum the rows of each cluster (both steps of Lloyd 1982).

    Parameters
    ----------
    block : (n_rows, n_features) uint8, float32 or float64
    weights : (n_rows,) float64, optional
        Row weights; None weights every row by 1.
    stack
        Centres of all models.

    Returns
    -------
    Sums
        Integers for unweighted uint8 (int32 holds 8.4 million rows of 255), otherwise float64, where the order of
        summation affects only the last bits.
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
    """Find the nearest centre of every row and its squared distance.

    Parameters
    ----------
    block : (n_rows, n_features) uint8, float32 or float64
    stack
        Centres of all models.

    Returns
    -------
    clusters : (n_models, n_rows) int32
        Index of the nearest centre within its model; the lowest index wins ties.
    distances : (n_models, n_rows) float64
        Squared Euclidean distance to it, computed from the differences: the expansion ``x² - 2xc + c²`` in float32 is
        off by several units near a centre.
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
    """The two nearest centres of every row in every model; all arrays have shape (n_models, n_rows)."""

    clusters: NDArray[np.int32]
    """Index of the nearest centre within its model; the lowest index wins ties."""
    squared: NDArray[np.float64]
    """Squared Euclidean distance to the nearest centre."""
    second_clusters: NDArray[np.int32]
    """Index of the second nearest centre; -1 in a model of one centre."""
    second_squared: NDArray[np.float64]
    """Squared Euclidean distance to the second nearest centre; infinite in a model of one centre."""


def assign_two(block: Block, stack: Stack) -> NearestTwo:
    """Find the two nearest centres of every row and their squared distances.

    Parameters
    ----------
    block : (n_rows, n_features) uint8, float32 or float64
    stack
        Centres of all models.

    Returns
    -------
    NearestTwo
        Distances are computed from the differences, as in `assign`.
    """
    shape = len(stack.offsets) - 1, len(block)
    nearest = NearestTwo(
        np.empty(shape, np.int32), np.empty(shape), np.full(shape, -1, np.int32), np.full(shape, np.inf)
    )
    offsets = stack.offsets[:-1, None].astype(np.int32)
    (paired,) = np.nonzero(np.diff(stack.offsets) > 1)  # models with a second centre
    for start, rows, scores in _scored_slices(block, stack):
        span = slice(start, start + len(rows))
        _argmax(scores, stack.offsets, nearest.clusters[:, span])
        _squared_distances(rows, stack.centres, nearest.clusters[:, span], nearest.squared[:, span])
        # mask the best scores in place: the best of the rest belong to the second nearest centres
        _mask(scores, nearest.clusters[:, span])
        seconds = np.empty((shape[0], len(rows)), np.int32)
        _argmax(scores, stack.offsets, seconds)
        squared = np.empty(seconds.shape)
        _squared_distances(rows, stack.centres, seconds, squared)
        nearest.second_clusters[paired, span] = (seconds - offsets)[paired]
        nearest.second_squared[paired, span] = squared[paired]
    nearest.clusters[...] -= offsets
    return nearest


def distances_to(block: Block, centres: Floats, clusters: NDArray[np.int32]) -> NDArray[np.float64]:
    """Measure the squared distance of every row from one given centre of each model.

    Parameters
    ----------
    block : (n_rows, n_features) uint8, float32 or float64
    centres : (k_total, n_features)
        Stacked centres in the coordinates of the rows.
    clusters : (n_models, n_rows) int32
        Stacked index of the centre to measure from.

    Returns
    -------
    (n_models, n_rows) float64
        Squared Euclidean distances, computed from the differences.
    """
    distances = np.empty(clusters.shape)
    _squared_distances(block, centres, clusters, distances)
    return distances


def sum_rows(block: Block, clusters: NDArray[np.int32], k_total: int) -> Sums:
    """Sum the rows of every cluster, given the clusters.

    Parameters
    ----------
    block : (n_rows, n_features) uint8, float32 or float64
    clusters : (n_models, n_rows) int32
        Stacked index of each row's cluster.
    k_total
        Number of clusters of all models together.

    Returns
    -------
    Sums
        Integers for uint8 (int32 holds 8.4 million rows of 255), otherwise float64.
    """
    sums = np.zeros((k_total, block.shape[1]), np.int32 if block.dtype == np.uint8 else np.float64)
    counts = np.zeros(k_total, np.int64)
    _add_rows(block, clusters, sums, counts)
    return Sums(sums, counts)


def all_distances(block: Block, *, stack: Stack, dtype: DTypeLike) -> Floats:
    """Measure the distance of every row from every centre.

    Parameters
    ----------
    block : (n_rows, n_features) uint8, float32 or float64
    stack
        Centres in float64: near a centre the expansion ``x² - 2xc + c²`` has no significant digits in float32.
    dtype
        Dtype of the result.

    Returns
    -------
    (n_rows, k_total)
        Euclidean distances.
    """
    distances = np.empty((len(block), len(stack.centres)), dtype)
    for start, rows, scores in _scored_slices(block, stack):
        squares = np.einsum("ij,ij->i", rows, rows)[:, None] - 2 * scores
        distances[start : start + len(rows)] = np.sqrt(np.maximum(squares, 0.0))
    return distances


def unit_block(rows: Block) -> Floats:
    """Normalize every row of an (n_rows, n_features) block to length 1; rows of zeros stay zero."""
    floats = rows.astype(np.float64 if rows.dtype == np.float64 else np.float32)
    lengths = np.linalg.norm(floats, axis=1)
    return np.divide(floats, lengths[:, None], out=floats, where=lengths[:, None] > 0)


def _labelled_slices(block: Block, stack: Stack) -> Iterator[tuple[int, Floats, NDArray[np.int32]]]:
    """Yield (start, slice as floats, (n_models, n_rows) stacked index of the nearest centre); arrays are reused."""
    n_models = len(stack.offsets) - 1
    if block.shape[1] == 3 and stack.centres.dtype == np.float32:
        yield from _labelled_colours(block, stack)
        return
    labels = np.empty((n_models, slice_rows(block.shape[1])), np.int32)
    for start, rows, scores in _scored_slices(block, stack):
        _argmax(scores, stack.offsets, labels)
        yield start, rows, labels[:, : len(rows)]


def _labelled_colours(block: Block, stack: Stack) -> Iterator[tuple[int, Floats, NDArray[np.int32]]]:
    """`_labelled_slices` for rows of three features: 14 times as fast as BLAS, whose sums have only three terms here.

    A pass over 5 million colours takes 0.2 s at K = 256 on one core.
    """
    for start in range(0, len(block), _COLOUR_SLICE):
        rows = block[start : start + _COLOUR_SLICE].astype(np.float32)
        if stack.origin is not None:
            rows -= stack.origin
        points, squared = np.ascontiguousarray(rows.T), np.empty(len(rows), np.float32)
        labels = np.empty((len(stack.offsets) - 1, len(rows)), np.int32)
        for model, begin in enumerate(stack.offsets[:-1]):
            assign_3d(points, stack.centres[begin : stack.offsets[model + 1]], labels[model], squared)
            labels[model] += np.int32(begin)
        yield start, rows, labels


def _scored_slices(block: Block, stack: Stack) -> Iterator[tuple[int, Floats, Floats]]:
    """Yield (start, slice as floats, slice · centresᵀ - |centres|²/2); arrays are reused."""
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


_buffers = threading.local()
"""Scratch arrays that each thread reuses across slices and tasks. A worker returns freed memory to the system at once,
and allocating 5 MB in every task takes an eighth of the time of a pass over 60,000 rows."""


def _scratch(name: str, shape: tuple[int, int], dtype: DTypeLike) -> Floats:
    """Return this thread's array of a name, uninitialized; it is replaced if the shape or dtype changes."""
    array: Floats | None = getattr(_buffers, name, None)
    if array is None or array.shape != shape or array.dtype != dtype:
        array = np.empty(shape, dtype)
        setattr(_buffers, name, array)
    return array


@numba.njit(nogil=True, cache=True, fastmath={"reassoc", "contract", "nsz", "nnan", "ninf"})
def _argmax(scores, offsets, labels):  # type: ignore[no-untyped-def]
    """labels[m, i] = lowest stacked index in model m that has the highest score of row i.

    The compiler vectorizes the maximum as a reduction; a second loop finds its index.
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
def _mask(scores, labels):  # type: ignore[no-untyped-def]
    """Make the score of every row at its label in every model the lowest, in place."""
    for m in range(labels.shape[0]):
        for i in range(labels.shape[1]):
            scores[i, labels[m, i]] = -np.finfo(np.float32).max  # not -inf: `_argmax` is compiled for finite numbers


@numba.njit(nogil=True, cache=True)
def _add_rows(rows, labels, sums, counts):  # type: ignore[no-untyped-def]
    """Add every row to `sums`, and 1 to `counts`, at its label in every model."""
    for m in range(labels.shape[0]):
        for i in range(rows.shape[0]):
            total = sums[labels[m, i]]
            row = rows[i]
            for j in range(row.shape[0]):
                total[j] += row[j]
            counts[labels[m, i]] += 1


@numba.njit(nogil=True, cache=True)
def _add_weighted_rows(rows, weights, labels, sums, counts):  # type: ignore[no-untyped-def]
    """Add every row times its weight to `sums`, and its weight to `counts`, at its label in every model."""
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
    """distances[m, i] = squared distance of row i from the centre labels[m, i], accumulated in float64."""
    for m in range(labels.shape[0]):
        for i in range(rows.shape[0]):
            row = rows[i]
            centre = centres[labels[m, i]]
            total = 0.0
            for j in range(row.shape[0]):
                difference = np.float64(row[j]) - np.float64(centre[j])
                total += difference * difference
            distances[m, i] = total


_COLOUR_BLOCK = 512
"""Points processed together for all centres, so that they stay in the first-level cache: 512 x (3 + 2) x 4 bytes."""


@numba.njit(nogil=True, cache=True, fastmath=True)  # lets LLVM vectorize the reductions
def assign_3d(points, centres, labels, squared):  # type: ignore[no-untyped-def]
    """Find the nearest centre of every point in three dimensions.

    Parameters
    ----------
    points : (3, n) float32
    centres : (k, 3) float32
    labels : (n,) int32
        Receives the index of the nearest centre; the lowest index wins ties.
    squared : (n,) float32
        Receives the squared Euclidean distance to it.
    """
    for start in range(0, points.shape[1], _COLOUR_BLOCK):
        stop = min(start + _COLOUR_BLOCK, points.shape[1])
        red, green, blue = points[0, start:stop], points[1, start:stop], points[2, start:stop]
        best, label = squared[start:stop], labels[start:stop]
        best[:] = np.float32(np.finfo(np.float32).max)
        label[:] = 0
        for j in range(len(centres)):
            r, g, b, j32 = centres[j, 0], centres[j, 1], centres[j, 2], np.int32(j)
            for i in range(stop - start):  # branch-free, so that 8 or 16 points are processed at a time
                dr, dg, db = red[i] - r, green[i] - g, blue[i] - b
                distance = dr * dr + dg * dg + db * db
                closer = distance < best[i]
                best[i] = distance if closer else best[i]
                label[i] = j32 if closer else label[i]
