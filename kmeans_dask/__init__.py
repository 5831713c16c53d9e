"""Cluster and colour-quantize image collections of any size with K-Means on Dask.

Names are imported at their first use: ``import kmeans_dask`` and ``kmeans-dask --help`` cost no Dask.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kmeans_dask.cluster import connect
    from kmeans_dask.collection import open_collection
    from kmeans_dask.config_files import load_config
    from kmeans_dask.kmeans import KMeans, fit_together
    from kmeans_dask.minibatch import MiniBatchKMeans
    from kmeans_dask.palettes import quantize_image

__version__ = "0.1.0"

_HOMES = {
    "KMeans": "kmeans",
    "MiniBatchKMeans": "minibatch",
    "connect": "cluster",
    "fit_together": "kmeans",
    "load_config": "config_files",
    "open_collection": "collection",
    "quantize_image": "palettes",
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
