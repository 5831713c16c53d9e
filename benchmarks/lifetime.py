"""Working with a finished run: the cost of adding images to a collection, and of labelling new ones.

``python -m benchmarks.lifetime update FOLDER HEIGHT WIDTH MODE`` adds 1,000 images of FOLDER to the others.
``python -m benchmarks.lifetime predict FOLDER HEIGHT WIDTH MODE K`` labels up to 10,000 images of FOLDER.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.common import machine, seconds, table, workers
from benchmarks.ingest import decode
from kmeans_dask.collection.features import raw_features
from kmeans_dask.collection.ingest import finish_collection, ingest_tasks
from kmeans_dask.config.sections import Ingest, Input
from kmeans_dask.deploy.tasks import run_tasks
from kmeans_dask.models.model import Model
from kmeans_dask.models.prediction import Predictor, join_predicted, predict_tasks
from kmeans_dask.sources.listing import list_items
from kmeans_dask.sources.manifest import update_manifest, write_manifest

RUNS = 3
ADDED = 1000
PREDICTED = 10_000


def update(source: Input, config: Ingest, scratch: Path) -> None:
    """Ingest all images at once, and all but 1,000 followed by these; listing is timed, worker start-up is not."""
    whole = list_items(source, 0, scratch)
    rng = np.random.default_rng(0)
    later = np.zeros(len(whole), bool)
    later[rng.choice(len(whole), ADDED, replace=False)] = True
    first = whole.filter(pa.array(~later))
    walls: dict[str, list[float]] = {"all": [], "listing": [], "added": []}
    with workers() as client:

        def ingest(manifest: Path, target: Path) -> None:
            run_tasks(client, ingest_tasks(manifest, target, config, source), lambda result: None)
            finish_collection(manifest, target, config, source)

        def list_all(manifest: Path) -> None:
            write_manifest(list_items(source, 0, scratch), manifest)

        def list_changes(manifest: Path) -> None:
            changes = update_manifest(first, list_items(source, 0, scratch), keep_splits=False)
            assert changes[1:] == (ADDED, 0, 0)
            write_manifest(changes.items, manifest)

        for run in range(RUNS + 1):
            old, new, full = (scratch / f"{run}-{name}.parquet" for name in ("old", "new", "full"))
            write_manifest(first, old)
            ingest(old, scratch / f"{run}.zarr")
            listing = seconds(lambda new=new: list_changes(new))[0]
            added = seconds(lambda new=new, run=run: ingest(new, scratch / f"{run}.zarr"))[0]
            listing_all = seconds(lambda full=full: list_all(full))[0]
            everything = seconds(lambda full=full, run=run: ingest(full, scratch / f"{run}-full.zarr"))[0]
            if run:  # the first run fills the page cache and imports modules
                walls["all"].append(listing_all + everything)
                walls["listing"].append(listing)
                walls["added"].append(added)
    everything, listing, added = (statistics.median(values) for values in walls.values())
    table(
        f"{ADDED:,} of {len(whole):,} images added, to {config.size[0]} x {config.size[1]} {config.mode}",
        ("what", "seconds", "fraction of ingesting all"),
        [
            ("list and ingest all", f"{everything:.3f}", "100 %"),
            ("relist and compare", f"{listing:.3f}", f"{listing / everything:.1%}"),
            (f"ingest {ADDED:,} added", f"{added:.3f}", f"{added / everything:.1%}"),
            ("both", f"{listing + added:.3f}", f"{(listing + added) / everything:.1%}"),
        ],
    )


def predict(source: Input, config: Ingest, scratch: Path, k: int) -> None:
    """Label listed images up to the written table, against decoding them in a bare loop to the same size."""
    n_features = config.size[0] * config.size[1] * (1 if config.mode == "L" else 3)
    centres = np.random.default_rng(0).uniform(0, 255, (k, n_features)).astype(np.float32)
    model = Model("kmeans", centres, np.zeros(1), 0.0, 1, 0.0, np.zeros(k, np.int32), np.ones(k, np.int64))
    features = raw_features((*config.size, 1 if config.mode == "L" else 3))
    predictor = Predictor(model, ("any",), np.full(k, np.inf, np.float32), config, source.max_pixels, features)
    items = list_items(source, 0, scratch)
    items = items.take(np.sort(np.random.default_rng(0).permutation(len(items))[:PREDICTED]))
    files = items["file"].to_pylist()
    parts = [files[i : i + 500] for i in range(0, len(files), 500)]
    bare, labelled = [], []
    scaled = partial(decode, size=config.size)
    with workers() as client, get_context("spawn").Pool(2) as pool:

        def label() -> None:
            run_tasks(client, predict_tasks(items, scratch / "parts", predictor), lambda result: None)
            assert join_predicted(scratch / "parts", scratch / "table.parquet").items == len(items)

        for run in range(2 * RUNS + 1):
            loop = seconds(lambda: pool.map(scaled, parts, chunksize=1))[0]
            ours = seconds(label)[0]
            if run:
                bare.append(loop)
                labelled.append(ours)
    loop, ours = statistics.median(bare), statistics.median(labelled)
    table(
        f"{len(items):,} images labelled at {config.size[0]} x {config.size[1]} {config.mode}, K = {k}",
        ("what", "seconds", "images/s", "fraction of the bare loop's speed"),
        [
            ("decoding and scaling in a bare loop, two processes", f"{loop:.3f}", f"{len(items) / loop:,.0f}", "100 %"),
            ("predict, two workers", f"{ours:.3f}", f"{len(items) / ours:,.0f}", f"{loop / ours:.0%}"),
        ],
    )


def main() -> None:
    """Run the section named on the command line."""
    section, folder, height, width, mode, *k = sys.argv[1:]
    config = Ingest.model_validate({"size": [int(height), int(width)], "mode": mode})
    print(machine())
    with tempfile.TemporaryDirectory() as scratch:
        if section == "update":
            update(Input(path=folder), config, Path(scratch))
        else:
            predict(Input(path=folder), config, Path(scratch), int(k[0]))


if __name__ == "__main__":
    main()
