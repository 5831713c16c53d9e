"""The memory plan: by hand, and against the peaks of real worker processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from kmeans_dask.chunks import plan_chunks
from kmeans_dask.cluster import connect, run_tasks, workers_of
from kmeans_dask.config import Cluster, Config
from kmeans_dask.errors import UserError
from kmeans_dask.ingesting import finish_collection, ingest_tasks
from kmeans_dask.kmeans import KMeans
from kmeans_dask.memory_plan import LATER_IMPORTS, PROCESS, Workers, chunk_limit, megapixels_that_fit, plan_memory
from kmeans_dask.sources import list_items, write_manifest

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


def test_a_plan_by_hand():
    plan = plan_memory(config(), Workers(2, 2, 4000 * MIB), n_items=8192, chunk_rows=512, largest_file=10_000)

    told = {(demand.stage, demand.what): demand.bytes for demand in plan.demands}
    assert told["ingest", "chunks"] == 2 * 3 * 512 * 12_288
    assert told["ingest", "decoding"] == 2 * 11 * 80_000
    assert told["fit", "rows that are kept"] == 8192 * 12_288 // 2 + 512 * 12_288
    assert told["fit", "centres and their sums"] == (11 * 4 + 12) * 100 * 12_288
    assert told["evaluate", "imports"] == LATER_IMPORTS
    assert plan.total("ingest") == PROCESS + told["ingest", "chunks"] + told["ingest", "decoding"]
    plan.check()


def test_rows_that_do_not_fit_are_not_kept():
    plan = plan_memory(config(), Workers(2, 1, 4000 * MIB), n_items=10**6, chunk_rows=512, largest_file=10_000)

    assert {demand.bytes for demand in plan.demands if demand.what == "rows that are kept"} == {0}
    plan.check()


def test_a_plan_that_cannot_fit_is_refused_with_the_numbers():
    large = config(ingest={"size": [1024, 1024], "mode": "RGB"}, fit={"k": [100]})
    plan = plan_memory(large, Workers(4, 1, 8000 * MIB), n_items=10**5, chunk_rows=16, largest_file=10**6)

    with pytest.raises(UserError) as said:
        plan.check()

    assert str(said.value).startswith("fit takes 1")
    assert "6,400 MiB of its 8,000 MiB may be used (centres and their sums" in str(said.value)
    assert "give each worker" in str(said.value)


def test_workers_of_500_mib_are_refused_before_they_pause():
    plan = plan_memory(config(fit={"k": [3]}), Workers(2, 1, 500 * MIB), n_items=100, chunk_rows=64, largest_file=1000)

    with pytest.raises(
        UserError, match=r"^evaluate takes 4\d\d MiB of a worker, and 400 MiB of its 500 MiB may be used"
    ):
        plan.check()


def test_without_limits_everything_fits():
    large = config(fit={"k": [100_000]})
    plan = plan_memory(large, Workers(1, 1, 0), n_items=10**6, chunk_rows=512, largest_file=1)

    plan.check()
    assert megapixels_that_fit(large, plan, "ingest") == 200


def test_chunks_are_made_smaller_for_small_workers_but_never_larger():
    job = config()
    assert chunk_limit(job, Workers(2, 1, 0), 10_000) == 8 * MIB
    assert chunk_limit(job, Workers(2, 1, 4000 * MIB), 10_000) == 8 * MIB
    small = chunk_limit(job, Workers(2, 1, 480 * MIB), 10_000)
    assert small == pytest.approx(((0.8 * 480 * MIB - PROCESS - 11 * 80_000) / 2) / 3)
    assert job.ingest is not None
    assert plan_chunks(10**5, job.ingest, small).chunk_rows == 256
    assert plan_chunks(10**5, job.ingest).chunk_rows == 512


def test_a_large_image_that_a_worker_has_no_room_for_is_known():
    job = config()
    plan = plan_memory(job, Workers(1, 1, 1000 * MIB), n_items=100, chunk_rows=16, largest_file=10)

    fits = megapixels_that_fit(job, plan, "ingest")

    assert fits == pytest.approx((800 * MIB - PROCESS - 3 * 16 * 12_288) / 11e6)


def peak() -> int:
    """Most bytes that this process has had in memory so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))


def test_the_plan_holds_what_worker_processes_take(tmp_path: Path):
    """Within a third above, and not exceeded by more than a tenth: the allocator rounds, and frees late."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "images"
    folder.mkdir()
    for i in range(96):
        Image.fromarray(rng.integers(0, 255, (512, 512, 3), np.uint8)).save(folder / f"{i}.bmp")
    job = config(
        input={"path": str(folder), "labels": "none"},
        ingest={"size": [512, 512], "mode": "RGB", "chunk_mib": 40},
        fit={"k": [30], "max_iter": 3},
    )
    assert job.ingest is not None
    items = list_items(job.input, 0, tmp_path)
    write_manifest(items, tmp_path / "items.parquet")
    with connect(Cluster(kind="local", workers=1, memory="3GiB")) as client:
        workers = workers_of(client)
        assert workers == Workers(1, 1, 3 * 2**30)
        run_tasks(client, ingest_tasks(tmp_path / "items.parquet", tmp_path / "c.zarr", job.ingest, job.input), print)
        collection = finish_collection(tmp_path / "items.parquet", tmp_path / "c.zarr", job.ingest, job.input)
        (ingested,) = client.run(peak).values()
        X, _ = collection.rows("train")
        X = X.persist()
        KMeans(30, max_iter=3, random_state=0).fit(X)
        (fitted,) = client.run(peak).values()

    plan = plan_memory(job, workers, len(items), collection.chunk_rows, int(max(items["bytes"].to_pylist())))
    assert 0.6 <= ingested / plan.total("ingest") <= 1.1
    assert 0.6 <= fitted / plan.total("fit") <= 1.1
