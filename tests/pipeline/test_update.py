"""A folder that changes: only what is new is read, and the collection is that of a fresh ingest."""

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
from tests.support.jobs import Said, files_of, write_config
from tests.support.processes import Planted, Process

Command = Callable[..., Said]
NO_QUANTIZE = {"ingest": {"size": [96, 96]}, "quantize": None, "report": None, "fit": {"k": 3}}
"""32 items a chunk: 80 are three chunks, the last one half full."""


@pytest.fixture
def job(tmp_path: Path) -> Path:
    """Config of a finished run with 80 images of its own."""
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
    (folder / "star").mkdir()  # a label that was not there, and comes before others
    Image.new("RGB", (30, 30), "blue").save(folder / "a star.png")
    Image.new("RGB", (30, 30), "blue").save(folder / "star" / "1.png")
    Image.new("RGB", (31, 30), "green").save(files[3])
    files[5].write_bytes(b"no image any more")
    os.utime(files[7], ns=(1, 1))
    files[-1].unlink()
    files[0].unlink()


def rows_of(run: Path) -> set[tuple[object, ...]]:
    """What a collection says of every item that is there, whatever its row."""
    collection = open_collection(run / "collection.zarr")
    images = collection.images.compute(scheduler="sync")
    items = collection.items.to_pydict()
    names = [collection.class_names[label] if label >= 0 else None for label in collection.labels]
    told = ("file", "path", "bytes", "mtime_ns", "label", "width", "height", "mode", "status", "error")
    return {
        (*(items[key][i] for key in told), name, image.tobytes())
        for i, (image, name) in enumerate(zip(images, names, strict=True))
        if items["split"][i] != "removed"
    }


def assert_like_fresh(command: Command, config: Path, run: Path, removed: Sequence[str]) -> None:
    """Ingest the same folder from nothing, by threads, and compare."""
    assert command("ingest", config, "name=fresh", "cluster.kind=threads").status == 0
    assert rows_of(run) == rows_of(run_of(config, "fresh"))
    collection = open_collection(run / "collection.zarr")
    items = collection.items.to_pydict()
    gone = [i for i, status in enumerate(items["status"]) if status == "removed"]
    assert sorted(items["path"][i] for i in gone) == sorted(removed)
    assert not collection.images.compute(scheduler="sync")[gone].any()
    assert (collection.labels[gone] == -1).all()
    assert not set(gone) & {*collection.rows("train")[1], *collection.rows("holdout")[1]}


def test_an_update_is_like_a_fresh_ingest(command: Command, job: Path):
    run = run_of(job)
    before = open_collection(run / "collection.zarr").items
    shards = files_of(run / "collection.zarr" / "images" / "c")
    files = sorted((job.parent / "images").rglob("*.png"))
    removed = [str(path.relative_to(job.parent / "images")) for path in (files[0], files[-1])]
    change(job.parent / "images")
    processes = job.parent / "processes.yaml"
    processes.write_text("{kind: local, n_workers: 2}")

    said = command("ingest", job, "--cluster", processes)

    assert said.status == 0
    assert "small: the input has changed: 3 items added, 3 changed, 2 removed" in said.lines
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
    assert command("ingest", job).lines == ["ingest: finished before"]
    assert {name for name, facts in files_of(run).items() if facts != forgotten[name]} == {"config.yaml", "run.json"}


def test_later_stages_run_again_when_the_collection_has_changed(command: Command, job: Path):
    change(job.parent / "images")

    said = command("run", job)

    assert said.status == 0
    assert "fit: the collection changed, so it is done again" in said.lines
    assert any(line.startswith("fit: 1 models of") for line in said.lines)
    assert command("run", job).lines == [f"{stage}: finished before" for stage in ("ingest", "fit", "evaluate")]
    (row,) = read_json(run_of(job) / "metrics.json")
    collection = open_collection(run_of(job) / "collection.zarr")
    assert row["inertia_per_sample"] == pytest.approx(row["inertia"] / len(collection.rows("train")[1]))


def test_another_time_alone_changes_nothing(command: Command, job: Path):
    run = run_of(job)
    models, before = files_of(run / "models"), rows_of(run)
    fingerprint = open_collection(run / "collection.zarr").fingerprint
    for path in (job.parent / "images").rglob("*.png"):
        os.utime(path, ns=(7, 7))

    said = command("run", job)

    assert said.lines[0] == "small: the input has changed: 0 items added, 80 changed, 0 removed"
    assert said.lines[-2:] == ["fit: finished before", "evaluate: finished before"]
    assert files_of(run / "models") == models
    assert open_collection(run / "collection.zarr").fingerprint == fingerprint
    assert {row[4:] for row in rows_of(run)} == {row[4:] for row in before}
    assert command("run", job).lines[0] == "ingest: finished before"


def test_a_stage_alone_works_with_what_was_ingested(command: Command, job: Path):
    change(job.parent / "images")

    assert command("fit", job).lines == ["fit: finished before"]


def test_what_the_run_writes_is_not_new_input(command: Command, tmp_path: Path):
    draw_images(tmp_path / "images", count=6)
    config = write_config(tmp_path, tmp_path, fit=None, evaluate=None, report=None, quantize={"k": 2})
    assert command("run", config).status == 0
    assert len(list(tmp_path.rglob("*.png"))) == 12

    assert command("run", config).lines == ["ingest: finished before", "quantize: finished before"]


def test_what_has_gone_may_come_back(command: Command, job: Path):
    folder, run = job.parent / "images", run_of(job)
    before = rows_of(run)
    moved = sorted(folder.rglob("*.png"))[40:]
    for number, path in enumerate(moved):
        path.rename(job.parent / str(number))
    assert command("ingest", job).status == 0
    assert len(rows_of(run)) == 40
    for number, path in enumerate(moved):
        (job.parent / str(number)).rename(path)

    assert "small: the input has changed: 40 items added, 0 changed, 0 removed" in command("ingest", job).lines
    assert rows_of(run) == before


@pytest.mark.parametrize("step", [1, 2])
def test_killed_while_the_new_collection_takes_the_place_of_the_old_one(
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

    said = command("ingest", job)

    assert said.status == 0
    assert any("0 to do" in line for line in said.lines)
    assert command("ingest", job, "name=fresh").status == 0
    assert rows_of(run_of(job)) == rows_of(run_of(job, "fresh"))
    assert [path.name for path in run_of(job).iterdir() if "zarr" in path.name] == ["collection.zarr"]


def test_killed_in_the_middle_of_an_update(
    command: Command, start: Callable[..., Process], planted: Planted, tmp_path: Path
):
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
    assert rows_of(run) == before  # the old collection is whole
    assert open_collection(run / "collection.zarr").fingerprint == fingerprint
    done = list(run.glob("collection.zarr.partial/items/part-*.parquet"))  # one may have been cut off amid its writing
    assert 0 < len(done) < 6
    said = command("ingest", config, "cluster.kind=threads")
    assert f"ingest: 257 items in 8 chunks of 32 items (0.8 MiB); {6 - len(done)} to do" in said.err.replace(
        "256", "257"
    )
    assert_like_fresh(command, config, run, [str(removed.relative_to(tmp_path / "images"))])


def test_fit_goes_on_from_the_old_centres_and_says_how_they_moved(command: Command, job: Path):
    run = run_of(job)
    assert command("run", job, "fit.algorithm=[kmeans,minibatch]").status == 0
    old = {a: read_model(run / "models" / a / "k=3.zarr").centres for a in ("kmeans", "minibatch")}
    rows_before = open_collection(run / "collection.zarr").rows("train")[1]
    change(job.parent / "images")

    said = command("run", job, "fit.algorithm=[kmeans,minibatch]", "--update")

    assert said.status == 0
    assert "how the clusters moved" in said.out
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
    assert command("fit", job, "fit.algorithm=[kmeans,minibatch]", "--update").lines == ["fit: finished before"]


@pytest.mark.parametrize(
    ("before", "after", "goes_on"),
    [
        ("features={normalize: l2}", "features={normalize: l2}", True),
        ("features={scale: 255}", "features={scale: 255}", True),
        ("features={scale: 255}", "features={}", False),  # the old centres lie among rows of another scale
        ("features={centre: true}", "features={centre: true}", False),  # the mean is that of other rows
        ("features={}", "ingest.size=[16, 8]", False),
    ],
)
def test_fit_goes_on_where_rows_are_made_as_before(command: Command, job: Path, before: str, after: str, goes_on: bool):
    assert command("run", job, before).status == 0
    change(job.parent / "images")

    said = command("run", job, after, "--update")

    assert said.status == 0, said.err
    assert read_json(run_of(job) / "run.json")["stages"]["fit"]["summary"]["updated"] == int(goes_on)


def test_a_model_without_a_predecessor_is_fitted_as_usual(command: Command, job: Path):
    assert command("run", job, "fit.k=[3,4]", "--update").status == 0

    assert not (run_of(job) / "moved.csv").exists()
    assert command("run", job, "fit.k=[3,4]", "name=fresh").status == 0
    one, other = (read_model(run_of(job, name) / "models" / "kmeans" / "k=4.zarr") for name in ("small", "fresh"))
    np.testing.assert_array_equal(one.centres, other.centres)
