"""Extract the features of all items, then fit the transformation on the train rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import dask
import dask.array as da
import numpy as np
from dask.delayed import Delayed
from dask_ml.decomposition import PCA
from numpy.typing import NDArray

from kmeans_dask.collection.collection import Collection
from kmeans_dask.collection.embeddings import file_stamp, match_embeddings, read_embeddings
from kmeans_dask.collection.extractors import extract
from kmeans_dask.collection.features import ROWS, TRANSFORMATION, Features, Transformation, open_features, raw_features
from kmeans_dask.config import sections
from kmeans_dask.errors import JobError, UserError
from kmeans_dask.kmeans.moments import Moments, block_moments, combine_moments
from kmeans_dask.kmeans.sampling import Data, sample_rows
from kmeans_dask.reduction import map_chunks, task_key, tree_reduce
from kmeans_dask.sources.sandbox import attempt, probe_items
from kmeans_dask.storage import zarr_groups
from kmeans_dask.storage.fingerprint import fingerprint_of
from kmeans_dask.storage.publish import read_json, remove, write_json

_PCA_BYTES = 256 * 2**20
"""Size of the float32 rows that components are fitted on; if there are more, a random sample is used, because the exact
solver of dask-ml gathers them in one task. Its randomized solver does not orthonormalize between power iterations, and
overflows on pixels after four of them. All 60,000 rows of MNIST take 180 MiB."""


class ExtractionResult(NamedTuple):
    """Result of an extraction task."""

    items: int
    """Number of items in the chunk."""
    error: str | None
    """What is wrong with the user's function or file, in which case the chunk was not written; otherwise None."""


def extraction_tasks(settings: sections.Features, collection: Collection, run: Path) -> list[Delayed]:
    """Make the remaining tasks that extract the features of all items, one per chunk.

    Chunks of an earlier call with the same kind, file and collection are kept; any others are removed.

    Parameters
    ----------
    settings
        Section of the config.
    collection
        Collection of the run.
    run
        Run folder, writable by all workers.

    Returns
    -------
    list of Delayed
        Each returns an `ExtractionResult`. Empty for pixels, which are read from the collection.

    Raises
    ------
    UserError
        The file or function in the settings does not exist, or does not fit the items.
    """
    folder, n_items, step = run.absolute() / "features", len(collection.labels), collection.chunk_rows
    if settings.kind == "pixels":
        if (folder / ROWS).exists():  # from an earlier config
            _remove(folder)
        return []
    file = match_embeddings(str(settings.path), collection.items) if settings.kind == "file" else None
    fingerprint = _fingerprint_of_rows(settings, collection)
    if _record(folder).get("fingerprint") != fingerprint:
        _remove(folder)
        if file:
            n_features = file.n_features
        else:
            n_features = extract(settings.kind, zarr_groups.read_block(collection.folder, 0, 1)).shape[1]
        zarr_groups.create_rows(folder / ROWS, (n_items, n_features), step)
        write_json(folder / "rows.json", {"fingerprint": fingerprint, "n_features": n_features})
    finished = _starts_finished(folder)
    task = dask.delayed(_file_chunk if file else _extract_chunk, pure=False, traverse=False)
    tasks = []
    for start in range(0, n_items, step):
        if start not in finished:
            stop = min(start + step, n_items)
            source = (file.path, file.positions[start:stop]) if file else (settings.kind, collection.folder)
            tasks.append(task(folder, start, stop, *source, dask_key_name=task_key("extract", start, stop)))
    return tasks


def fit_features(settings: sections.Features, collection: Collection, run: Path, seed: int) -> Features:
    """Fit the transformation on the train rows and publish it, unless this has been done with the same settings.

    Parameters
    ----------
    settings
        Section of the config.
    collection
        Collection of the run.
    run
        Run folder in which the tasks of `extraction_tasks` have been run.
    seed
        Random seed for the sample of rows that components are fitted on.

    Returns
    -------
    Features

    Raises
    ------
    UserError
        There are fewer rows or features than components.
    JobError
        Some features have not been extracted.
    """
    folder = run.absolute() / "features"
    if settings.raw:
        _remove(folder)
        return raw_features(collection.images.shape[1:])
    fingerprint = fingerprint_of(settings.model_dump(), _fingerprint_of_rows(settings, collection), seed)
    old = _fitted(run)
    if old is not None and old.fingerprint == fingerprint:
        return old
    features = replace(raw_features(collection.images.shape[1:]), settings=settings, fingerprint=fingerprint)
    if settings.kind != "pixels":
        _check_complete(folder, collection)
        features = replace(features, stored=folder / ROWS, n_features_in=_record(folder)["n_features"])
    X, _ = features.extracted_rows(collection, "train")
    features = replace(features, transformation=fit_transformation(settings, X, seed))
    attrs = {"settings": settings.model_dump(), "n_features_in": features.n_features_in, "fingerprint": fingerprint}
    zarr_groups.write_model(folder / TRANSFORMATION, features.transformation.arrays(), attrs)
    return features


def fit_transformation(settings: sections.Features, X: da.Array, seed: int) -> Transformation:
    """Fit the transformation that the settings ask for.

    Parameters
    ----------
    settings
        Section of the config.
    X : (m, n_features_in) da.Array of uint8 or float32
        Extracted features of the train rows.
    seed
        As for `fit_features`.

    Returns
    -------
    Transformation

    Raises
    ------
    UserError
        There are fewer rows or features than components.
    """
    divisor = None if settings.scale in ("standard", 1) else np.array([settings.scale], np.float32)
    mean = None
    if settings.scale == "standard" or settings.centre or settings.pca:
        moments: Moments = tree_reduce(map_chunks(block_moments, X), combine_moments).compute()
        if settings.scale == "standard":  # constant features are not scaled, as in scikit-learn
            deviation = np.sqrt(moments.squared_deviations / moments.weight)
            divisor = np.where(deviation > 0, deviation, 1).astype(np.float32)
        if settings.centre or settings.pca:
            mean = (moments.mean / (1 if divisor is None else divisor)).astype(np.float32)
    transformation = Transformation(divisor, mean)
    components = _components(transformation, X, settings.pca, seed) if settings.pca else None
    return replace(transformation, components=components, unit=settings.normalize == "l2")


def _components(transformation: Transformation, X: da.Array, n: int, seed: int) -> NDArray[np.float32]:
    if n > min(X.shape):
        raise UserError(
            f"features.pca={n}: there are only {len(X):,} rows of {X.shape[1]:,} features; choose fewer components"
        )
    at_most = max(n, _PCA_BYTES // (4 * X.shape[1]))
    if len(X) > at_most:
        X = da.from_array(sample_rows(Data(X, None, None, float(len(X))), at_most, seed).rows)
    floats = X.map_blocks(transformation.apply, dtype=np.float32, meta=np.empty((0, 0), np.float32))
    return np.asarray(PCA(n, svd_solver="full").fit(floats).components_, np.float32)


def _extract_chunk(folder: Path, start: int, stop: int, kind: str, collection: Path) -> ExtractionResult:
    with attempt(_marker(folder, start).with_suffix(".begun")) as careful:
        if careful:  # a user's function may crash its process
            bad = probe_items(partial(_read_images, collection, start), stop - start, partial(extract, kind))
            for row, error in bad.items():
                reason = f"item {start + row:,}: features.kind={kind} {error}; exclude this item"
                return ExtractionResult(stop - start, reason)
        return _store(folder, start, stop, lambda: extract(kind, zarr_groups.read_block(collection, start, stop)))


def _read_images(collection: Path, start: int, rows: Sequence[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    for row in rows:
        yield row, zarr_groups.read_block(collection, start + row, start + row + 1)


def _file_chunk(folder: Path, start: int, stop: int, file: Path, positions: NDArray[np.int64]) -> ExtractionResult:
    return _store(folder, start, stop, lambda: read_embeddings(file, positions, _record(folder)["n_features"]))


def _store(folder: Path, start: int, stop: int, make: Callable[[], NDArray[np.float32]]) -> ExtractionResult:
    """Write the rows of one chunk, then its marker; a user's mistake is returned instead of raised with a traceback."""
    try:
        rows, n_features = make(), _record(folder)["n_features"]
        if rows.shape[1] != n_features:
            raise UserError(
                f"one image has {n_features:,} features, others have {rows.shape[1]:,}; return the same number for all"
            )
    except UserError as error:
        return ExtractionResult(stop - start, f"items {start:,} to {stop - 1:,}: {error}")
    zarr_groups.write_rows(folder / ROWS, start, rows)
    write_json(_marker(folder, start), {})
    return ExtractionResult(stop - start, None)


def _fitted(run: Path) -> Features | None:
    try:
        return open_features(run)
    except UserError:  # none, unfinished, or written by another version
        return None


def _check_complete(folder: Path, collection: Collection) -> None:
    starts = range(0, len(collection.labels), collection.chunk_rows)
    missing = len(set(starts) - _starts_finished(folder))
    if missing:
        raise JobError(f"the features of {missing} of {len(starts)} chunks are missing; rerun fit")


def _marker(folder: Path, start: int) -> Path:
    return folder / "finished" / f"{start:012d}.json"


def _starts_finished(folder: Path) -> set[int]:
    """Return the first rows of all chunks that have their marker; one listing."""
    return {int(path.stem) for path in (folder / "finished").glob("*.json")}


def _remove(folder: Path) -> None:
    """Remove all features, the record first, because without it nothing is resumed."""
    remove(folder / "rows.json")
    remove(folder)


def _record(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / "rows.json")
    except FileNotFoundError:
        return {}


def _fingerprint_of_rows(settings: sections.Features, collection: Collection) -> str:
    """Fingerprint of what the extracted features depend on: kind, images, and the current content of the file."""
    stamp = [settings.path, *file_stamp(settings.path)] if settings.path else None
    return fingerprint_of(settings.kind, stamp, collection.fingerprint)
