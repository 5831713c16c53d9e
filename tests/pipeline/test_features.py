"""Whole jobs on features other than raw pixels: fit, scores, report, and changed settings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.decomposition import PCA

from kmeans_dask import open_collection
from kmeans_dask.cli import main
from kmeans_dask.collection.features import open_features
from kmeans_dask.models.model import read_model
from kmeans_dask.storage.publish import read_json
from tests.support.jobs import Result, write_config

Command = Callable[..., Result]
DIGITS: dict[str, Any] = {
    "input": {"builtin": "digits", "holdout": 0.2},
    "ingest": {"size": [8, 8], "mode": "L"},
    "fit": {"k": [10, 40]},
    "quantize": None,
}


def digits(folder: Path, **changes: Any) -> Path:
    return write_config(folder, folder, **{**DIGITS, **changes})


@pytest.fixture(scope="module")
def pca_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of the digits on 20 principal components, with two worker processes."""
    folder = tmp_path_factory.mktemp("pca")
    (folder / "users_own.py").write_text("def halves(images): return images.reshape(len(images), -1) / 2\n")
    config = digits(folder, features={"pca": 20}, cluster={"kind": "local", "n_workers": 2})
    assert main.main(["run", str(config)]) == 0
    return folder / "runs" / "small"


@pytest.mark.parametrize(
    "mistake",
    [
        {"features": {"kind": "nowhere:function"}},
        {"features": {"kind": "file", "path": "nowhere.npy"}},
        {"quantize": {"palette": "nowhere.gpl"}},
    ],
)
def test_missing_files_of_later_stages_are_reported_first(mistake: dict[str, Any], command: Command, tmp_path: Path):
    result = command("run", digits(tmp_path, **mistake))

    assert (result.status, len(result.lines)) == (2, 1)
    assert "nowhere" in result.err
    assert not (tmp_path / "runs" / "small" / "manifest.parquet").exists()


def test_pca_job_agrees_with_scikit_learn(pca_run: Path):
    collection = open_collection(pca_run / "collection.zarr")
    pixels = collection.images.compute(scheduler="sync").reshape(1797, 64).astype(float)
    train = (collection.items["split"].to_numpy() == "train").nonzero()[0]
    exact = PCA(20, svd_solver="full").fit(pixels[train])
    rows = pq.read_table(pca_run / "clusters.parquet")

    for k, metrics in zip((10, 40), read_json(pca_run / "metrics.json"), strict=True):
        model = read_model(pca_run / "models" / "kmeans" / f"k={k}.zarr")
        # scikit-learn's components in the basis of the run: the subspace is the same, its axes may be mirrored
        components = open_features(pca_run).transformation.components
        assert components is not None
        rotated = (pixels - exact.mean_) @ exact.components_.T @ exact.components_ @ components.T
        squared = ((rotated[:, None] - model.centres) ** 2).sum(axis=2)
        clusters = rows[f"kmeans_k{k}_cluster"].to_numpy()
        assert (clusters == squared.argmin(axis=1)).mean() > 0.998
        np.testing.assert_allclose(rows[f"kmeans_k{k}_distance"].to_numpy() ** 2, squared.min(axis=1), rtol=1e-2)
        assert metrics["inertia"] == pytest.approx(squared[train].min(axis=1).sum(), rel=1e-3)
        assert metrics["accuracy_holdout"] > (0.6 if k == 10 else 0.85)


def test_new_images_get_the_same_transformation(command: Command, pca_run: Path):
    result = command("predict", pca_run, pca_run / "input" / "digits", "--k", 40)

    (path,) = (pca_run / "predictions").glob("*.parquet")
    new, fitted = pq.read_table(path).sort_by("path"), pq.read_table(pca_run / "clusters.parquet").sort_by("path")
    assert result.status == 0
    assert new["path"].equals(fitted["path"])
    assert new["cluster"].to_pylist() == fitted["kmeans_k40_cluster"].to_pylist()
    np.testing.assert_allclose(new["distance"].to_numpy(), fitted["kmeans_k40_distance"].to_numpy(), rtol=1e-4)


def test_report_draws_invertible_centres_as_images(pca_run: Path):
    page = (pca_run / "report.html").read_text()

    assert "on the scale of the features (pca: 20)" in page
    assert '"centres_are":"centre"' in page
    model = read_model(pca_run / "models" / "kmeans" / "k=10.zarr")
    images = open_features(pca_run).to_pixels(model.centres)
    assert images is not None
    assert images.shape == (10, 64)
    assert -30 < images.min() < 30
    assert 150 < images.max() < 300


def test_hog_with_spherical_kmeans(command: Command, tmp_path: Path):
    result = command("run", digits(tmp_path, features={"kind": "hog", "normalize": "l2"}))

    run = tmp_path / "runs" / "small"
    assert result.status == 0
    assert "features: hog of 1,797 items, extracted once; 2 tasks to do" in result.lines
    assert any(
        "1,438 rows x 324 features" in line and "MiB of features kept in memory" in line for line in result.lines
    )
    centres = read_model(run / "models" / "kmeans" / "k=40.zarr").centres
    np.testing.assert_allclose(np.linalg.norm(centres, axis=1), 1, atol=1e-5)
    page = (run / "report.html").read_text()
    assert '"centres_are":"item nearest to the centre"' in page
    assert "on the scale of the features (kind: hog, normalize: l2)" in page
    assert read_json(run / "metrics.json")[1]["accuracy_holdout"] > 0.85


def test_changed_transformation_keeps_stored_features(command: Command, tmp_path: Path):
    config = digits(tmp_path, features={"kind": "colour-histogram"}, report=None)
    assert command("run", config).status == 0
    assert any("fit: already finished" in line for line in command("run", config).lines)
    rows = tmp_path / "runs" / "small" / "features" / "rows.zarr"
    before = rows.stat().st_ino

    result = command("run", config, "features.pca=4")

    assert any("features.pca was None, is now 4" in line for line in result.lines)
    assert not any("extracted once" in line for line in result.lines)
    assert rows.stat().st_ino == before
    assert any("2 models of 1,438 rows x 4 features" in line for line in result.lines)

    result = command("run", config, "features=null")
    assert any("1,438 rows x 64 features" in line and "MiB of pixels" in line for line in result.lines)
    assert not rows.parent.exists()


def test_embeddings_by_path(command: Command, tmp_path: Path):
    """Pixels as shuffled rows of a feature file give the same models as the images."""
    plain = digits(tmp_path, report=None)
    assert command("run", plain).status == 0
    run = tmp_path / "runs" / "small"
    collection = open_collection(run / "collection.zarr")
    order = np.random.default_rng(0).permutation(1797)
    pixels = collection.images.compute(scheduler="sync").reshape(1797, 64).astype(np.float32)[order]
    paths = collection.items["path"].take(pa.array(order))
    pq.write_table(pa.table({"path": paths, "vector": list(pixels)}), tmp_path / "e.parquet", row_group_size=100)
    raw = read_json(run / "metrics.json")

    result = command("run", plain, f"features={{kind: file, path: {tmp_path / 'e.parquet'}}}")

    assert result.status == 0
    for mine, theirs in zip(read_json(run / "metrics.json"), raw, strict=True):
        assert mine["inertia"] == pytest.approx(theirs["inertia"], rel=0.02)
    again = f"features={{kind: file, path: {tmp_path / 'e.parquet'}}}"
    assert "fit: already finished" in command("run", plain, again).lines
    pq.write_table(pa.table({"path": paths, "vector": list(pixels / 2)}), tmp_path / "e.parquet")
    assert any("features.path, its size and time was" in line for line in command("run", plain, again).lines)
    assert read_json(run / "metrics.json")[0]["inertia"] == pytest.approx(raw[0]["inertia"] / 4, rel=0.02)
    result = command("predict", run, run / "input" / "digits")
    assert result.status == 2
    assert "which has none for new images; add their rows to the file" in result.lines[-1]
    np.save(tmp_path / "e.npy", pixels[:-1])
    result = command("run", plain, f"features={{kind: file, path: {tmp_path / 'e.npy'}}}")
    assert result.status == 2
    assert "e.npy has 1,796 rows for 1,797 items" in result.lines[-1]


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        (
            "features.kind=sift",
            ["features: kind='sift'", "colour-histogram, file or package.module:function"],
        ),
        ("features.kind=file", ["kind file requires the key path"]),
        ("features.path=e.npy", ["kind file requires the key path"]),
        ("features.scale=0", ["features.scale=0", "must be a number above 0, or standard"]),
        ("features.pca=0", ["features.pca=0"]),
        ("features.size=3", ["unknown key features.size", "kind, path, scale, centre, pca, normalize"]),
        (
            "features={normalize: l2}",
            ["normalize=l2 makes K-Means spherical", "algorithm kmeans and engine"],
        ),
        ("features={kind: file, path: nowhere.npy}", ["features.path=nowhere.npy: no such file"]),
        ("features.kind=nowhere:nothing", ["cannot import nowhere", "PYTHONPATH"]),
        ("features.pca=300", ["features.pca=300", "only 48 rows of 768 features"]),
    ],
)
def test_invalid_features_are_one_line(command: Command, images: Path, tmp_path: Path, override: str, parts: list[str]):
    result = command("run", write_config(tmp_path, images, quantize=None, report=None), override)

    assert result.status == 2
    for part in parts:
        assert part in result.lines[-1]
    assert "Traceback" not in result.err


def test_custom_feature_function_on_worker_processes(
    command: Command, images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "my_features.py").write_text(
        "def means(images): return images.mean(axis=(1, 2))\n"
        "def fails(images):\n"
        "    if len(images) > 1: raise RuntimeError('no model')\n"
        "    return images.mean(axis=(1, 2))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    workers = {"kind": "local", "n_workers": 1}
    config = write_config(tmp_path, images, quantize=None, fit={"k": 3}, cluster=workers)

    failed = command("run", config, "features.kind=my_features:fails", "report=null")
    result = command("run", config, "features.kind=my_features:means")

    assert failed.status == 2
    assert "items 0 to 59: features.kind=my_features:fails failed" in failed.lines[-1]
    assert "Traceback" not in failed.err
    assert result.status == 0
    assert read_json(tmp_path / "runs" / "small" / "metrics.json")[0]["accuracy_train"] > 0.9
