"""The memory plan, checked by hand and against the peak memory of real worker processes."""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from PIL import Image

from benchmarks.poison import POISON, plant
from kmeans_dask.collection.chunks import plan_chunks
from kmeans_dask.collection.ingest import finish_collection, ingest_tasks
from kmeans_dask.colours.dither import DITHER_BYTES
from kmeans_dask.colours.quantize import QuantizeJob, missing_outputs, quantize_tasks
from kmeans_dask.colours.remap import FORMAT_BYTES
from kmeans_dask.config.cluster import Cluster
from kmeans_dask.config.sections import Config, Input, Quantize
from kmeans_dask.deploy.client import connect
from kmeans_dask.deploy.tasks import run_tasks
from kmeans_dask.deploy.workers import Workers, workers_of
from kmeans_dask.errors import UserError
from kmeans_dask.kmeans.estimator import KMeans
from kmeans_dask.pipeline.plan.image_sizes import largest_image
from kmeans_dask.pipeline.plan.memory import (
    COMPILING,
    EVALUATING,
    PROCESS,
    Largest,
    chunk_limit,
    megapixels_that_fit,
    plan_memory,
)
from kmeans_dask.sources.listing import list_items
from kmeans_dask.sources.manifest import write_manifest

MIB = 2**20


def config(**changes: Any) -> Config:
    sections: dict[str, Any] = {
        "name": "small",
        "input": {"path": "somewhere", "labels": "none"},
        "ingest": {"size": [64, 64], "mode": "RGB"},
        "fit": {"k": [100]},
        "evaluate": {},
    }
    return Config.model_validate({**sections, **changes})


def test_plan_computed_by_hand():
    plan = plan_memory(
        config(), Workers(2, 2, 4000 * MIB), n_items=8192, chunk_rows=512, largest=Largest(10_000, 80_000, 0)
    )

    demands = {(demand.stage, demand.what): demand.bytes for demand in plan.demands}
    assert demands["ingest", "chunks"] == 2 * 3 * 512 * 12_288
    assert demands["ingest", "decoding"] == 2 * 11 * 80_000
    assert demands["fit", "rows kept in memory"] == 8192 * 12_288 // 2 + 512 * 12_288
    assert demands["fit", "centres and their sums"] == (11 * 4 + 12) * 100 * 12_288
    assert demands["evaluate", "imports and kernels"] == EVALUATING
    assert plan.total("ingest") == PROCESS + demands["ingest", "chunks"] + demands["ingest", "decoding"]
    plan.check()


QUANTIZED = {"ingest": None, "fit": None, "evaluate": None}
"""Changes that leave a job with only the quantize stage."""


@pytest.mark.parametrize(
    ("settings", "bytes_per_pixel", "bytes_per_colour"),
    [
        ({"k": [30]}, 12, 36),
        ({"k": [30], "space": "oklab"}, 12, 80),
        ({"k": [30, 257], "format": "webp"}, 12 + 30 + 10, 36),
        ({"k": [30], "dither": "ordered", "sample": 0.5}, 12 + 34, 80),
    ],
)
def test_quantize_memory_per_image(settings: dict[str, Any], bytes_per_pixel: int, bytes_per_colour: int):
    job = config(**QUANTIZED, quantize=settings)

    plan = plan_memory(job, Workers(2, 3, 0), n_items=10, chunk_rows=0, largest=Largest(3 * 10**6, 24 * 10**6, 0))

    demands = {(demand.stage, demand.what): demand.bytes for demand in plan.demands}
    per_image = bytes_per_pixel * 24 * 10**6 + bytes_per_colour * 10**6 + 3 * 10**6
    assert demands["quantize", "decoding and remapping"] == 3 * per_image
    assert plan.total("quantize") == PROCESS + COMPILING + 3 * per_image


def test_shared_palette_memory_includes_merged_tables():
    job = config(**QUANTIZED, quantize={"k": [30], "palette": "shared"})

    plan = plan_memory(job, Workers(2, 3, 0), n_items=10, chunk_rows=0, largest=Largest(0, 0, 6 * 10**6))

    assert plan.total("quantize") == PROCESS + COMPILING + 60 * 10**6


def test_photos_too_large_for_a_worker_are_refused():
    job = config(**QUANTIZED, quantize={"k": [30], "dither": "ordered"})
    plan = plan_memory(
        job, Workers(2, 2, 2000 * MIB), n_items=10, chunk_rows=0, largest=Largest(3 * 10**6, 24 * 10**6, 0)
    )

    with pytest.raises(
        UserError, match=r"^quantize needs 2,\d\d\d MiB .* 1,600 MiB of its 2,000 MiB may be used \(decoding"
    ):
        plan.check()


def test_largest_image_is_estimated_from_some_headers(tmp_path: Path):
    Image.new("L", (500, 400)).save(tmp_path / "flat.png")  # many pixels, few bytes
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    for i in range(20):
        Image.fromarray(noise).save(tmp_path / f"{i}.png")
    (tmp_path / "large.png").write_bytes(b"no image" * 5000)
    files = list_items(Input(path=[str(tmp_path)], labels="none"), 0, tmp_path)

    assert largest_image(files) == Largest(40_000, 200_000, sum(path.stat().st_size for path in tmp_path.glob("*.png")))
    with tarfile.open(tmp_path / "some.tar", "w") as archive:
        archive.add(tmp_path / "flat.png", "flat.png")
    packed = list_items(Input(path=[str(tmp_path / "some.tar")], labels="none"), 0, tmp_path)
    size = (tmp_path / "flat.png").stat().st_size
    assert largest_image(packed) == Largest(size, 8 * size, size)


def test_crash_while_reading_headers_is_isolated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "images"
    folder.mkdir()
    Image.new("L", (500, 400)).save(folder / "a.png")
    (folder / "b.png").write_bytes(POISON)
    monkeypatch.setenv("PYTHONPATH", plant(tmp_path / "planted"))

    files = list_items(Input(path=[str(folder)], labels="none"), 0, tmp_path)

    assert largest_image(files).pixels == 200_000


def test_rows_are_not_kept_if_they_do_not_fit():
    plan = plan_memory(
        config(), Workers(2, 1, 4000 * MIB), n_items=10**6, chunk_rows=512, largest=Largest(10_000, 80_000, 0)
    )

    assert {demand.bytes for demand in plan.demands if demand.what == "rows kept in memory"} == {0}
    plan.check()


def test_plan_that_exceeds_memory_is_refused_with_sizes():
    large = config(ingest={"size": [1024, 1024], "mode": "RGB"}, fit={"k": [100]})
    plan = plan_memory(
        large, Workers(4, 1, 8000 * MIB), n_items=10**5, chunk_rows=16, largest=Largest(10**6, 8 * 10**6, 0)
    )

    with pytest.raises(UserError) as raised:
        plan.check()

    assert str(raised.value).startswith("fit needs 1")
    assert "6,400 MiB of its 8,000 MiB may be used (centres and their sums" in str(raised.value)
    assert "give each worker" in str(raised.value)


def test_workers_of_500_mib_are_refused():
    plan = plan_memory(
        config(fit={"k": [3]}), Workers(2, 1, 500 * MIB), n_items=100, chunk_rows=64, largest=Largest(1000, 8000, 0)
    )

    with pytest.raises(
        UserError, match=r"^evaluate needs 4\d\d MiB per worker, but only 400 MiB of its 500 MiB may be used"
    ):
        plan.check()


def test_everything_fits_without_limits():
    large = config(fit={"k": [100_000]})
    plan = plan_memory(large, Workers(1, 1, 0), n_items=10**6, chunk_rows=512, largest=Largest(1, 8, 0))

    plan.check()
    assert megapixels_that_fit(large, plan, "ingest") == 200


def test_chunks_shrink_for_small_workers_but_never_grow():
    job = config()
    assert chunk_limit(job, Workers(2, 1, 0), Largest(10_000, 80_000, 0)) == 8 * MIB
    assert chunk_limit(job, Workers(2, 1, 4000 * MIB), Largest(10_000, 80_000, 0)) == 8 * MIB
    small = chunk_limit(job, Workers(2, 1, 520 * MIB), Largest(10_000, 80_000, 0))
    assert small == pytest.approx(((0.8 * 520 * MIB - PROCESS - 11 * 80_000) / 2) / 3)
    assert job.ingest is not None
    assert plan_chunks(10**5, job.ingest, small).chunk_rows == 256
    assert plan_chunks(10**5, job.ingest).chunk_rows == 512


def test_megapixels_that_fit_a_worker():
    job = config()
    plan = plan_memory(job, Workers(1, 1, 1000 * MIB), n_items=100, chunk_rows=16, largest=Largest(10, 80, 0))

    fits = megapixels_that_fit(job, plan, "ingest")

    assert fits == pytest.approx((800 * MIB - PROCESS - 3 * 16 * 12_288) / 11e6)


def peak() -> int:
    """Peak resident size of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def test_plan_covers_measured_worker_memory(tmp_path: Path):
    """Peaks are 60-110 % of the plan: the allocator rounds up and frees late."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(96):
        Image.fromarray(rng.integers(0, 255, (512, 512, 3), np.uint8)).save(folder / f"{i}.bmp")
    job = config(
        input={"path": str(folder), "labels": "none"},
        ingest={"size": [512, 512], "mode": "RGB", "chunk_mib": 40},
        fit={"k": [30], "max_iter": 3},
        quantize={"k": [4]},
    )
    assert job.ingest is not None
    items = list_items(job.input, 0, tmp_path)
    write_manifest(items, tmp_path / "items.parquet")
    with connect(Cluster(kind="local", n_workers=1, memory_limit="3GiB")) as client:
        workers = workers_of(client)
        assert workers == Workers(1, 1, 3 * 2**30)
        write_manifest(items[:8], tmp_path / "some.parquet")
        todo = QuantizeJob(tmp_path / "some.parquet", tmp_path, Quantize(k=[4]), 0, 10**6)
        run_tasks(client, quantize_tasks(todo, missing_outputs(todo)), print)
        (quantized,) = client.run(peak).values()
        client.restart()  # memory for compiling numba kernels stays in the process
        run_tasks(client, ingest_tasks(tmp_path / "items.parquet", tmp_path / "c.zarr", job.ingest, job.input), print)
        collection = finish_collection(tmp_path / "items.parquet", tmp_path / "c.zarr", job.ingest, job.input)
        (ingested,) = client.run(peak).values()
        X, _ = collection.rows("train")
        X = X.persist()
        KMeans(30, max_iter=3, random_state=0).fit(X)
        (fitted,) = client.run(peak).values()

    plan = plan_memory(job, workers, len(items), collection.chunk_rows, largest_image(items))
    assert 0.6 <= quantized / plan.total("quantize") <= 1
    assert 0.6 <= ingested / plan.total("ingest") <= 1.1
    assert 0.6 <= fitted / plan.total("fit") <= 1.1


@pytest.mark.parametrize(("key", "table"), [("format", FORMAT_BYTES), ("dither", DITHER_BYTES)])
def test_plan_knows_every_format_and_dithering(key: str, table: dict[str, int]):
    assert set(get_args(Quantize.model_fields[key].annotation)) == set(table)
