"""Weight, mean and spread of rows: what one read tells of them before anything is fitted.

A reduction: block = `moments`, combine = `combine_moments`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from kmeans_dask.kmeans.kernels import Block, Floats


@dataclass(frozen=True)
class Moments:
    """Weight, mean and spread of rows; combined without loss of digits (Chan, Golub and LeVeque 1979).

    Attributes
    ----------
    weight : float
        Total weight of the rows.
    mean : (n_features,) float64
    spread : (n_features,) float64
        Weighted sum of squared differences from the mean.
    finite : bool
        Whether all numbers are finite.
    valid_weights : bool
        Whether all weights are finite and not negative.
    """

    weight: float
    mean: NDArray[np.float64]
    spread: NDArray[np.float64]
    finite: bool
    valid_weights: bool

    @property
    def rounded_mean(self) -> NDArray[np.float64]:
        """The mean, rounded to a multiple of a power of two that is below the standard deviation.

        Its last digits depend on the chunks, and would decide about rows that are equally far from two centres. Also
        whole numbers minus it are exact.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            step = 2.0 ** np.floor(np.log2(self.spread / self.weight) / 2)
            return np.where(step > 0, np.round(self.mean / step) * step, self.mean)

    def squares(self, origin: Floats | None) -> float:
        """Return the weighted sum of the rows' squared distances to an origin, None for zero."""
        mean = self.mean if origin is None else self.mean - origin.astype(np.float64)
        return float(self.spread.sum() + self.weight * (mean**2).sum())


def moments(block: Block, weights: NDArray[np.float64] | None = None) -> Moments:
    """Measure mean and spread of a block, and look for NaN and infinity on the way.

    Parameters
    ----------
    block : (rows, n_features)
        Rows of uint8, float32 or float64.
    weights : (rows,) float64, optional
        Weight of every row; absent: 1.

    Returns
    -------
    Moments
    """
    n_features = block.shape[1]
    # distances to a row of the block, not to zero: a common offset of the data costs no digits
    reference = block[:1].astype(np.float64).sum(axis=0)
    sums, squares = np.zeros(n_features), np.zeros(n_features)
    all_weights = np.ones(len(block)) if weights is None else weights
    _add_moments(block, all_weights, reference, sums, squares)
    weight = float(all_weights.sum())
    with np.errstate(invalid="ignore", over="ignore"):
        share = sums / weight if weight > 0 else sums
        spread = np.maximum(squares - sums * share, 0.0)
    finite = bool(np.isfinite(sums).all() and np.isfinite(squares).all())
    return Moments(weight, reference + share, spread, finite, bool((all_weights >= 0).all() and np.isfinite(weight)))


def combine_moments(parts: list[Moments]) -> Moments:
    """Combine the moments of several blocks into those of all their rows.

    Parameters
    ----------
    parts
        At least one.

    Returns
    -------
    Moments
    """
    total = parts[0]
    for part in parts[1:]:
        weight = total.weight + part.weight
        share = part.weight / weight if weight > 0 else 0.0
        with np.errstate(invalid="ignore", over="ignore"):
            difference = part.mean - total.mean
            mean = total.mean + difference * share
            spread = total.spread + part.spread + difference**2 * total.weight * share
        total = Moments(weight, mean, spread, total.finite and part.finite, total.valid_weights and part.valid_weights)
    return total


@numba.njit(nogil=True, cache=True)
def _add_moments(rows, weights, reference, sums, squares):  # type: ignore[no-untyped-def]
    for i in range(rows.shape[0]):
        row = rows[i]
        weight = weights[i]
        for j in range(row.shape[0]):
            value = row[j] - reference[j]
            sums[j] += weight * value
            squares[j] += weight * value * value
