"""From the numbers of an image to the features that are clustered: scale, mean, components, length. And back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kmeans_dask.kernels import Block, unit_block


@dataclass(frozen=True)
class Transformation:
    """What was measured on the fitted rows, to be done to any row: ``((row / divisor) - mean) · componentsᵀ``.

    Attributes
    ----------
    divisor : (1,) or (n,) float32, or None
        What every number is divided by.
    mean : (n,) float32, or None
        Of the divided rows.
    components : (n_components, n) float32, or None
        Orthonormal rows.
    unit : bool
        Whether every row is divided by its length at the end; rows of zeros stay.
    """

    divisor: NDArray[np.float32] | None = None
    mean: NDArray[np.float32] | None = None
    components: NDArray[np.float32] | None = None
    unit: bool = False

    @property
    def changes(self) -> bool:
        """Whether it does anything."""
        return self.unit or bool(self.arrays())

    @property
    def measured(self) -> bool:
        """Whether it depends on the rows that it was fitted to: centres among them mean nothing among others."""
        return (
            self.mean is not None or self.components is not None or (self.divisor is not None and self.divisor.size > 1)
        )

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return what was measured, by name."""
        named = {"divisor": self.divisor, "mean": self.mean, "components": self.components}
        return {name: array for name, array in named.items() if array is not None}

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]], *, unit: bool) -> Transformation:
        """Make one of the arrays that `arrays` has returned."""
        return cls(arrays.get("divisor"), arrays.get("mean"), arrays.get("components"), unit)

    def apply(self, rows: Block) -> Block:
        """Transform rows.

        Parameters
        ----------
        rows : (m, n) uint8 or float32

        Returns
        -------
        (m, n_features)
            float32; the rows themselves if there is nothing to do.
        """
        if not self.changes:
            return rows
        floats = rows.astype(np.float32)
        if self.divisor is not None:
            floats /= self.divisor
        if self.mean is not None:
            floats -= self.mean
        if self.components is not None:
            floats = floats @ self.components.T
        return unit_block(floats) if self.unit else floats

    def invert(self, rows: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """Find the numbers that a row stands for; of what the components leave out, the mean.

        Parameters
        ----------
        rows : (m, n_features) float32

        Returns
        -------
        (m, n) float32, or None if the lengths of the rows have gone
        """
        if self.unit:
            return None
        numbers = rows.astype(np.float32)
        if self.components is not None:
            numbers = numbers @ self.components
        if self.mean is not None:
            numbers += self.mean
        if self.divisor is not None:
            numbers *= self.divisor
        return numbers
