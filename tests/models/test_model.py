"""Models on disk: they are read as written, and reading executes nothing."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from kmeans_dask import KMeans, MiniBatchKMeans
from kmeans_dask.errors import UserError
from kmeans_dask.models.model import Model, read_model, write_model

MODEL = Model(
    algorithm="kmeans",
    centres=np.random.default_rng(0).uniform(0, 255, (7, 12)).astype(np.float32),
    history=np.array([1e15 + 0.5, 3.0, 0.1]),
    inertia=0.1 + 0.2,
    iterations=3,
    seconds=1.25,
    label_map=np.array([0, 1, 2, -1, 0, 1, 2], np.int32),
    counts=np.array([5, 0, 2**40, 1, 1, 1, 1], np.int64),
    settings={"seed": 3, "init": "k-means||", "size": [28, 28], "limit": None},
)


def test_model_roundtrip(tmp_path: Path) -> None:
    write_model(tmp_path / "k=7.zarr", MODEL)
    model = read_model(tmp_path / "k=7.zarr")
    for name in ("centres", "history", "label_map", "counts"):
        np.testing.assert_array_equal(getattr(model, name), getattr(MODEL, name), strict=True)
    for name in ("algorithm", "inertia", "iterations", "seconds", "settings", "k"):
        assert getattr(model, name) == getattr(MODEL, name)


def test_model_without_label_map_roundtrip(tmp_path: Path) -> None:
    bare = Model("minibatch", MODEL.centres, MODEL.history, 1.0, 2, 0.5)
    write_model(tmp_path / "m.zarr", bare)
    model = read_model(tmp_path / "m.zarr")
    assert model.label_map is None
    assert model.counts is None
    assert model.settings == {}


def test_model_replaces_old_one(tmp_path: Path) -> None:
    write_model(tmp_path / "m.zarr", MODEL)
    write_model(tmp_path / "m.zarr", Model("minibatch", MODEL.centres[:2], MODEL.history, 1.0, 2, 0.5))
    model = read_model(tmp_path / "m.zarr")
    assert (model.k, model.algorithm, model.label_map) == (2, "minibatch", None)
    assert [path.name for path in tmp_path.iterdir()] == ["m.zarr"]


def test_model_is_data_without_pickles(tmp_path: Path) -> None:
    write_model(tmp_path / "m.zarr", MODEL)
    files = [path for path in (tmp_path / "m.zarr").rglob("*") if path.is_file()]
    documents = [path for path in files if path.name == "zarr.json"]
    assert len(documents) == 5  # the group and four arrays
    for path in documents:
        text = path.read_text()
        json.loads(text)
        assert "pickle" not in text
    pickled = b"\x80"  # the first byte of every pickle of protocol 2 and above
    assert not [path for path in files if path not in documents and path.read_bytes().startswith(pickled)]


def test_non_json_settings_raise(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="is not JSON serializable"):
        write_model(tmp_path / "m.zarr", Model("kmeans", MODEL.centres, MODEL.history, 1, 1, 1, settings={"a": {1, 2}}))
    assert not list(tmp_path.iterdir())


def test_invalid_model_raises(tmp_path: Path) -> None:
    (tmp_path / "empty.zarr").mkdir()
    (tmp_path / "text.zarr").write_text("not zarr")
    for name in ("missing.zarr", "empty.zarr", "text.zarr"):
        with pytest.raises(UserError, match="is not a finished model"):
            read_model(tmp_path / name)


@pytest.mark.parametrize(("estimator", "algorithm"), [(KMeans, "kmeans"), (MiniBatchKMeans, "minibatch")])
@pytest.mark.parametrize("dtype", [np.uint8, np.float64])
def test_model_from_estimator(tmp_path: Path, estimator: type, algorithm: str, dtype: type) -> None:
    rows = np.random.default_rng(0).integers(0, 256, (200, 6)).astype(dtype)
    km = estimator(4, random_state=0).fit(rows)
    write_model(tmp_path / "m.zarr", Model.from_estimator(km, algorithm, seconds=2.5))
    model = read_model(tmp_path / "m.zarr")
    assert (model.k, model.algorithm, model.seconds) == (4, algorithm, 2.5)
    assert (model.inertia, model.iterations) == (km.inertia_, km.n_iter_)
    assert model.centres.dtype == np.float32
    np.testing.assert_array_equal(model.centres, km.cluster_centers_.astype(np.float32))
    np.testing.assert_array_equal(model.history, km.inertia_history_)
