"""One palette for a whole folder: colours counted by a tree, kept in the run folder, fitted by distributed K-Means.

The merged colour table has at most 2^24 rows whatever the number of images. It is kept as ``colours.zarr``, which is
opened as Dask arrays, so that another K needs no second decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import dask
import dask.array as da
import numpy as np
import pyarrow.compute as pc
from dask.delayed import Delayed
from numpy.typing import NDArray

from kmeans_dask.colours.palettes import Palettes, complete, fit_palette, in_order, path_number, protect_rare, thin
from kmeans_dask.colours.remap import picture_of
from kmeans_dask.colours.spaces import Space, from_space, to_space
from kmeans_dask.colours.table import ColourTable, merge
from kmeans_dask.colours.weighted_kmeans import coarse_centres
from kmeans_dask.config.sections import Quantize
from kmeans_dask.errors import UserError
from kmeans_dask.kmeans.kernels import slice_rows
from kmeans_dask.reduction import task_key
from kmeans_dask.sources.images import Content, ImageError, open_image
from kmeans_dask.sources.manifest import REMOVED, read_manifest
from kmeans_dask.sources.reading import read_contents, refuse_outage, unreadable
from kmeans_dask.sources.sandbox import attempt
from kmeans_dask.storage import zarr_groups
from kmeans_dask.storage.fingerprint import file_digest, fingerprint_of
from kmeans_dask.storage.publish import remove

_FAN_IN = 4
"""Colour tables merged by one task: at most 4 x 184 MB are in memory at a time."""
_BLOCK_ROWS = 2**18 // slice_rows(3) * slice_rows(3)
"""Colours of a chunk on disk and of a block: a pass at K=256 takes 10 ms."""
_PASSES = 10
"""Passes over the colours at most: the start has been through a hundred over their bins, and is then about 1 % above
what they converge to at K=256."""


class _Count(NamedTuple):
    """What the tasks that count colours share."""

    manifest: Path
    begun: Path
    """Folder of the marks of tasks that run."""
    settings: Quantize
    seed: int
    max_pixels: int


def count_tasks(
    manifest_path: Path,
    run_folder: Path,
    settings: Quantize,
    seed: int,
    max_pixels: int,
    batches: Sequence[tuple[int, int]],
) -> list[Delayed]:
    """Make the tasks that count the colours of all images and keep them in the run folder.

    Parameters
    ----------
    manifest_path
        File of the items, readable by all workers.
    run_folder
        Writable by all workers; the colours go to ``colours.zarr`` in it.
    settings
        ``weight``, ``sample`` and ``rare`` decide what a pixel counts.
    seed
        Of the draw of a sample; with the path of an image it decides which of its pixels take part.
    max_pixels
        Pixels of one image above which it is not decoded.
    batches
        Rows of the manifest, (start, stop), that are decoded by one task.

    Returns
    -------
    list of Delayed
        To be computed together; each returns how many items it has counted. None if the colours are there already.
    """
    fingerprint = _fingerprint(manifest_path, settings, seed, max_pixels)
    folder = _folder(run_folder)
    if _is_kept(folder, fingerprint):
        return []
    job = _Count(manifest_path.absolute(), _begun(folder), settings, seed, max_pixels)
    count = dask.delayed(_count_batch, pure=False, traverse=False)
    add = dask.delayed(_merge_counted, pure=False)
    tables = [count(job, *rows, dask_key_name=task_key("count_colours", *rows)) for rows in batches]
    say = dask.delayed(_items_counted, pure=False)
    counted = [say(table, stop - start) for table, (start, stop) in zip(tables, batches, strict=True)]
    while len(tables) > 1:
        tables = [add(tables[i : i + _FAN_IN]) for i in range(0, len(tables), _FAN_IN)]
    return [*counted, dask.delayed(_keep, pure=False)(folder, fingerprint, tables[0], settings.rare)]


def kept_number(run_folder: Path) -> int:
    """Return how many colours `count_tasks` has kept."""
    return int(zarr_groups.read_attrs(_folder(run_folder), "colour table")["colours"])


def fit_shared(run_folder: Path, settings: Quantize, seed: int) -> Palettes:
    """Fit the palette of each K to the colours that `count_tasks` has kept.

    Grey colours have a known optimum and mini-batches a bounded number of pixels: a task does either alone. Else the
    start comes from the colours' bins, and `KMeans` passes over all colours, all K at a time.

    Parameters
    ----------
    run_folder
        Its ``colours.zarr`` is there.
    settings
        The K and how palettes are made.
    seed
        Of every random draw.

    Returns
    -------
    dict
        K -> (min(k, colours), 3) uint8; empty if no image could be read.
    """
    folder, ks = _folder(run_folder), settings.k or []
    if kept_number(run_folder) == 0:
        return {}
    begin = dask.delayed(_begin, pure=False, traverse=False)
    begun = dask.compute(*(begin(folder, k, settings, seed) for k in ks))
    palettes = {k: palette for k, (palette, _) in zip(ks, begun, strict=True) if palette is not None}
    starts = {k: start for k, (_, start) in zip(ks, begun, strict=True) if start is not None}
    if starts:
        from kmeans_dask.kmeans.estimator import KMeans, fit_together  # takes 1.5 s: workers are spared it

        X, weights = kept_colours(run_folder, settings.space)
        estimators = [KMeans(k, init=start, max_iter=_PASSES) for k, start in starts.items()]
        fit_together(estimators, X, weights)
        end = dask.delayed(_end, pure=False, traverse=False)
        fitted = [end(folder, e.n_clusters, e.cluster_centers_, settings.space) for e in estimators]
        palettes.update(zip(starts, dask.compute(*fitted), strict=True))
    return {k: palettes[k] for k in ks}


def kept_colours(run_folder: Path, space: Space) -> tuple[da.Array, da.Array]:
    """Open the kept colours as Dask arrays.

    Parameters
    ----------
    run_folder
        Its ``colours.zarr`` is there.
    space
        Of the coordinates.

    Returns
    -------
    points : (m, 3) da.Array
        uint8 for ``rgb``, float32 for ``oklab``. A block is a chunk on disk, read in the task that uses it.
    weights : (m,) da.Array of float64
    """
    folder, m = _folder(run_folder), kept_number(run_folder)
    sizes = tuple(min(_BLOCK_ROWS, m - start) for start in range(0, m, _BLOCK_ROWS))
    dtype = np.uint8 if space == "rgb" else np.float32
    points = da.map_blocks(_read_points, folder, space, chunks=(sizes, (3,)), dtype=dtype, meta=np.empty((0, 0), dtype))
    weights = da.map_blocks(_read_weights, folder, chunks=(sizes,), dtype=np.float64, meta=np.empty(0, np.float64))
    return points, weights


def _folder(run_folder: Path) -> Path:
    return run_folder.absolute() / "colours.zarr"


def _is_kept(folder: Path, fingerprint: str) -> bool:
    try:
        return bool(zarr_groups.read_attrs(folder, "colour table")["fingerprint"] == fingerprint)
    except UserError:  # there is none, or its writing was interrupted
        return False


def _begun(folder: Path) -> Path:
    return folder.with_suffix(".begun")


def _count_batch(job: _Count, start: int, stop: int) -> ColourTable | None:
    """Colours of the images of a batch; None if none could be read or has a pixel that can be seen."""
    with attempt(job.begun / f"{start:012d}") as careful:
        return _count_items(job, start, stop, careful)


def _count_items(job: _Count, start: int, stop: int, careful: bool) -> ColourTable | None:
    tables = []
    items = read_manifest(job.manifest, start, stop)
    items = items.filter(pc.not_equal(items["split"], REMOVED))
    paths = items["path"].to_pylist()
    read = partial(_read_colours, max_pixels=job.max_pixels)
    for row, content in read_contents(items, unreadable(items, read) if careful else None):
        try:
            table = read(content)
        except ImageError as error:
            refuse_outage(items, row, error)
            continue  # it becomes a row when it is to be painted
        if len(table) == 0:
            continue
        if job.settings.sample < 1:
            table = thin(table, job.settings.sample, np.random.default_rng([job.seed, path_number(paths[row])]))
        if job.settings.weight == "images":
            table = ColourTable(table.colours, table.counts / table.counts.sum())
        tables.append(table)
    return merge(tables) if tables else None


def _read_colours(content: Content, *, max_pixels: int) -> ColourTable:
    return picture_of(open_image(content, max_pixels=max_pixels)).table


def _merge_counted(tables: Sequence[ColourTable | None]) -> ColourTable | None:
    counted = [table for table in tables if table is not None]
    return merge(counted) if counted else None


def _items_counted(table: ColourTable | None, n_items: int) -> int:  # takes the table to be run after its counting
    return n_items


def _keep(folder: Path, fingerprint: str, table: ColourTable | None, rare: float) -> int:
    table = ColourTable(np.empty((0, 3), np.uint8), np.empty(0, np.int64)) if table is None else table
    weights = protect_rare(table, rare).counts
    zarr_groups.write_colours(
        folder, table.colours, weights, _BLOCK_ROWS, {"fingerprint": fingerprint, "colours": len(table)}
    )
    remove(_begun(folder))
    return 0


def _begin(folder: Path, k: int, settings: Quantize, seed: int) -> tuple[Any, Any]:
    """Palette of one K, or the start of the passes that find it; the other is None."""
    table = ColourTable(*zarr_groups.read_colours(folder))
    if len(table) <= k:
        return in_order(table.colours), None
    if settings.algorithm == "minibatch" or (settings.space == "rgb" and table.is_grey):
        return fit_palette(
            table, k, init=settings.init, algorithm=settings.algorithm, space=settings.space, seed=seed
        ), None
    rng = np.random.default_rng([seed, k])
    return None, coarse_centres(table, k, init=settings.init, space=settings.space, rng=rng)


def _end(folder: Path, k: int, centres: NDArray[np.float32], space: Space) -> NDArray[np.uint8]:
    table = ColourTable(*zarr_groups.read_colours(folder))
    return complete(from_space(centres, space), table, k, space)


def _read_points(folder: Path, space: Space, block_info: Any = None) -> NDArray[Any]:
    (start, stop), _ = block_info[None]["array-location"]
    colours, _ = zarr_groups.read_colours(folder, start, stop)
    return colours if space == "rgb" else np.ascontiguousarray(to_space(colours, space).T)


def _read_weights(folder: Path, block_info: Any = None) -> NDArray[np.float64]:
    ((start, stop),) = block_info[None]["array-location"]
    return zarr_groups.read_colours(folder, start, stop)[1].astype(np.float64)


def _fingerprint(manifest_path: Path, settings: Quantize, seed: int, max_pixels: int) -> str:
    """Hash what decides about the kept colours: the items, and what a pixel counts."""
    drawn_with = seed if settings.sample < 1 else 0
    return fingerprint_of(
        file_digest(manifest_path), settings.weight, settings.sample, settings.rare, drawn_with, max_pixels
    )
