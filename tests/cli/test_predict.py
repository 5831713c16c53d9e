"""``predict``: label new images with a finished run, on worker processes and on threads."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import dask
import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
from PIL import Image

from kmeans_dask import KMeans, open_collection
from kmeans_dask.cli import main
from kmeans_dask.collection.features import open_features, raw_features
from kmeans_dask.config.sections import Ingest, Input
from kmeans_dask.models.model import Model, read_model
from kmeans_dask.models.prediction import PREDICTED_SCHEMA, Predictor, farthest_fitted, join_predicted, predict_tasks
from kmeans_dask.sources.images import decode
from kmeans_dask.sources.listing import list_items
from tests.support.images import draw_images
from tests.support.jobs import Result, write_config

Command = Callable[..., Result]
SIZE = (96, 96)
"""Image size in pixels; in RGB it gives 32 rows per chunk."""


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run; tests must not change its contents."""
    folder = tmp_path_factory.mktemp("finished")
    config = write_config(folder, images, ingest={"size": list(SIZE)}, quantize=None, report=None)
    assert main.main(["run", str(config)]) == 0
    return folder / "runs" / "small"


@pytest.fixture(scope="module")
def new_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """70 images in three chunks: the fitted ones, eight more, a white one and a broken one."""
    folder = tmp_path_factory.mktemp("new") / "images"
    draw_images(folder, count=68)
    Image.new("RGB", (30, 20), "white").save(folder / "white.png")
    (folder / "broken.png").write_bytes(b"no image")
    return folder


def pixels_of(folder: Path, paths: list[str]) -> np.ndarray:
    rows = [decode(folder / path, size=SIZE, mode="RGB", max_pixels=10**6).pixels for path in paths]
    return np.stack(rows).reshape(len(rows), -1)


def test_table_matches_the_estimator(command: Command, run: Path, new_images: Path, tmp_path: Path):
    (tmp_path / "processes.yaml").write_text("kind: local\nn_workers: 2\n")
    options = ("--k", 5, "--output", tmp_path / "table.parquet", "--cluster", tmp_path / "processes.yaml")
    result = command("predict", run, new_images, *options)
    table = pq.read_table(tmp_path / "table.parquet")

    assert result.status == 0
    assert result.out == f"predicted: {tmp_path / 'table.parquet'}\n"
    assert "predict: 70 images in model kmeans, K = 5; 3 tasks to do" in result.lines
    assert f"predict: 1 of 70 items could not be read; the reasons are in {tmp_path / 'table.parquet'}" in result.lines
    assert table.schema.names == PREDICTED_SCHEMA.names
    assert table["path"].to_pylist() == sorted(str(p.relative_to(new_images)) for p in new_images.rglob("*.png"))
    rows = table.to_pylist()
    (broken,) = [row for row in rows if row["status"] != "ok"]
    assert broken | {"error": ""} == dict.fromkeys(PREDICTED_SCHEMA.names) | {
        "path": "broken.png", "status": "unreadable", "error": "",
    }  # fmt: skip
    assert "not an image" in broken["error"]

    model = read_model(run / "models" / "kmeans" / "k=5.zarr")
    good = [row for row in rows if row["status"] == "ok"]
    pixels = pixels_of(new_images, [row["path"] for row in good])
    estimator = KMeans(5, init=model.centres, max_iter=1).fit(pixels)
    estimator.cluster_centers_ = model.centres
    with dask.config.set(scheduler="sync"):
        clusters = estimator.predict(pixels).compute()
        distances = estimator.transform(pixels.astype(np.float32)).compute().min(axis=1)
    assert [row["cluster"] for row in good] == clusters.tolist()
    np.testing.assert_allclose([row["distance"] for row in good], distances, rtol=1e-6)
    names = ("bar", "disc", "ring")
    assert [row["label"] for row in good] == [names[model.label_map[c]] for c in clusters]


def test_column_option(command: Command, run: Path, images: Path, tmp_path: Path):
    (tmp_path / "new.csv").write_text(f"path,file\nnowhere,{images / 'disc' / '000.png'}\n")
    options = ("--output", tmp_path / "t.csv")

    assert command("predict", run, tmp_path / "new.csv", "--column", "file", *options).status == 0
    assert pyarrow.csv.read_csv(tmp_path / "t.csv")["status"].to_pylist() == ["ok"]
    assert "1 of 1 items could not be read" in command("predict", run, tmp_path / "new.csv", *options).err


def test_farther_marks_images_beyond_all_fitted_ones(command: Command, run: Path, new_images: Path, tmp_path: Path):
    assert command("predict", run, new_images, "--algorithm", "minibatch", "--output", tmp_path / "t.csv").status == 0
    table = pyarrow.csv.read_csv(tmp_path / "t.csv").to_pylist()

    fitted = pq.read_table(run / "clusters.parquet").to_pylist()  # the first 60 new images equal the fitted ones
    by_path = {row["path"]: row for row in fitted}
    largest = dict.fromkeys(range(5), -1.0)
    for row in fitted:
        if row["split"] == "train":
            cluster, distance = row["minibatch_k5_cluster"], row["minibatch_k5_distance"]
            largest[cluster] = max(largest[cluster], distance)
    readable = [row for row in table if row["status"] == "ok"]
    assert len(readable) == 69
    assert [row["farther"] for row in readable] == [
        np.float32(row["distance"]) > largest[row["cluster"]] for row in readable
    ]
    known = [row for row in readable if by_path.get(row["path"], {"split": None})["split"] == "train"]
    assert len(known) == 48
    assert not any(row["farther"] for row in known)
    assert [row["cluster"] for row in known] == [by_path[row["path"]]["minibatch_k5_cluster"] for row in known]
    (white,) = [row for row in table if row["path"] == "white.png"]
    assert white["farther"]


def test_default_table_is_in_the_run_folder(command: Command, run: Path, images: Path):
    assert command("predict", run, images).out == f"predicted: {run}/predictions/images-kmeans-k5.parquet\n"

    assert [path.name for path in (run / "predictions").iterdir()] == ["images-kmeans-k5.parquet"]


def test_sources_of_the_same_name_get_separate_tables(command: Command, run: Path, images: Path, tmp_path: Path):
    def table_of(source: Path | str, *options: object) -> str:
        out = command("predict", run, source, "--k", 3, *options).out
        return Path(out.removeprefix("predicted: ").strip()).name

    for place, count in (("monday", 1), ("tuesday", 2)):
        draw_images(tmp_path / place / "new", count=count)
    np.savez(tmp_path / "new", x_train=np.zeros((4, 3, 3), np.uint8), x_test=np.ones((5, 3, 3), np.uint8))

    assert table_of(tmp_path / "monday" / "new") == "new-kmeans-k3.parquet"
    assert table_of(tmp_path / "tuesday" / "new") == "new~2-kmeans-k3.parquet"
    draw_images(tmp_path / "monday" / "new", count=3)
    assert table_of(f"{tmp_path}/tuesday/../monday/new/") == "new-kmeans-k3.parquet"
    assert table_of(tmp_path / "new.npz", "--column", "x_train") == "new.npz-x_train-kmeans-k3.parquet"
    assert table_of(tmp_path / "new.npz", "--column", "x_test") == "new.npz-x_test-kmeans-k3.parquet"
    tables = {path.name: pq.read_metadata(path).num_rows for path in (run / "predictions").glob("new*")}
    assert sorted(tables.values()) == [2, 3, 4, 5]


def test_predict_resumes(run: Path, new_images: Path, tmp_path: Path):
    model = read_model(run / "models" / "kmeans" / "k=3.zarr")
    farthest = farthest_fitted(run / "clusters.parquet", model)
    predictor = Predictor(
        model,
        open_collection(run / "collection.zarr").class_names,
        farthest,
        Ingest(size=SIZE),
        999,
        open_features(run),
    )
    items = list_items(Input(path=str(new_images)), 0, tmp_path)
    parts = tmp_path / "parts"

    tasks = predict_tasks(items, parts, predictor)
    assert len(tasks) == 3
    dask.compute(*tasks[1:], scheduler="sync")
    (left,) = predict_tasks(items, parts, predictor)
    left.compute(scheduler="sync")
    assert predict_tasks(items, parts, predictor) == []
    assert join_predicted(parts, tmp_path / "table.parquet").items == 70
    assert not parts.exists()
    whole = predictor.predict(items)
    assert pq.read_table(tmp_path / "table.parquet").equals(whole)

    assert len(predict_tasks(items, parts, predictor)) == 3
    dask.compute(*predict_tasks(items, parts, predictor)[1:], scheduler="sync")
    assert len(predict_tasks(items.slice(1), parts, predictor)) == 3  # other images share no finished parts


def test_cluster_without_labels_predicts_none(new_images: Path, tmp_path: Path):
    centres = np.zeros((2, 3), np.float32)
    model = Model("kmeans", centres, np.zeros(1), 0.0, 1, 0.0, np.array([-1, 0], np.int32), np.array([1, 0]))
    predictor = Predictor(
        model, ("a",), np.array([0, -np.inf], np.float32), Ingest(size=(1, 1)), 10**6, raw_features((1, 1, 3))
    )
    items = list_items(Input(path=str(new_images)), 0, tmp_path).slice(68)

    assert predictor.predict(items).to_pylist() == [
        {"path": items["path"][i].as_py(), "cluster": 0, "label": None, "distance": pytest.approx(distance, rel=1e-6),
         "farther": True, "status": "ok", "error": None}
        for i, distance in enumerate([np.sqrt((pixels_at(new_images, items, i) ** 2).sum()) for i in range(len(items))])
    ]  # fmt: skip


def pixels_at(folder: Path, items, row: int) -> np.ndarray:
    file = folder / items["path"][row].as_py()
    return decode(file, size=(1, 1), mode="RGB", max_pixels=10**6).pixels.astype(float)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--k", "4"], "has no model kmeans, K = 4; it has kmeans and minibatch, K = 3, 5"),
        (["--algorithm", "dbscan"], "has no model dbscan, K = 5; it has kmeans and minibatch, K = 3, 5"),
        (["--output", "table.xlsx"], "--output=table.xlsx: the name must end in .parquet or .csv"),
    ],
)
def test_user_errors_are_one_line(command: Command, run: Path, images: Path, options: list[str], message: str):
    result = command("predict", run, images, *options)

    assert result.status == 2
    assert len(result.lines) == 1
    assert message in result.err


def test_run_that_is_missing_or_unfinished_is_refused(command: Command, run: Path, images: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    record = (copy / "run.json").read_text()
    (copy / "run.json").write_text(record.replace('"evaluate"', '"other"'))

    assert (
        command("predict", images, images).err
        == f"kmeans-dask: {images} is not a run folder; give one, for example runs/digits\n"
    )
    assert "are not evaluated yet; run fit and evaluate first" in command("predict", copy, images).err
    assert command("predict", run, tmp_path / "nothing").status == 2


def test_run_of_an_older_version_is_refused(command: Command, run: Path, images: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace("  n_workers: 2\n", "  workers: 2\n"))

    result = command("predict", copy, images)

    assert result.status == 2
    assert result.lines == [
        f"kmeans-dask: {copy} was made by another version ({copy / 'config.yaml'}: key cluster.workers is now called "
        "cluster.n_workers); rerun its job to recreate it"
    ]


def test_too_many_bad_images_fail_after_the_table_is_written(command: Command, run: Path, tmp_path: Path):
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "1.png").write_bytes(b"")

    result = command("predict", run, tmp_path / "bad", "--output", tmp_path / "t.parquet")

    assert result.status == 1
    assert "1 of 1 items could not be read, more than input.max_failed=0.5 allows" in result.err
    assert pq.read_table(tmp_path / "t.parquet")["status"].to_pylist() == ["unreadable"]
