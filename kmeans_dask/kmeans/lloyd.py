"""The passes of K-Means over all chunks: prepare, iterate, assign.

Several models share every pass. What a pass brings back is a few numbers a cluster, never rows.
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
from kmeans_dask.kmeans.moments import Moments, combine_moments, moments
from kmeans_dask.kmeans.sampling import Data, shifted
from kmeans_dask.reduction import broadcast, map_chunks, tree_reduce

OnPass = Callable[[int, int], None]
"""Called after every pass with the number of the pass and of the models that still move."""


def prepare(X: da.Array, weights: da.Array | None, spherical: bool = False) -> tuple[Data, Moments]:
    """First pass: look for NaN, measure mean and spread, choose the origin.

    Parameters
    ----------
    X : (n, n_features) da.Array of uint8, float32 or float64
    weights : (n,) da.Array of float64, or None
    spherical
        Whether the rows have length 1, and the centres shall have it.

    Returns
    -------
    Data, Moments

    Raises
    ------
    ValueError
        There is a NaN or an infinity, or a weight that is not allowed.
    """
    first = tree_reduce(map_chunks(moments, X, weights), combine_moments).compute()
    if not (first.valid_weights and first.weight > 0):  # looked at first: a NaN weight makes NaN of the rows' sums
        raise ValueError("sample_weight must be finite, not negative, and not all zero")
    if not first.finite:
        raise ValueError(f"Input X contains NaN, infinity or a value too large for dtype('{X.dtype}').")
    return data_of(X, weights, first, spherical), first


def data_of(X: da.Array, weights: da.Array | None, first: Moments, spherical: bool) -> Data:
    """Put together what `prepare` returns, once the moments are known."""
    origin: Floats | None = None if X.dtype == np.uint8 else first.rounded_mean.astype(X.dtype)
    if spherical:  # lengths are measured from zero
        origin = np.zeros(X.shape[1], X.dtype)
    return Data(X, weights, origin, first.weight, spherical)


class Checkpoint(Protocol):
    """Where the state of a fit is kept between two passes, so that an interrupted fit can resume."""

    def read(self) -> list[dict[str, Any]] | None:
        """Return the newest state of this fit, or None if there is none."""

    def write(self, states: Sequence[Mapping[str, Any]]) -> None:
        """Keep a state: names and their values, arrays or what JSON can hold."""


@dataclass
class FitState:
    """One model on its way.

    Attributes
    ----------
    centres : (k, n_features)
        In shifted coordinates.
    tolerance : float
        Sum of squared distances from the centres to the means of their rows at which the model is finished.
    max_iter : int
    accelerated : bool
        Whether the centres keep some of their velocity from pass to pass.
    least_gain : float
        An accelerated model is also finished when two passes in a row lower the inertia by less than this share
        of it, on average.
    history : list of float
        Inertia at the beginning of every pass.
    moving : bool
        False when finished.
    counts : (k,) int64 or float64
        Rows, or weight, of each cluster in the last pass. A cluster is empty where there were no rows to give it.
    """

    centres: Floats
    tolerance: float
    max_iter: int
    accelerated: bool = False
    least_gain: float = 0.0
    history: list[float] = field(default_factory=list)
    moving: bool = True
    counts: NDArray[Any] = field(default_factory=lambda: np.empty(0))
    _velocity: NDArray[np.float64] | None = None
    _since_rest: int = 0

    @property
    def empty(self) -> int:
        """Clusters that the last pass left without rows."""
        return int(np.count_nonzero(self.counts == 0))

    def move(self, means: Floats) -> None:
        """Go to the means of the rows, or beyond them, and decide whether the model is finished.

        The velocity is kept with weight t / (t + 3), t passes after the last rest (Nesterov 1983), and given up
        when the inertia has risen (O'Donoghue and Candes 2015). A finished model rests at the means.
        """
        old = self.centres.astype(np.float64)
        # as precise as the centres are: else a model that stands still would never be seen to
        step = means.astype(self.centres.dtype) - old
        shift = float((step**2).sum())
        gained = -np.inf if len(self.history) < 3 else self.history[-3] - self.history[-1]
        settled = self.accelerated and 0 <= gained < 2 * self.least_gain * self.history[-1]
        self.moving = shift > self.tolerance and not settled and len(self.history) < self.max_iter
        if self.accelerated and self.moving:
            if self._velocity is None or self.history[-1] > self.history[-2]:
                self._velocity, self._since_rest = step, 1
            else:
                self._velocity = step + self._velocity * (self._since_rest / (self._since_rest + 3))
                self._since_rest += 1
            means = old + self._velocity
        self.centres = means.astype(self.centres.dtype)


def lloyd(data: Data, runs: Sequence[FitState], first: Moments, on_pass: OnPass | None = None) -> None:
    """Iterate all models until each is finished (Lloyd 1982); every pass serves all that still move.

    Parameters
    ----------
    data
        The rows.
    runs
        Moved in place.
    first
        Moments of the rows.
    on_pass
        Told of every pass.
    """
    squares = first.squares(data.origin)
    n_passes = 0
    while moving := [run for run in runs if run.moving]:
        stack = Stack.of([run.centres for run in moving], data.origin)
        objects = map_chunks(sum_by_cluster, data.X, data.weights, stack=broadcast(stack))
        total: Sums = tree_reduce(objects, add_sums).compute()
        for run, begin, end in zip(moving, stack.offsets[:-1], stack.offsets[1:], strict=True):
            sums = Sums(total.sums[begin:end], total.counts[begin:end])
            run.history.append(_inertia(run.centres.astype(np.float64), sums, squares))
            means = _means(run, data, sums)
            run.move(unit_block(means) if data.spherical else means)
            if data.spherical:
                run.centres = unit_block(run.centres)
        n_passes += 1
        if on_pass:
            on_pass(n_passes, sum(run.moving for run in runs))


def _inertia(centres: NDArray[np.float64], sums: Sums, squares: float) -> float:
    """Σ|x - c|² = Σ|x|² - 2 Σ x·c + n |c|², from sums that are exact for uint8."""
    pulled = 2 * np.einsum("ij,ij->", sums.sums, centres) - sums.counts @ np.einsum("ij,ij->i", centres, centres)
    return max(squares - float(pulled), 0.0)


def _means(run: FitState, data: Data, sums: Sums) -> NDArray[np.float64]:
    """Mean of the rows of every cluster; an empty cluster is given a row first."""
    if (sums.counts == 0).any():
        sums = _relocate_empty(data, run.centres, sums)
    run.counts = sums.counts
    with np.errstate(invalid="ignore", divide="ignore"):
        means = sums.sums / sums.counts[:, None]
    # a cluster stays empty only where no row is off its centre: there are fewer distinct rows than clusters
    return np.where(sums.counts[:, None] > 0, means, run.centres)


def _relocate_empty(data: Data, centres: Floats, sums: Sums) -> Sums:
    """Give every empty cluster one of the rows that are farthest from their centres, as scikit-learn does."""
    (empty,) = np.nonzero(sums.counts == 0)
    stack = broadcast(Stack.of([centres], data.origin))
    objects = map_chunks(_farthest_of_block, data.X, data.weights, stack=stack, size=len(empty))
    combine = partial(_farther, size=len(empty))
    far: _Farthest = tree_reduce(objects, combine).compute()
    new_sums, counts = sums.sums.copy(), sums.counts.copy()
    weights = far.weights.astype(counts.dtype)
    for cluster, row, weight, donor in zip(empty, far.rows, weights, far.clusters, strict=False):
        if counts[donor] > weight:
            new_sums[donor] -= (weight * row).astype(new_sums.dtype)
            counts[donor] -= weight
            new_sums[cluster] += (weight * row).astype(new_sums.dtype)
            counts[cluster] += weight
    return Sums(new_sums, counts)


@dataclass(frozen=True)
class _Farthest:
    """Rows farthest from their centres, farthest first; rows in shifted coordinates."""

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


def _farther(parts: list[_Farthest], size: int) -> _Farthest:
    distances = np.concatenate([part.distances for part in parts])
    order = np.argsort(-distances, kind="stable")[:size]
    return _Farthest(
        distances[order],
        np.concatenate([part.rows for part in parts])[order],
        np.concatenate([part.weights for part in parts])[order],
        np.concatenate([part.clusters for part in parts])[order],
    )


def add_sums(parts: list[Sums]) -> Sums:
    """Combine the sums of several blocks; integers stay exact.

    Parameters
    ----------
    parts
        At least one.

    Returns
    -------
    Sums
    """
    sums: NDArray[Any] = parts[0].sums
    if sums.dtype.kind == "i":
        # 8 MB a model of 158 x 12,288: what travels is kept in four bytes as long as no cluster can overflow them
        most = 255 * sum(int(part.counts.max(initial=0)) for part in parts)
        sums = sums.astype(np.int32 if most < 2**31 else np.int64)
    else:
        sums = sums.copy()
    counts = parts[0].counts.copy()
    for part in parts[1:]:
        sums += part.sums
        counts += part.counts
    return Sums(sums, counts)


@dataclass(frozen=True)
class Assignment:
    """Where the rows belong, for one of the models of a pass.

    Attributes
    ----------
    inertia : float
        (Weighted) sum of squared distances, float64, from the differences themselves.
    clusters : (n,) da.Array of int32
        Already computed, on the workers.
    """

    inertia: float
    clusters: da.Array


def assign_all(data: Data, models: Sequence[Floats]) -> list[Assignment]:
    """Last pass: the cluster of every row and the inertia, for several models at once.

    Parameters
    ----------
    data
        The rows.
    models
        Their (k, n_features) centres in shifted coordinates.

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
    for part in parts[1:]:  # in the order of the chunks, however many models there are
        total += part
    return total
