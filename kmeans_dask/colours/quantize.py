"""Quantize all images of a manifest: one task per batch of images, one file per image and K.

A task decodes an image once, counts its colours once, fits, remaps and writes every K from that, and then records the
outcome in the journal. Outputs that the journal records are skipped.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import dask
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from dask.delayed import Delayed
from numpy.typing import NDArray

from kmeans_dask.colours.dither import Dither
from kmeans_dask.colours.palette_files import write_palette
from kmeans_dask.colours.palettes import Palettes, colour_limit, fit_palette, path_seed
from kmeans_dask.colours.remap import PNG_LEVEL, Format, PreparedImage, encode, prepare_image, remap
from kmeans_dask.colours.seeding import Init
from kmeans_dask.colours.spaces import Space
from kmeans_dask.colours.table import psnr
from kmeans_dask.config.loading import Source, check_section, input_of
from kmeans_dask.config.sections import Quantize
from kmeans_dask.errors import JobError, UserError
from kmeans_dask.reduction import task_key
from kmeans_dask.sources.batches import plan_batches
from kmeans_dask.sources.images import Content, ImageError, open_image
from kmeans_dask.sources.listing import list_items
from kmeans_dask.sources.manifest import REMOVED, read_manifest, write_manifest
from kmeans_dask.sources.reading import find_unreadable, raise_if_source_lost, read_contents
from kmeans_dask.sources.sandbox import attempt
from kmeans_dask.storage.fingerprint import file_digest, fingerprint_of
from kmeans_dask.storage.journal import Journal, Outcome, find_journal, open_journal, write_table
from kmeans_dask.storage.object_store import is_local, location, make_folder, put, storage_failure
from kmeans_dask.storage.output_names import output_names, plain_name, write_file

_THREADS = 32
"""Assumed by `quantize_folder`, which does not know the cluster; it only affects the size of the batches."""
_FORMAT_VERSION = 3


@dataclass(frozen=True)
class QuantizeJob:
    """Everything that the tasks of one run have in common; about 1 kB that travels with each task.

    Attributes
    ----------
    manifest : Path
        Manifest file, readable by all workers.
    folder : Path
        Run folder, writable by all workers. Images go to ``quantized/<k>/<path>.<format>`` in it.
    settings : Quantize
        How palettes are made and images are written.
    seed : int
        Seed of all random draws. Together with the path of an item it determines the item's palettes, so these do not
        depend on the batches.
    max_pixels : int
        Images with more pixels than this are not decoded.
    """

    manifest: Path
    folder: Path
    settings: Quantize
    seed: int
    max_pixels: int

    def absolute(self) -> QuantizeJob:
        """Return the job with absolute paths, which do not depend on a worker's working directory."""
        return replace(self, manifest=self.manifest.absolute(), folder=self.folder.absolute())


class BatchSummary(NamedTuple):
    """Result of a quantize task."""

    start: int
    """First row of the batch."""
    done: int
    """Number of items written in every K."""
    failed: int
    """Number of items that failed in at least one K."""
    seconds: float
    """Wall time of the task."""


def quantize_folder(
    source: Source,
    dest: str | os.PathLike[str],
    k: int | Sequence[int],
    *,
    init: Init = "k-means++",
    sample: float = 1.0,
    space: Space = "rgb",
    rare: float = 0.0,
    dither: Dither = "none",
    file_format: Format = "png",
    seed: int = 0,
) -> pa.Table:
    """Quantize every image of a folder or another source to K colours, each with a palette of its own.

    The work runs on the active Dask client, if there is one. Calling the function again with the same arguments skips
    the images that are finished; with other settings it replaces them.

    Parameters
    ----------
    source
        Folder, archive, array, table, list of paths or glob pattern, local or as a URL; one or several.
    dest
        Folder that all workers can write, or a URL in an object store. The images are written to
        ``quantized/<k>/<path>.png`` in it.
    k
        Number of colours, 1-65,536; one or several. An image is decoded once for all of them.
    init, sample, space, rare, dither
        See `quantize_image`.
    file_format
        ``png``: indexed PNG. ``webp``: lossless WebP. ``gif``: at most 256 colours.
    seed
        Random seed; with the path of an image it determines its palettes.

    Returns
    -------
    pyarrow.Table
        One row per image and K, in natural order of the paths: `journal.QUANTIZED_SCHEMA`. Among its columns are
        ``path``, ``k``, ``output`` (file in `dest`), ``mse`` and ``psnr``, ``bytes_in`` and ``bytes_out``, ``status``
        (``ok``, or what is wrong with the image) and ``error``.

    Raises
    ------
    UserError
        An argument is invalid, the source is missing or has no images, or `dest` holds something else.
    """
    folder, images = location(dest).absolute(), input_of(source, labels="none")
    _check_dest(folder)
    settings = check_section(
        Quantize, k=k, init=init, sample=sample, space=space, rare=rare, dither=dither, format=file_format
    )
    items = list_items(images, seed, folder)
    own = pc.starts_with(items["file"], os.fsencode(f"{folder}/"))  # outputs of an earlier call, if dest is in source
    make_folder(folder)
    write_manifest(items.filter(pc.invert(own)), folder / "manifest.parquet")
    job = QuantizeJob(folder / "manifest.parquet", folder, settings, seed, images.max_pixels)
    dask.compute(*quantize_tasks(job, missing_outputs(job), threads=_THREADS))
    return finish_quantized(folder, settings.k or [])


def _check_dest(folder: Path) -> None:
    """Refuse a folder with other contents, because outputs of other settings are removed from it."""
    names = {entry.name for entry in folder.iterdir()} - {"manifest.parquet"} if folder.exists() else set()
    if "run.json" in names or (names and "quantized.journal" not in names):
        raise UserError(f"dest={folder} holds something other than quantized images; choose a new or empty folder")


def missing_outputs(job: QuantizeJob, given: Mapping[int, NDArray[np.uint8]] | None = None) -> dict[int, list[int]]:
    """Find the outputs that are still missing, after removing those of other settings.

    Outputs of an earlier run with the same manifest and settings are kept; K may differ.

    Parameters
    ----------
    job
        The run. Its settings name the K, unless a palette is given.
    given
        Palette read from a file, keyed by its number of colours.

    Returns
    -------
    dict
        Manifest row -> missing K, in the order of the settings; complete rows are left out.
    """
    known = open_journal(job.folder, _fingerprint(job, given or {})).outcomes()
    ks = job.settings.k or list(given or {})
    splits = read_manifest(job.manifest)["split"].to_pylist()
    present = [row for row, split in enumerate(splits) if split != REMOVED]
    missing = {row: [k for k in ks if (row, k) not in known] for row in present}
    return {row: ks for row, ks in missing.items() if ks}


def quantize_tasks(
    job: QuantizeJob,
    missing: Mapping[int, Sequence[int]],
    palettes: Palettes | None = None,
    threads: int = 1,
) -> list[Delayed]:
    """Create the tasks that make the missing outputs, one per batch.

    Parameters
    ----------
    job
        The run.
    missing
        Result of `missing_outputs`.
    palettes
        K -> palette shared by all images; None: each image gets its own.
    threads
        Number of threads of all workers together, as for `plan_batches`.

    Returns
    -------
    list of Delayed
        Each returns a `BatchSummary`. Empty if nothing is missing.

    Raises
    ------
    JobError
        The run folder has no journal: `missing_outputs` was not called.
    """
    job = job.absolute()
    journal = find_journal(job.folder)
    if journal is None:
        raise JobError(f"{job.folder} has no journal; call missing_outputs first")
    manifest = read_manifest(job.manifest)
    suffix, paths = f".{job.settings.format}", manifest["path"].to_pylist()
    names = output_names(paths, suffix)
    task = dask.delayed(quantize_batch, pure=False, traverse=False)
    shared = None if palettes is None else dask.delayed(palettes, traverse=False)
    n_k = len(job.settings.k or palettes or {})
    tasks = []
    for start, stop in plan_batches(manifest, threads):
        todo = {row: list(missing[row]) for row in range(start, stop) if row in missing}
        if todo:
            # the scheduler keeps the arguments of tasks in memory: pass nothing about ordinary items
            renamed = {row: names[row] for row in todo if names[row] != plain_name(paths[row], suffix)}
            is_all = len(todo) == stop - start and all(len(ks) == n_k for ks in todo.values())
            arguments = (job, journal.folder, start, stop, renamed, None if is_all else todo, shared)
            tasks.append(task(*arguments, dask_key_name=task_key("quantize_batch", start, stop)))
    return tasks


def quantize_batch(
    job: QuantizeJob,
    journal: Path,
    start: int,
    stop: int,
    names: dict[int, str],
    todo: dict[int, list[int]] | None,
    palettes: Palettes | None,
) -> BatchSummary:
    """Quantize the manifest rows from `start` to `stop`, one after the other.

    Parameters
    ----------
    job
        The run.
    journal
        Folder of the journal.
    start, stop
        Range of manifest rows.
    names
        Row -> output name, for rows whose output cannot have its plain name.
    todo
        Row -> missing K; None: every row lacks every K.
    palettes
        As for `quantize_tasks`.

    Returns
    -------
    BatchSummary
        An unreadable image is recorded as failed, with the reason, for every K.
    """
    if todo is None:
        todo = dict.fromkeys(range(start, stop), job.settings.k or list(palettes or {}))
    with attempt(journal / f"{start:012d}.begun") as careful:
        return _quantize_rows(job, Journal(journal), start, stop, names, todo, palettes, careful)


def _quantize_rows(
    job: QuantizeJob,
    journal: Journal,
    start: int,
    stop: int,
    names: dict[int, str],
    todo: dict[int, list[int]],
    palettes: Palettes | None,
    careful: bool,
) -> BatchSummary:
    start_time = time.perf_counter()
    failed = 0
    rows = sorted(todo)
    manifest = read_manifest(job.manifest, start, stop).take([row - start for row in rows])
    items = manifest.select(["path", "bytes"]).to_pylist()
    trial = partial(_quantize_unsaved, job, sorted({*chain(*todo.values())}), palettes)
    bad = find_unreadable(manifest, trial) if careful else None
    with journal.attempt(start) as record:
        for i, content in read_contents(manifest, bad):
            row, item, ks = rows[i], items[i], todo[rows[i]]
            name = names.get(row) or plain_name(item["path"], f".{job.settings.format}")
            try:
                outcomes = list(_quantize_item(job, row, item, content, name, ks, palettes))
            except ImageError as error:
                raise_if_source_lost(manifest, i, error)
                outcomes = [_failed(row, k, item, error.status, error) for k in ks]
            failed += any(outcome.status != "ok" for outcome in outcomes)
            record(outcomes)
    return BatchSummary(start, len(todo) - failed, failed, time.perf_counter() - start_time)


def finish_quantized(run_folder: Path, ks: Sequence[int]) -> pa.Table:
    """Write ``quantized.parquet`` after all tasks have finished.

    Parameters
    ----------
    run_folder
        Run folder; its manifest is ``manifest.parquet`` in it.
    ks
        K to include.

    Returns
    -------
    pyarrow.Table
        Table of `journal.QUANTIZED_SCHEMA`.

    Raises
    ------
    JobError
        An outcome is missing from the journal.
    """
    manifest = read_manifest(run_folder / "manifest.parquet")
    splits, paths = (manifest[name].to_pylist() for name in ("split", "path"))
    present = {row: path for row, (path, split) in enumerate(zip(paths, splits, strict=True)) if split != REMOVED}
    return write_table(run_folder, present, ks)


def _quantize_item(
    job: QuantizeJob,
    row: int,
    item: dict[str, Any],
    content: Content,
    name: str,
    ks: Sequence[int],
    palettes: Palettes | None,
) -> Iterator[Outcome]:
    """Write an image in every K, and yield the outcome of each."""
    start_time = time.perf_counter()
    image = _read(job, content)
    decoding = (time.perf_counter() - start_time) / len(ks)
    for k in ks:
        start_time = time.perf_counter()
        try:
            palette, errors, data = _quantize(job, image, k, item["path"], palettes)
        except Exception as error:  # for example struct.error: the image is too wide for the format
            yield _failed(row, k, item, "not written", error)
            continue
        output = f"quantized/{k}/{name}"
        try:
            _write(job.folder, output, data)
            if palettes is None:
                for kind in job.settings.palette_files:
                    write_palette(job.folder / "palettes" / str(k) / f"{os.path.splitext(name)[0]}.{kind}", palette)
        except Exception as error:  # for example, the new suffix makes the name too long
            if storage_failure(error, job.folder):
                raise  # a full disk or a lost store is not the fault of the image
            yield _failed(row, k, item, "not written", error)
            continue
        yield Outcome(
            row,
            k,
            output,
            len(palette),
            errors["rgb"],
            psnr(errors["rgb"]) if errors["rgb"] else None,
            errors.get("oklab"),
            # the file may have been repaired since it was listed
            os.path.getsize(content) if isinstance(content, bytes) else item["bytes"],
            len(data),
            time.perf_counter() - start_time + decoding,
            "ok",
            None,
        )


def _write(folder: Path, name: str, data: bytes) -> None:
    if is_local(folder):
        write_file(f"{folder}/{name}", data)
    else:
        put(folder, name, data)


def _quantize_unsaved(job: QuantizeJob, ks: Sequence[int], palettes: Palettes | None, content: Content) -> None:
    """Quantize an image in every K without writing anything, to find out whether it kills the process."""
    image = _read(job, content)
    for k in ks:
        _quantize(job, image, k, "", palettes)


def _read(job: QuantizeJob, content: Content) -> PreparedImage:
    try:
        return prepare_image(open_image(content, max_pixels=job.max_pixels))
    except ImageError:
        raise
    except Exception as error:  # an unsupported mode or too little memory must not fail the rest of the batch
        raise ImageError("unreadable", f"{type(error).__name__}: {error}") from error


def _quantize(
    job: QuantizeJob, image: PreparedImage, k: int, path: str, palettes: Palettes | None
) -> tuple[NDArray[np.uint8], dict[Space, float], bytes]:
    """Return the palette of an image in K colours, its errors, and the encoded file."""
    settings = job.settings
    if palettes is not None:
        palette = palettes[k]
    else:
        palette = fit_palette(
            image.table,
            colour_limit(image, k),
            init=settings.init,
            algorithm=settings.algorithm,
            sample=settings.sample,
            space=settings.space,
            rare=settings.rare,
            seed=[job.seed, path_seed(path)],
        )
    remapped, errors = remap(image, palette, space=settings.space, dither=settings.dither)
    return palette, errors, encode(remapped, settings.format)


def _failed(row: int, k: int, item: dict[str, Any], status: str, error: Exception) -> Outcome:
    reason = str(error) or type(error).__name__
    return Outcome(row, k, None, None, None, None, None, item["bytes"], None, None, status, reason)


def _fingerprint(job: QuantizeJob, given: Mapping[int, NDArray[np.uint8]]) -> str:
    """Hash everything that determines an output except its K: items, settings and format."""
    colours = [palette.tolist() for palette in given.values()]
    values = job.settings.model_dump(exclude={"k"})
    return fingerprint_of(
        file_digest(job.manifest), values, colours, job.seed, job.max_pixels, PNG_LEVEL, _FORMAT_VERSION
    )
