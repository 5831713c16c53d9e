"""K-Means on Dask arrays: a dask-ml estimator whose passes are tree reductions.

It keeps the constructor and attributes of dask-ml's estimator and replaces its initialization, iteration and inertia.
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

from kmeans_dask.kmeans.coreset import can_init_on_sample, init_on_sample, init_sample
from kmeans_dask.kmeans.kernels import Block, Floats, Stack, all_distances, assign, unit_block
from kmeans_dask.kmeans.lloyd import Assignment, Checkpoint, FitState, OnPass, assign_all, lloyd, prepare, with_origin
from kmeans_dask.kmeans.moments import Moments
from kmeans_dask.kmeans.sampling import Data, shifted
from kmeans_dask.kmeans.seeding import DEFAULT_ROUNDS, INIT_METHODS, InitSpec, choose_centres
from kmeans_dask.kmeans.validation import as_rows, as_weights, unit_rows
from kmeans_dask.reduction import broadcast

_GAIN_PER_TOL = 3
"""An accelerated fit stops once a pass lowers the inertia by less than a fraction of 3 * tol. MNIST, K = 256, tol 1e-4:
half as many passes as with 1 * tol, at an inertia 0.1 % higher, which equals scikit-learn's after 128 passes."""

_SAMPLE_GAIN = 1e-3
"""Refinement on the sample stops once a pass lowers its inertia by less than this fraction."""


class KMeans(DaskMLKMeans):
    """K-Means clustering for Dask arrays of any size.

    Parameters
    ----------
    n_clusters : int, default 8
        Number of clusters K.
    init : {"k-means||", "k-means++", "random"} or array-like of shape (n_clusters, n_features), default "k-means||"
        Method to choose the initial centres, or the centres themselves. "k-means++" runs on a bounded sample of the
        rows.
    oversampling_factor : float, default 2
        Rows drawn per round of k-means||, as a multiple of K. In dask-ml it is the absolute number of rows.
    max_iter : int, default 300
        Maximum number of passes over the data.
    tol : float, default 1e-4
        The fit stops when the sum of squared shifts of the centres is at most `tol` times the mean variance of the
        features, as in scikit-learn. An accelerated fit also stops when two consecutive passes lower the inertia by
        less than a fraction of 3 * `tol` each, on average. With 0, it runs until nothing changes, for at most
        `max_iter` passes.
    algorithm : {"accelerated", "lloyd", "full"}, default "accelerated"
        "lloyd" (or "full", its name in dask-ml): every pass moves the centres to the means of their rows.
        "accelerated": the initial centres of large data are chosen and refined on a small sample, and the centres keep
        some of their velocity from pass to pass; this reaches the same inertia in a fraction of the passes.
    precompute_distances, copy_x, n_jobs
        Ignored, here as in dask-ml; accepted for compatibility.
    random_state : int, RandomState or None
        Random seed. With an integer, the result does not depend on the number of workers.
    init_max_iter : int, optional
        Rounds of k-means||, default 2.
    n_init : int or "auto", default "auto"
        Number of restarts, which share the same passes; the one with the lowest inertia is kept. "auto" is 1.
    spherical : bool, default False
        Compare rows by the angle between them: rows and centres are normalized to length 1, and the inertia is the sum
        of 2 - 2 cos (Dhillon and Modha 2001).

    Attributes
    ----------
    cluster_centers_ : ndarray of shape (n_clusters, n_features), float32 or float64
        float32 unless the data is float64 or has integers of more than 16 bits.
    labels_ : da.Array of shape (n_samples,), int32
        Cluster of every row. Computed together with the final inertia: reading it does not read the data again.
    inertia_ : float
        (Weighted) sum of squared distances from the rows to their nearest final centres, accumulated in float64.
    inertia_history_ : ndarray of shape (n_iter_,), float64
        Inertia at the beginning of every pass.
    n_iter_ : int
        Number of passes.
    n_features_in_ : int
        Number of features seen during `fit`.

    See Also
    --------
    MiniBatchKMeans : Updates the centres with small random batches of rows; also incrementally, with `partial_fit`.

    Notes
    -----
    A pass takes O(n_samples * n_clusters * n_features) time. Each chunk contributes only sums of rows by cluster, so
    the data may be larger than the memory of all workers together.

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
        """Compute K-Means clustering.

        Parameters
        ----------
        X : array-like or dataframe of shape (n_samples, n_features)
            Numeric Dask or NumPy array, or Dask or pandas DataFrame. uint8 is used without conversion.
        y
            Ignored.
        sample_weight : array-like of shape (n_samples,), optional
            Non-negative weight of every row.

        Returns
        -------
        KMeans
            The fitted estimator.

        Raises
        ------
        ValueError
            X is empty, not two-dimensional, has unknown chunk sizes, NaN or infinity, or has fewer rows than clusters;
            or a weight or a parameter is invalid.
        """
        fit_together([self], X, sample_weight)
        return self

    def predict(self, X: Any) -> da.Array:
        """Predict the nearest cluster of every row.

        Parameters
        ----------
        X : array-like or dataframe of shape (n_samples, n_features)
            As for `fit`.

        Returns
        -------
        da.Array of shape (n_samples,), int32
            Lazy. The lowest index wins ties. Computing a block with NaN or infinity raises ValueError.
        """
        check_is_fitted(self, "cluster_centers_")
        data = self._data_for_predict(X)
        stack = broadcast(Stack.of([shifted(self.cluster_centers_, data.origin)], data.origin))
        return data.X.map_blocks(
            _clusters_of_block, stack=stack, dtype=np.int32, drop_axis=1, meta=np.empty(0, np.int32)
        )

    def transform(self, X: Any, y: None = None) -> da.Array:
        """Compute the distance of every row to every centre.

        Parameters
        ----------
        X : array-like or dataframe of shape (n_samples, n_features)
            As for `fit`.
        y
            Ignored.

        Returns
        -------
        da.Array of shape (n_samples, n_clusters)
            Lazy Euclidean distances, float64 if the rows or the centres are, otherwise float32.
        """
        check_is_fitted(self, "cluster_centers_")
        data = self._data_for_predict(X)
        # dask-ml's transform squares uint8 as uint8, and loses the precision of data far from the origin
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
        """Return the negative sum of squared distances of the rows to their nearest centres.

        Parameters
        ----------
        X : array-like or dataframe of shape (n_samples, n_features)
            As for `fit`.
        y
            Ignored.

        Returns
        -------
        float
            Higher is better.
        """
        check_is_fitted(self, "cluster_centers_")
        data = self._data_for_predict(X)
        (assignment,) = assign_all(data, [shifted(self.cluster_centers_, data.origin)])
        return -assignment.inertia

    def to_sklearn(self, dtype: DTypeLike = np.float64) -> sklearn.cluster.KMeans:
        """Convert to a fitted scikit-learn estimator with the same centres, which predicts without Dask.

        Parameters
        ----------
        dtype : float64 or float32
            Dtype of the centres. scikit-learn rejects float32 rows if the centres are float64, and all other rows,
            including uint8, if the centres are float32.

        Returns
        -------
        sklearn.cluster.KMeans
        """
        check_is_fitted(self, "cluster_centers_")
        centres = np.array(self.cluster_centers_, dtype)
        estimator = sklearn.cluster.KMeans(len(centres), init=centres, n_init=1, max_iter=1)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # centres repeat if the data had too few distinct rows
            estimator.fit(centres)
        estimator.cluster_centers_ = centres
        estimator.labels_ = np.asarray(self.labels_)
        estimator.inertia_ = self.inertia_
        estimator.n_iter_ = self.n_iter_
        return estimator

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

    Each gets the same result as when fitted alone: they share the passes, not the random draws.

    Parameters
    ----------
    estimators
        Fitted in place.
    X : array-like or dataframe of shape (n_samples, n_features)
        As for `KMeans.fit`.
    sample_weight : array-like of shape (n_samples,), optional
        Non-negative weight of every row.
    on_pass
        Called after every pass of Lloyd's iteration with the number of passes so far and of the models still moving.
    checkpoint
        Stores the state between passes. If it holds a state of this fit, the fit resumes from it; the result is
        bitwise the same.

    Raises
    ------
    ValueError
        As for `KMeans.fit`, or if `spherical` differs between the estimators.
    """
    spherical = estimators[0].spherical
    if any(estimator.spherical != spherical for estimator in estimators):
        raise ValueError("spherical differs between the estimators; fit spherical and other estimators separately")
    X = unit_rows(as_rows(X)) if spherical else as_rows(X)
    weights = as_weights(sample_weight, X)
    specs_by_estimator = [init_specs(estimator, X) for estimator in estimators]
    specs = [spec for group in specs_by_estimator for spec in group]
    owners = [estimator for estimator, group in zip(estimators, specs_by_estimator, strict=True) for _ in group]
    # as worker processes do; with Dask's threads in this process, each of them would otherwise use all cores
    with threadpool_limits(1, user_api="blas"):
        if checkpoint and (saved := checkpoint.read()):
            moments, states = Moments(**saved[0]), [FitState(**state) for state in saved[1:]]
            data = with_origin(X, weights, moments, spherical)
        else:
            data, moments = prepare(X, weights, spherical)
            variance = float(moments.squared_deviations.mean() / moments.weight)
            centres = _initial_centres(data, specs, owners, moments)
            states = [_initial_state(data, init, owner, variance) for init, owner in zip(centres, owners, strict=True)]

        def after_pass(number: int, moving: int) -> None:
            if checkpoint:
                checkpoint.write([vars(moments), *map(vars, states)])
            if on_pass:
                on_pass(number, moving)

        lloyd(data, states, moments, after_pass)
        assignments = assign_all(data, [state.centres for state in states])
    for estimator in estimators:
        restarts = [i for i, owner in enumerate(owners) if owner is estimator]
        best = min(restarts, key=lambda i: assignments[i].inertia)
        # k-means|| over all rows has already warned of too few distinct rows
        has_warned = specs[best].is_parallel and not _inits_on_sample(data, specs[best], estimator)
        if states[best].n_empty and not has_warned:
            warnings.warn(
                f"{states[best].n_empty} of {estimator.n_clusters} clusters are empty: the data has fewer distinct "
                "rows than clusters; choose a smaller K",
                ConvergenceWarning,
                stacklevel=2,
            )
        set_fitted_attributes(estimator, data, states[best], assignments[best])


def _initial_centres(data: Data, specs: Sequence[InitSpec], owners: Sequence[KMeans], moments: Moments) -> list[Floats]:
    """Choose initial centres: each model on its own sample where possible, the others together on all rows."""
    on_sample = [_inits_on_sample(data, spec, owner) for spec, owner in zip(specs, owners, strict=True)]
    others = iter(choose_centres(data, [spec for spec, sampled in zip(specs, on_sample, strict=True) if not sampled]))
    return [
        init_on_sample(init_sample(data, spec.k, spec.seed, moments), spec, _SAMPLE_GAIN).centres
        if sampled
        else next(others)
        for spec, sampled in zip(specs, on_sample, strict=True)
    ]


def _inits_on_sample(data: Data, spec: InitSpec, owner: KMeans) -> bool:
    return owner.algorithm == "accelerated" and isinstance(spec.init, str) and can_init_on_sample(data, spec.k)


def _initial_state(data: Data, centres: Floats, estimator: KMeans, variance: float) -> FitState:
    tolerance, max_iter = estimator.tol * variance, estimator.max_iter
    if data.spherical:
        centres = unit_block(centres)
    if estimator.algorithm != "accelerated":
        return FitState(centres, tolerance, max_iter)
    return FitState(centres, tolerance, max_iter, accelerated=True, min_gain=_GAIN_PER_TOL * estimator.tol)


def init_specs(estimator: KMeans, X: da.Array) -> list[InitSpec]:
    """Validate the parameters of an estimator against the data and derive one initialization per restart.

    Parameters
    ----------
    estimator
        The estimator to be fitted.
    X : (n, n_features) da.Array
        Result of `validation.as_rows`.

    Returns
    -------
    list of InitSpec

    Raises
    ------
    ValueError
        A parameter is invalid, or K is larger than the number of rows.
    TypeError
        `init` is a callable or None.
    """
    k, init, n_init = estimator.n_clusters, estimator.init, estimator.n_init
    if not isinstance(k, (int, np.integer)) or k < 1:
        raise ValueError(f"n_clusters={k!r}; must be an integer >= 1")
    if k > len(X):
        raise ValueError(f"n_samples={len(X)} should be >= n_clusters={k}: choose a smaller K")
    allowed = f"must be {', '.join(map(repr, INIT_METHODS))} or an array of centres"
    if isinstance(init, str):
        if init not in INIT_METHODS:
            raise ValueError(f"init={init!r}; {allowed}")
    elif callable(init) or init is None:
        raise TypeError(f"init={init!r}; {allowed}")
    else:
        init = np.asarray(init, np.float64 if X.dtype == np.float64 else np.float32)
        if init.shape != (k, X.shape[1]):
            raise ValueError(f"init has shape {init.shape}; expected (n_clusters, n_features) = {(k, X.shape[1])}")
    if estimator.algorithm not in ("accelerated", "lloyd", "full"):
        raise ValueError(f"algorithm={estimator.algorithm!r}; must be 'accelerated', 'lloyd' or 'full'")
    if n_init != "auto" and (not isinstance(n_init, (int, np.integer)) or n_init < 1):
        raise ValueError(f"n_init={n_init!r}; must be 'auto' or an integer >= 1")
    if estimator.max_iter < 1:
        raise ValueError(f"max_iter={estimator.max_iter!r}; must be an integer >= 1")
    if estimator.tol < 0:
        raise ValueError(f"tol={estimator.tol!r}; must be a number >= 0")
    if not estimator.oversampling_factor > 0:
        raise ValueError(f"oversampling_factor={estimator.oversampling_factor!r}; must be a number > 0")
    restarts = 1 if n_init == "auto" or not isinstance(init, str) else n_init
    rounds = DEFAULT_ROUNDS if estimator.init_max_iter is None else estimator.init_max_iter
    seeds = check_random_state(estimator.random_state).randint(2**31 - 1, size=restarts)
    return [InitSpec(int(k), init, estimator.oversampling_factor, rounds, int(seed)) for seed in seeds]


def set_fitted_attributes(estimator: KMeans, data: Data, state: FitState, assignment: Assignment) -> None:
    """Set the fitted attributes of an estimator, with centres in the coordinates of the data."""
    estimator.cluster_centers_ = state.centres if data.origin is None else state.centres + data.origin
    estimator.labels_ = assignment.clusters
    estimator.inertia_ = assignment.inertia
    estimator.inertia_history_ = np.array(state.history)
    estimator.n_iter_ = len(state.history)
    estimator.n_features_in_ = data.X.shape[1]
