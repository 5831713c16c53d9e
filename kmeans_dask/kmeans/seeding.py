"""The start of K-Means: random rows, k-means++ on a sample, or k-means|| over all chunks.

Several starts (for several K, or several restarts) share the passes over the data. What each of them draws does
not depend on the others, nor on the chunks: random numbers belong to global row numbers.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from kmeans_dask.kmeans.kernels import Block, Floats, Stack, assign
from kmeans_dask.kmeans.sampling import Data, first_rows, row_uniforms, sample_rows, shifted
from kmeans_dask.reduction import broadcast, map_chunks, tree_reduce

DEFAULT_ROUNDS = 2
"""Rounds of k-means||, each of which costs two passes of K-Means at l = 2k. MNIST, K = 256: two leave the start at 1.84
million, five at 1.65 (k-means++ 2.2), and a few passes later there is no difference."""

_SAMPLE_ROWS_PER_CENTRE = 25
_SAMPLE_BYTES = 256 * 2**20
"""k-means++ runs on at most 25 rows a centre and 256 MiB: it is sequential, and runs in one process."""

_ALL_PAIRS = 4096
"""Rows up to which k-means++ multiplies all pairs beforehand, in 64 MiB of float32; beyond, a few rows at each step."""

_RECLUSTERINGS = 3
"""Times that the candidates of k-means|| are reclustered. Each costs 0.05 s at K = 256."""


@dataclass(frozen=True)
class Start:
    """What is asked of one start.

    Attributes
    ----------
    k
        Number of centres.
    init
        ``"k-means||"``, ``"k-means++"``, ``"random"``, or the centres themselves, (k, n_features).
    oversampling : float
        Rows drawn a round of k-means||, as a multiple of k.
    rounds
        Rounds of k-means||.
    seed
        Of every draw.
    reclusterings
        Times that the candidates of k-means|| are reclustered; the best counts.
    """

    k: int
    init: str | Floats
    oversampling: float
    rounds: int
    seed: int
    reclusterings: int = _RECLUSTERINGS


def choose_starts(data: Data, starts: Sequence[Start]) -> list[Floats]:
    """Choose the first centres.

    Parameters
    ----------
    data
        The rows.
    starts
        One entry a model.

    Returns
    -------
    list of (k, n_features) arrays
        In shifted coordinates. Where the data has fewer distinct rows than k, centres repeat, and a
        ``ConvergenceWarning`` says so.
    """
    parallel = [start for start in starts if is_parallel(start)]
    candidates = iter(_k_means_parallel(data, parallel) if parallel else [])
    centres = []
    for start in starts:
        if not isinstance(start.init, str):
            centres.append(shifted(start.init, data.origin))
        elif start.init == "k-means||":
            rows, weights = next(candidates)
            centres.append(_recluster(rows, weights, start))
        elif start.init == "k-means++":
            centres.append(_plus_plus_on_sample(data, start))
        else:
            centres.append(shifted(sample_rows(data, start.k, start.seed).rows, data.origin))
    return centres


def is_parallel(start: Start) -> bool:
    """Whether a start is k-means||."""
    return isinstance(start.init, str) and start.init == "k-means||"


def _plus_plus_on_sample(data: Data, start: Start) -> Floats:
    """k-means++ on a bounded sample of the rows."""
    bound = _SAMPLE_BYTES // (data.X.shape[1] * 8)
    n_weighty = len(data.X) if data.weights is None else int((data.weights > 0).sum().compute())
    size = max(start.k, min(start.k * _SAMPLE_ROWS_PER_CENTRE, bound, n_weighty))
    sample = sample_rows(data, size, start.seed)
    return plus_plus(shifted(sample.rows, data.origin), sample.weights, start.k, start.seed)


def plus_plus(rows: Floats, weights: NDArray[np.float64], k: int, seed: int) -> Floats:
    """Choose k of the rows by weighted k-means++ (Arthur and Vassilvitskii 2007), greedy as in scikit-learn.

    Each further centre is the best of ``2 + log(k)`` rows that are drawn with probability in proportion to weight times
    squared distance to the nearest centre so far. scikit-learn's own function checks its arguments anew for every
    centre: 0.35 s for 256 of 990 rows, ten passes over 60,000.

    Parameters
    ----------
    rows : (m, n_features) float32 or float64
    weights : (m,) float64
    k
        Number of centres.
    seed
        Of the draws.

    Returns
    -------
    (k, n_features)
        Rows repeat if there are fewer than `k` distinct ones.
    """
    generator = np.random.Generator(np.random.Philox(key=seed))
    trials = 2 + int(np.log(k))
    products = rows @ rows.T if len(rows) <= _ALL_PAIRS else None
    norms = np.einsum("ij,ij->i", rows, rows)
    chosen = [int(generator.choice(len(rows), p=weights / weights.sum()))]
    nearest = _distances(rows, norms, chosen, products)[0]
    while len(chosen) < k:
        cumulated = np.cumsum(weights * nearest)
        drawn = np.searchsorted(cumulated, generator.random(trials) * cumulated[-1]).clip(0, len(rows) - 1)
        tried = np.minimum(nearest, _distances(rows, norms, drawn, products))
        best = int(np.argmin(tried @ weights))
        nearest = tried[best]
        chosen.append(int(drawn[best]))
    return rows[chosen]


def _distances(rows: Floats, norms: Floats, chosen: ArrayLike, products: Floats | None) -> Floats:
    """Squared distances from some rows to all; a row is at 0 from itself, whatever the rounding."""
    some = np.asarray(chosen)
    dots = rows[some] @ rows.T if products is None else products[some]
    distances = np.maximum(norms[some, None] - 2 * dots + norms, 0)
    distances[np.arange(len(some)), some] = 0
    return distances


def _recluster(rows: Floats, weights: NDArray[np.float64], start: Start) -> Floats:
    """Reduce weighted candidates to k centres: weighted k-means++ and Lloyd (Bahmani et al. 2012, step 8)."""
    # in the driver only: importing it costs a worker a second
    from sklearn.cluster import KMeans as LocalKMeans
    from sklearn.exceptions import ConvergenceWarning

    if len(rows) < start.k:
        warnings.warn(
            f"the data has only {len(rows)} distinct rows, fewer than the {start.k} clusters asked for: "
            "centres repeat; choose a smaller K",
            ConvergenceWarning,
            stacklevel=2,
        )
        return np.concatenate([rows, rows[np.arange(start.k - len(rows)) % len(rows)]])
    # one thread: the order of summation, and with it the result, then does not depend on the cores
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # equal candidates; the data itself is looked at above
        tries = [plus_plus(rows, weights, start.k, start.seed + i) for i in range(start.reclusterings)]
        fits = [LocalKMeans(start.k, init=centres, n_init=1).fit(rows, sample_weight=weights) for centres in tries]
    best = min(fits, key=lambda fit: float(fit.inertia_))
    return best.cluster_centers_.astype(rows.dtype, copy=False)


# ---- k-means|| --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Drawn:
    """Rows drawn for one model in one round, so far.

    cost is the sum of weighted squared distances over the chunks seen so far; rows whose key l·d²/u is above it
    would be drawn if there were no other chunks. With every chunk that is combined the cost grows, and rows
    drop out: at the root of the tree exactly the rows with u < l·d²/cost are left, one read of the data a round.
    """

    cost: float
    keys: NDArray[np.float64]
    rows: NDArray
    index: NDArray[np.int64]
    weight_of: NDArray[np.float64]  # of every candidate so far: the total weight of the rows nearest to it


@dataclass(frozen=True)
class _Costs:
    """What a chunk remembers between rounds, for every model: (n_models, rows)."""

    first_row: int
    distances: NDArray[np.float32]  # squared, to the nearest candidate so far
    nearest: NDArray[np.int32]  # which candidate that is, counted over all rounds
    drawn: list[_Drawn]


@dataclass(frozen=True)
class _Round:
    """What every chunk needs to know of a round."""

    number: int
    new: Stack
    known: list[int]  # candidates of each model before the new ones
    draws: list[float]  # l, expected number of rows drawn for each model
    seeds: list[int]


def _k_means_parallel(data: Data, starts: Sequence[Start]) -> list[tuple[Floats, NDArray[np.float64]]]:
    """Weighted k-means|| (Bahmani et al. 2012, algorithm 2) for several starts at once.

    Returns
    -------
    list of (candidates, weights)
        (c, n_features) in shifted coordinates, c about rounds * oversampling * k; (c,) float64.
    """
    candidates = [shifted(sample_rows(data, 1, start.seed).rows, data.origin) for start in starts]
    new = candidates
    wanting = [True] * len(starts)
    state = first_rows(data.X)
    number = 0
    while True:
        known = [len(old) - len(added) for old, added in zip(candidates, new, strict=True)]
        draws = [s.oversampling * s.k if wants else 0.0 for s, wants in zip(starts, wanting, strict=True)]
        plan = _Round(number, Stack.of(new, data.origin), known, draws, [start.seed for start in starts])
        state = map_chunks(_update_costs, data.X, data.weights, state, plan=broadcast(plan)).persist()
        drawn = tree_reduce(map_chunks(_take_drawn, state), _combine_drawn).compute().models
        number += 1
        wanting = [
            d.cost > 0 and (number < start.rounds or bool(np.count_nonzero(d.weight_of) < start.k))
            for start, d in zip(starts, drawn, strict=True)
        ]
        if not any(wanting) and not any(len(d.keys) for d in drawn):
            # a candidate without weight repeats an earlier one
            return [
                (rows[d.weight_of > 0], d.weight_of[d.weight_of > 0]) for rows, d in zip(candidates, drawn, strict=True)
            ]
        added = [shifted(d.rows[np.argsort(d.index)], data.origin) for d in drawn]
        candidates = [np.concatenate(pair) for pair in zip(candidates, added, strict=True)]
        # a model that drew nothing is measured against its last candidate once more, which changes nothing
        new = [rows if len(rows) else old[-1:] for rows, old in zip(added, candidates, strict=True)]


@dataclass(frozen=True)
class _DrawnModels:
    models: list[_Drawn]


def _take_drawn(costs: _Costs) -> _DrawnModels:
    return _DrawnModels(costs.drawn)


def _combine_drawn(parts: list[_DrawnModels]) -> _DrawnModels:
    return _DrawnModels([_merge_drawn(list(models)) for models in zip(*(p.models for p in parts), strict=True)])


def _merge_drawn(parts: list[_Drawn]) -> _Drawn:
    cost = float(sum(part.cost for part in parts))
    keys = np.concatenate([part.keys for part in parts])
    keep = keys > cost
    return _Drawn(
        cost=cost,
        keys=keys[keep],
        rows=np.concatenate([part.rows for part in parts])[keep],
        index=np.concatenate([part.index for part in parts])[keep],
        weight_of=np.sum([part.weight_of for part in parts], axis=0),
    )


def _update_costs(
    block: Block, weights: NDArray[np.float64] | None, state: _Costs | NDArray[np.int64], *, plan: _Round
) -> _Costs:
    """Measure a block against the new candidates only, and draw from it."""
    n_models, n = len(plan.known), len(block)
    if isinstance(state, _Costs):
        first_row, old_distances, old_nearest = state.first_row, state.distances, state.nearest
    else:
        first_row = int(state[0])
        old_distances = np.full((n_models, n), np.inf, np.float32)
        old_nearest = np.full((n_models, n), -1, np.int32)
    nearest, exact = assign(block, plan.new)
    closer = exact.astype(np.float32) < old_distances
    distances = np.where(closer, exact.astype(np.float32), old_distances)
    nearest = np.where(closer, nearest + np.array(plan.known, np.int32)[:, None], old_nearest)
    sizes = np.diff(plan.new.offsets)
    drawn = []
    for m in range(n_models):
        cost = distances[m].astype(np.float64) if weights is None else distances[m] * weights
        uniforms = row_uniforms(first_row, first_row + n, plan.seeds[m], plan.number)
        with np.errstate(divide="ignore", invalid="ignore"):
            keys = np.where(cost > 0, plan.draws[m] * cost / uniforms, 0.0)
        total = float(cost.sum())
        (picked,) = np.nonzero(keys > total)
        drawn.append(
            _Drawn(
                cost=total,
                keys=keys[picked],
                rows=block[picked],
                index=first_row + picked,
                weight_of=np.bincount(nearest[m], weights, plan.known[m] + sizes[m]).astype(np.float64),
            )
        )
    return _Costs(first_row, distances, nearest, drawn)
