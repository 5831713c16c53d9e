"""Cluster and colour-quantize image collections of any size with K-Means on Dask.

Names are imported at their first use: ``import kmeans_dask`` and ``kmeans-dask --help`` cost no Dask.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kmeans_dask.collection.collection import open_collection
    from kmeans_dask.colours.palettes import quantize_image
    from kmeans_dask.config.loading import load_config
    from kmeans_dask.deploy.client import connect
    from kmeans_dask.kmeans.estimator import KMeans, fit_together
    from kmeans_dask.kmeans.minibatch import MiniBatchKMeans

__version__ = "0.2.0"

_HOMES = {
    "KMeans": "kmeans.estimator",
    "MiniBatchKMeans": "kmeans.minibatch",
    "connect": "deploy.client",
    "fit_together": "kmeans.estimator",
    "load_config": "config.loading",
    "open_collection": "collection.collection",
    "quantize_image": "colours.palettes",
}

__all__ = [
    "KMeans",
    "MiniBatchKMeans",
    "connect",
    "fit_together",
    "load_config",
    "open_collection",
    "quantize_image",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
