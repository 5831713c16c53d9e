"""A fitted model, stored as arrays and JSON; opening one executes nothing."""

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
    """A fitted model.

    Attributes
    ----------
    algorithm : str
        ``kmeans`` or ``minibatch``.
    centres : (k, n_features) float32
        Cluster centres, on the scale of the fitted rows: pixels, 0-255, or features.
    history : (n,) float64
        Inertia at the start of each pass, or of each batch, scaled to all rows.
    inertia : float
        Inertia of the fitted rows at the centres.
    iterations : int
        Number of passes over the data.
    seconds : float
        Wall time of the fit.
    label_map : (k,) int32, or None before evaluation
        Class index of each cluster, -1 = none.
    counts : (k,) int64, or None before evaluation
        Number of fitted items in each cluster.
    settings : mapping
        Everything that the model depends on, except its algorithm and K; JSON values.
    rival : (k, n_features) float32, or None
        Centres of the same fit with another seed, which show how stable K is; None unless K is to be chosen.
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
    def from_estimator(cls, estimator: Any, algorithm: str, seconds: float) -> Model:
        """Create a model from a fitted `KMeans` or `MiniBatchKMeans`."""
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
        Folder of the group; anything there is replaced.
    model
        Its settings are stored with it, so that a later run can tell whether the model is up to date.
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
        There is no finished model, or it has another format version.
    """
    arrays, attrs = zarr_groups.read_model(path)
    return Model(
        algorithm=attrs["algorithm"],
        centres=arrays["centres"],
        history=arrays["history"],
        inertia=attrs["inertia"],
        iterations=attrs["iterations"],
        seconds=attrs["seconds"],
        label_map=arrays.get("label_map"),
        counts=arrays.get("counts"),
        settings=attrs["settings"],
        rival=arrays.get("rival"),
    )


def stack_models(models: Sequence[Model], features: Features) -> Stack:
    """Stack the centres of several models, for `kernels.assign` on rows of these features."""
    return stack_centres([model.centres for model in models], features)


def stack_centres(centres: list[Floats], features: Features) -> Stack:
    """Stack (k, n_features) centres, for `kernels.assign` on rows of these features."""
    if features.settings.raw:
        return Stack.of(centres)
    origin = np.concatenate(centres).mean(axis=0)  # rows may be far from zero, where float32 is coarse
    return Stack.of([model_centres - origin for model_centres in centres], origin)


def column_prefix(model: Model) -> str:
    """Return the prefix of a model's columns, for example ``kmeans_k10``."""
    return f"{model.algorithm}_k{model.k}"
