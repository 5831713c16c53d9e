"""A model as a file that other programs read: NumPy's .npz, scikit-learn's estimator as .skops, .onnx.

All three are data: a pickle, joblib's too, would run code when it is opened.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import sklearn.cluster
from sklearn.exceptions import ConvergenceWarning

from kmeans_dask.config import Features, Ingest
from kmeans_dask.errors import UserError
from kmeans_dask.models import Model
from kmeans_dask.publish import publish


def write_npz(path: Path, model: Model, class_names: Sequence[str], ingest: Ingest, features: Features) -> None:
    """Write a model as a NumPy archive; `numpy.load` reads it without pickles.

    Parameters
    ----------
    path
        File; what stands there is replaced.
    model
        Its arrays: ``centres`` (k, n_features) float32, ``history``, ``label_map`` (k,) int32, ``counts`` (k,) int64.
    class_names
        Written as ``class_names``; the label map counts in them.
    ingest, features
        How an image becomes a row; written as JSON under these names.
    """
    assert model.label_map is not None
    assert model.counts is not None
    with publish(path) as partial, open(partial, "wb") as file:
        np.savez(
            file,
            centres=model.centres,
            history=model.history,
            label_map=model.label_map,
            counts=model.counts,
            class_names=np.array(class_names, dtype=np.str_),
            algorithm=model.algorithm,
            inertia=model.inertia,
            ingest=json.dumps(ingest.model_dump(mode="json")),
            features=json.dumps(features.model_dump(mode="json")),
        )


def write_skops(path: Path, model: Model) -> None:
    """Write a model as a scikit-learn estimator; ``skops.io.load`` opens it and executes nothing.

    Parameters
    ----------
    path
        File; what stands there is replaced.
    model
        The estimator predicts (n, n_features) float32 rows as they were fitted: pixels, 0-255, or features.

    Raises
    ------
    UserError
        The package skops is not installed.
    """
    try:
        from skops.io import dump
    except ImportError:
        raise _not_installed("skops") from None
    with publish(path) as partial, open(partial, "wb") as file:
        dump(to_sklearn(model), file)


def write_onnx(path: Path, model: Model) -> None:
    """Write a model as an ONNX graph.

    Parameters
    ----------
    path
        File; what stands there is replaced.
    model
        Input ``X``: (n, n_features) float32 rows as they were fitted: pixels, 0-255, or features. Outputs: ``label``,
        the cluster, (n,) int64, and ``scores``, the distances to all centres, (n, k) float32.

    Raises
    ------
    UserError
        The package skl2onnx is not installed.
    """
    try:
        from skl2onnx import to_onnx
    except ImportError:
        raise _not_installed("skl2onnx") from None
    graph = to_onnx(to_sklearn(model), model.centres[:1])
    with publish(path) as partial:
        partial.write_bytes(graph.SerializeToString())


def to_sklearn(model: Model) -> sklearn.cluster.KMeans:
    """Return a fitted scikit-learn estimator with the centres of a model, float32; it has no `labels_`."""
    estimator = sklearn.cluster.KMeans(model.k, init=model.centres, n_init=1, max_iter=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # two centres may be alike
        estimator.fit(model.centres)
    estimator.cluster_centers_ = model.centres.copy()
    estimator.inertia_, estimator.n_iter_ = model.inertia, model.iterations
    del estimator.labels_  # those of the centres
    return estimator


def _not_installed(package: str) -> UserError:
    return UserError(f"the package {package} is not installed: pip install 'kmeans-dask[export]'")
