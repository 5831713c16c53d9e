"""One palette of 256 colours for a folder: time per step, memory, and error against K-Means on a large sample."""

from __future__ import annotations

import math
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.cluster import KMeans

from benchmarks.quantize_stage import MAX_PIXELS, config_of, files_of, peak_memory, run_stage, some, workers
from kmeans_dask.colours.quantize import QuantizeJob, finish_quantized, missing_outputs, quantize_tasks
from kmeans_dask.colours.shared_palette import count_tasks, fit_shared
from kmeans_dask.colours.table import ColourTable, nearest
from kmeans_dask.colours.weighted_kmeans import coarse_centres
from kmeans_dask.pipeline.stages.listing import list_items_of
from kmeans_dask.sources.batches import plan_batches
from kmeans_dask.sources.images import open_image
from kmeans_dask.sources.manifest import read_manifest
from kmeans_dask.storage import zarr_groups
from kmeans_dask.storage.run_record import open_run

K = 256


def shared(folder: Path, work: Path, n_workers: int, sample: int, name: str) -> list[list[str]]:
    """Item 3: table rows for one folder."""
    files = files_of(folder)
    settings = {"k": [K], "palette": "shared"}
    with workers(n_workers) as client:
        run_stage(client, some(folder, 64, work), work, **settings)  # compile
        batches = [files[start : start + 16] for start in range(0, len(files), 16)]
        decode = sum(client.gather(client.map(decode_alone, batches, pure=False))) / n_workers
        config = config_of(folder, Path(tempfile.mkdtemp(dir=work)), "run", **settings)
        record = open_run(config, fresh=True)
        list_items_of(config, record, list_again=True)
        assert config.quantize is not None
        job = QuantizeJob(record.folder.manifest, record.folder.path, config.quantize, 0, MAX_PIXELS)
        at = [time.perf_counter()]
        client.gather(client.compute(count_tasks(job, plan_batches(read_manifest(record.folder.manifest)))))
        at.append(time.perf_counter())
        palettes = fit_shared(job)
        at.append(time.perf_counter())
        client.gather(client.compute(quantize_tasks(job, missing_outputs(job), palettes)))
        rows = finish_quantized(record.folder.path, [K]).to_pylist()
        at.append(time.perf_counter())
        peak = max(client.run(peak_memory).values())
    count, fit, write = np.diff(at)
    table = ColourTable(*zarr_groups.read_colours(record.folder.path / "colours.zarr"))
    # over all pixels of the written files, not over the table
    pixels = {row["path"]: math.prod(open_image(folder / row["path"], max_pixels=MAX_PIXELS).size) for row in rows}
    error = sum(row["mse"] * pixels[row["path"]] for row in rows) / sum(pixels.values())
    what = f"{len(files):,} {name}, {sum(pixels.values()) / 1e6:,.0f} megapixels, {len(table):,} colours"
    split = f"{decode:.1f} / {max(count - decode, 0):.1f} / {fit:.1f} / {write:.1f} s"
    rows_so_far = [
        ["3", f"{what}: decode / table / fit / write", split, "fit below 10 s"],
        ["3", "peak memory of a worker", f"{peak / 2**20:,.0f} MiB", ""],
    ]
    if len(table) <= K:
        return [*rows_so_far, ["3", "error", f"{error:g}: every colour is in the palette", "at most 1.005x"]]
    theirs = error_of(table, sampled_centres(table, sample))
    binned = coarse_centres(table, K, init="k-means++", space="rgb", rng=np.random.default_rng([0, K]))
    return [
        *rows_so_far,
        ["3", f"error {error:.3f}, against K-Means on {sample:,} pixels", f"{error / theirs:.4f}x", "at most 1.005x"],
        [
            "3",
            "error of the initial centres, fitted on bins only",
            f"{error_of(table, np.rint(binned)) / theirs:.4f}x",
            "",
        ],
    ]


def decode_alone(files):
    start = time.perf_counter()
    for file in files:
        open_image(file, max_pixels=MAX_PIXELS)
    return time.perf_counter() - start


def sampled_centres(table, sample):
    """Fit scikit-learn's K-Means on random pixels; return its centres rounded to bytes, as in a palette."""
    rows = np.random.default_rng(0).choice(len(table), sample, p=table.counts / table.counts.sum())
    fit = KMeans(K, n_init=1, random_state=0).fit(table.colours[rows].astype(np.float32))
    return np.rint(fit.cluster_centers_)


def error_of(table, centres) -> float:
    squared = nearest(table.points, np.ascontiguousarray(centres, np.float32))[1]
    return float(squared.astype(np.float64) @ table.counts / table.counts.sum())


def variants(folder: Path, work: Path, n: int) -> Path:
    """Derive n photos from those of a folder, at twice the size and with other tones: many colours, all natural.

    Every channel of every copy gets its own gamma between 0.6 and 1.6.
    """
    files, target, generator = files_of(folder), Path(tempfile.mkdtemp(dir=work)), np.random.default_rng(0)
    levels = np.arange(256) / 255
    for number in range(n):
        image = Image.open(files[number % len(files)]).convert("RGB")
        image = image.resize((2 * image.width, 2 * image.height), Image.Resampling.BICUBIC)
        curves = np.rint(255 * levels ** generator.uniform(0.6, 1.6, (3, 1))).astype(int)
        image.point(curves.ravel().tolist()).save(target / f"{number:04}.jpg", quality=95)
    return target
