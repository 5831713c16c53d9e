"""Weight, mean and sum of squared deviations of the rows, measured in one pass before anything is fitted.

The pass is a reduction: block = `block_moments`, combine = `combine_moments`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from kmeans_dask.kmeans.kernels import Block, Floats


@dataclass(frozen=True)
class Moments:
    """Weight, mean and sum of squared deviations, combined without cancellation (Chan, Golub and LeVeque 1979).

    Attributes
    ----------
    weight : float
        Total weight of the rows.
    mean : (n_features,) float64
        Weighted mean of the rows.
    squared_deviations : (n_features,) float64
        Weighted sum of squared differences from the mean.
    finite : bool
        Whether all features of all rows are finite.
    valid_weights : bool
        Whether all weights are finite and non-negative.
    """

    weight: float
    mean: NDArray[np.float64]
    squared_deviations: NDArray[np.float64]
    finite: bool
    valid_weights: bool

    @property
    def rounded_mean(self) -> NDArray[np.float64]:
        """The mean, rounded to a multiple of a power of two that is below the standard deviation.

        The last digits of the mean depend on the chunks and would break ties between equidistant centres. Rounding
        also makes differences from integers exact.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            step = 2.0 ** np.floor(np.log2(self.squared_deviations / self.weight) / 2)
            return np.where(step > 0, np.round(self.mean / step) * step, self.mean)

    def sum_of_squares(self, origin: Floats | None) -> float:
        """Return the weighted sum of the rows' squared distances from an origin; None means zero."""
        mean = self.mean if origin is None else self.mean - origin.astype(np.float64)
        return float(self.squared_deviations.sum() + self.weight * (mean**2).sum())


def block_moments(block: Block, weights: NDArray[np.float64] | None = None) -> Moments:
    """Measure the moments of a block and check it for NaN and infinity.

    Parameters
    ----------
    block : (n_rows, n_features) uint8, float32 or float64
    weights : (n_rows,) float64, optional
        Row weights; None weights every row by 1.

    Returns
    -------
    Moments
    """
    n_features = block.shape[1]
    # relative to a row of the block instead of zero: a common offset of the data costs no precision
    reference = block[:1].astype(np.float64).sum(axis=0)
    sums, squares = np.zeros(n_features), np.zeros(n_features)
    all_weights = np.ones(len(block)) if weights is None else weights
    _add_moments(block, all_weights, reference, sums, squares)
    weight = float(all_weights.sum())
    with np.errstate(invalid="ignore", over="ignore"):
        relative_mean = sums / weight if weight > 0 else sums
        squared_deviations = np.maximum(squares - sums * relative_mean, 0.0)
    return Moments(
        weight,
        reference + relative_mean,
        squared_deviations,
        finite=bool(np.isfinite(sums).all() and np.isfinite(squares).all()),
        valid_weights=bool((all_weights >= 0).all() and np.isfinite(weight)),
    )


def combine_moments(parts: list[Moments]) -> Moments:
    """Combine the moments of several blocks into those of all their rows.

    Parameters
    ----------
    parts
        Moments of at least one block.

    Returns
    -------
    Moments
    """
    total = parts[0]
    for part in parts[1:]:
        weight = total.weight + part.weight
        fraction = part.weight / weight if weight > 0 else 0.0
        with np.errstate(invalid="ignore", over="ignore"):
            difference = part.mean - total.mean
            mean = total.mean + difference * fraction
            squared_deviations = (
                total.squared_deviations + part.squared_deviations + difference**2 * total.weight * fraction
            )
        total = Moments(
            weight,
            mean,
            squared_deviations,
            finite=total.finite and part.finite,
            valid_weights=total.valid_weights and part.valid_weights,
        )
    return total


@numba.njit(nogil=True, cache=True)
def _add_moments(rows, weights, reference, sums, squares):  # type: ignore[no-untyped-def]
    """Add the weighted differences from `reference`, and their squares, to `sums` and `squares`."""
    for i in range(rows.shape[0]):
        row = rows[i]
        weight = weights[i]
        for j in range(row.shape[0]):
            value = row[j] - reference[j]
            sums[j] += weight * value
            squares[j] += weight * value * value
