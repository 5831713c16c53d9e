"""The passes of K-Means over all chunks: prepare, iterate, assign.

Several models share every pass. A pass returns sums by cluster to the driver, never the rows themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from kmeans_dask.kmeans.kernels import Block, Floats, Stack, Sums, assign, sum_by_cluster, unit_block
from kmeans_dask.kmeans.moments import Moments, block_moments, combine_moments
from kmeans_dask.kmeans.sampling import Data, shifted
from kmeans_dask.reduction import broadcast, map_chunks, tree_reduce

OnPass = Callable[[int, int], None]
"""Called after every pass with the number of passes so far and of the models that are still moving."""


def prepare(X: da.Array, weights: da.Array | None, spherical: bool = False) -> tuple[Data, Moments]:
    """Make the first pass: check for NaN, measure the moments and choose the origin.

    Parameters
    ----------
    X : (n, n_features) da.Array of uint8, float32 or float64
    weights : (n,) da.Array of float64, or None
    spherical
        Whether rows have length 1, and centres are to be normalized to it.

    Returns
    -------
    Data, Moments

    Raises
    ------
    ValueError
        A row has NaN or infinity, or a weight is invalid.
    """
    moments = tree_reduce(map_chunks(block_moments, X, weights), combine_moments).compute()
    if not (moments.valid_weights and moments.weight > 0):  # before the rows: a NaN weight makes their sums NaN
        raise ValueError("sample_weight must be finite, not negative, and not all zero")
    if not moments.finite:
        raise ValueError(f"Input X contains NaN, infinity or a value too large for dtype('{X.dtype}').")
    return with_origin(X, weights, moments, spherical), moments


def with_origin(X: da.Array, weights: da.Array | None, moments: Moments, spherical: bool) -> Data:
    """Bundle the rows with the origin that `prepare` chooses, given their moments."""
    origin: Floats | None = None if X.dtype == np.uint8 else moments.rounded_mean.astype(X.dtype)
    if spherical:  # lengths are measured from zero
        origin = np.zeros(X.shape[1], X.dtype)
    return Data(X, weights, origin, moments.weight, spherical)


class Checkpoint(Protocol):
    """Stores the state of a fit between passes, so that an interrupted fit can resume."""

    def read(self) -> list[dict[str, Any]] | None:
        """Return the latest state of this fit, or None if there is none."""

    def write(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Store a state: mappings from names to arrays or JSON values."""


@dataclass
class FitState:
    """State of one model during a fit.

    Attributes
    ----------
    centres : (k, n_features)
        Current centres in shifted coordinates.
    tolerance : float
        The model is finished when the sum of squared distances from the centres to the means of their rows is at
        most this.
    max_iter : int
        Maximum number of passes.
    accelerated : bool
        Whether the centres keep some of their velocity from pass to pass.
    min_gain : float
        An accelerated model is also finished when two consecutive passes lower the inertia by less than this fraction
        of it, on average.
    history : list of float
        Inertia at the beginning of every pass.
    moving : bool
        False once the model is finished.
    counts : (k,) int64 or float64
        Number of rows, or their total weight, in each cluster at the last pass. Only 0 where there was no row to
        relocate an empty cluster to.
    """

    centres: Floats
    tolerance: float
    max_iter: int
    accelerated: bool = False
    min_gain: float = 0.0
    history: list[float] = field(default_factory=list)
    moving: bool = True
    counts: NDArray[Any] = field(default_factory=lambda: np.empty(0))
    _velocity: NDArray[np.float64] | None = None
    _passes_since_restart: int = 0

    @property
    def n_empty(self) -> int:
        """Number of clusters without rows at the last pass."""
        return int(np.count_nonzero(self.counts == 0))

    def move(self, means: Floats) -> None:
        """Move the centres to the means of their rows, or beyond them, and decide whether the model is finished.

        Velocity is kept with weight t / (t + 3), t passes after the last restart (Nesterov 1983), and reset when the
        inertia rises (O'Donoghue and Candes 2015). The centres of a finished model are the means.
        """
        old = self.centres.astype(np.float64)
        # in the precision of the centres: otherwise rounding alone would look like movement
        step = means.astype(self.centres.dtype) - old
        shift = float((step**2).sum())
        gain = -np.inf if len(self.history) < 3 else self.history[-3] - self.history[-1]
        settled = self.accelerated and 0 <= gain < 2 * self.min_gain * self.history[-1]
        self.moving = shift > self.tolerance and not settled and len(self.history) < self.max_iter
        if self.accelerated and self.moving:
            if self._velocity is None or self.history[-1] > self.history[-2]:
                self._velocity, self._passes_since_restart = step, 1
            else:
                momentum = self._passes_since_restart / (self._passes_since_restart + 3)
                self._velocity = step + self._velocity * momentum
                self._passes_since_restart += 1
            means = old + self._velocity
        self.centres = means.astype(self.centres.dtype)


def lloyd(data: Data, states: Sequence[FitState], moments: Moments, on_pass: OnPass | None = None) -> None:
    """Iterate all models until each is finished (Lloyd 1982); a pass serves every model that is still moving.

    Parameters
    ----------
    data
        All rows.
    states
        One per model, updated in place.
    moments
        Moments of all rows.
    on_pass
        Called after every pass.
    """
    sum_of_squares = moments.sum_of_squares(data.origin)
    n_passes = 0
    while moving := [state for state in states if state.moving]:
        stack = Stack.of([state.centres for state in moving], data.origin)
        objects = map_chunks(sum_by_cluster, data.X, data.weights, stack=broadcast(stack))
        total: Sums = tree_reduce(objects, add_sums).compute()
        for state, begin, end in zip(moving, stack.offsets[:-1], stack.offsets[1:], strict=True):
            sums = Sums(total.sums[begin:end], total.counts[begin:end])
            state.history.append(_inertia(state.centres.astype(np.float64), sums, sum_of_squares))
            means = _means(state, data, sums)
            state.move(unit_block(means) if data.spherical else means)
            if data.spherical:
                state.centres = unit_block(state.centres)
        n_passes += 1
        if on_pass:
            on_pass(n_passes, sum(state.moving for state in states))


def _inertia(centres: NDArray[np.float64], sums: Sums, sum_of_squares: float) -> float:
    """Compute Σ|x - c|² = Σ|x|² - 2 Σ x·c + n |c|² from sums that are exact for uint8."""
    explained = 2 * np.einsum("ij,ij->", sums.sums, centres) - sums.counts @ np.einsum("ij,ij->i", centres, centres)
    return max(sum_of_squares - float(explained), 0.0)


def _means(state: FitState, data: Data, sums: Sums) -> NDArray[np.float64]:
    """Return the mean of the rows of every cluster, after relocating empty clusters."""
    if (sums.counts == 0).any():
        sums = _relocate_empty(data, state.centres, sums)
    state.counts = sums.counts
    with np.errstate(invalid="ignore", divide="ignore"):
        means = sums.sums / sums.counts[:, None]
    # a cluster stays empty only if every row coincides with its centre: fewer distinct rows than clusters
    return np.where(sums.counts[:, None] > 0, means, state.centres)


def _relocate_empty(data: Data, centres: Floats, sums: Sums) -> Sums:
    """Move every empty cluster to one of the rows farthest from their centres, as scikit-learn does.

    The row leaves its old cluster, the donor; a donor's only row is never moved.
    """
    (empty,) = np.nonzero(sums.counts == 0)
    stack = broadcast(Stack.of([centres], data.origin))
    objects = map_chunks(_farthest_of_block, data.X, data.weights, stack=stack, size=len(empty))
    combine = partial(_combine_farthest, size=len(empty))
    farthest: _Farthest = tree_reduce(objects, combine).compute()
    new_sums, counts = sums.sums.copy(), sums.counts.copy()
    weights = farthest.weights.astype(counts.dtype)
    for cluster, row, weight, donor in zip(empty, farthest.rows, weights, farthest.clusters, strict=False):
        if counts[donor] > weight:
            new_sums[donor] -= (weight * row).astype(new_sums.dtype)
            counts[donor] -= weight
            new_sums[cluster] += (weight * row).astype(new_sums.dtype)
            counts[cluster] += weight
    return Sums(new_sums, counts)


@dataclass(frozen=True)
class _Farthest:
    """Rows farthest from their centres, farthest first, in shifted coordinates."""

    distances: NDArray[np.float64]
    rows: Floats
    weights: NDArray[np.float64]
    clusters: NDArray[np.int32]


def _farthest_of_block(block: Block, weights: NDArray[np.float64] | None, *, stack: Stack, size: int) -> _Farthest:
    clusters, distances = assign(block, stack)
    all_weights = np.ones(len(block)) if weights is None else weights
    eligible = np.where(all_weights > 0, distances[0], 0.0)
    order = np.argsort(-eligible, kind="stable")[:size]
    order = order[eligible[order] > 0]
    rows = shifted(block[order], stack.origin)
    return _Farthest(eligible[order], rows, all_weights[order], clusters[0][order])


def _combine_farthest(parts: list[_Farthest], size: int) -> _Farthest:
    distances = np.concatenate([part.distances for part in parts])
    order = np.argsort(-distances, kind="stable")[:size]
    return _Farthest(
        distances[order],
        np.concatenate([part.rows for part in parts])[order],
        np.concatenate([part.weights for part in parts])[order],
        np.concatenate([part.clusters for part in parts])[order],
    )


def add_sums(parts: list[Sums]) -> Sums:
    """Add the sums of several blocks; integers stay exact.

    Parameters
    ----------
    parts
        Sums of at least one block.

    Returns
    -------
    Sums
    """
    sums: NDArray[Any] = parts[0].sums
    if sums.dtype.kind == "i":
        # int32 as long as no cluster can overflow it: half the transfer, 8 MB for 158 centres of 12,288 features
        largest = 255 * sum(int(part.counts.max(initial=0)) for part in parts)
        sums = sums.astype(np.int32 if largest < 2**31 else np.int64)
    else:
        sums = sums.copy()
    counts = parts[0].counts.copy()
    for part in parts[1:]:
        sums += part.sums
        counts += part.counts
    return Sums(sums, counts)


@dataclass(frozen=True)
class Assignment:
    """Clusters of all rows, for one model.

    Attributes
    ----------
    inertia : float
        (Weighted) sum of squared distances, accumulated in float64 from the differences.
    clusters : (n,) da.Array of int32
        Already computed, held by the workers.
    """

    inertia: float
    clusters: da.Array


def assign_all(data: Data, models: Sequence[Floats]) -> list[Assignment]:
    """Make the last pass: find the cluster of every row and the inertia, for several models at once.

    Parameters
    ----------
    data
        All rows.
    models
        (k, n_features) centres of each model in shifted coordinates.

    Returns
    -------
    list of Assignment
    """
    stack = broadcast(Stack.of(list(models), data.origin))
    objects = map_chunks(_assign_block, data.X, data.weights, stack=stack).persist()
    inertias = tree_reduce(map_chunks(_inertias_of, objects), _add_arrays).compute()
    return [
        Assignment(
            float(inertias[m]),
            objects.map_blocks(
                _clusters_of,
                model=m,
                dtype=np.int32,
                chunks=(data.X.chunks[0], (1,)),
                meta=np.empty((0, 0), np.int32),
            )[:, 0],
        )
        for m in range(len(models))
    ]


@dataclass(frozen=True)
class _Assigned:
    """Clusters of one block, (n_models, n_rows), and its inertia in each model, (n_models,)."""

    clusters: NDArray[np.int32]
    inertias: NDArray[np.float64]


def _assign_block(block: Block, weights: NDArray[np.float64] | None, *, stack: Stack) -> _Assigned:
    clusters, distances = assign(block, stack)
    return _Assigned(clusters, distances.sum(axis=1) if weights is None else distances @ weights)


def _inertias_of(assigned: _Assigned) -> NDArray[np.float64]:
    return assigned.inertias


def _clusters_of(assigned: _Assigned, *, model: int) -> NDArray[np.int32]:
    return assigned.clusters[model][:, None]


def _add_arrays(parts: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    total = parts[0].copy()
    for part in parts[1:]:  # in chunk order, so that the sum of a model does not depend on the number of models
        total += part
    return total
