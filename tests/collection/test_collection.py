"""Collections: chunks, ingest and its resumption, and reading."""

from __future__ import annotations

import csv
import os
import warnings
from pathlib import Path

import dask
import numpy as np
import pytest
from PIL import Image

from kmeans_dask.collection.chunks import chunk_rows, plan_chunks
from kmeans_dask.collection.collection import Collection, open_collection, write_items_csv
from kmeans_dask.collection.decoding import ITEMS_SCHEMA
from kmeans_dask.collection.ingest import ChunkSummary, finish_collection, ingest_tasks
from kmeans_dask.config.sections import Ingest, Input
from kmeans_dask.errors import JobError, UserError
from kmeans_dask.kmeans.kernels import slice_rows
from kmeans_dask.sources.listing import list_items
from kmeans_dask.sources.manifest import read_manifest, write_manifest
from kmeans_dask.storage import zarr_groups

SIDE = 64
"""At 64 x 64 RGB, a slice of the kernels, and thus a chunk, is 64 rows of 12 kB."""

SMALL = Ingest(size=(SIDE, SIDE), mode="RGB", chunk_mib=0.001)


def colour_of(i: int) -> tuple[int, int, int]:
    return i % 256, i // 256, 7


def write_images(folder: Path, n: int, n_labels: int = 3, first: int = 0) -> None:
    """Write single-coloured BMP files (the fastest to make) that encode their number."""
    for i in range(first, first + n):
        file = folder / f"class {i % n_labels}" / f"{i:04d}.bmp"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2), colour_of(i)).save(file)


class Job:
    """A folder of images to be ingested into a collection."""

    def __init__(self, folder: Path, config: Ingest = SMALL, **options: object) -> None:
        self.folder, self.config = folder, config
        self.source = Input(path=str(folder / "images"), **options)  # type: ignore[arg-type]
        self.manifest, self.target = folder / "manifest.parquet", folder / "run" / "collection.zarr"

    def list(self) -> None:
        write_manifest(list_items(self.source, 0, self.folder), self.manifest)

    def tasks(self) -> list[dask.delayed.Delayed]:
        return ingest_tasks(self.manifest, self.target, self.config, self.source)

    def finish(self) -> Collection:
        return finish_collection(self.manifest, self.target, self.config, self.source)

    def run(self, scheduler: str = "threads") -> Collection:
        self.list()
        dask.compute(*self.tasks(), scheduler=scheduler)
        return self.finish()


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """150 images, which make three chunks with a short last one."""
    write_images(tmp_path / "images", 150)
    return Job(tmp_path)


# -- chunks


def test_chunks_are_whole_slices_within_the_limit() -> None:
    for n_features in (1, 64, 784, 12288, 10**6):
        for n_items in (1, 100, 70_000, 10**8):
            rows = chunk_rows(n_items, n_features, 8 * 2**20, n_features)
            n_slices, rest = divmod(rows, slice_rows(n_features))
            assert rest == 0
            assert n_slices & (n_slices - 1) == 0
            assert n_slices == 1 or rows * n_features <= 8 * 2**20
            if n_items >= 8 * slice_rows(n_features):
                assert -(-n_items // rows) >= 8


def test_chunk_rows_of_known_collections() -> None:
    assert chunk_rows(70_000, 784, 8 * 2**20, 784) == 8192
    assert chunk_rows(10**7, 784, 8 * 2**20, 784) == 8192
    assert chunk_rows(4324, 12288, 8 * 2**20, 12288) == 512
    assert chunk_rows(1797, 64, 8 * 2**20, 64) == 1024


def test_plan_covers_all_items() -> None:
    plan = plan_chunks(150, SMALL)
    assert plan.chunk_rows == 64
    assert list(plan.starts) == [0, 64, 128]


# -- ingest


def test_row_i_is_item_i(job: Job) -> None:
    collection = job.run()
    manifest = read_manifest(job.manifest)
    assert collection.items.schema == ITEMS_SCHEMA
    assert collection.items.select(manifest.column_names).equals(manifest)
    numbers = [int(path[-8:-4]) for path in collection.items["path"].to_pylist()]
    images = collection.images.compute()
    np.testing.assert_array_equal(images[:, 0, 0], [colour_of(i) for i in numbers])
    assert (images == images[:, :1, :1]).all()
    names = [collection.class_names[label] for label in collection.labels]
    assert names == [f"class {i % 3}" for i in numbers]
    row = collection.items.slice(0, 1).to_pylist()[0]
    assert {key: row[key] for key in ("width", "height", "mode", "status", "error")} == {
        "width": 2, "height": 2, "mode": "RGB", "status": "ok", "error": None,
    }  # fmt: skip


def test_conversions_are_counted(tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    for name, mode in (("a", "RGBA"), ("b", "P"), ("c", "L"), ("d", "RGBA"), ("e", "RGB")):
        Image.new(mode, (4, 2)).save(folder / f"{name}.png")
    (folder / "f.png").write_bytes(b"not an image")
    config = Ingest(size=(4, 4), resize="pad", filter="lanczos", background="#102030")
    collection = Job(tmp_path, config).run()
    assert collection.items["changes"].to_pylist() == [
        ["alpha"], ["palette"], ["grey to colour"], ["alpha"], [], None,
    ]  # fmt: skip
    assert collection.changes == {"alpha": 2, "palette": 1, "grey to colour": 1}
    images = collection.images.compute(scheduler="sync")
    assert (images[0] == (16, 32, 48)).all()
    assert (images[4, [0, 3]] == (16, 32, 48)).all()
    assert not images[4, 1:3].any()


def test_one_task_per_chunk_with_summary(job: Job) -> None:
    job.list()
    tasks = job.tasks()
    assert len(tasks) == 3
    summaries = dask.compute(*tasks, scheduler="sync")
    assert [(summary.start, summary.items, summary.failed) for summary in summaries] == [
        (0, 64, 0),
        (64, 64, 0),
        (128, 22, 0),
    ]
    assert all(isinstance(summary, ChunkSummary) for summary in summaries)
    size = (job.folder / "images" / "class 0" / "0000.bmp").stat().st_size
    assert sum(summary.bytes for summary in summaries) == 150 * size


def test_temporary_folders_are_removed(job: Job) -> None:
    job.run()
    assert os.listdir(job.target.parent) == ["collection.zarr"]
    assert sorted(os.listdir(job.target)) == ["images", "items.parquet", "labels", "zarr.json"]


def test_worker_processes_give_same_images(job: Job) -> None:
    expected = job.run("sync").images.compute()
    other = Job(job.folder / "other")
    other.source = job.source
    other.folder.mkdir()
    np.testing.assert_array_equal(other.run("processes").images.compute(), expected)


def test_bad_images_are_black_with_a_reason(job: Job) -> None:
    files = sorted((job.folder / "images" / "class 1").iterdir())
    files[0].write_bytes(b"")
    files[1].write_text("not an image")
    files[2].write_bytes(files[3].read_bytes()[:50])
    Image.new("L", (100, 100)).save(files[4])
    job.source = job.source.model_copy(update={"max_pixels": 9999})
    job.list()
    files[5].unlink()
    dask.compute(*job.tasks(), scheduler="sync")
    collection = job.finish()
    assert collection.n_failed == 5
    bad = [row for row in collection.items.to_pylist() if row["status"] != "ok"]
    assert [row["path"] for row in bad] == [f"class 1/{file.name}" for file in (files[i] for i in (0, 1, 2, 4, 5))]
    assert [row["status"] for row in bad] == ["unreadable"] * 3 + ["too large", "missing"]
    assert all(row["error"] and row["width"] is None for row in bad)
    images = collection.images.compute()
    failed = np.array([status != "ok" for status in collection.items["status"].to_pylist()])
    assert not images[failed].any()
    assert (images[~failed][:, 0, 0, 2] == 7).all()


def test_all_images_may_fail(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 70)
    for file in (tmp_path / "images").rglob("*.bmp"):
        file.write_bytes(b"BM")
    collection = Job(tmp_path).run()
    assert collection.n_failed == 70
    X, index = collection.rows("train")
    assert X.shape == (0, SIDE * SIDE * 3)
    assert X.compute().shape == X.shape
    assert len(index) == 0


def test_class_names_in_natural_order(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 12, n_labels=12)
    Image.new("L", (2, 2)).save(tmp_path / "images" / "loose.png")
    collection = Job(tmp_path).run()
    assert collection.class_names == tuple(f"class {i}" for i in range(12))
    assert collection.labels.dtype == np.int32
    assert collection.labels.tolist() == [*range(12), -1]


def test_no_labels(tmp_path: Path) -> None:
    write_images(tmp_path / "images", 3)
    collection = Job(tmp_path, labels="none").run()
    assert collection.class_names == ()
    assert collection.labels.tolist() == [-1] * 3


# -- resuming


def test_interrupted_ingest_resumes_with_missing_chunks(job: Job) -> None:
    job.list()
    tasks = job.tasks()
    dask.compute(tasks[1], scheduler="sync")
    with pytest.raises(JobError, match="2 of 3 chunks"):
        job.finish()
    rest = job.tasks()
    assert [summary.start for summary in dask.compute(*rest, scheduler="sync")] == [0, 128]
    assert job.tasks() == []
    expected = [colour_of(int(path[-8:-4])) for path in job.finish().items["path"].to_pylist()]
    np.testing.assert_array_equal(job.finish().images.compute()[:, 0, 0], expected)
    assert job.tasks() == []


def test_shard_without_marker_is_rewritten(job: Job) -> None:
    job.list()
    tasks = job.tasks()
    partial = job.target.with_name("collection.zarr.partial")
    zarr_groups.write_block(partial, 64, np.full((64, SIDE, SIDE, 3), 99, np.uint8))
    assert len(job.tasks()) == len(tasks) == 3
    dask.compute(*job.tasks(), scheduler="sync")
    assert (job.finish().images[:, 0, 0, 2].compute() == 7).all()


@pytest.mark.parametrize("change", ["images", "size", "mode", "max_pixels"])
def test_other_images_or_settings_start_over(job: Job, change: str) -> None:
    job.list()
    dask.compute(*job.tasks()[:2], scheduler="sync")
    if change == "images":
        write_images(job.folder / "images", 1, first=150)
        job.list()
    elif change == "size":
        job.config = SMALL.model_copy(update={"size": (SIDE, SIDE + 1)})
    elif change == "mode":
        job.config = SMALL.model_copy(update={"mode": "L"})
    else:
        job.source = job.source.model_copy(update={"max_pixels": 1})
    with pytest.raises(JobError, match="has not been ingested"):
        job.finish()
    summaries = dask.compute(*job.tasks(), scheduler="sync")
    assert sum(summary.items for summary in summaries) == len(job.finish().items)


def test_old_collection_stays_until_new_one_is_complete(job: Job) -> None:
    job.run()
    write_images(job.folder / "images", 1, first=150)
    job.list()
    tasks = job.tasks()
    assert len(open_collection(job.target).items) == 150
    dask.compute(*tasks, scheduler="sync")
    assert len(job.finish().items) == 151
    assert len(open_collection(job.target).items) == 151


def test_interruption_before_attrs_were_written(job: Job) -> None:
    job.list()
    job.tasks()
    partial = job.target.with_name("collection.zarr.partial")
    (partial / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group", "attributes": {}}')
    dask.compute(*job.tasks(), scheduler="sync")
    assert len(job.finish().items) == 150


# -- reading


def test_opening_reads_no_image_and_blocks_are_shards(job: Job) -> None:
    job.run()
    for shard in (job.target / "images" / "c").rglob("*"):
        if shard.is_file():
            shard.write_bytes(b"not a shard" * 99)
    collection = open_collection(str(job.target))
    assert collection.images.shape == (150, SIDE, SIDE, 3)
    assert collection.images.chunks[0] == (64, 64, 22)
    assert collection.images.dtype == np.uint8
    X, _ = collection.rows("train")
    assert X.chunks == ((64, 64, 22), (SIDE * SIDE * 3,))
    assert len(X.dask) == 3
    with pytest.raises(ValueError, match="checksum"):
        X.compute(scheduler="sync")


def test_rows_are_flattened_images(job: Job) -> None:
    collection = job.run()
    X, index = collection.rows("train")
    np.testing.assert_array_equal(X.compute(), collection.images.compute().reshape(150, -1))
    np.testing.assert_array_equal(index, np.arange(150))
    np.testing.assert_array_equal(X[60:70].compute(), X.compute()[60:70])
    with pytest.raises(ValueError, match="train or holdout"):
        collection.rows("test")


def test_rows_of_a_split_exclude_failed_items(job: Job) -> None:
    files = sorted((job.folder / "images").rglob("*.bmp"))
    for i in (0, 3, 70):
        files[i].write_bytes(b"")
    job.source = job.source.model_copy(update={"holdout": 0.4})
    collection = job.run()
    images = collection.images.compute()
    status = np.array(collection.items["status"].to_pylist())
    split = np.array(collection.items["split"].to_pylist())
    total = 0
    for name in ("train", "holdout"):
        X, index = collection.rows(name)
        np.testing.assert_array_equal(index, np.flatnonzero((split == name) & (status == "ok")))
        assert X.shape == (len(index), SIDE * SIDE * 3)
        assert X.dtype == np.uint8
        np.testing.assert_array_equal(X.compute(), images[index].reshape(len(index), -1))
        for size, block in zip(X.chunks[0], X.to_delayed()[:, 0], strict=True):
            assert block.compute().shape == (size, SIDE * SIDE * 3)
        total += len(index)
    assert total == 147


def test_block_without_readable_items_is_left_out(job: Job) -> None:
    for file in sorted((job.folder / "images").rglob("*.bmp"))[60:130]:
        file.write_bytes(b"")
    X, index = job.run().rows("train")
    assert X.chunks[0] == (60, 20)
    assert index.tolist() == [*range(60), *range(130, 150)]
    assert (X.compute()[:, 2] == 7).all()


def test_two_collections_in_one_graph(tmp_path: Path) -> None:
    collections = []
    for name, first in (("a", 0), ("b", 10)):
        write_images(tmp_path / name / "images", 5, first=first)
        collections.append(Job(tmp_path / name).run())
    a, b = dask.compute(*(collection.rows("train")[0] for collection in collections))
    assert sorted(a[:, 0].tolist()) == [0, 1, 2, 3, 4]
    assert sorted(b[:, 0].tolist()) == [10, 11, 12, 13, 14]


def test_invalid_collection_raises(job: Job) -> None:
    with pytest.raises(UserError, match="not a finished collection"):
        open_collection(job.folder)
    job.run()
    (job.target / "items.parquet").unlink()
    with pytest.raises(UserError, match="not finished"):
        open_collection(job.target)


def test_items_csv(job: Job) -> None:
    (job.folder / "images" / "class 2" / 'a "b", c\nd.png').write_bytes(b"")
    write_items_csv(job.run().items, job.folder / "items.csv")
    with open(job.folder / "items.csv", newline="", encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["path", "status", "error"]
    assert len(rows) == 151
    assert rows[0] == ["class 0/0000.bmp", "ok", ""]
    assert rows[-1] == ['class 2/a "b", c\nd.png', "unreadable", "empty file (0 bytes)"]


def test_no_warnings(job: Job) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        job.run().rows("train")[0].sum().compute()
    assert [str(warning.message) for warning in caught] == []
