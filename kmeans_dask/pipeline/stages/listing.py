"""The first step of every job: list the items, before any worker starts, and notice what has changed."""

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
from kmeans_dask.sources.ranges import count_ranges
from kmeans_dask.storage.object_store import is_local
from kmeans_dask.storage.run_folder import RunFolder
from kmeans_dask.storage.run_record import RunRecord


def list_items_of(config: Config, record: RunRecord, *, list_again: bool) -> None:
    """List the input into the run's manifest; if the input is already listed, add what has changed.

    A manifest only grows: known items keep their rows, new ones are appended, and an item that has disappeared keeps
    its row with the split ``removed``.

    Parameters
    ----------
    config
        Checked config.
    record
        Record of the run.
    list_again
        Look for changes in an input that is already listed.

    Raises
    ------
    UserError
        The input is missing or holds no images.
    """
    folder = record.folder
    settings = {"seed": config.seed, **config.input.model_dump(mode="json")}
    is_listed = record.finished("listing", settings) is not None and folder.manifest.exists()
    if is_listed and not list_again:
        return
    old = read_manifest(folder.manifest) if is_listed else None
    items = list_items(config.input, config.seed, folder.path / "input", previous=old)
    if old is None:
        record.forget("listing")
    else:
        items = _without_own(items, folder)
        items, added, changed, removed = update_manifest(
            old, items, keep_splits=isinstance(config.input.holdout, float)
        )
        if items.equals(old):
            return
        # forget these before replacing the manifest; the stages that read the collection compare its fingerprint
        for stage in ("ingest", "quantize", *(["report"] if config.quantize else [])):
            record.forget(stage)
        say(f"{config.name}: the input changed: {added:,} items added, {changed:,} changed, {removed:,} removed")
        if obsolete := count_ranges(old).keys() - count_ranges(items).keys():
            say(f"{config.name}: pixel values were read as {_range_text(obsolete)} before; such images are read again")
    write_manifest(items, folder.manifest)
    n_items = len(items) - items["split"].to_pylist().count(REMOVED)
    record.finish("listing", settings, {"items": n_items}, 0.0)
    say(f"{config.name}: {n_items:,} items")
    say_ranges(config, items)


def say_ranges(config: Config, items: pa.Table) -> None:
    """Log how pixel values of arrays are read, if that was inferred from the values."""
    if config.input.range is None and (ranges := count_ranges(items)):
        say(f"{config.name}: pixel values are read as {_range_text(ranges)} (black to white); input.range changes this")


def _range_text(ranges: Collection[tuple[float, float]]) -> str:
    return " and ".join(f"{black:g} to {white:g}" for black, white in sorted(ranges))


def _without_own(items: pa.Table, folder: RunFolder) -> pa.Table:
    """Drop files that the run itself wrote, in case its folder is inside the input; built-in images are kept."""
    own = os.fsencode(os.path.abspath(folder.path) if is_local(folder.path) else str(folder.path)) + b"/"
    written = pc.starts_with(items["file"], own)
    return items.filter(pc.or_(pc.invert(written), pc.starts_with(items["file"], own + b"input/")))


def check_against_items(config: Config, folder: RunFolder) -> None:
    """Refuse more clusters than there are items.

    Parameters
    ----------
    config
        Checked config.
    folder
        Run folder that has a manifest.

    Raises
    ------
    UserError
        A K is larger than the number of items to fit.
    """
    if config.fit is None:
        return
    splits = read_manifest(folder.manifest).column("split").to_pylist()
    n_fitted = splits.count("train")
    if max(config.fit.ks) > n_fitted:
        key = "fit.k_range" if config.fit.k == "auto" else "fit.k"
        raise UserError(
            f"{key}={max(config.fit.ks)}: there are only {n_fitted:,} items to fit; choose at most that many clusters"
        )
