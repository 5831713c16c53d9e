"""Initial centres of K-Means: random rows, k-means++ on a sample, or k-means|| over all chunks.

Several initializations (for several K, or several restarts) share the passes over the data. The draws of each depend
neither on the others nor on the chunks: random numbers are keyed by global row indices.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from kmeans_dask.kmeans.kernels import Block, Floats, Stack, assign
from kmeans_dask.kmeans.sampling import Data, row_offsets, row_uniforms, sample_rows, shifted
from kmeans_dask.reduction import broadcast, map_chunks, tree_reduce

InitMethod = Literal["k-means||", "k-means++", "random"]
INIT_METHODS: tuple[InitMethod, ...] = get_args(InitMethod)

DEFAULT_ROUNDS = 2
"""Rounds of k-means||, each as expensive as two passes of K-Means at l = 2k. MNIST, K = 256: the initial inertia is
1.84 million after two rounds, 1.65 after five, 2.2 with k-means++; a few passes later there is no difference."""

_SAMPLE_ROWS_PER_CENTRE = 25
_SAMPLE_BYTES = 256 * 2**20
"""k-means++ is sequential and runs in one process, so it is limited to 25 rows per centre and 256 MiB."""

_ALL_PAIRS = 4096
"""Up to this many rows, k-means++ computes all products of pairs in advance, 64 MiB of float32; above, those of a few
rows per step."""

_RECLUSTERINGS = 3
"""Number of times the candidates of k-means|| are reclustered, 0.05 s each at K = 256."""


@dataclass(frozen=True)
class InitSpec:
    """How to choose the initial centres of one model.

    Attributes
    ----------
    k : int
        Number of centres.
    init : {"k-means||", "k-means++", "random"} or (k, n_features) array
        Method, or the centres themselves.
    oversampling : float
        Expected rows drawn per round of k-means||, as a multiple of k.
    rounds : int
        Rounds of k-means||.
    seed : int
        Random seed.
    reclusterings : int
        Number of times the candidates of k-means|| are reclustered; the lowest inertia wins.
    """

    k: int
    init: str | Floats
    oversampling: float
    rounds: int
    seed: int
    reclusterings: int = _RECLUSTERINGS

    @property
    def is_parallel(self) -> bool:
        """Whether the method is k-means||."""
        return isinstance(self.init, str) and self.init == "k-means||"


def choose_centres(data: Data, specs: Sequence[InitSpec]) -> list[Floats]:
    """Choose initial centres for several models.

    Parameters
    ----------
    data
        All rows.
    specs
        One entry per model.

    Returns
    -------
    list of (k, n_features) arrays
        In shifted coordinates. If the data has fewer than k distinct rows, centres repeat; k-means|| then issues a
        ``ConvergenceWarning``.

    Raises
    ------
    ValueError
        Fewer than k rows have a weight above 0.
    """
    parallel = [spec for spec in specs if spec.is_parallel]
    candidates = iter(_k_means_parallel(data, parallel) if parallel else [])
    centres = []
    for spec in specs:
        if not isinstance(spec.init, str):
            centres.append(shifted(spec.init, data.origin))
        elif spec.is_parallel:
            rows, weights = next(candidates)
            centres.append(_recluster(rows, weights, spec))
        elif spec.init == "k-means++":
            centres.append(_plus_plus_on_sample(data, spec))
        else:
            centres.append(shifted(sample_rows(data, spec.k, spec.seed).rows, data.origin))
    return centres


def _plus_plus_on_sample(data: Data, spec: InitSpec) -> Floats:
    """Run k-means++ on a bounded sample of the rows."""
    limit = _SAMPLE_BYTES // (data.X.shape[1] * 8)
    n_weighted = len(data.X) if data.weights is None else int((data.weights > 0).sum().compute())
    size = max(spec.k, min(spec.k * _SAMPLE_ROWS_PER_CENTRE, limit, n_weighted))
    sample = sample_rows(data, size, spec.seed)
    return plus_plus(shifted(sample.rows, data.origin), sample.weights, spec.k, spec.seed)


def plus_plus(rows: Floats, weights: NDArray[np.float64], k: int, seed: int) -> Floats:
    """Choose k of the rows by weighted k-means++ (Arthur and Vassilvitskii 2007), greedy as in scikit-learn.

    Each further centre is the best of ``2 + log(k)`` rows drawn with probability proportional to weight times squared
    distance to the nearest centre so far. scikit-learn's function validates its arguments for every centre: it takes
    0.35 s for 256 of 990 rows, as long as ten passes over 60,000 rows.

    Parameters
    ----------
    rows : (n_rows, n_features) float32 or float64
    weights : (n_rows,) float64
    k
        Number of centres.
    seed
        Random seed.

    Returns
    -------
    (k, n_features)
        Rows repeat if fewer than `k` are distinct.
    """
    generator = np.random.Generator(np.random.Philox(key=seed))
    trials = 2 + int(np.log(k))
    products = rows @ rows.T if len(rows) <= _ALL_PAIRS else None
    norms = np.einsum("ij,ij->i", rows, rows)
    chosen = [int(generator.choice(len(rows), p=weights / weights.sum()))]
    nearest = _distances(rows, norms, chosen, products)[0]
    while len(chosen) < k:
        cumulative = np.cumsum(weights * nearest)
        drawn = np.searchsorted(cumulative, generator.random(trials) * cumulative[-1]).clip(0, len(rows) - 1)
        trial_nearest = np.minimum(nearest, _distances(rows, norms, drawn, products))
        best = int(np.argmin(trial_nearest @ weights))
        nearest = trial_nearest[best]
        chosen.append(int(drawn[best]))
    return rows[chosen]


def _distances(rows: Floats, norms: Floats, indices: ArrayLike, products: Floats | None) -> Floats:
    """Return the squared distances from the rows at `indices` to all rows; exactly 0 to themselves."""
    sources = np.asarray(indices)
    dots = rows[sources] @ rows.T if products is None else products[sources]
    distances = np.maximum(norms[sources, None] - 2 * dots + norms, 0)
    distances[np.arange(len(sources)), sources] = 0
    return distances


def _recluster(rows: Floats, weights: NDArray[np.float64], spec: InitSpec) -> Floats:
    """Reduce weighted candidates to k centres by weighted k-means++ and Lloyd (Bahmani et al. 2012, step 8)."""
    # imported here because only the driver needs it; every worker would spend a second on it
    from sklearn.cluster import KMeans as LocalKMeans
    from sklearn.exceptions import ConvergenceWarning

    if len(rows) < spec.k:
        warnings.warn(
            f"the data has only {len(rows)} distinct rows, fewer than the {spec.k} clusters requested: "
            "centres repeat; choose a smaller K",
            ConvergenceWarning,
            stacklevel=2,
        )
        return np.concatenate([rows, rows[np.arange(spec.k - len(rows)) % len(rows)]])
    # one thread: otherwise the order of summation, and the result, would depend on the number of cores
    with threadpool_limits(1), warnings.catch_warnings():
        # of nearly equal candidates; too few distinct ones were reported above
        warnings.simplefilter("ignore", ConvergenceWarning)
        seedings = [plus_plus(rows, weights, spec.k, spec.seed + i) for i in range(spec.reclusterings)]
        fits = [LocalKMeans(spec.k, init=init, n_init=1).fit(rows, sample_weight=weights) for init in seedings]
    best = min(fits, key=lambda fit: float(fit.inertia_))
    return best.cluster_centers_.astype(rows.dtype, copy=False)


# ---- k-means|| -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Draws:
    """Rows drawn for one model in one round, from the chunks combined so far.

    A row is drawn if its key l·d²/u exceeds `cost`, the sum of weighted squared distances over these chunks. The cost
    grows with every chunk that is combined, and rows drop out: at the root of the tree exactly the rows with
    u < l·d²/cost are left, so a round reads the data only once.

    Attributes
    ----------
    cost : float
        Weighted sum of squared distances to the nearest candidate so far.
    keys : (n,) float64
        Keys of the drawn rows.
    rows : (n, n_features)
        The drawn rows, in the dtype and coordinates of the data.
    index : (n,) int64
        Global indices of the drawn rows.
    candidate_weights : (n_candidates,) float64
        Total weight of the rows nearest to each candidate of earlier rounds.
    """

    cost: float
    keys: NDArray[np.float64]
    rows: NDArray
    index: NDArray[np.int64]
    candidate_weights: NDArray[np.float64]


@dataclass(frozen=True)
class _ChunkState:
    """State of one chunk between rounds; arrays have shape (n_models, n_rows)."""

    row_offset: int
    distances: NDArray[np.float32]  # squared, to the nearest candidate so far
    nearest: NDArray[np.int32]  # index of that candidate among those of all rounds
    draws: list[_Draws]


@dataclass(frozen=True)
class _Round:
    """Parameters of one round, the same for every chunk."""

    number: int
    new: Stack  # candidates that the last round drew
    n_known: list[int]  # older candidates of each model
    n_draws: list[float]  # l, the expected number of rows to draw for each model
    seeds: list[int]


def _k_means_parallel(data: Data, specs: Sequence[InitSpec]) -> list[tuple[Floats, NDArray[np.float64]]]:
    """Weighted k-means|| (Bahmani et al. 2012, algorithm 2) for several models at once.

    Returns
    -------
    list of (candidates, weights)
        About ``rounds * oversampling * k`` candidates per model: (n_candidates, n_features) in shifted coordinates, and
        (n_candidates,) float64.
    """
    candidates = [shifted(sample_rows(data, 1, spec.seed).rows, data.origin) for spec in specs]
    new = candidates
    unfinished = [True] * len(specs)
    state = row_offsets(data.X)
    number = 0
    # A round measures the distances to the candidates that the last round drew, and draws new ones. One more round
    # after the last draw weights the candidates. A model that is finished before the others draws nothing any more.
    while True:
        n_known = [len(old) - len(added) for old, added in zip(candidates, new, strict=True)]
        n_draws = [
            spec.oversampling * spec.k if draws_more else 0.0
            for spec, draws_more in zip(specs, unfinished, strict=True)
        ]
        plan = _Round(number, Stack.of(new, data.origin), n_known, n_draws, [spec.seed for spec in specs])
        state = map_chunks(_update_chunk, data.X, data.weights, state, plan=broadcast(plan)).persist()
        draws = tree_reduce(map_chunks(_draws_of, state), _combine_draws).compute().models
        number += 1
        unfinished = [
            drawn.cost > 0 and (number < spec.rounds or bool(np.count_nonzero(drawn.candidate_weights) < spec.k))
            for spec, drawn in zip(specs, draws, strict=True)
        ]
        if not any(unfinished) and not any(len(drawn.keys) for drawn in draws):
            # drop candidates of weight 0: they duplicate an earlier one
            return [
                (rows[drawn.candidate_weights > 0], drawn.candidate_weights[drawn.candidate_weights > 0])
                for rows, drawn in zip(candidates, draws, strict=True)
            ]
        added = [shifted(drawn.rows[np.argsort(drawn.index)], data.origin) for drawn in draws]
        candidates = [np.concatenate(pair) for pair in zip(candidates, added, strict=True)]
        # a stack needs a centre of every model; measuring the last candidate again changes nothing
        new = [rows if len(rows) else old[-1:] for rows, old in zip(added, candidates, strict=True)]


@dataclass(frozen=True)
class _DrawsByModel:
    models: list[_Draws]


def _draws_of(state: _ChunkState) -> _DrawsByModel:
    return _DrawsByModel(state.draws)


def _combine_draws(parts: list[_DrawsByModel]) -> _DrawsByModel:
    return _DrawsByModel([_merge_draws(list(models)) for models in zip(*(p.models for p in parts), strict=True)])


def _merge_draws(parts: list[_Draws]) -> _Draws:
    cost = float(sum(part.cost for part in parts))
    keys = np.concatenate([part.keys for part in parts])
    keep = keys > cost
    return _Draws(
        cost=cost,
        keys=keys[keep],
        rows=np.concatenate([part.rows for part in parts])[keep],
        index=np.concatenate([part.index for part in parts])[keep],
        candidate_weights=np.sum([part.candidate_weights for part in parts], axis=0),
    )


def _update_chunk(
    block: Block, weights: NDArray[np.float64] | None, state: _ChunkState | NDArray[np.int64], *, plan: _Round
) -> _ChunkState:
    """Update the distances with those to the new candidates, and draw rows of the block."""
    n_models, n = len(plan.n_known), len(block)
    if isinstance(state, _ChunkState):
        row_offset, old_distances, old_nearest = state.row_offset, state.distances, state.nearest
    else:
        row_offset = int(state[0])
        old_distances = np.full((n_models, n), np.inf, np.float32)
        old_nearest = np.full((n_models, n), -1, np.int32)
    nearest, exact = assign(block, plan.new)
    closer = exact.astype(np.float32) < old_distances
    distances = np.where(closer, exact.astype(np.float32), old_distances)
    nearest = np.where(closer, nearest + np.array(plan.n_known, np.int32)[:, None], old_nearest)
    n_new = np.diff(plan.new.offsets)
    draws = []
    for m in range(n_models):
        cost = distances[m].astype(np.float64) if weights is None else distances[m] * weights
        uniforms = row_uniforms(row_offset, row_offset + n, plan.seeds[m], plan.number)
        with np.errstate(divide="ignore", invalid="ignore"):
            keys = np.where(cost > 0, plan.n_draws[m] * cost / uniforms, 0.0)
        total = float(cost.sum())
        (picked,) = np.nonzero(keys > total)
        draws.append(
            _Draws(
                cost=total,
                keys=keys[picked],
                rows=block[picked],
                index=row_offset + picked,
                candidate_weights=np.bincount(nearest[m], weights, plan.n_known[m] + n_new[m]).astype(np.float64),
            )
        )
    return _ChunkState(row_offset, distances, nearest, draws)
