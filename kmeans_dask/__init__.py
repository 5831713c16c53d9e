"""Cluster and colour-quantize image collections of any size with K-Means on Dask.

Names are imported on first use, so that ``import kmeans_dask`` and ``kmeans-dask --help`` do not import Dask.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kmeans_dask.collection.build import build_collection
    from kmeans_dask.collection.collection import open_collection
    from kmeans_dask.colours.palettes import quantize_image
    from kmeans_dask.colours.quantize import quantize_folder
    from kmeans_dask.config.loading import load_config
    from kmeans_dask.deploy.client import connect
    from kmeans_dask.evaluation.label_scores import majority_label_map, score_clusters
    from kmeans_dask.kmeans.estimator import KMeans, fit_together
    from kmeans_dask.kmeans.minibatch import MiniBatchKMeans
    from kmeans_dask.report.plots import before_after_sheet, centroid_sheet
    from kmeans_dask.sources.listing import list_images
    from kmeans_dask.sources.reading import read_image

__version__ = "0.2.0"

_HOMES = {
    "KMeans": "kmeans.estimator",
    "MiniBatchKMeans": "kmeans.minibatch",
    "before_after_sheet": "report.plots",
    "build_collection": "collection.build",
    "centroid_sheet": "report.plots",
    "connect": "deploy.client",
    "fit_together": "kmeans.estimator",
    "list_images": "sources.listing",
    "load_config": "config.loading",
    "majority_label_map": "evaluation.label_scores",
    "open_collection": "collection.collection",
    "quantize_folder": "colours.quantize",
    "quantize_image": "colours.palettes",
    "read_image": "sources.reading",
    "score_clusters": "evaluation.label_scores",
}

__all__ = [
    "KMeans",
    "MiniBatchKMeans",
    "before_after_sheet",
    "build_collection",
    "centroid_sheet",
    "connect",
    "fit_together",
    "list_images",
    "load_config",
    "majority_label_map",
    "open_collection",
    "quantize_folder",
    "quantize_image",
    "read_image",
    "score_clusters",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
