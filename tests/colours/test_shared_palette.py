"""One palette for a folder, on Dask's synchronous scheduler."""

from __future__ import annotations

import dask
import numpy as np
import pytest
from PIL import Image
from sklearn.cluster import KMeans
from sklearn.datasets import load_sample_image

from kmeans_dask.colours import shared_palette
from kmeans_dask.colours.quantize import plan_batches
from kmeans_dask.colours.shared_palette import count_tasks, fit_shared, kept_colours, kept_number
from kmeans_dask.colours.spaces import to_space
from kmeans_dask.colours.table import colour_table, map_pixels, merge
from kmeans_dask.config.sections import Quantize
from kmeans_dask.sources.manifest import read_manifest, write_manifest
from kmeans_dask.storage import zarr_groups
from tests.support.manifests import manifest_of

MAX_PIXELS = 1_000_000


@pytest.fixture(scope="module")
def pictures():
    china, flower = (load_sample_image(f"{name}.jpg") for name in ("china", "flower"))
    return {"large.png": china[::3, ::3].copy(), "small.png": flower[::16, ::16].copy()}


@pytest.fixture
def run(tmp_path, pictures):
    (tmp_path / "photos").mkdir()
    for name, pixels in pictures.items():
        Image.fromarray(pixels).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "broken.png").write_bytes(b"no image")
    Image.new("RGBA", (5, 5), (1, 2, 3, 0)).save(tmp_path / "photos" / "invisible.png")
    folder = tmp_path / "run"
    folder.mkdir()
    paths = [*pictures, "broken.png", "invisible.png"]
    write_manifest(manifest_of(tmp_path / "photos", paths), folder / "manifest.parquet")
    return folder


def counting(run, seed=0, batches=None, **settings):
    batches = batches or plan_batches(read_manifest(run / "manifest.parquet"))
    return count_tasks(run / "manifest.parquet", run, Quantize(palette="shared", **settings), seed, MAX_PIXELS, batches)


def fit(run, seed=0, batches=None, **settings):
    with dask.config.set(scheduler="synchronous"):
        dask.compute(*counting(run, seed, batches, **settings))
        return fit_shared(run, Quantize(palette="shared", **settings), seed)


def error(pixels, palette):
    painted = palette[map_pixels(pixels, palette)].astype(float)
    return ((painted - pixels) ** 2).sum(axis=-1).mean()


def test_kept_colours_are_those_of_all_readable_pixels(run, pictures):
    batches = [(0, 1), (1, 4)]
    assert dask.compute(*counting(run, batches=batches, k=[2]), scheduler="synchronous") == (1, 3, 0)
    expected = merge([colour_table(pixels) for pixels in pictures.values()])
    assert kept_number(run) == len(expected)
    points, weights = kept_colours(run, "rgb")
    assert points.numblocks == weights.numblocks * 2 == (1, 1)
    assert np.array_equal(points.compute(scheduler="synchronous"), expected.colours)
    assert np.array_equal(weights.compute(scheduler="synchronous"), expected.counts)
    assert zarr_groups.read_attrs(run / "colours.zarr", "colour table")["colours"] == len(expected)


def test_kept_colours_of_several_blocks(run, pictures, monkeypatch):
    monkeypatch.setattr(shared_palette, "_BLOCK_ROWS", 4096)
    dask.compute(*counting(run, k=[2]), scheduler="synchronous")
    expected = merge([colour_table(pixels) for pixels in pictures.values()])
    points, weights = kept_colours(run, "rgb")
    assert points.numblocks[0] == -(-len(expected) // 4096) > 2
    assert np.array_equal(points.compute(scheduler="threads"), expected.colours)
    assert np.array_equal(weights.compute(scheduler="threads"), expected.counts)
    in_oklab, _ = kept_colours(run, "oklab")
    assert np.array_equal(in_oklab.compute(scheduler="threads"), to_space(expected.colours, "oklab").T)


def test_another_k_decodes_nothing(run):
    fit(run, k=[2])
    for file in (run.parent / "photos").iterdir():
        file.unlink()
    assert counting(run, k=[2, 6]) == []
    assert [len(palette) for palette in fit(run, k=[2, 6]).values()] == [2, 6]
    assert len(counting(run, k=[2], weight="images")) == len(counting(run, k=[2], sample=0.5)) == 2


@pytest.mark.parametrize("k", [2, 6, 30])
def test_error_is_near_that_of_scikit_learn_on_all_pixels(run, pictures, k):
    pixels = np.concatenate([pixels.reshape(-1, 3) for pixels in pictures.values()])[np.newaxis]
    reference = KMeans(k, n_init=3, random_state=0).fit(pixels[0].astype(np.float32))
    theirs = error(pixels, np.rint(reference.cluster_centers_).astype(np.uint8))
    assert error(pixels, fit(run, k=[k])[k]) <= 1.005 * theirs


def test_weight_images_hears_the_small_image(run, pictures):
    by_pixels, by_images = fit(run, k=[6])[6], fit(run, k=[6], weight="images")[6]
    assert error(pictures["small.png"], by_images) < error(pictures["small.png"], by_pixels)
    assert error(pictures["large.png"], by_images) > error(pictures["large.png"], by_pixels)


@pytest.mark.parametrize("weight", ["pixels", "images"])
def test_every_k_is_as_it_would_be_alone_and_for_any_scheduler(run, weight):
    together = fit(run, k=[2, 6], weight=weight)
    assert np.array_equal(together[6], fit(run, k=[6], weight=weight)[6])
    with dask.config.set(scheduler="threads"):
        assert np.array_equal(fit_shared(run, Quantize(palette="shared", weight=weight, k=[6]), 0)[6], together[6])


@pytest.mark.parametrize(
    "settings",
    [{"space": "oklab"}, {"algorithm": "minibatch"}, {"sample": 0.3}, {"rare": 0.5}, {"init": "variance"}],
)
def test_every_choice_gives_k_colours(run, pictures, settings):
    palette = fit(run, k=[12], **settings)[12]
    assert len(np.unique(palette, axis=0)) == 12
    assert error(pictures["large.png"], palette) < 2 * error(pictures["large.png"], fit(run, k=[12])[12])


def test_more_colours_than_there_are(run, pictures):
    few = {"a.png": np.array([[[1, 2, 3], [200, 100, 0]]], np.uint8)}
    for name, pixels in few.items():
        Image.fromarray(pixels).save(run.parent / "photos" / name)
    write_manifest(manifest_of(run.parent / "photos", list(few)), run / "manifest.parquet")
    assert fit(run, k=[2, 256]).keys() == {2, 256}
    assert fit(run, k=[256])[256].tolist() == [[1, 2, 3], [200, 100, 0]]


def test_grey_images_have_the_optimal_palette(run):
    pixels = np.array([[0, 0, 10, 11, 200, 201]], np.uint8)
    Image.fromarray(pixels).save(run.parent / "photos" / "grey.png")
    write_manifest(manifest_of(run.parent / "photos", ["grey.png"]), run / "manifest.parquet")
    assert fit(run, k=[3])[3][:, 0].tolist() in ([0, 11, 201], [0, 10, 200], [0, 11, 200], [0, 10, 201])


def test_no_readable_image(run):
    write_manifest(manifest_of(run.parent / "photos", ["broken.png", "invisible.png"]), run / "manifest.parquet")
    assert fit(run, k=[2]) == {}
