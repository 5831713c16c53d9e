"""Mini-batch K-Means on Dask arrays: every step draws a sample of the rows from all chunks in parallel."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

import dask.array as da
import numpy as np
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from kmeans_dask.kmeans.batches import Batch, BatchPlan, combine_batches, draw_batch
from kmeans_dask.kmeans.coreset import init_on_sample, init_sample
from kmeans_dask.kmeans.estimator import KMeans, init_specs, set_fitted_attributes
from kmeans_dask.kmeans.kernels import Floats, Stack
from kmeans_dask.kmeans.lloyd import Checkpoint, FitState, assign_all, prepare
from kmeans_dask.kmeans.sampling import Data, row_offsets, shifted
from kmeans_dask.kmeans.seeding import InitSpec, choose_centres
from kmeans_dask.kmeans.validation import as_rows, as_weights
from kmeans_dask.reduction import broadcast, map_chunks, tree_reduce

_INIT_ROWS_PER_CENTRE = 10
"""Sample rows per centre that the initial centres are chosen from, before the whole sample refines them. Five times as
many take 0.2 s longer at K = 256 and lead to centres of the same quality."""

_INIT_GAIN = 1e-2
"""Refinement on the sample stops once a pass lowers its inertia by less than this fraction: from then on, a batch of
unseen rows gains more."""

_MIN_GAIN = 5e-3
"""Fraction by which a step must lower the smoothed inertia to count as an improvement: the estimate from a batch of 96
rows per centre is itself off by 0.2 %."""

_SMOOTHING = 2.0
"""The newest batch has weight `_SMOOTHING` * batch_size / n_samples in the smoothed inertia, as in scikit-learn."""


class MiniBatchKMeans(KMeans):
    """Mini-batch K-Means clustering for Dask arrays.

    Parameters
    ----------
    n_clusters : int, default 8
        Number of clusters K.
    init : {"k-means||", "k-means++", "random"} or array-like of shape (n_clusters, n_features), default "k-means||"
        Method to choose the initial centres from a random sample of 50 rows per centre, which then refines them; or
        the centres themselves.
    max_iter : int, default 100
        Maximum number of epochs; in an epoch, as many rows are drawn as the data has.
    batch_size : int, optional
        Expected number of rows per step, over all chunks; default 96 per cluster, at least 16,384. On a cluster, every
        step has an overhead of 40 ms, the time to process 16,000 rows of MNIST at K = 256.
    tol : float, default 0
        The fit stops when the mean squared shift of the centres is at most `tol` times the mean variance of the
        features. 0 disables this criterion.
    max_no_improvement : int or None, default 1
        The fit stops after this many consecutive steps that lower the smoothed inertia by less than 0.5 %. None
        disables this criterion.
    reassignment_ratio : float, default 0.01
        A centre with less than this fraction of the rows of the largest cluster is reassigned to a random row.
    random_state : int, RandomState or None
        Random seed.
    n_init : int or "auto", default "auto"
        Number of initializations to try; the one with the lowest inertia on the sample is used. "auto" is 1.
    oversampling_factor, init_max_iter
        As for `KMeans`.

    Attributes
    ----------
    cluster_centers_, labels_, inertia_, n_features_in_
        As for `KMeans`.
    inertia_history_ : ndarray of shape (n_steps_,), float64
        Inertia of every batch, scaled to all rows.
    n_iter_ : int
        Number of epochs, rounded up.
    n_steps_ : int
        Number of batches.
    counts_ : ndarray of shape (n_clusters,), float64
        Number of rows, or their total weight, that contributed to each centre; `partial_fit` adds to it.

    See Also
    --------
    KMeans : Reads all rows in every pass; takes longer and reaches a lower inertia.

    References
    ----------
    D. Sculley, Web-scale k-means clustering, 2010: per-centre learning rates. A batch is added as a whole, as in
    scikit-learn: each centre is the mean of all rows ever assigned to it.
    """

    def __init__(
        self,
        n_clusters: int = 8,
        init: str | ArrayLike = "k-means||",
        max_iter: int = 100,
        batch_size: int | None = None,
        tol: float = 0.0,
        max_no_improvement: int | None = 1,
        reassignment_ratio: float = 0.01,
        random_state: int | np.random.RandomState | None = None,
        n_init: int | str = "auto",
        oversampling_factor: float = 2,
        init_max_iter: int | None = None,
    ) -> None:
        super().__init__(
            n_clusters=n_clusters,
            init=init,
            max_iter=max_iter,
            tol=tol,
            random_state=random_state,
            n_init=n_init,
            oversampling_factor=oversampling_factor,
            init_max_iter=init_max_iter,
        )
        self.batch_size = batch_size
        self.max_no_improvement = max_no_improvement
        self.reassignment_ratio = reassignment_ratio

    def fit(self, X: Any, y: None = None, sample_weight: ArrayLike | da.Array | None = None) -> Self:
        """Compute mini-batch K-Means clustering.

        Parameters
        ----------
        X : array-like or dataframe of shape (n_samples, n_features)
            As for `KMeans.fit`.
        y
            Ignored.
        sample_weight : array-like of shape (n_samples,), optional
            Non-negative weight of every row.

        Returns
        -------
        MiniBatchKMeans
            The fitted estimator.

        Raises
        ------
        ValueError
            As for `KMeans.fit`.
        """
        return self.fit_from(None, X, sample_weight)

    def fit_from(
        self, checkpoint: Checkpoint | None, X: Any, sample_weight: ArrayLike | da.Array | None = None
    ) -> Self:
        """Fit as `fit` does, resuming from a checkpoint if it holds a state of this fit.

        Parameters
        ----------
        checkpoint
            Stores the state between steps; the result is bitwise the same. None: as `fit`.
        X, sample_weight
            As for `fit`.

        Returns
        -------
        MiniBatchKMeans
            The fitted estimator.

        Raises
        ------
        ValueError
            As for `KMeans.fit`.
        """
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size!r}; must be None or an integer >= 1")
        X = as_rows(X)
        specs = init_specs(self, X)
        with threadpool_limits(1, user_api="blas"):
            data, tolerance = self._prepare(X, as_weights(sample_weight, X))
            if checkpoint and (saved := checkpoint.read()):
                state = _MiniBatchState(**saved[0])
            else:
                state = _MiniBatchState(*self._initial_centres(data, specs), tolerance)
            self._iterate(data, state, specs[0].seed, checkpoint)
            (assignment,) = assign_all(data, [state.centres])
        history = [mean * data.total for mean in state.history]
        set_fitted_attributes(
            self, data, FitState(state.centres, tolerance=0.0, max_iter=1, history=history), assignment
        )
        self.counts_ = state.counts
        self.n_steps_ = len(state.history)
        self.n_iter_ = int(np.ceil(self.n_steps_ * self._probability(len(X))))
        return self

    def partial_fit(self, X: Any, y: None = None, sample_weight: ArrayLike | da.Array | None = None) -> Self:
        """Update the centres with one more batch; the first call also initializes them from it.

        Parameters
        ----------
        X : array-like or dataframe of shape (n_samples, n_features)
            As for `KMeans.fit`. All rows are used.
        y
            Ignored.
        sample_weight : array-like of shape (n_samples,), optional
            Non-negative weight of every row.

        Returns
        -------
        MiniBatchKMeans
            The updated estimator. `labels_` and `inertia_` are those of this batch.

        Raises
        ------
        ValueError
            As for `KMeans.fit`, or if the number of features differs from earlier batches.
        """
        X = self._check_array(X)
        with threadpool_limits(1, user_api="blas"):
            data, _ = self._prepare(X, as_weights(sample_weight, X))
            if hasattr(self, "counts_"):
                centres, counts = shifted(self.cluster_centers_, data.origin), self.counts_.copy()
            else:  # counts start at 0, because the batch contains the rows that the centres are chosen from
                centres, _ = self._initial_centres(data, init_specs(self, X))
                counts = np.zeros(self.n_clusters)
            state = _MiniBatchState(centres, counts, 0.0)
            plan = BatchPlan(Stack.of([state.centres], data.origin), probability=1.0, seed=0, step=0, n_replacements=0)
            objects = map_chunks(draw_batch, data.X, data.weights, row_offsets(data.X), plan=broadcast(plan))
            batch: Batch = tree_reduce(objects, partial(combine_batches, n_replacements=0)).compute()
            state.update(batch, np.empty(0, np.int64))
            (assignment,) = assign_all(data, [state.centres])
        history = [*getattr(self, "inertia_history_", []), state.history[0] * data.total]
        set_fitted_attributes(
            self, data, FitState(state.centres, tolerance=0.0, max_iter=1, history=history), assignment
        )
        self.counts_ = state.counts
        self.n_steps_ = self.n_iter_ = len(history)
        return self

    def _prepare(self, X: da.Array, weights: da.Array | None) -> tuple[Data, float]:
        """Return the rows and the tolerance of the fit; for unweighted uint8 and `tol` 0, this needs no pass."""
        if X.dtype == np.uint8 and weights is None and self.tol == 0:
            return Data(X, None, None, float(len(X))), 0.0
        data, moments = prepare(X, weights)
        return data, self.tol * float(moments.squared_deviations.mean() / moments.weight)

    def _probability(self, n: int) -> float:
        """Probability that a row is drawn in a step."""
        batch_size = max(16_384, 96 * self.n_clusters) if self.batch_size is None else self.batch_size
        return min(batch_size / n, 1.0)

    def _initial_centres(self, data: Data, specs: list[InitSpec]) -> tuple[Floats, NDArray[np.float64]]:
        """Choose and refine centres on a sample; return the best ones and the number of rows behind each.

        Centres given by the user start with a count of 0, so the first batch replaces them.
        """
        if not isinstance(specs[0].init, str):
            return choose_centres(data, specs)[0], np.zeros(self.n_clusters)
        sample = init_sample(data, self.n_clusters, specs[0].seed)
        specs = [replace(spec, reclusterings=1) for spec in specs]
        states = [init_on_sample(sample, spec, _INIT_GAIN, _INIT_ROWS_PER_CENTRE) for spec in specs]
        best = min(states, key=lambda state: state.history[-1])
        # weights scale the sample up to all rows, but it carries no more information than its own rows
        scale = 1.0 if sample.weights is None else len(sample.X) / len(data.X)
        return best.centres, best.counts * scale

    def _iterate(self, data: Data, state: _MiniBatchState, seed: int, checkpoint: Checkpoint | None) -> None:
        probability = self._probability(len(data.X))
        smoothing = min(_SMOOTHING * probability, 1.0)
        offsets = row_offsets(data.X).persist()
        for step in range(state.step, int(np.ceil(self.max_iter / probability))):
            stack = Stack.of([state.centres], data.origin)
            plan = BatchPlan(stack, probability, seed, step, len(state.to_reassign))
            objects = map_chunks(draw_batch, data.X, data.weights, offsets, plan=broadcast(plan))
            combine = partial(combine_batches, n_replacements=len(state.to_reassign))
            batch: Batch = tree_reduce(objects, combine).compute()
            if not batch.sums.counts.any():
                continue
            shift = state.update(batch, state.to_reassign)
            if shift <= state.tolerance and self.tol > 0:
                return
            if state.stalled(smoothing, self.max_no_improvement):
                return
            state.to_reassign = self._centres_to_reassign(state, np.random.default_rng((seed, step)))
            state.step = step + 1
            if checkpoint:
                checkpoint.write([vars(state)])

    def _centres_to_reassign(self, state: _MiniBatchState, generator: np.random.Generator) -> NDArray[np.int64]:
        """Return the centres with too few rows; checked after ten rows per centre, and while a centre has none."""
        if state.rows_since_reassignment < 10 * self.n_clusters and state.counts.all():
            return np.empty(0, np.int64)
        state.rows_since_reassignment = 0.0
        (small,) = np.nonzero(state.counts < self.reassignment_ratio * state.counts.max())
        limit = max(1, self.n_clusters // 2)
        return generator.permutation(small)[:limit] if len(small) > limit else small


@dataclass
class _MiniBatchState:
    """State of a fit between steps.

    Attributes
    ----------
    centres : (k, n_features)
        Current centres in shifted coordinates.
    counts : (k,) float64
        Number of rows, or their total weight, that contributed to each centre.
    tolerance : float
        Mean squared shift of the centres at which the fit stops.
    history : list of float
        Mean inertia per row of every batch.
    step : int
        Number of the next step.
    to_reassign : (n,) int64
        Centres that the next step moves to random rows.
    rows_since_reassignment : float
        Rows drawn, or their total weight, since centres were last checked for reassignment.
    smoothed, lowest : float
        Exponentially smoothed inertia, and its minimum so far.
    steps_without_improvement : int
        Consecutive steps that did not lower the minimum.
    """

    centres: Floats
    counts: NDArray[np.float64]
    tolerance: float
    history: list[float] = field(default_factory=list)
    step: int = 0
    to_reassign: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    rows_since_reassignment: float = 0.0
    smoothed: float = np.inf
    lowest: float = np.inf
    steps_without_improvement: int = 0

    def update(self, batch: Batch, to_reassign: NDArray[np.int64]) -> float:
        """Update the centres with a batch and return the mean squared shift of all centres."""
        old = self.centres.astype(np.float64)
        counts = batch.sums.counts.astype(np.float64)
        explained = 2 * np.einsum("ij,ij->", batch.sums.sums, old) - counts @ np.einsum("ij,ij->i", old, old)
        self.history.append(max(batch.sum_of_squares - float(explained), 0.0) / counts.sum())
        self.counts += counts
        rates = np.divide(1.0, self.counts, out=np.zeros_like(counts), where=self.counts > 0)
        centres = old + (batch.sums.sums - counts[:, None] * old) * rates[:, None]
        reassigned = to_reassign[: len(batch.replacements)]
        centres[reassigned] = batch.replacements[: len(reassigned)]
        if len(reassigned):  # give them the count of the smallest other cluster, as in scikit-learn
            others = np.delete(self.counts, reassigned)
            self.counts[reassigned] = others.min() if len(others) else 1.0
        self.rows_since_reassignment += float(counts.sum())
        self.centres = centres.astype(self.centres.dtype)
        return float(((self.centres - old) ** 2).sum(axis=1).mean())

    def stalled(self, smoothing: float, patience: int | None) -> bool:
        """Whether the smoothed inertia has not improved for `patience` steps; the first step does not count."""
        newest = self.history[-1]
        if len(self.history) == 1:
            return False
        self.smoothed = newest if self.smoothed == np.inf else self.smoothed * (1 - smoothing) + newest * smoothing
        if self.smoothed < self.lowest * (1 - _MIN_GAIN):
            self.steps_without_improvement = 0
        else:
            self.steps_without_improvement += 1
        self.lowest = min(self.lowest, self.smoothed)
        return patience is not None and self.steps_without_improvement >= patience
