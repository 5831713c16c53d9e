"""Shared palettes, on Dask's synchronous scheduler."""

from __future__ import annotations

import dask
import numpy as np
import pytest
from PIL import Image
from sklearn.cluster import KMeans
from sklearn.datasets import load_sample_image

from kmeans_dask.colours import shared_palette
from kmeans_dask.colours.quantize import QuantizeJob
from kmeans_dask.colours.shared_palette import count_tasks, fit_shared, n_colours, open_colours
from kmeans_dask.colours.spaces import to_space
from kmeans_dask.colours.table import colour_table, merge
from kmeans_dask.config.sections import Quantize
from kmeans_dask.sources.batches import plan_batches
from kmeans_dask.sources.manifest import read_manifest, write_manifest
from kmeans_dask.storage import zarr_groups
from tests.support.brute_force import nearest_indices
from tests.support.manifests import manifest_of

MAX_PIXELS = 1_000_000


@pytest.fixture(scope="module")
def images():
    china, flower = (load_sample_image(f"{name}.jpg") for name in ("china", "flower"))
    return {"large.png": china[::3, ::3].copy(), "small.png": flower[::16, ::16].copy()}


@pytest.fixture
def run(tmp_path, images):
    (tmp_path / "photos").mkdir()
    for name, pixels in images.items():
        Image.fromarray(pixels).save(tmp_path / "photos" / name)
    (tmp_path / "photos" / "broken.png").write_bytes(b"no image")
    Image.new("RGBA", (5, 5), (1, 2, 3, 0)).save(tmp_path / "photos" / "invisible.png")
    folder = tmp_path / "run"
    folder.mkdir()
    paths = [*images, "broken.png", "invisible.png"]
    write_manifest(manifest_of(tmp_path / "photos", paths), folder / "manifest.parquet")
    return folder


def job_of(run, seed=0, **settings):
    return QuantizeJob(run / "manifest.parquet", run, Quantize(palette="shared", **settings), seed, MAX_PIXELS)


def counting(run, seed=0, batches=None, **settings):
    batches = batches or plan_batches(read_manifest(run / "manifest.parquet"))
    return count_tasks(job_of(run, seed, **settings), batches)


def fit(run, seed=0, batches=None, **settings):
    with dask.config.set(scheduler="synchronous"):
        dask.compute(*counting(run, seed, batches, **settings))
        return fit_shared(job_of(run, seed, **settings))


def error(pixels, palette):
    remapped = palette[nearest_indices(pixels, palette)].astype(float)
    return ((remapped - pixels) ** 2).sum(axis=-1).mean()


def test_stored_colours_are_those_of_readable_images(run, images):
    batches = [(0, 1), (1, 4)]
    assert dask.compute(*counting(run, batches=batches, k=[2]), scheduler="synchronous") == (1, 3, 0)
    expected = merge([colour_table(pixels) for pixels in images.values()])
    assert n_colours(run) == len(expected)
    points, weights = open_colours(run, "rgb")
    assert points.numblocks == weights.numblocks * 2 == (1, 1)
    assert np.array_equal(points.compute(scheduler="synchronous"), expected.colours)
    assert np.array_equal(weights.compute(scheduler="synchronous"), expected.counts)
    assert zarr_groups.read_attrs(run / "colours.zarr", "colour table")["colours"] == len(expected)


def test_stored_colours_in_several_blocks(run, images, monkeypatch):
    monkeypatch.setattr(shared_palette, "_BLOCK_ROWS", 4096)
    dask.compute(*counting(run, k=[2]), scheduler="synchronous")
    expected = merge([colour_table(pixels) for pixels in images.values()])
    points, weights = open_colours(run, "rgb")
    assert points.numblocks[0] == -(-len(expected) // 4096) > 2
    assert np.array_equal(points.compute(scheduler="threads"), expected.colours)
    assert np.array_equal(weights.compute(scheduler="threads"), expected.counts)
    in_oklab, _ = open_colours(run, "oklab")
    assert np.array_equal(in_oklab.compute(scheduler="threads"), to_space(expected.colours, "oklab").T)


def test_another_k_decodes_no_image(run):
    fit(run, k=[2])
    for file in (run.parent / "photos").iterdir():
        file.unlink()
    assert counting(run, k=[2, 6]) == []
    assert [len(palette) for palette in fit(run, k=[2, 6]).values()] == [2, 6]
    assert len(counting(run, k=[2], weight="images")) == len(counting(run, k=[2], sample=0.5)) == 2


@pytest.mark.parametrize("k", [2, 6, 30])
def test_error_is_near_scikit_learn_on_all_pixels(run, images, k):
    pixels = np.concatenate([pixels.reshape(-1, 3) for pixels in images.values()])[np.newaxis]
    reference = KMeans(k, n_init=3, random_state=0).fit(pixels[0].astype(np.float32))
    theirs = error(pixels, np.rint(reference.cluster_centers_).astype(np.uint8))
    assert error(pixels, fit(run, k=[k])[k]) <= 1.005 * theirs


def test_weight_images_favours_the_small_image(run, images):
    by_pixels, by_images = fit(run, k=[6])[6], fit(run, k=[6], weight="images")[6]
    assert error(images["small.png"], by_images) < error(images["small.png"], by_pixels)
    assert error(images["large.png"], by_images) > error(images["large.png"], by_pixels)


@pytest.mark.parametrize("weight", ["pixels", "images"])
def test_palette_is_independent_of_other_k_and_scheduler(run, weight):
    together = fit(run, k=[2, 6], weight=weight)
    assert np.array_equal(together[6], fit(run, k=[6], weight=weight)[6])
    with dask.config.set(scheduler="threads"):
        assert np.array_equal(fit_shared(job_of(run, weight=weight, k=[6]))[6], together[6])


@pytest.mark.parametrize(
    "settings",
    [{"space": "oklab"}, {"algorithm": "minibatch"}, {"sample": 0.3}, {"rare": 0.5}, {"init": "variance"}],
)
def test_every_setting_gives_k_colours(run, images, settings):
    palette = fit(run, k=[12], **settings)[12]
    assert len(np.unique(palette, axis=0)) == 12
    assert error(images["large.png"], palette) < 2 * error(images["large.png"], fit(run, k=[12])[12])


def test_k_above_number_of_colours(run, images):
    few = {"a.png": np.array([[[1, 2, 3], [200, 100, 0]]], np.uint8)}
    for name, pixels in few.items():
        Image.fromarray(pixels).save(run.parent / "photos" / name)
    write_manifest(manifest_of(run.parent / "photos", list(few)), run / "manifest.parquet")
    assert fit(run, k=[2, 256]).keys() == {2, 256}
    assert fit(run, k=[256])[256].tolist() == [[1, 2, 3], [200, 100, 0]]


def test_grey_images_get_the_optimal_palette(run):
    pixels = np.array([[0, 0, 10, 11, 200, 201]], np.uint8)
    Image.fromarray(pixels).save(run.parent / "photos" / "grey.png")
    write_manifest(manifest_of(run.parent / "photos", ["grey.png"]), run / "manifest.parquet")
    assert fit(run, k=[3])[3][:, 0].tolist() in ([0, 11, 201], [0, 10, 200], [0, 11, 200], [0, 10, 201])


def test_no_readable_image(run):
    write_manifest(manifest_of(run.parent / "photos", ["broken.png", "invisible.png"]), run / "manifest.parquet")
    assert fit(run, k=[2]) == {}
