"""Mini-batch K-Means on Dask arrays: every step reads a sample of the rows of all chunks, in parallel."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Self

import dask.array as da
import numpy as np
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from kmeans_dask.kmeans.batches import Batch, Plan, combine_batches, draw_batch
from kmeans_dask.kmeans.coreset import sample_for, start_on
from kmeans_dask.kmeans.estimator import KMeans, finish, starts_of
from kmeans_dask.kmeans.kernels import Floats, Stack
from kmeans_dask.kmeans.lloyd import Checkpoint, FitState, assign_all, prepare
from kmeans_dask.kmeans.sampling import Data, first_rows, shifted
from kmeans_dask.kmeans.seeding import Start, choose_starts
from kmeans_dask.kmeans.validation import as_rows, as_weights
from kmeans_dask.reduction import broadcast, map_chunks, tree_reduce

_START_ROWS_PER_CENTRE = 10
"""Rows a centre of the sample that a start is chosen from, before all of the sample refines it: a start from five times
as many takes 0.2 s more at K = 256, and the refined centres are as good."""

_START_GAIN = 1e-2
"""The sample is left when a pass lowers its inertia by less than this share: a batch of unseen rows gains more."""

_LEAST_GAIN = 5e-3
"""Share of the inertia by which a step must lower it to count as an improvement: the estimate of a batch of 96 rows a
centre is off by 0.2 % itself."""

_SMOOTHED_ROWS = 2.0
"""Weight of the newest batch in the smoothed inertia: this many batch sizes a row of the data (scikit-learn)."""


class MiniBatchKMeans(KMeans):
    """Mini-batch K-Means for Dask arrays.

    Parameters
    ----------
    n_clusters : int, default 8
        Number of clusters K.
    init : {"k-means||", "k-means++", "random"} or array of shape (K, n_features), default "k-means||"
        How the first centres are chosen: on a random sample of 50 rows a centre, on which they are then refined.
    max_iter : int, default 100
        Times that as many rows are drawn as the data has, at most.
    batch_size : int, optional
        Expected rows a step, over all chunks; default 96 a cluster, at least 16,384. A step costs the cluster 40 ms,
        whatever its size: as much as 16,000 rows of MNIST at K = 256.
    tol : float, default 0
        A model is finished when the mean squared shift of its centres is at most `tol` times the mean variance of
        the features. 0: it is not looked at.
    max_no_improvement : int or None, default 1
        Steps that lower the smoothed inertia by less than 0.5 % after which the model is finished.
    reassignment_ratio : float, default 0.01
        A centre with less than this share of the rows of the largest one is moved to a random row.
    random_state : int, RandomState or None
        Seed of every draw.
    n_init : int or "auto", default "auto"
        Starts that are tried; the one with the lowest inertia over the sample goes on. "auto" is 1.
    oversampling_factor, init_max_iter
        As for `KMeans`.

    Attributes
    ----------
    cluster_centers_, labels_, inertia_, n_features_in_
        As for `KMeans`.
    inertia_history_ : (n_steps_,) float64
        Inertia of every batch, scaled to all rows.
    n_iter_ : int
        Times the data was gone through, rounded up.
    n_steps_ : int
        Batches.
    counts_ : (K,) float64
        Rows, or weight, that made each centre: `partial_fit` goes on from there.

    References
    ----------
    D. Sculley, Web-scale k-means clustering, 2010: learning rates by centre. A batch is added at once, as in
    scikit-learn: each centre is the mean of all rows it ever attracted.
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
        """Fit the centres.

        Parameters
        ----------
        X : (n, n_features)
            As for `KMeans.fit`.
        y
            Ignored.
        sample_weight : (n,), optional
            Weight of every row, not negative.

        Returns
        -------
        MiniBatchKMeans
            Itself.

        Raises
        ------
        ValueError
            As for `KMeans.fit`.
        """
        return self.fit_from(None, X, sample_weight)

    def fit_from(
        self, checkpoint: Checkpoint | None, X: Any, sample_weight: ArrayLike | da.Array | None = None
    ) -> Self:
        """Fit the centres as `fit` does, with the state of the steps kept, and found again, in a checkpoint.

        Parameters
        ----------
        checkpoint
            The result is the same to the last bit. None: as `fit`.
        X, sample_weight
            As for `fit`.

        Returns
        -------
        MiniBatchKMeans
            Itself.

        Raises
        ------
        ValueError
            As for `KMeans.fit`.
        """
        if self.batch_size is not None and self.batch_size < 1:
            raise ValueError(f"batch_size={self.batch_size!r}; allowed are None and integers from 1")
        X = as_rows(X)
        starts = starts_of(self, X)
        with threadpool_limits(1, user_api="blas"):
            data, tolerance = self._prepare(X, as_weights(sample_weight, X))
            if checkpoint and (states := checkpoint.read()):
                steps = _Steps(**states[0])
            else:
                steps = _Steps(*self._start(data, starts), tolerance)
            self._iterate(data, steps, starts[0].seed, checkpoint)
            (assignment,) = assign_all(data, [steps.centres])
        history = [mean * data.total for mean in steps.history]
        finish(self, data, FitState(steps.centres, 0.0, 1, history=history), assignment)
        self.counts_ = steps.counts
        self.n_steps_ = len(steps.history)
        self.n_iter_ = int(np.ceil(self.n_steps_ * self._chance(len(X))))
        return self

    def partial_fit(self, X: Any, y: None = None, sample_weight: ArrayLike | da.Array | None = None) -> Self:
        """Take rows that arrive later as one more batch; the first call chooses the start from them.

        Parameters
        ----------
        X : (n, n_features)
            As for `KMeans.fit`. All rows are taken.
        y
            Ignored.
        sample_weight : (n,), optional
            Weight of every row, not negative.

        Returns
        -------
        MiniBatchKMeans
            Itself. `labels_` and `inertia_` are those of these rows.

        Raises
        ------
        ValueError
            As for `KMeans.fit`; or the rows have another number of features than before.
        """
        X = self._check_array(X)
        with threadpool_limits(1, user_api="blas"):
            data, _ = self._prepare(X, as_weights(sample_weight, X))
            if hasattr(self, "counts_"):
                centres, counts = shifted(self.cluster_centers_, data.origin), self.counts_.copy()
            else:  # the rows that make the start come once more with the batch
                centres, _ = self._start(data, starts_of(self, X))
                counts = np.zeros(self.n_clusters)
            steps = _Steps(centres, counts, 0.0)
            plan = Plan(Stack.of([steps.centres], data.origin), 1.0, 0, 0, 0)
            objects = map_chunks(draw_batch, data.X, data.weights, first_rows(data.X), plan=broadcast(plan))
            batch: Batch = tree_reduce(objects, partial(combine_batches, spare=0)).compute()
            steps.update(batch, np.empty(0, np.int64))
            (assignment,) = assign_all(data, [steps.centres])
        history = [*getattr(self, "inertia_history_", []), steps.history[0] * data.total]
        finish(self, data, FitState(steps.centres, 0.0, 1, history=history), assignment)
        self.counts_ = steps.counts
        self.n_steps_ = self.n_iter_ = len(history)
        return self

    def _prepare(self, X: da.Array, weights: da.Array | None) -> tuple[Data, float]:
        """Read the data for what must be known of it; of bytes that weigh alike nothing must."""
        if X.dtype == np.uint8 and weights is None and self.tol == 0:
            return Data(X, None, None, float(len(X))), 0.0
        data, first = prepare(X, weights)
        return data, self.tol * float(first.spread.mean() / first.weight)

    def _chance(self, n: int) -> float:
        """Chance of a row to be in a batch."""
        batch_size = max(16_384, 96 * self.n_clusters) if self.batch_size is None else self.batch_size
        return min(batch_size / n, 1.0)

    def _start(self, data: Data, starts: list[Start]) -> tuple[Floats, NDArray[np.float64]]:
        """Choose and refine the starts on a sample; return the best one and how many rows made each of its centres.

        Centres that are given are made of no rows: the first batch replaces them.
        """
        if not isinstance(starts[0].init, str):
            return choose_starts(data, starts)[0], np.zeros(self.n_clusters)
        sample = sample_for(data, self.n_clusters, starts[0].seed)
        few = [replace(start, reclusterings=1) for start in starts]
        runs = [start_on(sample, start, _START_GAIN, _START_ROWS_PER_CENTRE) for start in few]
        best = min(runs, key=lambda run: run.history[-1])
        # the sample stands for all rows, but knows no more of them than its own number
        scale = 1.0 if sample.weights is None else len(sample.X) / len(data.X)
        return best.centres, best.counts * scale

    def _iterate(self, data: Data, steps: _Steps, seed: int, checkpoint: Checkpoint | None) -> None:
        chance = self._chance(len(data.X))
        smoothing = min(_SMOOTHED_ROWS * chance, 1.0)
        offsets = first_rows(data.X).persist()
        for step in range(steps.step, int(np.ceil(self.max_iter / chance))):
            plan = Plan(Stack.of([steps.centres], data.origin), chance, seed, step, len(steps.starving))
            objects = map_chunks(draw_batch, data.X, data.weights, offsets, plan=broadcast(plan))
            batch: Batch = tree_reduce(objects, partial(combine_batches, spare=len(steps.starving))).compute()
            if not batch.sums.counts.any():
                continue
            shift = steps.update(batch, steps.starving)
            if shift <= steps.tolerance and self.tol > 0:
                return
            if steps.stalled(smoothing, self.max_no_improvement):
                return
            steps.starving = self._starving(steps, np.random.default_rng((seed, step)))
            steps.step = step + 1
            if checkpoint:
                checkpoint.write([vars(steps)])

    def _starving(self, steps: _Steps, generator: np.random.Generator) -> NDArray[np.int64]:
        """Centres that attract too little, once every centre had the chance to attract ten rows."""
        if steps.rows_since_reassignment < 10 * self.n_clusters and steps.counts.all():
            return np.empty(0, np.int64)
        steps.rows_since_reassignment = 0.0
        (starving,) = np.nonzero(steps.counts < self.reassignment_ratio * steps.counts.max())
        most = max(1, self.n_clusters // 2)
        return generator.permutation(starving)[:most] if len(starving) > most else starving


@dataclass
class _Steps:
    """The state of the iteration: the centres, what they have attracted, and how the inertia develops."""

    centres: Floats
    counts: NDArray[np.float64]
    tolerance: float
    history: list[float] = field(default_factory=list)
    step: int = 0
    """The next one."""
    starving: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    """Centres that the next step moves to random rows."""
    rows_since_reassignment: float = 0.0
    smoothed: float = np.inf
    lowest: float = np.inf
    without_improvement: int = 0

    def update(self, batch: Batch, starving: NDArray[np.int64]) -> float:
        """Add a batch to the means of its centres; return the mean squared shift of the centres."""
        old = self.centres.astype(np.float64)
        counts = batch.sums.counts.astype(np.float64)
        pulled = 2 * np.einsum("ij,ij->", batch.sums.sums, old) - counts @ np.einsum("ij,ij->i", old, old)
        self.history.append(max(batch.squares - float(pulled), 0.0) / counts.sum())
        self.counts += counts
        rates = np.divide(1.0, self.counts, out=np.zeros_like(counts), where=self.counts > 0)
        centres = old + (batch.sums.sums - counts[:, None] * old) * rates[:, None]
        moved = starving[: len(batch.spare)]
        centres[moved] = batch.spare[: len(moved)]
        if len(moved):  # as if it had attracted as much as the poorest of the others
            others = np.delete(self.counts, moved)
            self.counts[moved] = others.min() if len(others) else 1.0
        self.rows_since_reassignment += float(counts.sum())
        self.centres = centres.astype(self.centres.dtype)
        return float(((self.centres - old) ** 2).sum(axis=1).mean())

    def stalled(self, smoothing: float, patience: int | None) -> bool:
        """Whether the smoothed inertia has hardly fallen for `patience` steps; the first step is not counted."""
        newest = self.history[-1]
        if len(self.history) == 1:
            return False
        self.smoothed = newest if self.smoothed == np.inf else self.smoothed * (1 - smoothing) + newest * smoothing
        if self.smoothed < self.lowest * (1 - _LEAST_GAIN):
            self.without_improvement = 0
        else:
            self.without_improvement += 1
        self.lowest = min(self.lowest, self.smoothed)
        return patience is not None and self.without_improvement >= patience
