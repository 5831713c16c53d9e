"""Features: extraction, the transformation fitted on the train rows, and both applied to any image."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import dask
import numpy as np
import pytest
from skimage.feature import hog
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler

from kmeans_dask.collection import fit_features as fit_features_module
from kmeans_dask.collection.collection import Collection, open_collection
from kmeans_dask.collection.extractors import colour_histogram, extract
from kmeans_dask.collection.features import Features, Transformation, open_features
from kmeans_dask.collection.fit_features import extraction_tasks, fit_features
from kmeans_dask.collection.ingest import finish_collection, ingest_tasks
from kmeans_dask.config import sections
from kmeans_dask.config.sections import Ingest, Input
from kmeans_dask.errors import JobError, UserError
from kmeans_dask.sources.listing import list_items
from kmeans_dask.sources.manifest import write_manifest
from tests.support.images import draw_images

SHAPE = (24, 24, 3)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder with a collection of 600 drawn images in two chunks; one image is broken."""
    folder = tmp_path_factory.mktemp("features")
    draw_images(folder / "images", count=600)
    (folder / "images" / "bar" / "001.png").write_bytes(b"broken")
    source = Input(path=str(folder / "images"), holdout=0.25)
    write_manifest(list_items(source, 0, folder), folder / "manifest.parquet")
    arguments = folder / "manifest.parquet", folder / "collection.zarr", Ingest(size=SHAPE[:2], chunk_mib=0.1), source
    dask.compute(*ingest_tasks(*arguments), scheduler="sync")
    assert finish_collection(*arguments).images.numblocks[0] == 2
    return folder


@pytest.fixture(scope="module")
def collection(run: Path) -> Collection:
    return open_collection(run / "collection.zarr")


def fit(collection: Collection, folder: Path, **keys: object) -> Features:
    """Extract and fit features as the stage does, without a cluster."""
    settings = sections.Features.model_validate(keys)
    results = dask.compute(*extraction_tasks(settings, collection, folder), scheduler="sync")
    assert [result.error for result in results] == [None] * len(results)
    return fit_features(settings, collection, folder, 0)


def rows_of(features: Features, collection: Collection, split: str) -> np.ndarray:
    return features.rows(collection, split)[0].compute(scheduler="sync")


def pixels(collection: Collection, split: str) -> np.ndarray:
    return collection.rows(split)[0].compute(scheduler="sync").astype(np.float64)


def test_default_is_raw_pixels_without_a_copy(collection: Collection, tmp_path: Path):
    features = fit(collection, tmp_path)
    images = collection.images[:9].compute(scheduler="sync")

    X, index = features.rows(collection, "train")

    assert X.name == collection.rows("train")[0].name
    assert (features.fingerprint, X.dtype) == ("", np.uint8)
    assert np.shares_memory(features.transform_block(images), images)
    assert not (tmp_path / "features").exists()
    assert len(index) == len(X)


def test_numeric_scale_divides(collection: Collection, tmp_path: Path):
    features = fit(collection, tmp_path, scale=255)

    np.testing.assert_allclose(rows_of(features, collection, "holdout"), pixels(collection, "holdout") / 255, rtol=1e-6)


@pytest.mark.parametrize("centre", [False, True])
def test_standard_scale_matches_scikit_learn(collection: Collection, tmp_path: Path, centre: bool):
    features = fit(collection, tmp_path, scale="standard", centre=centre)
    scaler = StandardScaler(with_mean=centre).fit(pixels(collection, "train"))

    for split in ("train", "holdout"):
        expected = scaler.transform(pixels(collection, split))
        np.testing.assert_allclose(rows_of(features, collection, split), expected, atol=2e-5)


def test_pca_matches_scikit_learn(collection: Collection, tmp_path: Path):
    features = fit(collection, tmp_path, scale=255, pca=5)
    train = pixels(collection, "train") / 255
    exact = PCA(5, svd_solver="full").fit(train)
    components = features.transformation.components
    assert components is not None

    cosines = np.linalg.svd(components @ exact.components_.T)[1]

    assert cosines.min() > 1 - 1e-5
    np.testing.assert_allclose(components @ components.T, np.eye(5), atol=1e-5)
    mine = rows_of(features, collection, "holdout")
    theirs = exact.transform(pixels(collection, "holdout") / 255)
    np.testing.assert_allclose(np.abs(mine), np.abs(theirs), atol=2e-3)


def test_pca_of_a_sample_is_close(collection: Collection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fit_features_module, "_PCA_BYTES", 200 * 4 * int(np.prod(SHAPE)))  # 200 of 449 rows
    sampled = fit(collection, tmp_path, pca=2).transformation.components
    exact = PCA(2, svd_solver="full").fit(pixels(collection, "train")).components_
    assert sampled is not None

    assert np.linalg.svd(sampled @ exact.T)[1].min() > 0.9


def test_too_many_components_raise(collection: Collection, tmp_path: Path):
    with pytest.raises(UserError, match=r"features.pca=4000: there are only 449 rows of 1,728 features; choose fewer"):
        fit(collection, tmp_path, pca=4000)


def test_l2_normalized_rows(collection: Collection, tmp_path: Path):
    features = fit(collection, tmp_path, centre=True, normalize="l2")
    train, held = pixels(collection, "train"), pixels(collection, "holdout")
    expected = held - train.mean(axis=0)

    rows = rows_of(features, collection, "holdout")

    np.testing.assert_allclose(rows, expected / np.linalg.norm(expected, axis=1, keepdims=True), atol=1e-5)
    assert features.to_pixels(rows) is None


def test_centres_map_back_to_pixels(collection: Collection, tmp_path: Path):
    train = pixels(collection, "train")
    standard = fit(collection, tmp_path, scale="standard", centre=True)
    back = standard.to_pixels(rows_of(standard, collection, "train"))
    np.testing.assert_allclose(back, train, atol=0.02)

    few = fit(collection, tmp_path, pca=20)
    exact = PCA(20, svd_solver="full").fit(train)
    back = few.to_pixels(rows_of(few, collection, "train"))
    np.testing.assert_allclose(back, exact.inverse_transform(exact.transform(train)), atol=0.1)


def test_hog_matches_skimage(collection: Collection, tmp_path: Path):
    features = fit(collection, tmp_path, kind="hog")
    images = collection.images.compute(scheduler="sync")[collection.rows("holdout")[1]]

    rows = rows_of(features, collection, "holdout")

    expected = [
        hog(image, pixels_per_cell=(3, 3), cells_per_block=(2, 2), orientations=9, channel_axis=-1) for image in images
    ]
    np.testing.assert_allclose(rows, np.array(expected, np.float32))
    np.testing.assert_array_equal(features.transform_block(images), rows)
    assert features.to_pixels(rows) is None


@pytest.mark.parametrize("shape", [(2, 2, 1), (3, 9, 1), (8, 8, 3), (28, 28, 1), (100, 30, 3)])
def test_hog_of_any_size(shape: tuple[int, ...]):
    rows = extract("hog", np.random.default_rng(0).integers(0, 256, (2, *shape), dtype=np.uint8))

    assert rows.dtype == np.float32
    assert rows.shape[1] % 9 == 0
    assert np.isfinite(rows).all()


def test_hog_of_single_pixel_row_raises():
    with pytest.raises(UserError, match="needs images of at least 2 x 2 pixels, not 1 x 5"):
        extract("hog", np.zeros((1, 1, 5, 1), np.uint8))


def test_colour_histogram_counts_levels():
    images = np.zeros((2, 2, 2, 3), np.uint8)
    images[1, 0, 0] = (15, 16, 255)

    rows = colour_histogram(images).reshape(2, 3, 16)

    assert rows[0, :, 0].tolist() == [1, 1, 1]
    assert rows[1, 0, 0] == 1
    assert rows[1, 1, :2].tolist() == [0.75, 0.25]
    assert rows[1, 2, 15] == 0.25
    np.testing.assert_allclose(rows.sum(axis=2), 1)


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's module with valid and invalid functions."""
    (tmp_path / "users_own.py").write_text(
        "import numpy as np\n"
        "def means(images): return images.mean(axis=(1, 2))\n"
        "def short(images): return images.mean(axis=(1, 2))[1:]\n"
        "def flat(images): return images.mean(axis=(1, 2, 3))\n"
        "def nothing(images): return images.mean(axis=(1, 2)) * np.nan\n"
        "def fails(images): raise RuntimeError('no\\nmodel')\n"
        "def grows(images): return np.ones((len(images), len(images)))\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    sys.modules.pop("users_own", None)
    return "users_own"


def test_user_function(collection: Collection, tmp_path: Path, module: str):
    features = fit(collection, tmp_path, kind=f"{module}:means", centre=True)
    images = collection.images[:5].compute(scheduler="sync").astype(float)
    mean = pixels(collection, "train").reshape(-1, 576, 3).mean(axis=(0, 1))

    rows = features.transform_block(images.astype(np.uint8))

    np.testing.assert_allclose(rows, images.mean(axis=(1, 2)) - mean, atol=1e-3)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("users_own:short", r"returned shape \(1, 3\) for images of shape \(2, 2, 2, 3\); it must return one row"),
        ("users_own:flat", r"returned shape \(2,\) for images"),
        ("users_own:nothing", "2 of 2 rows contain NaN or infinity"),
        ("users_own:fails", r"failed on images of shape \(2, 2, 2, 3\): RuntimeError: no model"),
        ("users_own:absent", "users_own has no function absent"),
        ("users_own:number", "users_own has no function number"),
        ("users_not:there", r"cannot import users_not \(ModuleNotFoundError.*put its folder on PYTHONPATH"),
    ],
)
def test_invalid_user_function_raises(module: str, name: str, message: str):
    with pytest.raises(UserError, match=message) as raised:
        extract(name, np.zeros((2, 2, 2, 3), np.uint8))
    assert "\n" not in str(raised.value)


def test_user_function_with_varying_length_is_reported(collection: Collection, tmp_path: Path, module: str):
    settings = sections.Features(kind=f"{module}:grows")

    results = dask.compute(*extraction_tasks(settings, collection, tmp_path), scheduler="sync")

    assert "one image has 1 features, others have 512; return the same number for all" in str(results[0].error)
    with pytest.raises(JobError, match="features of 2 of 2 chunks are missing"):
        fit_features(settings, collection, tmp_path, 0)


@pytest.mark.parametrize(
    "keys", [{"scale": "standard", "pca": 4}, {"kind": "hog", "normalize": "l2"}, {"kind": "colour-histogram"}], ids=str
)
def test_open_features_roundtrip(run: Path, collection: Collection, keys: dict[str, object]):
    features = fit(collection, run, **keys)

    opened = open_features(run)

    assert replace(opened, transformation=Transformation()) == replace(features, transformation=Transformation())
    images = collection.images.compute(scheduler="sync")
    rows = opened.transform_block(images)
    np.testing.assert_array_equal(rows, features.transform_block(images))
    X, index = opened.rows(collection, "train")
    np.testing.assert_allclose(rows[index], X.compute(scheduler="sync"), atol=1e-4)
    np.testing.assert_allclose(rows[300:310], opened.read_chunk(collection.folder, 300, 310), atol=1e-4)


def test_raw_pixels_remove_earlier_features(run: Path, collection: Collection):
    fit(collection, run, kind="colour-histogram")

    fit(collection, run)

    assert open_features(run).settings.raw
    assert not (run / "features").exists()


def test_images_of_another_size_raise(run: Path, collection: Collection):
    fit(collection, run, scale=255)

    with pytest.raises(UserError, match=r"returned 3 features per image, but 1,728 when the run was fitted"):
        open_features(run).transform_block(np.zeros((2, 1, 1, 3), np.uint8))


def test_stored_features_are_reused(collection: Collection, tmp_path: Path):
    fit(collection, tmp_path, kind="colour-histogram")

    assert extraction_tasks(sections.Features(kind="colour-histogram", pca=3), collection, tmp_path) == []
    assert len(extraction_tasks(sections.Features(kind="hog"), collection, tmp_path)) == 2


def test_interrupted_extraction_resumes(collection: Collection, tmp_path: Path):
    settings = sections.Features(kind="colour-histogram")
    tasks = extraction_tasks(settings, collection, tmp_path)
    dask.compute(tasks[0], scheduler="sync")

    assert len(extraction_tasks(settings, collection, tmp_path)) == 1


@pytest.mark.parametrize("rows", [64, 449])
def test_transformation_does_not_depend_on_chunks(collection: Collection, rows: int):
    """Except for the last digits of a mean."""
    settings = sections.Features(scale="standard", pca=6)
    X = collection.rows("train")[0]

    one, two = (
        fit_features_module.fit_transformation(settings, data, 0).arrays() for data in (X, X.rechunk({0: rows}))
    )

    for name in ("divisor", "mean", "components"):
        np.testing.assert_allclose(one[name], two[name], atol=1e-5)
