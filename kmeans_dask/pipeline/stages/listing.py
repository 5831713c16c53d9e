"""The first step of every job: list the items, before a cluster is asked for, and notice what has changed."""

from __future__ import annotations

import os
from collections.abc import Collection

import pyarrow as pa
import pyarrow.compute as pc

from kmeans_dask.config.sections import Config
from kmeans_dask.errors import UserError
from kmeans_dask.pipeline.console import say
from kmeans_dask.sources.listing import list_items
from kmeans_dask.sources.manifest import REMOVED, read_manifest, update_manifest, write_manifest
from kmeans_dask.sources.ranges import ranges_of
from kmeans_dask.storage.object_store import is_local
from kmeans_dask.storage.run_folder import RunFolder


def list_items_of(config: Config, folder: RunFolder, *, look_again: bool) -> None:
    """List the input into the run folder's manifest; of an input that is listed, list what has changed.

    A manifest only grows: items that were there keep their rows, new ones come after them, and one that has gone keeps
    its row with the split ``removed``.

    Parameters
    ----------
    config
        Checked config.
    folder
        Run folder.
    look_again
        Whether an input that has been listed is looked at again.

    Raises
    ------
    UserError
        The input is missing or holds no images.
    """
    settings = {"seed": config.seed, **config.input.model_dump(mode="json")}
    known = folder.finished("listing", settings) is not None and folder.manifest.exists()
    if known and not look_again:
        return
    old = read_manifest(folder.manifest) if known else None
    items = list_items(config.input, config.seed, folder.path / "input", known=old)
    if old is not None:
        items = _without_own(items, folder)
        items, added, changed, removed = update_manifest(
            old, items, keep_splits=isinstance(config.input.holdout, float)
        )
        if items.equals(old):
            return
        # before the manifest is another one; what depends on the collection sees for itself whether that has changed
        for stage in ("ingest", "quantize", *(["report"] if config.quantize else [])):
            folder.forget(stage)
        say(f"{config.name}: the input has changed: {added:,} items added, {changed:,} changed, {removed:,} removed")
        gone = ranges_of(old).keys() - ranges_of(items).keys()
        if gone:
            say(f"{config.name}: numbers were taken as {_shown(gone)} before: all such images are read again")
    else:
        folder.forget("listing")
    write_manifest(items, folder.manifest)
    n_items = len(items) - items["split"].to_pylist().count(REMOVED)
    folder.finish("listing", settings, {"items": n_items}, 0.0)
    say(f"{config.name}: {n_items:,} items")
    say_ranges(config, items)


def say_ranges(config: Config, items: pa.Table) -> None:
    """Say how the numbers of arrays are taken, if that has been judged by what they are."""
    if config.input.range is None and (ranges := ranges_of(items)):
        say(f"{config.name}: numbers are taken as {_shown(ranges)} (black to white); input.range states another range")


def _shown(ranges: Collection[tuple[float, float]]) -> str:
    return " and ".join(f"{black:g} to {white:g}" for black, white in sorted(ranges))


def _without_own(items: pa.Table, folder: RunFolder) -> pa.Table:
    """Leave out what the run has written since it was listed, where its folder lies in the input; not the built-in."""
    own = os.fsencode(os.path.abspath(folder.path) if is_local(folder.path) else str(folder.path)) + b"/"
    written = pc.starts_with(items["file"], own)
    return items.filter(pc.or_(pc.invert(written), pc.starts_with(items["file"], own + b"input/")))


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
