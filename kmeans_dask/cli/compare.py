"""Command compare: how well the clusters of two finished runs agree."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq

from kmeans_dask.errors import UserError
from kmeans_dask.evaluation.metrics import Comparison, compare_clusters
from kmeans_dask.models.model import column_prefix
from kmeans_dask.pipeline.console import say, show_table
from kmeans_dask.pipeline.finished import choose_model, config_of
from kmeans_dask.storage.object_store import readable
from kmeans_dask.storage.run_folder import run_folder


def compare(first: str, second: str, k: int | None = None, algorithm: str | None = None) -> Comparison:
    """Compare the models of two finished runs on their common items, and print how well they agree.

    Parameters
    ----------
    first, second
        Run folders; they may be the same.
    k, algorithm
        Which model of each run, as for `finished.choose_model`.

    Returns
    -------
    Comparison

    Raises
    ------
    UserError
        A run has no such model, or the runs have no item in common.
    """
    first_clusters, first_name = _clusters_of(first, k, algorithm)
    second_clusters, second_name = _clusters_of(second, k, algorithm)
    try:
        result = compare_clusters(first_clusters, second_clusters)
    except ValueError as error:
        raise UserError(f"{first} and {second} cannot be compared: {error}; give two runs of the same images") from None
    if result.only_first or result.only_second:
        say(
            f"compare: {result.items:,} common items are compared; "
            f"{result.only_first:,} are only in {first}, {result.only_second:,} only in {second}"
        )
    scores = (result.adjusted_rand, result.adjusted_mutual_information, result.v_measure, result.one_to_one)
    show_table(
        f"{first_name} and {second_name}",
        ["items", "adjusted Rand", "adjusted mutual information", "V", "one-to-one accuracy"],
        [[f"{result.items:,}", *(f"{score:.4f}" for score in scores)]],
    )
    return result


def _clusters_of(run: str, k: int | None, algorithm: str | None) -> tuple[pa.Table, str]:
    """Return path, split and cluster of every item of a run, and a name for the model."""
    config = config_of(run)
    folder = run_folder(config)
    model = choose_model(config, folder, k, algorithm)
    column = f"{column_prefix(model)}_cluster"
    table = pq.read_table(readable(folder.clusters), columns=["path", "split", column])
    return table.rename_columns(["path", "split", "cluster"]), f"{run} ({model.algorithm}, K = {model.k})"
