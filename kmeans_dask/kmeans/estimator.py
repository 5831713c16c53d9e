"""K-Means on Dask arrays: a dask-ml estimator whose passes are tree reductions.

The estimator keeps dask-ml's constructor and attributes and replaces its start, its iteration and its inertia.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import Any, Self

import dask.array as da
import numpy as np
import sklearn.cluster
from dask_ml.cluster import KMeans as DaskMLKMeans
from numpy.typing import ArrayLike, DTypeLike, NDArray
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted
from threadpoolctl import threadpool_limits

from kmeans_dask.kmeans.coreset import sample_for, start_on, starts_on_sample
from kmeans_dask.kmeans.kernels import Block, Floats, Stack, all_distances, assign, unit_block
from kmeans_dask.kmeans.lloyd import Assignment, Checkpoint, FitState, OnPass, assign_all, data_of, lloyd, prepare
from kmeans_dask.kmeans.moments import Moments
from kmeans_dask.kmeans.sampling import Data, shifted
from kmeans_dask.kmeans.seeding import DEFAULT_ROUNDS, Start, choose_starts, is_parallel
from kmeans_dask.kmeans.validation import as_rows, as_weights, unit_rows
from kmeans_dask.reduction import broadcast

_GAIN_PER_TOL = 3
"""MNIST, K = 256, tol 1e-4: stopping at gains of 3e-4 takes half the passes of 1e-4, for an inertia 0.1 % higher, which
is that of scikit-learn after 128 passes."""


_SAMPLE_GAIN = 1e-3
"""The sample is left when a pass lowers its inertia by less than this share."""


class KMeans(DaskMLKMeans):
    """K-Means for Dask arrays of any size.

    Parameters
    ----------
    n_clusters : int, default 8
        Number of clusters K.
    init : {"k-means||", "k-means++", "random"} or array of shape (K, n_features), default "k-means||"
        How the first centres are chosen; "k-means++" runs on a bounded sample of the rows.
    oversampling_factor : float, default 2
        Rows drawn a round of k-means||, as a multiple of K (dask-ml takes it as the number itself).
    max_iter : int, default 300
        Passes over the data at most.
    tol : float, default 1e-4
        A model is finished when the sum of squared shifts of its centres is at most `tol` times the mean variance
        of the features, as in scikit-learn. "accelerated" also when a pass lowers the inertia by less than 3 `tol` of
        itself. With 0 it runs until nothing changes.
    algorithm : {"accelerated", "lloyd", "full"}, default "accelerated"
        "lloyd", which dask-ml calls "full": every pass moves the centres to the means of their rows. "accelerated":
        the start is chosen and refined on a small sample if the data is large, and the centres keep some of their
        velocity from pass to pass; it reaches the same inertia in a fraction of the passes.
    precompute_distances, copy_x, n_jobs
        Accepted for dask-ml's sake; without effect there and here.
    random_state : int, RandomState or None
        Seed of every draw. An integer gives the same result for any number of workers.
    init_max_iter : int, optional
        Rounds of k-means||, default 2.
    n_init : int or "auto", default "auto"
        Restarts, all in the same passes; the one with the lowest inertia is kept. "auto" is 1.

    spherical : bool, default False
        Whether rows are compared by the angle between them: rows and centres are divided by their length, and inertia
        is the sum of 2 - 2 cos (Dhillon and Modha 2001).

    Attributes
    ----------
    cluster_centers_ : (K, n_features) float32 or float64
        float32 unless the data is float64 or has more than 16 bits of integer.
    labels_ : (n,) da.Array of int32
        Cluster of every row, computed with the final inertia: reading them reads the data no more.
    inertia_ : float
        Sum of (weighted) squared distances to the nearest centre, float64, at the returned centres.
    inertia_history_ : (n_iter_,) float64
        Inertia at the beginning of every pass.
    n_iter_ : int
        Passes.
    n_features_in_ : int

    References
    ----------
    S. P. Lloyd, Least squares quantization in PCM, 1982.
    B. Bahmani et al., Scalable K-Means++, 2012, https://arxiv.org/abs/1203.6402.
    O. Bachem, M. Lucic and A. Krause, Scalable k-Means Clustering via Lightweight Coresets, 2018.

    Examples
    --------
    >>> import dask.array as da
    >>> X = da.from_array([[0.0], [1.0], [10.0], [11.0]], chunks=(2, 1))
    >>> sorted(KMeans(2, random_state=0).fit(X).cluster_centers_.ravel().tolist())
    [0.5, 10.5]
    """

    def __init__(
        self,
        n_clusters: int = 8,
        init: str | ArrayLike = "k-means||",
        oversampling_factor: float = 2,
        max_iter: int = 300,
        tol: float = 1e-4,
        precompute_distances: str = "auto",
        random_state: int | np.random.RandomState | None = None,
        copy_x: bool = True,
        n_jobs: int = 1,
        algorithm: str = "accelerated",
        init_max_iter: int | None = None,
        n_init: int | str = "auto",
        spherical: bool = False,
    ) -> None:
        super().__init__(
            n_clusters=n_clusters,
            init=init,
            oversampling_factor=oversampling_factor,
            max_iter=max_iter,
            tol=tol,
            precompute_distances=precompute_distances,
            random_state=random_state,
            copy_x=copy_x,
            n_jobs=n_jobs,
            algorithm=algorithm,
            init_max_iter=init_max_iter,
            n_init=n_init,
        )
        self.spherical = spherical

    def fit(self, X: Any, y: None = None, sample_weight: ArrayLike | da.Array | None = None) -> Self:
        """Fit the centres.

        Parameters
        ----------
        X : (n, n_features)
            Dask or NumPy array, or Dask or pandas DataFrame, of numbers. uint8 is used as it is.
        y
            Ignored.
        sample_weight : (n,), optional
            Weight of every row, not negative.

        Returns
        -------
        KMeans
            Itself.

        Raises
        ------
        ValueError
            X is empty, not two-dimensional, has unknown chunk sizes, NaN or infinity, or fewer rows than clusters;
            or a parameter is not allowed.
        """
        fit_together([self], X, sample_weight)
        return self

    def predict(self, X: Any) -> da.Array:
        """Find the nearest centre of every row.

        Parameters
        ----------
        X : (n, n_features)
            As for `fit`.

        Returns
        -------
        (n,) da.Array of int32
            Lazy; of equally near centres the lowest index. A NaN or an infinity raises a ValueError when its
            block is computed.
        """
        check_is_fitted(self, "cluster_centers_")
        data = self._data_for_predict(X)
        stack = broadcast(Stack.of([shifted(self.cluster_centers_, data.origin)], data.origin))
        return data.X.map_blocks(
            _clusters_of_block, stack=stack, dtype=np.int32, drop_axis=1, meta=np.empty(0, np.int32)
        )

    def transform(self, X: Any, y: None = None) -> da.Array:
        """Measure the distance of every row to every centre.

        Parameters
        ----------
        X : (n, n_features)
            As for `fit`.
        y
            Ignored.

        Returns
        -------
        (n, K) da.Array of float64 if the rows or the centres are, else float32
            Euclidean distances. Lazy.
        """
        check_is_fitted(self, "cluster_centers_")
        data = self._data_for_predict(X)
        # not dask-ml's: it squares bytes as bytes, and loses the digits of data far from the origin
        stack = Stack.of([shifted(self.cluster_centers_, data.origin).astype(np.float64)], data.origin)
        dtype = np.result_type(data.X, self.cluster_centers_)
        return data.X.map_blocks(
            partial(all_distances, dtype=dtype),
            stack=broadcast(stack),
            dtype=dtype,
            chunks=(data.X.chunks[0], (len(self.cluster_centers_),)),
            meta=np.empty((0, 0), dtype),
        )

    def score(self, X: Any, y: None = None) -> float:
        """Return minus the sum of squared distances of the rows of X to their nearest centres.

        Parameters
        ----------
        X : (n, n_features)
            As for `fit`.
        y
            Ignored.

        Returns
        -------
        float
        """
        check_is_fitted(self, "cluster_centers_")
        data = self._data_for_predict(X)
        (assignment,) = assign_all(data, [shifted(self.cluster_centers_, data.origin)])
        return -assignment.inertia

    def to_sklearn(self, dtype: DTypeLike = np.float64) -> sklearn.cluster.KMeans:
        """Return a fitted scikit-learn estimator with the same centres, which needs no Dask to predict.

        Parameters
        ----------
        dtype : float64 or float32
            Of its centres. scikit-learn refuses float32 rows with float64 centres, and everything else, uint8
            too, with float32 centres.

        Returns
        -------
        sklearn.cluster.KMeans
        """
        check_is_fitted(self, "cluster_centers_")
        centres = np.array(self.cluster_centers_, dtype)
        local = sklearn.cluster.KMeans(len(centres), init=centres, n_init=1, max_iter=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # centres repeat where distinct rows were too few
            local.fit(centres)
        local.cluster_centers_ = centres
        local.labels_ = np.asarray(self.labels_)
        local.inertia_ = self.inertia_
        local.n_iter_ = self.n_iter_
        return local

    def _check_array(self, X: Any) -> da.Array:
        X = unit_rows(as_rows(X)) if self.spherical else as_rows(X)
        if hasattr(self, "n_features_in_") and X.shape[1] != self.n_features_in_:
            raise ValueError(
                f"X has {X.shape[1]} features, but {type(self).__name__} is expecting {self.n_features_in_} "
                "features as input"
            )
        return X

    def _data_for_predict(self, X: Any) -> Data:
        X = self._check_array(X)
        origin = None if X.dtype == np.uint8 else self.cluster_centers_.mean(axis=0).astype(X.dtype)
        return Data(X, None, origin, float(len(X)))


def _clusters_of_block(block: Block, *, stack: Stack) -> NDArray[np.int32]:
    clusters, distances = assign(block, stack)
    if not np.isfinite(distances).all():
        raise ValueError(f"Input X contains NaN, infinity or a value too large for dtype('{block.dtype}').")
    return clusters[0]


def fit_together(
    estimators: Sequence[KMeans],
    X: Any,
    sample_weight: ArrayLike | da.Array | None = None,
    on_pass: OnPass | None = None,
    checkpoint: Checkpoint | None = None,
) -> None:
    """Fit several estimators in the same passes over the data, for example one for each K.

    Each ends up as it would alone: the passes are shared, not the draws.

    Parameters
    ----------
    estimators
        Fitted in place.
    X : (n, n_features)
        As for `KMeans.fit`.
    sample_weight : (n,), optional
        Weight of every row, not negative.
    on_pass
        Told of every pass of Lloyd's iteration.
    checkpoint
        Where the state is kept between the passes, and found again: the result is the same to the last bit.

    Raises
    ------
    ValueError
        As for `KMeans.fit`.
    """
    spherical = estimators[0].spherical
    if any(estimator.spherical != spherical for estimator in estimators):
        raise ValueError("spherical differs between the estimators; fit those that are, and those that are not, apart")
    X = unit_rows(as_rows(X)) if spherical else as_rows(X)
    weights = as_weights(sample_weight, X)
    starts = [starts_of(estimator, X) for estimator in estimators]
    # worker processes are started with one thread; in this process, under Dask's threads, each would use all cores
    with threadpool_limits(1, user_api="blas"):
        flat = [start for group in starts for start in group]
        owners = [e for e, group in zip(estimators, starts, strict=True) for _ in group]
        if checkpoint and (states := checkpoint.read()):
            first, runs = Moments(**states[0]), [FitState(**state) for state in states[1:]]
            data = data_of(X, weights, first, spherical)
        else:
            data, first = prepare(X, weights, spherical)
            variance = float(first.spread.mean() / first.weight)
            centres = _first_centres(data, flat, owners, first)
            runs = [_run_of(data, c, e, variance) for c, e in zip(centres, owners, strict=True)]

        def after_pass(number: int, moving: int) -> None:
            if checkpoint:
                checkpoint.write([vars(first), *map(vars, runs)])
            if on_pass:
                on_pass(number, moving)

        lloyd(data, runs, first, after_pass)
        assignments = assign_all(data, [run.centres for run in runs])
    for estimator in estimators:
        mine = [i for i, owner in enumerate(owners) if owner is estimator]
        best = min(mine, key=lambda i: assignments[i].inertia)
        said = is_parallel(flat[best]) and not _may_start_on_sample(data, flat[best], estimator)  # by k-means||
        if runs[best].empty and not said:
            warnings.warn(
                f"{runs[best].empty} of {estimator.n_clusters} clusters are empty: the data has fewer distinct "
                "rows than clusters; choose a smaller K",
                ConvergenceWarning,
                stacklevel=2,
            )
        finish(estimator, data, runs[best], assignments[best])


def _first_centres(data: Data, starts: Sequence[Start], owners: Sequence[KMeans], first: Moments) -> list[Floats]:
    """Choose the starts: on a sample each where the passes are to be few, else all together on all rows."""
    small = [_may_start_on_sample(data, start, owner) for start, owner in zip(starts, owners, strict=True)]
    others = iter(choose_starts(data, [start for start, on_sample in zip(starts, small, strict=True) if not on_sample]))
    return [
        _start_on_sample(data, start, first) if on_sample else next(others)
        for start, on_sample in zip(starts, small, strict=True)
    ]


def _start_on_sample(data: Data, start: Start, first: Moments) -> Floats:
    return start_on(sample_for(data, start.k, start.seed, first), start, _SAMPLE_GAIN).centres


def _may_start_on_sample(data: Data, start: Start, owner: KMeans) -> bool:
    return owner.algorithm == "accelerated" and isinstance(start.init, str) and starts_on_sample(data, start.k)


def _run_of(data: Data, centres: Floats, estimator: KMeans, variance: float) -> FitState:
    tolerance, max_iter = estimator.tol * variance, estimator.max_iter
    if data.spherical:
        centres = unit_block(centres)
    if estimator.algorithm != "accelerated":
        return FitState(centres, tolerance, max_iter)
    return FitState(centres, tolerance, max_iter, accelerated=True, least_gain=_GAIN_PER_TOL * estimator.tol)


def starts_of(estimator: KMeans, X: da.Array) -> list[Start]:
    """Check the parameters against the data, and say what starts they ask for."""
    k, init, n_init = estimator.n_clusters, estimator.init, estimator.n_init
    if not isinstance(k, (int, np.integer)) or k < 1:
        raise ValueError(f"n_clusters={k!r}; allowed are integers from 1")
    if k > len(X):
        raise ValueError(f"n_samples={len(X)} should be >= n_clusters={k}: choose a smaller K")
    if isinstance(init, str):
        if init not in ("k-means||", "k-means++", "random"):
            raise ValueError(f"init={init!r}; allowed are 'k-means||', 'k-means++', 'random' or an array of centres")
    elif callable(init) or init is None:
        raise TypeError(f"init={init!r}; allowed are 'k-means||', 'k-means++', 'random' or an array of centres")
    else:
        init = np.asarray(init, np.float64 if X.dtype == np.float64 else np.float32)
        if init.shape != (k, X.shape[1]):
            raise ValueError(f"init has shape {init.shape}; expected (n_clusters, n_features) = {(k, X.shape[1])}")
    if estimator.algorithm not in ("accelerated", "lloyd", "full"):
        raise ValueError(f"algorithm={estimator.algorithm!r}; allowed are 'accelerated', 'lloyd' and 'full'")
    if n_init != "auto" and (not isinstance(n_init, (int, np.integer)) or n_init < 1):
        raise ValueError(f"n_init={n_init!r}; allowed are 'auto' and integers from 1")
    if estimator.max_iter < 1:
        raise ValueError(f"max_iter={estimator.max_iter!r}; allowed are integers from 1")
    if estimator.tol < 0:
        raise ValueError(f"tol={estimator.tol!r}; allowed are numbers from 0")
    if not estimator.oversampling_factor > 0:
        raise ValueError(f"oversampling_factor={estimator.oversampling_factor!r}; allowed are numbers above 0")
    restarts = 1 if n_init == "auto" or not isinstance(init, str) else n_init
    rounds = DEFAULT_ROUNDS if estimator.init_max_iter is None else estimator.init_max_iter
    seeds = check_random_state(estimator.random_state).randint(2**31 - 1, size=restarts)
    return [Start(int(k), init, estimator.oversampling_factor, rounds, int(seed)) for seed in seeds]


def finish(estimator: KMeans, data: Data, run: FitState, assignment: Assignment) -> None:
    """Write the fitted attributes, in the coordinates of the data."""
    estimator.cluster_centers_ = run.centres if data.origin is None else run.centres + data.origin
    estimator.labels_ = assignment.clusters
    estimator.inertia_ = assignment.inertia
    estimator.inertia_history_ = np.array(run.history)
    estimator.n_iter_ = len(run.history)
    estimator.n_features_in_ = data.X.shape[1]
