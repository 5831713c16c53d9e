"""The first step of every job: list the items once, before a cluster is asked for."""

from __future__ import annotations

from jobs.console import say
from kmeans_dask.config import Config
from kmeans_dask.errors import UserError
from kmeans_dask.runs import RunFolder
from kmeans_dask.sources import list_items, read_manifest, write_manifest


def list_items_once(config: Config, folder: RunFolder) -> None:
    """List the input into the run folder's manifest, if it is not there for the same input.

    Parameters
    ----------
    config
        Checked config.
    folder
        Run folder.

    Raises
    ------
    UserError
        The input is missing or holds no images.
    """
    settings = {"seed": config.seed, **config.input.model_dump(mode="json")}
    if folder.finished("listing", settings) is not None and folder.manifest.exists():
        return
    folder.forget("listing")
    items = list_items(config.input, config.seed, folder.path / "input")
    write_manifest(items, folder.manifest)
    folder.finish("listing", settings, {"items": len(items)}, 0.0)
    say(f"{config.name}: {len(items):,} items")


def check_against_items(config: Config, folder: RunFolder) -> None:
    """Refuse numbers of clusters that the listed items cannot give.

    Parameters
    ----------
    config
        Checked config.
    folder
        Run folder with a manifest.

    Raises
    ------
    UserError
        A K is larger than the number of items to be fitted.
    """
    if config.fit is None:
        return
    splits = read_manifest(folder.manifest).column("split").to_pylist()
    n_fitted = splits.count("train")
    if max(config.fit.ks) > n_fitted:
        key = "fit.k_range" if config.fit.k == "auto" else "fit.k"
        raise UserError(
            f"{key}={max(config.fit.ks)}: there are only {n_fitted:,} items to fit; choose at most as many clusters"
        )
