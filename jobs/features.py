"""The first step of stage fit: what is clustered, where that is not raw pixels."""

from __future__ import annotations

from distributed import Client

from jobs.console import progress, say
from kmeans_dask import config as sections
from kmeans_dask.cluster import run_tasks
from kmeans_dask.collection import Collection
from kmeans_dask.config import Config
from kmeans_dask.errors import UserError
from kmeans_dask.feature_fit import Extracted, extraction_tasks, fit_features
from kmeans_dask.features import Features
from kmeans_dask.runs import RunFolder


def prepare_features(config: Config, collection: Collection, folder: RunFolder, client: Client) -> Features:
    """Extract what is not stored yet, and fit the transformation.

    Parameters
    ----------
    config
        Without the section ``features``, the pixels stay as they are.
    collection
        Of the run.
    folder
        Run folder.
    client
        Of the workers.

    Returns
    -------
    Features

    Raises
    ------
    UserError
        A file or function does not give one row of numbers an item, or there are fewer numbers than components.
    """
    settings = config.features or sections.Features()
    tasks = extraction_tasks(settings, collection, folder.path)
    if tasks:
        say(f"features: {settings.kind} of {len(collection.labels):,} items, made once and stored; {len(tasks)} to do")
        with progress("features", len(collection.labels), "items") as advance:

            def count(done: Extracted) -> None:
                if done.error:
                    raise UserError(done.error)
                advance(done.items)

            run_tasks(client, tasks, count)
    return fit_features(settings, collection, folder.path, config.seed)
