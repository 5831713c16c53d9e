"""``export``: models, tables and image folders of a finished run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime
import pyarrow.csv
import pyarrow.parquet as pq
import pytest
import skops.io

from kmeans_dask import open_collection
from kmeans_dask.cli import main
from kmeans_dask.kmeans.kernels import Stack, assign
from kmeans_dask.models.model import Model, read_model
from tests.support.jobs import Result, files_of, write_config

Command = Callable[..., Result]


@pytest.fixture(scope="module")
def run(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a finished run on copied images; tests must not change it."""
    folder = tmp_path_factory.mktemp("finished")
    shutil.copytree(images, folder / "images")
    config = write_config(folder, folder / "images", quantize=None, report=None)
    assert main.main(["run", str(config)]) == 0
    return folder / "runs" / "small"


@pytest.fixture(scope="module")
def model(run: Path) -> Model:
    return read_model(run / "models" / "kmeans" / "k=5.zarr")


@pytest.fixture(scope="module")
def rows(run: Path) -> np.ndarray:
    return open_collection(run / "collection.zarr").images.compute(scheduler="sync").reshape(60, -1)


def clusters_of(rows: np.ndarray, model: Model) -> tuple[np.ndarray, np.ndarray]:
    (clusters,), (squared,) = assign(rows, Stack.of([model.centres]))
    return clusters, np.sqrt(squared)


def test_npz(command: Command, run: Path, model: Model, tmp_path: Path):
    assert command("export", run, tmp_path / "model.npz").out == f"model kmeans, K = 5: {tmp_path / 'model.npz'}\n"

    with np.load(tmp_path / "model.npz", allow_pickle=False) as file:
        np.testing.assert_array_equal(file["centres"], model.centres, strict=True)
        assert file["label_map"].tolist() == model.label_map.tolist()
        assert file["counts"].tolist() == model.counts.tolist()
        assert file["class_names"].tolist() == ["bar", "disc", "ring"]
        assert '"size": [16, 16]' in str(file["ingest"])


def test_scikit_learn(command: Command, run: Path, rows: np.ndarray, tmp_path: Path):
    assert command("export", run, tmp_path / "model.skops", "--k", 3, "--algorithm", "minibatch").status == 0

    assert skops.io.get_untrusted_types(file=tmp_path / "model.skops") == []
    estimator = skops.io.load(tmp_path / "model.skops", trusted=[])
    model = read_model(run / "models" / "minibatch" / "k=3.zarr")
    clusters, distances = clusters_of(rows, model)
    assert type(estimator).__module__.startswith("sklearn.cluster")
    assert estimator.predict(rows.astype(np.float32)).tolist() == clusters.tolist()
    np.testing.assert_allclose(estimator.transform(rows.astype(np.float32)).min(axis=1), distances, rtol=1e-4)


def test_onnx(command: Command, run: Path, model: Model, rows: np.ndarray, tmp_path: Path):
    assert command("export", run, tmp_path / "model.onnx").status == 0

    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    label, scores = session.run(None, {"X": rows.astype(np.float32)})
    clusters, distances = clusters_of(rows, model)
    assert label.tolist() == clusters.tolist()
    np.testing.assert_allclose(scores.min(axis=1), distances, rtol=1e-3)


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_table(command: Command, run: Path, tmp_path: Path, ending: str):
    assert command("export", run, tmp_path / f"t.{ending}", "--k", 3).status == 0

    read = pyarrow.csv.read_csv if ending == "csv" else pq.read_table
    table = read(tmp_path / f"t.{ending}")
    whole = pq.read_table(run / "clusters.parquet")
    assert table.column_names == ["path", "split", "label", "cluster", "predicted", "distance"]
    columns = {"cluster": "kmeans_k3_cluster", "predicted": "kmeans_k3_label"}
    for name in table.column_names[:5]:
        assert table[name].to_pylist() == whole[columns.get(name, name)].to_pylist()
    np.testing.assert_allclose(table["distance"].to_numpy(), whole["kmeans_k3_distance"].to_numpy(), rtol=1e-6)


def expected(run: Path, column: str) -> dict[str, set[bytes]]:
    """Name of each expected folder -> contents of its images."""
    table = pq.read_table(run / "clusters.parquet").to_pylist()
    folders: dict[str, set[bytes]] = {}
    for row in table:
        folders.setdefault(str(row[column]), set()).add((run.parents[1] / "images" / row["path"]).read_bytes())
    return folders


def found(folder: Path) -> dict[str, set[bytes]]:
    return {below.name: {path.read_bytes() for path in below.iterdir()} for below in folder.iterdir()}


@pytest.mark.parametrize(("by", "column"), [("cluster", "kmeans_k5_cluster"), ("label", "kmeans_k5_label")])
@pytest.mark.parametrize("link", [False, True])
def test_images_in_folders(command: Command, run: Path, tmp_path: Path, by: str, column: str, link: bool):
    target = tmp_path / "out"
    options = ["--by", by, *(["--link"] if link else [])]
    word = "linked" if link else "copied"

    assert command("export", run, target, *options).out == f"60 images {word}: {target}\n"
    assert found(target) == expected(run, column)
    assert all(path.is_symlink() == link for path in target.rglob("*.png"))

    before = files_of(target)
    for path in sorted(target.rglob("*.png"))[:7]:  # as after an interruption
        path.unlink()
    assert command("export", run, target, *options).out == f"7 images {word}, 53 already existed: {target}\n"
    assert found(target) == expected(run, column)
    again = files_of(target)
    assert sum(before[name] == again.get(name) for name in before) >= 53


def test_existing_files_are_not_replaced(command: Command, run: Path, tmp_path: Path):
    target = tmp_path / "out"
    assert command("export", run, target, "--by", "label").status == 0
    names = sorted(target.rglob("*.png"))
    contents = {path: path.read_bytes() for path in names}
    names[0].write_bytes(b"mine")
    names[1].unlink()
    names[1].mkdir()

    assert command("export", run, target, "--by", "label").out.startswith("2 images copied, 58 already existed")

    assert names[0].read_bytes() == b"mine"
    assert names[1].is_dir()
    for path in names[:2]:
        assert path.with_stem(f"{path.stem}~2").read_bytes() == contents[path]


def test_missing_image_is_reported(command: Command, run: Path, tmp_path: Path):
    copy = tmp_path / "copy"
    shutil.copytree(run.parents[1], copy, symlinks=True)
    table = pq.read_table(copy / "runs" / "small" / "collection.zarr" / "items.parquet")
    assert table["file"][0].as_py().startswith(os.fsencode(run.parents[1]))
    missing = Path(os.fsdecode(table["file"][0].as_py()))
    hidden = missing.rename(missing.with_suffix(".hidden"))
    try:
        result = command("export", run, tmp_path / "out", "--by", "cluster")
    finally:
        hidden.rename(missing)

    assert result.status == 1
    assert result.out.startswith("59 images copied")
    assert "1 images no longer exist or cannot be read" in result.err


def test_user_errors_are_one_line(command: Command, run: Path, tmp_path: Path):
    result = command("export", run, tmp_path / "model.pickle")
    assert (result.status, len(result.lines)) == (2, 1)
    assert "give --by cluster or --by label, or a file that ends in .npz, .skops, .onnx, .csv, .parquet" in result.err
    assert "choose another folder" in command("export", run, run.parents[1] / "images" / "x", "--by", "label").err
    assert "has no model kmeans, K = 4" in command("export", run, tmp_path / "t.csv", "--k", 4).err
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    for name in ("bar", "disc", "ring"):
        (tmp_path / "out" / name).symlink_to(tmp_path / "elsewhere")
    assert "is a link to a place outside" in command("export", run, tmp_path / "out", "--by", "label").err
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_outdated_clusters_table_is_refused(command: Command, run: Path, tmp_path: Path):
    shutil.copytree(run, tmp_path / "copy")
    path = tmp_path / "copy" / "clusters.parquet"
    pq.write_table(pq.read_table(path).slice(1), path)

    assert (
        "belongs to an older state of the collection"
        in command("export", tmp_path / "copy", tmp_path / "o", "--by", "label").err
    )
