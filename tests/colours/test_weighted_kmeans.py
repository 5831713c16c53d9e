"""K-Means on weighted colours: colour spaces, initial centres and weights."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.datasets import load_sample_image

from kmeans_dask.colours.palettes import fit_palette, protect_rare
from kmeans_dask.colours.seeding import initial_centres
from kmeans_dask.colours.spaces import from_space, to_space
from kmeans_dask.colours.table import ColourTable, colour_table, nearest
from kmeans_dask.colours.weighted_kmeans import _lloyd
from kmeans_dask.errors import UserError

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def table():
    return colour_table(load_sample_image("flower.jpg")[::4, ::4].copy())


# spaces


def test_oklab_of_reference_colours():
    colours = np.array([[255, 255, 255], [0, 0, 0], [255, 0, 0], [0, 255, 0], [0, 0, 255]], np.uint8)
    expected = [  # Ottosson's values as given in CSS Color 4
        [1, 0, 0],
        [0, 0, 0],
        [0.62796, 0.22486, 0.12585],
        [0.86644, -0.23389, 0.17950],
        [0.45201, -0.03246, -0.31153],
    ]
    assert np.allclose(to_space(colours, "oklab").T / 255, expected, atol=1e-4)


@pytest.mark.parametrize("space", ["rgb", "oklab"])
def test_bytes_round_trip(space):
    colours = np.concatenate([RNG.integers(0, 256, (5000, 3)), [[0, 0, 0], [255, 255, 255]]]).astype(np.uint8)
    points = to_space(colours, space)
    assert points.dtype == np.float32
    assert np.array_equal(from_space(np.ascontiguousarray(points.T), space), colours)


def test_centres_outside_srgb_are_clipped():
    assert from_space(np.array([[300, 0, 0], [-5, 0, 0]], np.float32), "oklab").tolist() == [[255] * 3, [0] * 3]
    assert from_space(np.array([[300, -2, 0.4]], np.float32), "rgb").tolist() == [[255, 0, 0]]


def test_fit_in_a_space_minimizes_its_error(table):
    errors = {}
    for space in ("rgb", "oklab"):
        palette = fit_palette(table, 12, space=space)
        assert len(palette) == 12
        for measure in ("rgb", "oklab"):
            centres = np.ascontiguousarray(to_space(palette, measure).T)
            errors[space, measure] = nearest(to_space(table.colours, measure), centres)[1] @ table.counts
    assert errors["oklab", "oklab"] < errors["rgb", "oklab"]
    assert errors["rgb", "rgb"] < errors["oklab", "rgb"]


# initial centres and passes


@pytest.mark.parametrize("k", [2, 6, 30])
def test_lloyd_matches_scikit_learn(table, k):
    init = initial_centres(table.points, table.counts.astype(float), k, "variance", RNG)
    centres = init.copy()
    _lloyd(table.points, table.counts.astype(float), centres, 300, 0.0, 1.0)
    reference = KMeans(k, init=init.astype(float), n_init=1, tol=0)
    reference.fit(table.colours.astype(float), sample_weight=table.counts)
    assert np.allclose(centres, reference.cluster_centers_, atol=0.01)


def test_stretched_passes_lower_the_error_and_end_at_means(table):
    weights = table.counts.astype(float)
    init = initial_centres(table.points, weights, 12, "random", np.random.default_rng(0))
    errors = []
    for passes in range(12):
        centres = init.copy()
        _lloyd(table.points, weights, centres, passes, 0.0, 1.7)
        labels, squared = nearest(table.points, centres)
        errors.append(squared @ weights)
    assert (np.diff(errors) < 0).all()
    _lloyd(table.points, weights, centres, 300, 0.0, 1.7)
    labels, _ = nearest(table.points, centres)
    means = [np.average(table.colours[labels == j], axis=0, weights=weights[labels == j]) for j in range(12)]
    assert np.allclose(centres, means, atol=0.01)


def test_variance_init_by_hand():
    points = np.array([[0, 10, 100, 110, 111], [0] * 5, [0] * 5], np.float32)
    weights = np.array([1.0, 1, 1, 1, 2])
    two = initial_centres(points, weights, 2, "variance", RNG)
    assert sorted(two[:, 0].tolist()) == [5.0, 108.0]
    assert sorted(initial_centres(points, weights, 5, "variance", RNG)[:, 0].tolist()) == [0, 10, 100, 110, 111]


def test_variance_init_is_independent_of_seed(table):
    first, second = (fit_palette(table, 20, init="variance", seed=seed) for seed in (1, 2))
    assert np.array_equal(first, second)


@pytest.mark.parametrize("init", ["k-means++", "k-means||", "random", "variance"])
def test_as_many_centres_as_points(init):
    points = np.ascontiguousarray(np.unique(RNG.integers(0, 256, (50, 3)), axis=0).T.astype(np.float32))
    centres = initial_centres(points, np.ones(points.shape[1]), points.shape[1], init, np.random.default_rng(0))
    assert np.array_equal(np.unique(centres, axis=0), np.unique(points.T, axis=0))


# weights


def test_protect_rare_by_hand():
    table = ColourTable(np.array([[0, 0, 0], [1, 1, 1], [255, 0, 0]], np.uint8), np.array([30, 70, 4]))
    assert protect_rare(table, 0) is table
    assert np.allclose(protect_rare(table, 1).counts, [0.3, 0.7, 1])
    assert np.allclose(protect_rare(table, 0.5).counts, [3, 7, 2])


def test_protect_rare_keeps_a_rare_red():
    grey = np.repeat(RNG.integers(0, 256, (200, 200, 1), dtype=np.uint8), 3, axis=2)
    grey[0, :3] = [[230, 10, 20], [231, 11, 21], [229, 9, 20]]
    table = colour_table(grey)

    def reddest(palette):
        return (palette[:, 0].astype(int) - palette[:, 1]).max()

    assert reddest(fit_palette(table, 4)) < 20
    assert reddest(fit_palette(table, 4, rare=1.0)) > 200


@pytest.mark.parametrize("rare", [-0.1, 1.5])
def test_rare_out_of_range_raises(table, rare):
    with pytest.raises(UserError, match=f"rare={rare}"):
        fit_palette(table, 4, rare=rare)


def test_fractional_weights(table):
    fractions = ColourTable(table.colours, table.counts / table.counts.sum())
    assert np.array_equal(fit_palette(table, 8), fit_palette(fractions, 8))
