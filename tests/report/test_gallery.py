from __future__ import annotations

import numpy as np
from sklearn.decomposition import PCA

from kmeans_dask.report.gallery import principal_plane


def test_principal_plane_matches_scikit_learn_pca():
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(30, 12)) * np.geomspace(5, 0.1, 12)

    plane = principal_plane(centres, np.ones(30))

    pca = PCA(2, svd_solver="full").fit(centres)
    np.testing.assert_allclose(np.abs(plane(centres)), np.abs(pca.transform(centres)), atol=1e-9)
    np.testing.assert_allclose(plane.explained, pca.explained_variance_ratio_)


def test_weights_equal_repeated_centres():
    rng = np.random.default_rng(1)
    centres, weights = rng.normal(size=(8, 5)), rng.integers(0, 5, 8)

    weighted = principal_plane(centres, weights)
    repeated = principal_plane(np.repeat(centres, weights, axis=0), np.ones(weights.sum()))

    np.testing.assert_allclose(weighted(centres), repeated(centres), atol=1e-9)


def test_degenerate_centres_give_a_line_or_a_point():
    line = principal_plane(np.array([[0.0], [2.0]]), np.ones(2))
    point = principal_plane(np.array([[3.0, 4.0]]), np.array([7]))

    np.testing.assert_allclose(line(np.array([[0.0], [2.0]])), [[-1, 0], [1, 0]])
    np.testing.assert_allclose(point(np.array([[3.0, 4.0]])), [[0, 0]], atol=1e-12)
    assert line.explained == (1.0, 0.0)
