"""Every image of a manifest in K colours: one task a batch of images, one file an image and K.

A task decodes an image once, counts its colours once, and fits, paints and writes all K from that; then it tells the
journal. What the journal knows is not done again.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import dask
import numpy as np
import pyarrow as pa
from dask.delayed import Delayed
from numpy.typing import NDArray

from kmeans_dask.colours.palette_files import write_palette
from kmeans_dask.colours.palettes import Palettes, fit_palette, path_number, room_for
from kmeans_dask.colours.remap import PNG_LEVEL, Picture, encode, picture_of, remap
from kmeans_dask.colours.table import psnr
from kmeans_dask.config.sections import Quantize
from kmeans_dask.errors import JobError
from kmeans_dask.reduction import task_key
from kmeans_dask.sources.images import Content, ImageError, open_image
from kmeans_dask.sources.manifest import REMOVED, read_manifest
from kmeans_dask.sources.reading import read_contents, refuse_outage, unreadable
from kmeans_dask.sources.sandbox import attempt
from kmeans_dask.storage.fingerprint import file_digest, fingerprint_of
from kmeans_dask.storage.journal import Journal, Outcome, journal_of, open_journal, write_table
from kmeans_dask.storage.object_store import failure_of, is_local, put
from kmeans_dask.storage.output_names import output_names, plain_name, write_file

_BATCHES = 8
"""Of a thread, at least: the last ones end at about the same time, and a kill costs little."""
_ITEMS, _BYTES = (64, 1024), (2**18, 2**22)
"""Least and most of a batch. 1,024 images of 28 x 28 take 1.2 s, and Dask's scheduler 4 ms; 4 MiB of JPEG are about 24
megapixels, 2 s."""
_FORMAT_VERSION = 3


class BatchSummary(NamedTuple):
    """What a quantize task returns."""

    start: int
    """First row of the batch."""
    done: int
    """Items written in every K."""
    failed: int
    seconds: float


class _Job(NamedTuple):
    """What all tasks of a run share; it travels with each of them, 1 kB."""

    manifest: Path
    folder: Path
    """The run folder."""
    journal: Path
    settings: Quantize
    seed: int
    max_pixels: int


def batch_limits(n_items: int, n_bytes: int, threads: int) -> tuple[int, int]:
    """Return the items and the bytes of files that a batch has at most: fewer where there is little to do.

    Parameters
    ----------
    n_items, n_bytes
        Of the job.
    threads
        Of all workers together.
    """
    pieces = _BATCHES * max(threads, 1)
    items, n_bytes = (
        min(max(-(-total // pieces), least), most) for total, (least, most) in ((n_items, _ITEMS), (n_bytes, _BYTES))
    )
    return items, n_bytes


def plan_batches(manifest: pa.Table, threads: int = 1) -> list[tuple[int, int]]:
    """Cut the items into batches, one for each task; what is written does not depend on them.

    Parameters
    ----------
    manifest
        `sources.MANIFEST_SCHEMA`.
    threads
        Of all workers together.

    Returns
    -------
    list of (start, stop)
        Rows; each batch has at most what `batch_limits` says, unless it is a single item.
    """
    sizes = manifest["bytes"].to_pylist()
    most_items, most_bytes = batch_limits(len(sizes), sum(sizes), threads)
    batches, start, total = [], 0, 0
    for row, size in enumerate(sizes):
        if row > start and (row - start == most_items or total + size > most_bytes):
            batches.append((start, row))
            start, total = row, 0
        total += size
    return [*batches, (start, len(manifest))] if len(manifest) else []


def missing_outputs(
    manifest_path: Path,
    run_folder: Path,
    settings: Quantize,
    seed: int,
    max_pixels: int,
    given: Mapping[int, NDArray[np.uint8]] | None = None,
) -> dict[int, list[int]]:
    """Say which items still have to be quantized in which K.

    What an earlier call began is continued if it had the same manifest and settings; another K is added. What was
    written with other settings is removed.

    Parameters
    ----------
    manifest_path
        File of the items, written by `sources.write_manifest`.
    run_folder
        Writable.
    settings
        How palettes are made; its K, or that of the given palette.
    seed
        Of every random draw.
    max_pixels
        Pixels of one image above which it is not decoded.
    given
        The palette of a file, under its number of colours.

    Returns
    -------
    dict
        Row of the manifest -> K in the order of the settings; rows with none missing are left out.
    """
    fingerprint = _fingerprint(manifest_path, settings, seed, max_pixels, given or {})
    known = open_journal(run_folder, fingerprint).outcomes()
    ks = settings.k or list(given or {})
    splits = read_manifest(manifest_path)["split"].to_pylist()
    there = [row for row, split in enumerate(splits) if split != REMOVED]
    missing = {row: [k for k in ks if (row, k) not in known] for row in there}
    return {row: ks for row, ks in missing.items() if ks}


def quantize_tasks(
    manifest_path: Path,
    run_folder: Path,
    settings: Quantize,
    seed: int,
    max_pixels: int,
    missing: Mapping[int, Sequence[int]],
    palettes: Palettes | None = None,
    threads: int = 1,
) -> list[Delayed]:
    """Make the tasks that quantize what is missing, one a batch.

    Parameters
    ----------
    manifest_path
        Readable by all workers.
    run_folder
        Writable by all workers; the images go to ``quantized/<k>/<path>.png`` in it.
    settings
        How palettes are made.
    seed
        Of every random draw. With the path of an item it decides its palettes, whatever the batches.
    max_pixels
        Pixels of one image above which it is not decoded.
    missing
        From `missing_outputs`.
    palettes
        K -> palette of all images; None: each image gets its own.
    threads
        Of all workers together, as for `plan_batches`.

    Returns
    -------
    list of Delayed
        Each returns a `BatchSummary`. Empty when nothing is missing.

    Raises
    ------
    JobError
        `missing_outputs` has not been asked.
    """
    folder = run_folder.absolute()
    journal = journal_of(folder)
    if journal is None:
        raise JobError(f"{folder} has no journal; call missing_outputs first")
    manifest = read_manifest(manifest_path)
    suffix, paths = f".{settings.format}", manifest["path"].to_pylist()
    names = output_names(paths, suffix)
    job = _Job(manifest_path.absolute(), folder, journal.folder, settings, seed, max_pixels)
    task = dask.delayed(quantize_batch, pure=False, traverse=False)
    shared = None if palettes is None else dask.delayed(palettes, traverse=False)
    n_k = len(settings.k or palettes or {})
    tasks = []
    for start, stop in plan_batches(manifest, threads):
        todo = {row: list(missing[row]) for row in range(start, stop) if row in missing}
        if todo:
            # the scheduler keeps what a task is given: no word of an item that is as all are
            odd = {row: names[row] for row in todo if names[row] != plain_name(paths[row], suffix)}
            is_all = len(todo) == stop - start and all(len(ks) == n_k for ks in todo.values())
            key = task_key("quantize_batch", start, stop)
            tasks.append(task(job, start, stop, odd, None if is_all else todo, shared, dask_key_name=key))
    return tasks


def quantize_batch(
    job: _Job,
    start: int,
    stop: int,
    names: dict[int, str],
    todo: dict[int, list[int]] | None,
    palettes: Palettes | None,
) -> BatchSummary:
    """Write the items of the rows from `start` to `stop`, one after the other.

    A bad image is an outcome with its reason for every K. `names` are of outputs that could not have their plain name;
    `todo` are the rows with the K that are missing, None if all rows miss all K.
    """
    if todo is None:
        todo = dict.fromkeys(range(start, stop), job.settings.k or list(palettes or {}))
    with attempt(job.journal / f"{start:012d}.begun") as careful:
        return _quantize_rows(job, start, stop, names, todo, palettes, careful)


def _quantize_rows(
    job: _Job,
    start: int,
    stop: int,
    names: dict[int, str],
    todo: dict[int, list[int]],
    palettes: Palettes | None,
    careful: bool,
) -> BatchSummary:
    begun = time.perf_counter()
    failed = 0
    rows = sorted(todo)
    manifest = read_manifest(job.manifest, start, stop).take([row - start for row in rows])
    items = manifest.select(["path", "bytes"]).to_pylist()
    bad = unreadable(manifest, partial(_rehearse, job, sorted({*chain(*todo.values())}), palettes)) if careful else None
    with Journal(job.journal).attempt(start) as tell:
        for i, content in read_contents(manifest, bad):
            row, item, ks = rows[i], items[i], todo[rows[i]]
            name = names.get(row) or plain_name(item["path"], f".{job.settings.format}")
            try:
                outcomes = list(_quantize_item(job, row, item, content, name, ks, palettes))
            except ImageError as error:
                refuse_outage(manifest, i, error)
                outcomes = [_failed(row, k, item, error.status, error) for k in ks]
            failed += any(outcome.status != "ok" for outcome in outcomes)
            tell(outcomes)
    return BatchSummary(start, len(todo) - failed, failed, time.perf_counter() - begun)


def finish_quantized(run_folder: Path, ks: Sequence[int]) -> pa.Table:
    """Publish ``quantized.parquet`` when the tasks are done.

    Parameters
    ----------
    run_folder
        As given to `quantize_tasks`; its manifest is ``manifest.parquet`` in it.
    ks
        The K of the table.

    Returns
    -------
    pyarrow.Table
        `journal.QUANTIZED_SCHEMA`.

    Raises
    ------
    JobError
        An output is missing.
    """
    manifest = read_manifest(run_folder / "manifest.parquet")
    splits, paths = (manifest[name].to_pylist() for name in ("split", "path"))
    there = {row: path for row, (path, split) in enumerate(zip(paths, splits, strict=True)) if split != REMOVED}
    return write_table(run_folder, there, ks)


def _quantize_item(
    job: _Job,
    row: int,
    item: dict[str, Any],
    content: Content,
    name: str,
    ks: Sequence[int],
    palettes: Palettes | None,
) -> Iterator[Outcome]:
    """Yield the outcome of each K, when its file is written."""
    begun = time.perf_counter()
    picture = _read(job, content)
    share = (time.perf_counter() - begun) / len(ks)
    for k in ks:
        begun = time.perf_counter()
        try:
            palette = palettes[k] if palettes is not None else _fit(job, picture, k, item["path"])
            image, errors = remap(picture, palette, space=job.settings.space, dither=job.settings.dither)
            data = encode(image, job.settings.format)
        # an image too wide for the format: struct.error
        except Exception as error:
            yield _failed(row, k, item, "not written", error)
            continue
        output = f"quantized/{k}/{name}"
        try:
            _write(job.folder, output, data)
            if palettes is None:
                for kind in job.settings.palette_files:
                    write_palette(job.folder / "palettes" / str(k) / f"{os.path.splitext(name)[0]}.{kind}", palette)
        except Exception as error:  # a name too long with the new suffix
            if failure_of(error, job.folder):
                raise  # a full disk, or a lost store, is no fault of the image
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
            os.path.getsize(content) if isinstance(content, bytes) else item["bytes"],  # a mended file has another size
            len(data),
            time.perf_counter() - begun + share,
            "ok",
            None,
        )


def _write(folder: Path, name: str, data: bytes) -> None:
    if is_local(folder):
        write_file(f"{folder}/{name}", data)
    else:
        put(folder, name, data)


def _rehearse(job: _Job, ks: Sequence[int], palettes: Palettes | None, content: Content) -> None:
    """Do everything with an image but write it."""
    picture = _read(job, content)
    for k in ks:
        palette = palettes[k] if palettes is not None else _fit(job, picture, k, "")
        image, _ = remap(picture, palette, space=job.settings.space, dither=job.settings.dither)
        encode(image, job.settings.format)


def _read(job: _Job, content: Content) -> Picture:
    try:
        return picture_of(open_image(content, max_pixels=job.max_pixels))
    except ImageError:
        raise
    except Exception as error:  # an odd mode or too little memory: it may not end the task of the other images
        raise ImageError("unreadable", f"{type(error).__name__}: {error}") from error


def _fit(job: _Job, picture: Picture, k: int, path: str) -> NDArray[np.uint8]:
    settings = job.settings
    return fit_palette(
        picture.table,
        room_for(picture, k),
        init=settings.init,
        algorithm=settings.algorithm,
        sample=settings.sample,
        space=settings.space,
        rare=settings.rare,
        seed=[job.seed, path_number(path)],
    )


def _failed(row: int, k: int, item: dict[str, Any], status: str, error: Exception) -> Outcome:
    reason = str(error) or type(error).__name__
    return Outcome(row, k, None, None, None, None, None, item["bytes"], None, None, status, reason)


def _fingerprint(
    manifest_path: Path,
    settings: Quantize,
    seed: int,
    max_pixels: int,
    given: Mapping[int, NDArray[np.uint8]],
) -> str:
    """Hash everything that decides about an output but its K: the items, the settings, the format."""
    colours = [palette.tolist() for palette in given.values()]
    values = settings.model_dump(exclude={"k"})
    return fingerprint_of(file_digest(manifest_path), values, colours, seed, max_pixels, PNG_LEVEL, _FORMAT_VERSION)
