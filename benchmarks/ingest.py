"""Ingest of a folder, and of the same files in a tar archive, against a bare decoding loop on the same cores.

``python -m benchmarks.ingest FOLDER HEIGHT WIDTH MODE``
"""

from __future__ import annotations

import statistics
import sys
import tarfile
import tempfile
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from benchmarks.common import machine, seconds, table, workers
from kmeans_dask.collection.ingest import finish_collection, ingest_tasks
from kmeans_dask.config.sections import Ingest, Input
from kmeans_dask.deploy.tasks import run_tasks
from kmeans_dask.sources.listing import list_items
from kmeans_dask.sources.manifest import read_manifest, write_manifest

RUNS = 3


def decode(files: list[bytes], size: tuple[int, int] | None = None) -> int:
    """Decode the files with Pillow, resize them to (height, width) if given, and count the values."""
    total = 0
    for file in files:
        with Image.open(file) as image:
            scaled = image if size is None else image.resize(size[::-1], Image.Resampling.BOX, reducing_gap=None)
            total += np.asarray(scaled).size
    return total


def main() -> None:
    """Measure loop and ingest in turn, and print the ratios of the medians."""
    folder, height, width, mode = sys.argv[1:]
    config = Ingest.model_validate({"size": [int(height), int(width)], "mode": mode})
    print(machine())
    scaled = partial(decode, size=config.size)
    bare: dict[str, list[float]] = {"decoding": [], "decoding and scaling": []}
    ours: dict[str, list[float]] = {"folder": [], "tar archive": []}
    listings: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as scratch, workers() as client, get_context("spawn").Pool(2) as pool:
        with tarfile.open(f"{scratch}/all.tar", "w") as archive:
            archive.add(folder, ".")
        sources = {"folder": Input(path=[folder]), "tar archive": Input(path=[f"{scratch}/all.tar"])}
        for kind, source in sources.items():
            listings[kind], items = seconds(lambda source=source: list_items(source, 0, Path(scratch)))
            write_manifest(items, Path(scratch) / f"{kind}.parquet")
        files = read_manifest(Path(scratch) / "folder.parquet")["file"].to_pylist()
        parts = [files[i : i + 1000] for i in range(0, len(files), 1000)]
        for run in range(RUNS + 1):
            for what, function in zip(bare, (decode, scaled), strict=True):
                took, _ = seconds(lambda function=function: pool.map(function, parts, chunksize=1))
                if run:  # the first run fills the page cache and imports modules
                    bare[what].append(took)
            for kind, source in sources.items():
                job = Path(scratch) / f"{kind}.parquet", Path(scratch) / f"{kind}-{run}.zarr", config, source

                def ingest_all(job: tuple[Path, Path, Ingest, Input] = job) -> None:
                    run_tasks(client, ingest_tasks(*job), lambda result: None)
                    finish_collection(*job)

                took = seconds(ingest_all)[0]
                if run:
                    ours[kind].append(took)
    loops = {what: statistics.median(took) for what, took in bare.items()}
    lines = [(f"{what} in a bare loop, two processes", loops[what]) for what in loops] + [
        (f"ingest of the {kind}, two workers (after {listings[kind]:.1f} s of listing)", statistics.median(took))
        for kind, took in ours.items()
    ]
    table(
        f"Ingest of {len(files):,} files to {height} x {width} {mode}",
        ("what", "seconds", "files/s", *(f"x {what}" for what in loops)),
        [
            (what, f"{took:.2f}", f"{len(files) / took:,.0f}", *(f"{took / loop:.2f}" for loop in loops.values()))
            for what, took in lines
        ],
    )


if __name__ == "__main__":
    main()
