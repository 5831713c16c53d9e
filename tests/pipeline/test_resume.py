"""Rerunning the same command finishes what is missing and repeats no finished work."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import numpy as np
import pyarrow.parquet as pq
import pytest

from kmeans_dask.cli import main
from kmeans_dask.models.model import read_model
from kmeans_dask.pipeline.resume import STAGES
from kmeans_dask.storage.publish import read_json, remove, write_json
from tests.support.images import draw_images
from tests.support.jobs import Result, Run, files_of, results_of, write_config
from tests.support.processes import Planted, Process

Command = Callable[..., Result]


@pytest.fixture(scope="module")
def finished(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a finished job without a report; tests must not write to it."""
    config = write_config(tmp_path_factory.mktemp("finished"), images, report=None)
    assert main.main(["run", str(config)]) == 0
    return folder_of(config)


@pytest.fixture
def job(images: Path, finished: Path, tmp_path: Path) -> Path:
    """Config of a finished job without a report; its run folder is a copy."""
    config = write_config(tmp_path, images, report=None)
    shutil.copytree(finished, folder_of(config))
    return config


def folder_of(config: Path) -> Path:
    return config.parent / "runs" / "small"


def test_rerun_of_a_finished_job_does_nothing(command: Command, images: Path, whole_run: Run, tmp_path: Path):
    config = write_config(tmp_path, images)
    shutil.copytree(whole_run.folder, folder_of(config))
    before = files_of(folder_of(config))

    result = command("run", config)

    changed = {name for name, facts in files_of(folder_of(config)).items() if facts != before[name]}
    assert result.status == 0
    assert result.lines == [f"{stage}: already finished" for stage in STAGES]
    assert changed == {"config.yaml", "run.json"}
    assert result.out == f"report: {folder_of(config) / 'report.html'}\n"


def test_changed_cluster_reruns_nothing(command: Command, job: Path):
    finished = [f"{stage}: already finished" for stage in STAGES if stage != "report"]

    assert command("run", job, "cluster.n_workers=1").lines == finished


def test_adding_k_keeps_other_models(command: Command, job: Path):
    folder = folder_of(job)
    before = files_of(folder)

    result = command("run", job, "fit.k=[3,4,5]")

    after = files_of(folder)
    assert result.status == 0
    assert "fit: the config changed; running it again: fit.k was [3, 5], is now [3, 4, 5]" in result.lines
    assert any(line.startswith("fit: 2 models of 48 rows") for line in result.lines)
    kept = [name for name in before if name.startswith(("models/", "collection.zarr/", "quantized/"))]
    assert {name: after[name] for name in kept} == {name: before[name] for name in kept}
    assert {str(path.relative_to(folder)) for path in folder.glob("models/*/k=4.zarr")} == {
        "models/kmeans/k=4.zarr",
        "models/minibatch/k=4.zarr",
    }
    assert [row["k"] for row in read_json(folder / "metrics.json")] == [3, 4, 5, 3, 4, 5]
    assert "kmeans_k4_cluster" in pq.read_schema(folder / "clusters.parquet").names


def test_k_added_later_gives_the_same_model(command: Command, images: Path, job: Path):
    (job.parent / "other").mkdir()
    later = write_config(job.parent / "other", images, report=None)

    assert command("run", later, "fit.k=3", "quantize.k=2").status == 0
    assert command("run", later).status == 0

    assert results_of(folder_of(later)) == results_of(folder_of(job))


def test_removing_k_fits_nothing(command: Command, job: Path):
    before = files_of(folder_of(job) / "models")

    result = command("run", job, "fit.k=5")

    assert any(line.startswith("fit: 0 models") for line in result.lines)
    assert files_of(folder_of(job) / "models") == before
    assert [row["k"] for row in read_json(folder_of(job) / "metrics.json")] == [5, 5]


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("seed=1", "seed was 0, is now 1"),
        ("fit.init=random", "fit.init was 'k-means||', is now 'random'"),
        ("fit.max_iter=1", "fit.max_iter was 300, is now 1"),
        ("ingest.size=[8,8]", "ingest.size was [16, 16], is now [8, 8]"),
    ],
)
def test_changed_config_is_logged_and_refitted(command: Command, images: Path, job: Path, override: str, reason: str):
    before = files_of(folder_of(job) / "models")
    (job.parent / "other").mkdir()
    other = write_config(job.parent / "other", images, report=None)

    result = command("run", job, override)

    assert result.status == 0
    assert any("the config changed; running it again:" in line and reason in line for line in result.lines)
    after = files_of(folder_of(job) / "models")
    assert after.keys() == before.keys()
    assert all(after[name] != before[name] for name in before)
    assert command("run", other, override).status == 0  # with no earlier config
    assert results_of(folder_of(job)) == results_of(folder_of(other))


def test_fresh_starts_over(command: Command, job: Path):
    before, results = files_of(folder_of(job)), results_of(folder_of(job))
    (folder_of(job) / "quantized" / "stray.txt").write_text("from an earlier run")

    result = command("run", job, "--fresh")

    after = files_of(folder_of(job))
    assert result.status == 0
    assert not any("already finished" in line for line in result.lines)
    assert not (folder_of(job) / "quantized" / "stray.txt").exists()
    assert [name for name in before.keys() & after.keys() if before[name] == after[name]] == []
    assert results_of(folder_of(job)) == results


def forget(folder: Path, *stages: str) -> None:
    """Remove stages from the record, as if they had been killed before they finished."""
    record = read_json(folder / "run.json")
    write_json(
        folder / "run.json", {**record, "stages": {s: e for s, e in record["stages"].items() if s not in stages}}
    )


def test_killed_between_two_models(command: Command, job: Path):
    folder = folder_of(job)
    results = results_of(folder)
    forget(folder, "fit", "evaluate")
    remove(folder / "models" / "kmeans" / "k=5.zarr")
    kept = files_of(folder / "models" / "kmeans" / "k=3.zarr")

    result = command("run", job)

    assert any(line.startswith("fit: 1 models of 48 rows") for line in result.lines)
    assert files_of(folder / "models" / "kmeans" / "k=3.zarr") == kept
    assert results_of(folder) == results


def test_unreadable_model_is_refitted(command: Command, job: Path):
    folder = folder_of(job)
    results = results_of(folder)
    forget(folder, "fit")
    model = folder / "models" / "kmeans" / "k=5.zarr"
    (model / "zarr.json").write_bytes((model / "zarr.json").read_bytes()[:40])

    assert any(line.startswith("fit: 1 models of 48 rows") for line in command("run", job).lines)
    assert results_of(folder) == results


def test_partial_files_do_not_count_as_finished(command: Command, job: Path):
    folder = folder_of(job)
    results = results_of(folder)
    forget(folder, *STAGES)
    left = f".{uuid4().hex}.partial"
    (folder / "models" / "kmeans" / left).mkdir()
    (folder / "quantized" / "2" / left).write_bytes(b"half an image")
    write_json(folder / "run.json", read_json(folder / "run.json") | {"state": "running"})
    (folder / "collection.zarr").rename(folder / "collection.zarr.partial")  # killed before the last rename
    (folder / "clusters.parts").mkdir()
    (folder / "clusters.parts" / "part-000000000000.parquet").write_bytes(b"half a table")
    for name in ("clusters.parquet", "items.csv", "quantized.parquet", "metrics.json"):
        (folder / name).unlink()

    result = command("run", job)

    assert result.status == 0
    assert any(line.startswith("fit: 0 models of 48 rows") for line in result.lines)
    assert results_of(folder) == results
    assert not list(folder.rglob(left))


_KILLED_AFTER_FOUR_PASSES = """
import os, signal, sys
from kmeans_dask.cli import main as cli
from kmeans_dask.storage import checkpoint

class KilledAfterFour(checkpoint.Checkpoint):
    writes = 0

    def write(self, states):
        self._next_write = 0.0  # write the state after every pass
        super().write(states)
        KilledAfterFour.writes += 1
        if KilledAfterFour.writes == 4:
            os.kill(os.getpid(), signal.SIGKILL)

import kmeans_dask.pipeline.stages.fit
kmeans_dask.pipeline.stages.fit.Checkpoint = KilledAfterFour
cli.main(["run", sys.argv[1], "cluster.kind=threads", *sys.argv[2:]])
"""


@pytest.mark.parametrize("algorithm", ["kmeans", "minibatch"])
def test_killed_between_two_passes(command: Command, images: Path, tmp_path: Path, algorithm: str):
    config = write_config(
        tmp_path,
        images,
        fit={"k": [5, 6], "algorithm": [algorithm], "tol": 0},
        evaluate=None,
        quantize=None,
        report=None,
        cluster={"kind": "threads"},
    )
    folder = folder_of(config)
    killed = subprocess.run([sys.executable, "-c", _KILLED_AFTER_FOUR_PASSES, config], capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    state = folder / "models" / algorithm / "unfinished.npz"
    assert state.exists()
    with np.load(state) as file:  # double the inertia of the first pass: a resumed fit keeps it
        arrays = dict(file)
    header = json.loads(str(arrays["header"]))
    header["states"][-1]["history"][0] *= 2
    with state.open("wb") as file:
        np.savez(file, **arrays | {"header": np.array(json.dumps(header))})
    n_finished = len(list((folder / "models").glob("*/*.zarr")))

    resumed = command("run", config)
    assert resumed.status == 0
    assert sum("resumed an interrupted fit" in line for line in resumed.lines) == 1
    assert command("run", config, f"output={tmp_path / 'other'}").status == 0  # undisturbed

    differ = 0
    for k in (5, 6):
        ours, whole = (
            read_model(place / "models" / algorithm / f"k={k}.zarr")
            for place in (folder, tmp_path / "other" / folder.name)
        )
        np.testing.assert_array_equal(ours.centres, whole.centres)
        np.testing.assert_array_equal(ours.history[1:], whole.history[1:])
        differ += ours.history[0] == 2 * whole.history[0]
    assert differ == 1
    assert n_finished == 0 or algorithm == "minibatch"
    assert not state.exists()


@pytest.fixture(scope="module")
def slow_job(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Config of a job long enough to be killed in every stage: ten chunks, many passes, many images."""
    folder = tmp_path_factory.mktemp("slow")
    draw_images(folder / "images", count=160, side=160, levels=16)
    return write_config(
        folder,
        folder / "images",
        name="killed",
        ingest={"size": [112, 112]},
        fit={"k": 8, "algorithm": ["kmeans", "minibatch"]},
        quantize={"k": [2, 6]},
        report=None,
        cluster={"kind": "threads", "n_workers": 1},
    )


def test_killed_in_every_stage_and_resumed(
    command: Command, start: Callable[..., Process], planted: Planted, slow_job: Path
):
    folder = slow_job.parent / "runs" / "killed"

    def kill_at(pattern: str, nth: int) -> Process:
        with planted.signalled(signal.SIGKILL, f"{folder}/{pattern}", nth):
            process = start("kmeans-dask", "run", slow_job)
        assert process.wait() == -signal.SIGKILL, process.output
        return process

    def finished() -> set[str]:
        return read_json(folder / "run.json")["stages"].keys() - {"listing"}

    kill_at("*/items/part-*.parquet", 3)
    assert finished() == set()
    assert not (folder / "collection.zarr").exists()
    shards = files_of(folder / "collection.zarr.partial" / "images" / "c")
    done = len(list(folder.rglob("items/part-*.parquet")))
    assert done == 2

    process = kill_at("models/*/k=8.zarr", 2)
    assert f"ingest: 160 items in 10 chunks of 16 items (0.6 MiB); {10 - done} to do" in process.output
    assert finished() == {"ingest"}
    kept = files_of(folder / "collection.zarr" / "images" / "c")
    assert sum(kept[name] == shards[name] for name in shards) >= done
    (model,) = folder.glob("models/*/k=*.zarr")
    seconds = read_model(model).seconds

    process = kill_at("quantized/6/*/*.png", 21)
    assert "ingest: already finished" in process.output
    assert finished() == {"ingest", "fit", "evaluate"}
    assert read_model(model).seconds == seconds  # from the first fit, which was not repeated

    process = start("kmeans-dask", "run", slow_job)
    assert process.wait() == 0
    for stage in ("ingest", "fit", "evaluate"):
        assert f"{stage}: already finished" in process.output

    assert command("run", slow_job, "name=small", "cluster.n_workers=2").status == 0  # undisturbed
    assert results_of(folder) == results_of(folder_of(slow_job))
    assert read_json(folder / "run.json")["state"] == "finished"
    assert not list(folder.rglob("*.partial"))  # left by the three killed processes
