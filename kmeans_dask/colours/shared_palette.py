"""One palette for a whole folder: count the colours by a tree reduction, store them, fit them by distributed K-Means.

The merged colour table has at most 2^24 rows, however many images there are. It is stored as ``colours.zarr`` in the
run folder and opened as Dask arrays, so that another K needs no second decoding.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import dask
import dask.array as da
import numpy as np
import pyarrow.compute as pc
from dask.delayed import Delayed
from numpy.typing import NDArray

from kmeans_dask.colours.palettes import (
    Palettes,
    complete,
    fit_palette,
    path_seed,
    protect_rare,
    sample_pixels,
    sort_by_luma,
)
from kmeans_dask.colours.quantize import QuantizeJob
from kmeans_dask.colours.remap import prepare_image
from kmeans_dask.colours.spaces import Space, from_space, to_space
from kmeans_dask.colours.table import ColourTable, merge
from kmeans_dask.colours.weighted_kmeans import coarse_centres
from kmeans_dask.config.sections import Quantize
from kmeans_dask.errors import UserError
from kmeans_dask.kmeans.kernels import slice_rows
from kmeans_dask.reduction import task_key
from kmeans_dask.sources.images import Content, ImageError, open_image
from kmeans_dask.sources.manifest import REMOVED, read_manifest
from kmeans_dask.sources.reading import find_unreadable, raise_if_source_lost, read_contents
from kmeans_dask.sources.sandbox import attempt
from kmeans_dask.storage import zarr_groups
from kmeans_dask.storage.fingerprint import file_digest, fingerprint_of
from kmeans_dask.storage.publish import remove

_FAN_IN = 4
"""Colour tables merged by one task: at most 4 x 184 MB are in memory at a time."""
_BLOCK_ROWS = 2**18 // slice_rows(3) * slice_rows(3)
"""Colours per chunk on disk and per Dask block: a pass at K=256 takes 10 ms."""
_PASSES = 10
"""Maximum passes over the colours. The initial centres have already been through up to a hundred passes over bins,
after which the error is about 1 % above the converged one at K=256."""


def count_tasks(job: QuantizeJob, batches: Sequence[tuple[int, int]]) -> list[Delayed]:
    """Create the tasks that count the colours of all images and store them in the run folder.

    Parameters
    ----------
    job
        The run. The settings ``weight``, ``sample`` and ``rare`` determine the weight of a pixel; the colours are
        written to ``colours.zarr`` in the run folder.
    batches
        Ranges (start, stop) of manifest rows, each decoded by one task.

    Returns
    -------
    list of Delayed
        Tasks to compute together; each returns the number of items counted. Empty if the colours are already stored.
    """
    job, folder, fingerprint = job.absolute(), _colours_folder(job.folder), _fingerprint(job)
    if _is_stored(folder, fingerprint):
        return []
    count = dask.delayed(_count_batch, pure=False, traverse=False)
    merge_tables = dask.delayed(_merge_tables, pure=False)
    tables = [count(job, *rows, dask_key_name=task_key("count_colours", *rows)) for rows in batches]
    count_items = dask.delayed(_n_counted, pure=False)
    counted = [count_items(table, stop - start) for table, (start, stop) in zip(tables, batches, strict=True)]
    while len(tables) > 1:
        tables = [merge_tables(tables[i : i + _FAN_IN]) for i in range(0, len(tables), _FAN_IN)]
    return [*counted, dask.delayed(_store, pure=False)(folder, fingerprint, tables[0], job.settings.rare)]


def n_colours(run_folder: Path) -> int:
    """Return the number of distinct colours that `count_tasks` has stored."""
    return int(zarr_groups.read_attrs(_colours_folder(run_folder), "colour table")["colours"])


def fit_shared(job: QuantizeJob) -> Palettes:
    """Fit the palette of each K to the stored colours.

    Grey colours have an exact solution, and mini-batches use a bounded number of pixels: either takes a single task.
    Otherwise the initial centres are fitted to binned colours, and `KMeans` passes over all colours, for all K at once.

    Parameters
    ----------
    job
        The run, whose colours `count_tasks` has stored.

    Returns
    -------
    dict
        K -> (min(k, n_colours), 3) uint8; empty if no image could be read.
    """
    folder, settings = _colours_folder(job.folder), job.settings
    ks = settings.k or []
    if n_colours(job.folder) == 0:
        return {}
    start_fit = dask.delayed(_fit_on_one_worker, pure=False, traverse=False)
    results = dask.compute(*(start_fit(folder, k, settings, job.seed) for k in ks))
    palettes = {k: palette for k, (palette, _) in zip(ks, results, strict=True) if palette is not None}
    inits = {k: init for k, (_, init) in zip(ks, results, strict=True) if init is not None}
    if inits:
        # this import takes 1.5 s, which workers are spared
        from kmeans_dask.kmeans.estimator import KMeans, fit_together

        X, weights = open_colours(job.folder, settings.space)
        estimators = [KMeans(k, init=init, max_iter=_PASSES) for k, init in inits.items()]
        fit_together(estimators, X, weights)
        make_palette = dask.delayed(_to_palette, pure=False, traverse=False)
        fitted = [make_palette(folder, e.n_clusters, e.cluster_centers_, settings.space) for e in estimators]
        palettes.update(zip(inits, dask.compute(*fitted), strict=True))
    return {k: palettes[k] for k in ks}


def open_colours(run_folder: Path, space: Space) -> tuple[da.Array, da.Array]:
    """Open the stored colours as Dask arrays.

    Parameters
    ----------
    run_folder
        Run folder with the colours stored by `count_tasks`.
    space
        Colour space of the coordinates.

    Returns
    -------
    points : (m, 3) da.Array
        uint8 for ``rgb``, float32 for ``oklab``. Each block is one chunk on disk, read by the task that uses it.
    weights : (m,) da.Array of float64
    """
    folder, m = _colours_folder(run_folder), n_colours(run_folder)
    sizes = tuple(min(_BLOCK_ROWS, m - start) for start in range(0, m, _BLOCK_ROWS))
    dtype = np.uint8 if space == "rgb" else np.float32
    points = da.map_blocks(_read_points, folder, space, chunks=(sizes, (3,)), dtype=dtype, meta=np.empty((0, 0), dtype))
    weights = da.map_blocks(_read_weights, folder, chunks=(sizes,), dtype=np.float64, meta=np.empty(0, np.float64))
    return points, weights


def _colours_folder(run_folder: Path) -> Path:
    return run_folder.absolute() / "colours.zarr"


def _is_stored(folder: Path, fingerprint: str) -> bool:
    try:
        return bool(zarr_groups.read_attrs(folder, "colour table")["fingerprint"] == fingerprint)
    except UserError:  # it does not exist, or writing it was interrupted
        return False


def _markers(folder: Path) -> Path:
    """Return the folder with the markers of running tasks (see `sandbox.attempt`)."""
    return folder.with_suffix(".begun")


def _count_batch(job: QuantizeJob, start: int, stop: int) -> ColourTable | None:
    """Count the colours of a batch of images; None if no image is readable and has an opaque pixel."""
    with attempt(_markers(_colours_folder(job.folder)) / f"{start:012d}") as careful:
        return _count_items(job, start, stop, careful)


def _count_items(job: QuantizeJob, start: int, stop: int, careful: bool) -> ColourTable | None:
    tables = []
    items = read_manifest(job.manifest, start, stop)
    items = items.filter(pc.not_equal(items["split"], REMOVED))
    paths = items["path"].to_pylist()
    read = partial(_read_colours, max_pixels=job.max_pixels)
    for row, content in read_contents(items, find_unreadable(items, read) if careful else None):
        try:
            table = read(content)
        except ImageError as error:
            raise_if_source_lost(items, row, error)
            continue  # the item is recorded as failed when it is quantized
        if len(table) == 0:
            continue
        if job.settings.sample < 1:
            table = sample_pixels(table, job.settings.sample, np.random.default_rng([job.seed, path_seed(paths[row])]))
        if job.settings.weight == "images":
            table = ColourTable(table.colours, table.counts / table.counts.sum())
        tables.append(table)
    return merge(tables) if tables else None


def _read_colours(content: Content, *, max_pixels: int) -> ColourTable:
    return prepare_image(open_image(content, max_pixels=max_pixels)).table


def _merge_tables(tables: Sequence[ColourTable | None]) -> ColourTable | None:
    counted = [table for table in tables if table is not None]
    return merge(counted) if counted else None


def _n_counted(table: ColourTable | None, n_items: int) -> int:  # depends on the table so that it runs after counting
    return n_items


def _store(folder: Path, fingerprint: str, table: ColourTable | None, rare: float) -> int:
    table = ColourTable(np.empty((0, 3), np.uint8), np.empty(0, np.int64)) if table is None else table
    weights = protect_rare(table, rare).counts
    zarr_groups.write_colours(
        folder, table.colours, weights, _BLOCK_ROWS, {"fingerprint": fingerprint, "colours": len(table)}
    )
    remove(_markers(folder))
    return 0


def _fit_on_one_worker(folder: Path, k: int, settings: Quantize, seed: int) -> tuple[Any, Any]:
    """Return the palette of one K, or the initial centres of the passes that find it; the other is None."""
    table = ColourTable(*zarr_groups.read_colours(folder))
    if len(table) <= k:
        return sort_by_luma(table.colours), None
    if settings.algorithm == "minibatch" or (settings.space == "rgb" and table.is_grey):
        return fit_palette(
            table, k, init=settings.init, algorithm=settings.algorithm, space=settings.space, seed=seed
        ), None
    rng = np.random.default_rng([seed, k])
    return None, coarse_centres(table, k, init=settings.init, space=settings.space, rng=rng)


def _to_palette(folder: Path, k: int, centres: NDArray[np.float32], space: Space) -> NDArray[np.uint8]:
    table = ColourTable(*zarr_groups.read_colours(folder))
    return complete(from_space(centres, space), table, k, space)


def _read_points(folder: Path, space: Space, block_info: Any = None) -> NDArray[Any]:
    (start, stop), _ = block_info[None]["array-location"]
    colours, _ = zarr_groups.read_colours(folder, start, stop)
    return colours if space == "rgb" else np.ascontiguousarray(to_space(colours, space).T)


def _read_weights(folder: Path, block_info: Any = None) -> NDArray[np.float64]:
    ((start, stop),) = block_info[None]["array-location"]
    return zarr_groups.read_colours(folder, start, stop)[1].astype(np.float64)


def _fingerprint(job: QuantizeJob) -> str:
    """Hash everything that determines the stored colours: the items and the weights of their pixels."""
    settings = job.settings
    seed = job.seed if settings.sample < 1 else 0
    return fingerprint_of(
        file_digest(job.manifest), settings.weight, settings.sample, settings.rare, seed, job.max_pixels
    )
