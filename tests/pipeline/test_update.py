"""A changing folder: only new files are read, and the collection equals that of a fresh ingest."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path

import dask
import numpy as np
import pyarrow.csv
import pytest
from PIL import Image

from kmeans_dask import KMeans, open_collection
from kmeans_dask.cli import main
from kmeans_dask.collection import ingest as module
from kmeans_dask.models.model import read_model
from kmeans_dask.storage.publish import read_json
from tests.support.images import draw_images
from tests.support.jobs import Result, files_of, write_config
from tests.support.processes import Planted, Process

Command = Callable[..., Result]
NO_QUANTIZE = {"ingest": {"size": [96, 96]}, "quantize": None, "report": None, "fit": {"k": 3}}
"""Config with 32 items per chunk, so that 80 items make three chunks, the last one half full."""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """Config of a finished run on a separate folder of 80 images."""
    draw_images(tmp_path / "images", count=80)
    config = write_config(tmp_path, tmp_path / "images", **NO_QUANTIZE)
    assert main.main(["run", str(config)]) == 0
    return config


def run_of(config: Path, name: str = "small") -> Path:
    return config.parent / "runs" / name


def change(folder: Path) -> None:
    """Add, change, break, touch and remove images, none of them in the second chunk."""
    files = sorted(folder.rglob("*.png"))
    Image.new("RGB", (30, 30), "red").save(folder / "disc" / "new.png")
    (folder / "star").mkdir()  # a new label that changes the order of labels
    Image.new("RGB", (30, 30), "blue").save(folder / "a star.png")
    Image.new("RGB", (30, 30), "blue").save(folder / "star" / "1.png")
    Image.new("RGB", (31, 30), "green").save(files[3])
    files[5].write_bytes(b"no longer an image")
    os.utime(files[7], ns=(1, 1))
    files[-1].unlink()
    files[0].unlink()


def rows_of(run: Path) -> set[tuple[object, ...]]:
    """Facts, label and pixels of every present item, independent of its row."""
    collection = open_collection(run / "collection.zarr")
    images = collection.images.compute(scheduler="sync")
    items = collection.items.to_pydict()
    names = [collection.class_names[label] if label >= 0 else None for label in collection.labels]
    columns = ("file", "path", "bytes", "mtime_ns", "label", "width", "height", "mode", "status", "error")
    return {
        (*(items[key][i] for key in columns), name, image.tobytes())
        for i, (image, name) in enumerate(zip(images, names, strict=True))
        if items["split"][i] != "removed"
    }


def assert_like_fresh(command: Command, config: Path, run: Path, removed: Sequence[str]) -> None:
    """Ingest the same folder from scratch with threads, and compare."""
    assert command("ingest", config, "name=fresh", "cluster.kind=threads").status == 0
    assert rows_of(run) == rows_of(run_of(config, "fresh"))
    collection = open_collection(run / "collection.zarr")
    items = collection.items.to_pydict()
    gone = [i for i, status in enumerate(items["status"]) if status == "removed"]
    assert sorted(items["path"][i] for i in gone) == sorted(removed)
    assert not collection.images.compute(scheduler="sync")[gone].any()
    assert (collection.labels[gone] == -1).all()
    assert not set(gone) & {*collection.rows("train")[1], *collection.rows("holdout")[1]}


def test_update_equals_a_fresh_ingest(command: Command, job: Path):
    run = run_of(job)
    before = open_collection(run / "collection.zarr").items
    shards = files_of(run / "collection.zarr" / "images" / "c")
    files = sorted((job.parent / "images").rglob("*.png"))
    removed = [str(path.relative_to(job.parent / "images")) for path in (files[0], files[-1])]
    change(job.parent / "images")
    processes = job.parent / "processes.yaml"
    processes.write_text("{kind: local, n_workers: 2}")

    result = command("ingest", job, "--cluster", processes)

    assert result.status == 0
    assert "small: the input changed: 3 items added, 3 changed, 2 removed" in result.lines
    assert_like_fresh(command, job, run, removed)
    after = open_collection(run / "collection.zarr").items
    assert after["path"].to_pylist()[:80] == before["path"].to_pylist()
    assert sorted(after["path"].to_pylist()[80:]) == ["a star.png", "disc/new.png", "star/1.png"]
    assert "removed" in (run / "items.csv").read_text()
    assert sorted(path.name for path in run.iterdir() if "collection" in path.name) == ["collection.zarr"]
    now = files_of(run / "collection.zarr" / "images" / "c")
    row_of = {path: row for row, path in enumerate(after["path"].to_pylist())}
    touched = [row_of[str(files[i].relative_to(job.parent / "images"))] // 32 for i in (0, 3, 5, 7, -1)]
    assert {name for name in now if now[name] != shards[name]} == {f"{chunk}/0/0/0" for chunk in [*touched, 2]}

    forgotten = files_of(run)
    assert command("ingest", job).lines == ["ingest: already finished"]
    assert {name for name, facts in files_of(run).items() if facts != forgotten[name]} == {"config.yaml", "run.json"}


def test_changed_collection_reruns_later_stages(command: Command, job: Path):
    change(job.parent / "images")

    result = command("run", job)

    assert result.status == 0
    assert "fit: the collection changed; running it again" in result.lines
    assert any(line.startswith("fit: 1 models of") for line in result.lines)
    assert command("run", job).lines == [f"{stage}: already finished" for stage in ("ingest", "fit", "evaluate")]
    (row,) = read_json(run_of(job) / "metrics.json")
    collection = open_collection(run_of(job) / "collection.zarr")
    assert row["inertia_per_sample"] == pytest.approx(row["inertia"] / len(collection.rows("train")[1]))


def test_changed_file_times_alone_rerun_no_later_stage(command: Command, job: Path):
    run = run_of(job)
    models, before = files_of(run / "models"), rows_of(run)
    fingerprint = open_collection(run / "collection.zarr").fingerprint
    for path in (job.parent / "images").rglob("*.png"):
        os.utime(path, ns=(7, 7))

    result = command("run", job)

    assert result.lines[0] == "small: the input changed: 0 items added, 80 changed, 0 removed"
    assert result.lines[-2:] == ["fit: already finished", "evaluate: already finished"]
    assert files_of(run / "models") == models
    assert open_collection(run / "collection.zarr").fingerprint == fingerprint
    assert {row[4:] for row in rows_of(run)} == {row[4:] for row in before}
    assert command("run", job).lines[0] == "ingest: already finished"


def test_single_stage_uses_the_ingested_collection(command: Command, job: Path):
    change(job.parent / "images")

    assert command("fit", job).lines == ["fit: already finished"]


def test_output_of_the_run_is_not_new_input(command: Command, tmp_path: Path):
    draw_images(tmp_path / "images", count=6)
    config = write_config(tmp_path, tmp_path, fit=None, evaluate=None, report=None, quantize={"k": 2})
    assert command("run", config).status == 0
    assert len(list(tmp_path.rglob("*.png"))) == 12

    assert command("run", config).lines == ["ingest: already finished", "quantize: already finished"]


def test_removed_items_can_return(command: Command, job: Path):
    folder, run = job.parent / "images", run_of(job)
    before = rows_of(run)
    moved = sorted(folder.rglob("*.png"))[40:]
    for number, path in enumerate(moved):
        path.rename(job.parent / str(number))
    assert command("ingest", job).status == 0
    assert len(rows_of(run)) == 40
    for number, path in enumerate(moved):
        (job.parent / str(number)).rename(path)

    assert "small: the input changed: 40 items added, 0 changed, 0 removed" in command("ingest", job).lines
    assert rows_of(run) == before


@pytest.mark.parametrize("step", [1, 2])
def test_interrupted_while_the_collection_is_replaced(
    command: Command, job: Path, monkeypatch: pytest.MonkeyPatch, step: int
):
    change(job.parent / "images")
    replace, calls = os.replace, []

    def replace_and_die(source: Path, target: Path) -> None:
        if str(source).endswith((".zarr", ".zarr.partial")):
            calls.append(source)
            if len(calls) == step:
                raise KeyboardInterrupt
        replace(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(module.os, "replace", replace_and_die)
        assert command("ingest", job).status == 130
    assert (run_of(job) / "collection.zarr").exists() == (step == 1)

    result = command("ingest", job)

    assert result.status == 0
    assert any("0 to do" in line for line in result.lines)
    assert command("ingest", job, "name=fresh").status == 0
    assert rows_of(run_of(job)) == rows_of(run_of(job, "fresh"))
    assert [path.name for path in run_of(job).iterdir() if "zarr" in path.name] == ["collection.zarr"]


def test_killed_during_an_update(command: Command, start: Callable[..., Process], planted: Planted, tmp_path: Path):
    draw_images(tmp_path / "images", count=96, side=160)
    config = write_config(
        tmp_path, tmp_path / "images", **NO_QUANTIZE | {"cluster": {"n_workers": 1}, "fit": None, "evaluate": None}
    )
    run = run_of(config)
    assert command("ingest", config, "cluster.kind=threads").status == 0
    before, fingerprint = rows_of(run), open_collection(run / "collection.zarr").fingerprint
    removed = sorted((tmp_path / "images").rglob("*.png"))[2]
    removed.unlink()
    draw_images(tmp_path / "images" / "more", count=160, side=160)

    with planted.signalled(signal.SIGKILL, "*/collection.zarr.partial/items/part-*.parquet", 3):
        process = start("kmeans-dask", "ingest", config)
    assert process.wait() == -signal.SIGKILL, process.output

    assert "ingest" not in read_json(run / "run.json")["stages"]
    assert rows_of(run) == before  # the old collection is intact
    assert open_collection(run / "collection.zarr").fingerprint == fingerprint
    done = list(run.glob("collection.zarr.partial/items/part-*.parquet"))  # one write may have been interrupted
    assert 0 < len(done) < 6
    result = command("ingest", config, "cluster.kind=threads")
    assert f"ingest: 257 items in 8 chunks of 32 items (0.8 MiB); {6 - len(done)} to do" in result.err.replace(
        "256", "257"
    )
    assert_like_fresh(command, config, run, [str(removed.relative_to(tmp_path / "images"))])


def test_update_fits_from_old_centres_and_reports_moves(command: Command, job: Path):
    run = run_of(job)
    assert command("run", job, "fit.algorithm=[kmeans,minibatch]").status == 0
    old = {a: read_model(run / "models" / a / "k=3.zarr").centres for a in ("kmeans", "minibatch")}
    rows_before = open_collection(run / "collection.zarr").rows("train")[1]
    change(job.parent / "images")

    result = command("run", job, "fit.algorithm=[kmeans,minibatch]", "--update")

    assert result.status == 0
    assert "how far clusters moved" in result.out
    X, rows = open_collection(run / "collection.zarr").rows("train")
    assert rows.tolist() != rows_before.tolist()
    pixels = X.compute(scheduler="sync")
    table = pyarrow.csv.read_csv(run / "moved.csv").to_pylist()
    assert len(table) == 6
    for algorithm, centres in old.items():
        new = read_model(run / "models" / algorithm / "k=3.zarr").centres
        moved = [row for row in table if row["algorithm"] == algorithm]
        np.testing.assert_allclose([row["distance"] for row in moved], np.linalg.norm(new - centres, axis=1), rtol=1e-5)
        before, after = (
            ((pixels[:, None] - c[None].astype(float)) ** 2).sum(axis=2).argmin(axis=1) for c in (centres, new)
        )
        for row in moved:
            was, now = before == row["cluster"], after == row["cluster"]
            assert [row[key] for key in ("before", "after", "left", "came")] == [
                int(each.sum()) for each in (was, now, was & ~now, now & ~was)
            ]
    estimator = KMeans(3, init=old["kmeans"], tol=1e-4, random_state=0)
    with dask.config.set(scheduler="sync"):
        estimator.fit(X)
    model = read_model(run / "models" / "kmeans" / "k=3.zarr")
    np.testing.assert_array_equal(model.centres, estimator.cluster_centers_)
    assert read_json(run / "run.json")["stages"]["fit"]["summary"]["updated"] == 2
    assert command("fit", job, "fit.algorithm=[kmeans,minibatch]", "--update").lines == ["fit: already finished"]


@pytest.mark.parametrize(
    ("before", "after", "updated"),
    [
        ("features={normalize: l2}", "features={normalize: l2}", True),
        ("features={scale: 255}", "features={scale: 255}", True),
        ("features={scale: 255}", "features={}", False),  # the old centres have another scale
        ("features={centre: true}", "features={centre: true}", False),  # the mean comes from other rows
        ("features={}", "ingest.size=[16, 8]", False),
    ],
)
def test_update_needs_unchanged_features(command: Command, job: Path, before: str, after: str, updated: bool):
    assert command("run", job, before).status == 0
    change(job.parent / "images")

    result = command("run", job, after, "--update")

    assert result.status == 0, result.err
    assert read_json(run_of(job) / "run.json")["stages"]["fit"]["summary"]["updated"] == int(updated)


def test_new_model_is_fitted_from_scratch(command: Command, job: Path):
    assert command("run", job, "fit.k=[3,4]", "--update").status == 0

    assert not (run_of(job) / "moved.csv").exists()
    assert command("run", job, "fit.k=[3,4]", "name=fresh").status == 0
    one, other = (read_model(run_of(job, name) / "models" / "kmeans" / "k=4.zarr") for name in ("small", "fresh"))
    np.testing.assert_array_equal(one.centres, other.centres)
