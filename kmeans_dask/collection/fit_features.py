"""Features of a run are made: numbers extracted from every item, then the transformation fitted on the train rows."""

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
from kmeans_dask.kmeans.moments import Moments, combine_moments, moments
from kmeans_dask.kmeans.sampling import Data, sample_rows
from kmeans_dask.reduction import map_chunks, task_key, tree_reduce
from kmeans_dask.sources.sandbox import attempt, ended_by
from kmeans_dask.storage import zarr_groups
from kmeans_dask.storage.fingerprint import fingerprint_of
from kmeans_dask.storage.publish import read_json, remove, write_json

_PCA_BYTES = 256 * 2**20
"""Components are fitted on random rows of at most so many float32 numbers, because dask-ml's exact solver ends up in
one task; its randomized one does not orthonormalize between its power iterations, and overflows on pixels after four.
All 60,000 rows of MNIST are 180 MiB."""


class Extracted(NamedTuple):
    """What an extraction task returns."""

    items: int
    error: str | None
    """What is wrong with the user's function or file; the chunk was then not written."""


def extraction_tasks(settings: sections.Features, collection: Collection, run: Path) -> list[Delayed]:
    """Make the tasks that are still needed to extract the numbers of all items, one a chunk.

    What an earlier call began is continued if it has the same kind, file and collection, else it is removed.

    Parameters
    ----------
    settings
        Of the features.
    collection
        Of the run.
    run
        Run folder, which all workers can write to.

    Returns
    -------
    list of Delayed
        Each returns `Extracted`. Empty for pixels, which are read as they are.

    Raises
    ------
    UserError
        The file or the function that the settings name is not there, or does not fit the items.
    """
    folder, n_items, step = run.absolute() / "features", len(collection.labels), collection.chunk_rows
    if settings.kind == "pixels":
        if (folder / ROWS).exists():  # of an earlier config
            _remove(folder)
        return []
    file = match_embeddings(str(settings.path), collection.items) if settings.kind == "file" else None
    fingerprint = _fingerprint_of_rows(settings, collection)
    if _record(folder).get("fingerprint") != fingerprint:
        _remove(folder)
        width = file.width if file else extract(settings.kind, zarr_groups.read_block(collection.folder, 0, 1)).shape[1]
        zarr_groups.create_rows(folder / ROWS, (n_items, width), step)
        write_json(folder / "rows.json", {"fingerprint": fingerprint, "width": width})
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
    """Measure the transformation on the train rows and publish it, if that has not been done with these settings.

    Parameters
    ----------
    settings
        Of the features.
    collection
        Of the run.
    run
        Run folder; what `extraction_tasks` made has been run.
    seed
        Of the random rows that components are fitted on, where all would be too many.

    Returns
    -------
    Features

    Raises
    ------
    UserError
        There are fewer rows or numbers than components.
    JobError
        Numbers have not been extracted.
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
        features = replace(features, stored=folder / ROWS, width=_record(folder)["width"])
    X, _ = features.extracted(collection, "train")
    features = replace(features, transformation=measure(settings, X, seed))
    attrs = {"settings": settings.model_dump(), "width": features.width, "fingerprint": fingerprint}
    zarr_groups.write_model(folder / TRANSFORMATION, features.transformation.arrays(), attrs)
    return features


def measure(settings: sections.Features, X: da.Array, seed: int) -> Transformation:
    """Measure the transformation that the settings ask for.

    Parameters
    ----------
    settings
        Of the features.
    X : (m, n) da.Array of uint8 or float32
        Extracted numbers of the train rows.
    seed
        As for `fit_features`.

    Returns
    -------
    Transformation

    Raises
    ------
    UserError
        There are fewer rows or numbers than components.
    """
    divisor = None if settings.scale in ("standard", 1) else np.array([settings.scale], np.float32)
    mean = None
    if settings.scale == "standard" or settings.centre or settings.pca:
        first: Moments = tree_reduce(map_chunks(moments, X), combine_moments).compute()
        if settings.scale == "standard":  # a feature that never changes stays as it is, as in scikit-learn
            deviation = np.sqrt(first.spread / first.weight)
            divisor = np.where(deviation > 0, deviation, 1).astype(np.float32)
        if settings.centre or settings.pca:
            mean = (first.mean / (1 if divisor is None else divisor)).astype(np.float32)
    transformation = Transformation(divisor, mean)
    components = _components(transformation, X, settings.pca, seed) if settings.pca else None
    return replace(transformation, components=components, unit=settings.normalize == "l2")


def _components(transformation: Transformation, X: da.Array, n: int, seed: int) -> NDArray[np.float32]:
    if n > min(X.shape):
        raise UserError(f"features.pca={n}: there are only {len(X):,} rows of {X.shape[1]:,} numbers; choose fewer")
    at_most = max(n, _PCA_BYTES // (4 * X.shape[1]))
    if len(X) > at_most:
        X = da.from_array(sample_rows(Data(X, None, None, float(len(X))), at_most, seed).rows)
    floats = X.map_blocks(transformation.apply, dtype=np.float32, meta=np.empty((0, 0), np.float32))
    return np.asarray(PCA(n, svd_solver="full").fit(floats).components_, np.float32)


def _extract_chunk(folder: Path, start: int, stop: int, kind: str, collection: Path) -> Extracted:
    with attempt(_marker(folder, start).with_suffix(".begun")) as careful:
        if careful:  # a user's function may end its process
            bad = ended_by(partial(_read_images, collection, start), stop - start, partial(extract, kind))
            for row, error in bad.items():
                return Extracted(stop - start, f"item {start + row:,}: features.kind={kind} {error}; leave it out")
        return _store(folder, start, stop, lambda: extract(kind, zarr_groups.read_block(collection, start, stop)))


def _read_images(collection: Path, start: int, rows: Sequence[int]) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    for row in rows:
        yield row, zarr_groups.read_block(collection, start + row, start + row + 1)


def _file_chunk(folder: Path, start: int, stop: int, file: Path, positions: NDArray[np.int64]) -> Extracted:
    return _store(folder, start, stop, lambda: read_embeddings(file, positions, _record(folder)["width"]))


def _store(folder: Path, start: int, stop: int, make: Callable[[], NDArray[np.float32]]) -> Extracted:
    """Write the rows of one chunk, then its marker; a user's mistake is a result, not a traceback on a worker."""
    try:
        rows, width = make(), _record(folder)["width"]
        if rows.shape[1] != width:
            raise UserError(f"one image has {width:,} features, others have {rows.shape[1]:,}; give all the same")
    except UserError as error:
        return Extracted(stop - start, f"items {start:,} to {stop - 1:,}: {error}")
    zarr_groups.write_rows(folder / ROWS, start, rows)
    write_json(_marker(folder, start), {})
    return Extracted(stop - start, None)


def _fitted(run: Path) -> Features | None:
    try:
        return open_features(run)
    except UserError:  # there are none, or their writing was interrupted
        return None


def _check_complete(folder: Path, collection: Collection) -> None:
    starts = range(0, len(collection.labels), collection.chunk_rows)
    missing = len(set(starts) - _starts_finished(folder))
    if missing:
        raise JobError(f"the features of {missing} of {len(starts)} chunks are not written; run fit again")


def _marker(folder: Path, start: int) -> Path:
    return folder / "finished" / f"{start:012d}.json"


def _starts_finished(folder: Path) -> set[int]:
    """First rows of the chunks that have their marker, by one look at all."""
    return {int(path.stem) for path in (folder / "finished").glob("*.json")}


def _remove(folder: Path) -> None:
    """Remove what was extracted and fitted; first of all the record by which it would be continued."""
    remove(folder / "rows.json")
    remove(folder)


def _record(folder: Path) -> dict[str, Any]:
    try:
        return read_json(folder / "rows.json")
    except FileNotFoundError:
        return {}


def _fingerprint_of_rows(settings: sections.Features, collection: Collection) -> str:
    """Hash what the extracted numbers depend on: kind, images, and the file as it is now."""
    stamp = [settings.path, *file_stamp(settings.path)] if settings.path else None
    return fingerprint_of(settings.kind, stamp, collection.fingerprint)
