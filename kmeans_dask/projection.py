"""The map: images and centres in the plane of the centres' first two principal components."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Projection(NamedTuple):
    """A plane in the space of the features."""

    mean: NDArray[np.float64]
    """(n_features,): it becomes the origin."""
    axes: NDArray[np.float64]
    """(n_features, 2), orthonormal."""
    shares: tuple[float, float]
    """Of the centres' variance, along each axis."""

    def __call__(self, rows: NDArray[np.number]) -> NDArray[np.float64]:
        """Project (m, n_features) rows onto the plane: (m, 2)."""
        return np.asarray((rows - self.mean) @ self.axes, np.float64)


def principal_plane(centres: NDArray[np.floating], weights: NDArray[np.number]) -> Projection:
    """Find the plane that shows most of how centres differ (principal component analysis).

    Parameters
    ----------
    centres
        (k, n_features).
    weights
        (k,) items of each; a centre without items does not count.

    Returns
    -------
    Projection
        Its axes point so that their largest entry is positive: the same centres give the same picture.
    """
    points = np.asarray(centres, np.float64)
    share = np.asarray(weights, np.float64) / max(np.sum(weights), 1)
    mean = share @ points
    _, lengths, axes = np.linalg.svd(np.sqrt(share)[:, None] * (points - mean), full_matrices=False)
    plane = np.zeros((points.shape[1], 2))  # one centre, or one feature, spans less than a plane
    plane[:, : min(2, len(axes))] = axes[:2].T
    plane *= np.sign(plane[np.abs(plane).argmax(axis=0), [0, 1]] + 1e-300)
    total = max(float((lengths**2).sum()), 1e-300)
    shares = [*(lengths[:2] ** 2 / total), 0.0, 0.0]
    return Projection(mean, plane, (float(shares[0]), float(shares[1])))
