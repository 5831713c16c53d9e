"""A fitted model as data on disk: arrays and numbers; opening it executes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kmeans_dask.collection.features import Features
from kmeans_dask.kmeans.kernels import Floats, Stack
from kmeans_dask.storage import zarr_groups


@dataclass(frozen=True)
class Model:
    """One fitted model.

    Attributes
    ----------
    algorithm
        ``kmeans`` or ``minibatch``.
    centres : (k, n_features) float32
        On the scale of the pixels, 0-255.
    history : (n,) float64
        Inertia at the beginning of every pass, or of every batch scaled to all rows.
    inertia : float
        At the centres, over the fitted rows.
    iterations : int
        Passes over the data.
    seconds : float
        Wall time of the fit.
    label_map : (k,) int32, or None before evaluation
        Class index of each cluster, -1 = none.
    counts : (k,) int64, or None before evaluation
        Fitted items of each cluster.
    settings
        What the model depends on, its algorithm and K apart.
    rival : (k, n_features) float32, or None
        Centres of the same fit with another seed, where K is to be chosen.
    """

    algorithm: str
    centres: NDArray[np.float32]
    history: NDArray[np.float64]
    inertia: float
    iterations: int
    seconds: float
    label_map: NDArray[np.int32] | None = None
    counts: NDArray[np.int64] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    rival: NDArray[np.float32] | None = None

    @property
    def k(self) -> int:
        """Number of clusters."""
        return len(self.centres)

    @classmethod
    def of(cls, estimator: Any, algorithm: str, seconds: float) -> Model:
        """Take over a fitted `KMeans` or `MiniBatchKMeans`."""
        return cls(
            algorithm,
            np.asarray(estimator.cluster_centers_, np.float32),
            np.asarray(estimator.inertia_history_, np.float64),
            float(estimator.inertia_),
            int(estimator.n_iter_),
            seconds,
        )


def write_model(path: Path, model: Model) -> None:
    """Publish a model as a zarr group.

    Parameters
    ----------
    path
        Folder; what stands there is replaced.
    model
        Its settings are written, so that a later run knows whether it is the one it wants.
    """
    arrays: dict[str, NDArray[Any]] = {"centres": model.centres, "history": model.history}
    if model.label_map is not None and model.counts is not None:
        arrays |= {"label_map": model.label_map, "counts": model.counts}
    if model.rival is not None:
        arrays["rival"] = model.rival
    zarr_groups.write_model(
        path,
        arrays,
        {
            "algorithm": model.algorithm,
            "inertia": model.inertia,
            "iterations": model.iterations,
            "seconds": model.seconds,
            "settings": dict(model.settings),
        },
    )


def read_model(path: Path) -> Model:
    """Open a model.

    Parameters
    ----------
    path
        Folder that `write_model` published.

    Returns
    -------
    Model

    Raises
    ------
    UserError
        There is no model, or its format is unknown.
    """
    arrays, attrs = zarr_groups.read_model(path)
    return Model(
        attrs["algorithm"],
        arrays["centres"],
        arrays["history"],
        attrs["inertia"],
        attrs["iterations"],
        attrs["seconds"],
        arrays.get("label_map"),
        arrays.get("counts"),
        attrs["settings"],
        arrays.get("rival"),
    )


def stack_of(models: Sequence[Model], features: Features) -> Stack:
    """Stack the centres of models for `kernels.assign`, which is given rows of these features."""
    return stacked([model.centres for model in models], features)


def stacked(centres: list[Floats], features: Features) -> Stack:
    """Stack centres of several models so that one pass serves all of them."""
    if features.settings.raw:
        return Stack.of(centres)
    origin = np.concatenate(centres).mean(axis=0)  # float rows may lie far from zero, where float32 has few digits
    return Stack.of([part - origin for part in centres], origin)


def column_prefix(model: Model) -> str:
    """Return how the columns of a model begin, for example ``kmeans_k10``."""
    return f"{model.algorithm}_k{model.k}"
