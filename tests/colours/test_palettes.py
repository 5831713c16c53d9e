"""Colour tables and palettes against brute force, NumPy and scikit-learn."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import load_sample_image

from kmeans_dask.colours.palettes import fit_palette, quantize_image
from kmeans_dask.colours.table import ColourTable, colour_table, expand, index_colours, merge, nearest
from kmeans_dask.errors import UserError
from tests.support.brute_force import nearest_indices

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def photo():
    return load_sample_image("china.jpg")[::3, ::3].copy()


def mean_squared_error(pixels, palette):
    pixels = pixels.reshape(-1, 1, 3).astype(np.int64)
    return ((pixels - palette.astype(np.int64)) ** 2).sum(axis=2).min(axis=1).mean()


def random_table(m, *, grey=False):
    pixels = RNG.integers(0, 256, (m, 1) if grey else (m, 3), dtype=np.uint8)
    colours = np.unique(np.repeat(pixels, 3, axis=1) if grey else pixels, axis=0)
    return ColourTable(colours, RNG.integers(1, 50, len(colours)))


# colour tables


@pytest.mark.parametrize("shape", [(40, 50, 3), (1, 1, 3), (300, 400, 3), (2, 7, 5, 3)])
def test_table_counts_every_colour(shape):
    pixels = RNG.integers(0, 40, shape, dtype=np.uint8)
    table, index = index_colours(pixels)
    colours, counts = np.unique(pixels.reshape(-1, 3), axis=0, return_counts=True)
    assert np.array_equal(table.colours, colours)
    assert np.array_equal(table.counts, counts)
    assert np.array_equal(table.colours[index], pixels.reshape(-1, 3))


def test_table_that_outgrows_its_hash_table():
    pixels = RNG.integers(0, 256, (300, 500, 3), dtype=np.uint8)
    table, index = index_colours(pixels)
    assert len(table) == len(np.unique(pixels.reshape(-1, 3), axis=0)) > 2**16
    assert np.array_equal(table.colours[index], pixels.reshape(-1, 3))


def test_table_of_a_view(photo):
    assert np.array_equal(colour_table(photo[:, ::-1]).counts, colour_table(photo).counts)


def test_grey_table_equals_rgb_table():
    grey = RNG.integers(3, 90, (30, 40), dtype=np.uint8)
    of_rgb, rgb_index = index_colours(np.repeat(grey[..., None], 3, axis=2))
    for pixels in (grey, grey[..., None]):
        table, index = index_colours(pixels)
        assert np.array_equal(table.colours, of_rgb.colours)
        assert np.array_equal(table.counts, of_rgb.counts)
        assert np.array_equal(index, rgb_index)
    assert table.is_grey
    assert not colour_table(np.array([[[1, 1, 2]]], np.uint8)).is_grey


@pytest.mark.parametrize("shape", [(4,), (4, 5, 4), (0, 3, 3), (2, 2, 2, 2)])
def test_table_of_invalid_shape_raises(shape):
    with pytest.raises(ValueError, match="give"):
        colour_table(np.zeros(shape, np.uint8))


def test_table_of_invalid_dtype_raises():
    with pytest.raises(ValueError, match="float64"):
        colour_table(np.zeros((4, 3, 3)))


def test_merge_equals_table_of_all_pixels():
    images = [RNG.integers(0, 12, (n, 20, 3), dtype=np.uint8) for n in (1, 30, 50)]
    merged = merge([colour_table(image) for image in images])
    together = colour_table(np.concatenate(images))
    assert np.array_equal(merged.colours, together.colours)
    assert np.array_equal(merged.counts, together.counts)


# mapping


@pytest.mark.parametrize("k", [1, 2, 30, 256])
def test_mapping_is_exact(k):
    pixels = RNG.integers(0, 256, (60, 70, 3), dtype=np.uint8)
    palette = RNG.integers(0, 256, (k, 3), dtype=np.uint8)
    table, index = index_colours(pixels)
    indices = expand(nearest(table.points, palette.astype(np.float32))[0], index)
    assert indices.dtype == np.uint8
    assert np.array_equal(indices, nearest_indices(pixels, palette).ravel())


def test_ties_go_to_the_first_colour():
    palette = np.array([[0, 0, 0], [2, 0, 0], [0, 0, 0]], np.float32)
    assert nearest(np.array([[1, 0], [0, 0], [0, 0]], np.float32), palette)[0].tolist() == [0, 0]


def test_largest_squared_distance_is_exact():
    corners = np.array([[0, 0, 0], [255, 255, 255]], np.uint8)
    _, squared = nearest(ColourTable(corners, np.array([1, 1])).points, np.zeros((1, 3), np.float32))
    assert squared.tolist() == [0, 3 * 255**2]


# palettes


def test_two_groups_by_hand():
    pixels = np.array([[[10, 0, 0], [12, 0, 0], [12, 0, 0], [200, 100, 50]]], np.uint8)
    assert fit_palette(colour_table(pixels), 2).tolist() == [[11, 0, 0], [200, 100, 50]]  # mean 11.33


@pytest.mark.parametrize("init", ["k-means++", "k-means||", "random", "variance"])
@pytest.mark.parametrize("algorithm", ["kmeans", "minibatch"])
@pytest.mark.parametrize("sample", [1.0, 0.7])
def test_every_setting_uses_k_colours_with_error_near_scikit_learn(photo, init, algorithm, sample):
    table = colour_table(photo)
    palette = fit_palette(table, 6, init=init, algorithm=algorithm, sample=sample, seed=1)
    assert len(np.unique(nearest_indices(photo, palette))) == len(palette) == 6
    reference = KMeans(6, n_init=1, random_state=0).fit(photo.reshape(-1, 3).astype(np.float32))
    bound = 1.02 if algorithm == "kmeans" else 1.08 if init == "k-means++" else 1.4  # a single init, few pixels
    assert mean_squared_error(photo, palette) <= bound * reference.inertia_ / len(photo.reshape(-1, 3))


@pytest.mark.parametrize(("k", "bound"), [(2, 1.001), (6, 1.005), (30, 1.005), (256, 1.02)])
def test_error_matches_best_of_three_scikit_learn_fits(photo, k, bound):
    pixels = photo.reshape(-1, 3).astype(np.float32)
    best = KMeans(k, n_init=3, random_state=0).fit(pixels)
    theirs = mean_squared_error(photo, np.rint(best.cluster_centers_))
    assert mean_squared_error(photo, fit_palette(colour_table(photo), k)) <= bound * theirs


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_grey_palette_is_optimal(k):
    for _ in range(20):
        table = random_table(RNG.integers(k + 1, 12), grey=True)
        levels = table.colours[:, 0].astype(int)

        def cost(start, stop, levels=levels, table=table):
            inside, counts = levels[start:stop], table.counts[start:stop]
            return min(int((counts * (inside - centre) ** 2).sum()) for centre in range(inside[0], inside[-1] + 1))

        least = min(
            sum(cost(start, stop) for start, stop in zip((0, *cuts), (*cuts, len(levels)), strict=True))
            for cuts in combinations(range(1, len(levels)), k - 1)
        )
        palette = fit_palette(table, k)
        _, squared = nearest(table.points, palette.astype(np.float32))
        assert int(squared @ table.counts) == 3 * least


def test_grey_palette_is_independent_of_init_and_seed():
    table = random_table(2000, grey=True)
    assert np.array_equal(fit_palette(table, 30, init="random", seed=1), fit_palette(table, 30, seed=2))


@pytest.mark.parametrize("k", [4, 5, 256])
def test_image_of_few_colours_is_unchanged(k):
    pixels = RNG.choice(np.array([[250, 0, 0], [0, 0, 251], [9, 200, 9], [0, 0, 250]], np.uint8), (20, 30))
    image = quantize_image(pixels, k, sample=0.01)
    assert np.array_equal(np.asarray(image.convert("RGB")), pixels)
    assert len(image.palette.colors) == 4


@pytest.mark.parametrize("k", [2, 7, 100, 255, 256])
def test_exactly_k_colours_if_centres_round_alike(k):
    steps = np.arange(300)
    pixels = np.stack([100 + steps % 7, 100 + steps // 7 % 7, 100 + steps // 49], axis=1).astype(np.uint8)
    palette = fit_palette(colour_table(pixels[None]), k)
    assert palette.shape == (k, 3)
    assert len(np.unique(nearest_indices(pixels[None], palette))) == k


def test_sample_of_too_few_colours_is_completed():
    pixels = RNG.integers(0, 256, (10, 10, 3), dtype=np.uint8)
    palette = fit_palette(colour_table(pixels), 50, sample=0.05)
    assert len(np.unique(nearest_indices(pixels, palette))) == len(palette) == 50


def test_palette_is_sorted_by_luma_then_rgb(photo):
    palette = fit_palette(colour_table(photo), 40).astype(int)
    luma = palette @ [299, 587, 114]
    assert np.array_equal(np.lexsort((*palette.T[::-1], luma)), np.arange(40))


@pytest.mark.parametrize("init", ["k-means++", "k-means||", "random"])
def test_seed_determines_palette(photo, init):
    table = colour_table(photo)
    first, same, other = (fit_palette(table, 20, init=init, seed=seed) for seed in (3, [3], 4))
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


def test_scaled_counts_give_the_same_palette(photo):
    table = colour_table(photo)
    doubled = ColourTable(table.colours, table.counts * 2)
    assert np.array_equal(fit_palette(table, 20), fit_palette(doubled, 20))


@pytest.mark.parametrize("k", [0, -1, 65_537])
def test_k_out_of_range_raises(k):
    with pytest.raises(UserError, match=f"k={k}: a palette must have 1-65,536 colours"):
        quantize_image(np.zeros((2, 2, 3), np.uint8), k)


@pytest.mark.parametrize("sample", [0.0, 1.5])
def test_sample_out_of_range_raises(sample):
    with pytest.raises(UserError, match=f"sample={sample}"):
        quantize_image(np.zeros((2, 2, 3), np.uint8), 2, sample=sample)
