"""What is clustered instead of raw pixels: fitted on the train rows, kept in the run folder, applied to any image.

Two steps make a row. *Extraction* turns an image into numbers; what is not simply the pixels may take long, so it is
done once for all items and stored. The *transformation* (scale, mean, components, length) costs one small product a
row, and is done whenever rows are read.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
from numpy.typing import NDArray

from kmeans_dask.collection.collection import Collection
from kmeans_dask.collection.extractors import extract, extractor_of
from kmeans_dask.config import sections
from kmeans_dask.errors import UserError
from kmeans_dask.kmeans.kernels import Block, unit_block
from kmeans_dask.reduction import broadcast
from kmeans_dask.storage import zarr_groups
from kmeans_dask.storage.object_store import location

ROWS, TRANSFORMATION = "rows.zarr", "transformation.zarr"
"""In the folder ``features`` of a run: extracted numbers of all items; what was fitted, written last."""


@dataclass(frozen=True)
class Features:
    """What the rows of a run are.

    Attributes
    ----------
    settings
        The config's section; its defaults are raw pixels.
    transformation
        Fitted on the train rows.
    stored : Path, or None for pixels
        zarr array of the extracted numbers, (n_items, n) float32, row i is item i.
    width : int
        Extracted numbers an item, before the transformation.
    fingerprint : str
        Hash of the settings, the collection and the file of embeddings; empty for raw pixels.
    """

    settings: sections.Features
    transformation: Transformation
    stored: Path | None
    width: int
    fingerprint: str

    def check_new_images(self) -> None:
        """Raise `UserError` if rows of other images cannot be made: they come from a file, or the code is missing."""
        if self.settings.kind == "file":
            raise UserError(
                f"this run clustered the rows of {self.settings.path}, which cannot be made of new images; "
                "add their rows to the file, and the images to the input"
            )
        extractor_of(self.settings.kind)

    def transform_block(self, images: NDArray[np.uint8]) -> Block:
        """Make rows of images that need not be in the collection.

        Parameters
        ----------
        images : (rows, height, width, channels) uint8
            Of the size and the mode of the collection.

        Returns
        -------
        (rows, n_features)
            uint8 for raw pixels, else float32.

        Raises
        ------
        UserError
            The rows come from a file, which has none for other images; or a user's function failed.
        """
        self.check_new_images()
        rows = extract(self.settings.kind, images)
        if rows.shape[1] != self.width:
            raise UserError(
                f"features.kind={self.settings.kind} made {rows.shape[1]:,} numbers an image, and {self.width:,} when "
                "the run was fitted; use the same function, and images of the same size"
            )
        return self.transformation.apply(rows)

    def read_chunk(self, folder: Path, start: int, stop: int) -> Block:
        """Read the rows of the items ``start:stop`` of the collection in `folder`, as `transform_block` makes them."""
        return self.transformation.apply(self._read(folder, start, stop))

    def rows(self, collection: Collection, split: str) -> tuple[da.Array, NDArray[np.int64]]:
        """Return the rows of the items of a split that could be decoded.

        Parameters
        ----------
        collection
            That the features were fitted on.
        split
            ``train`` or ``holdout``.

        Returns
        -------
        X : (m, n_features) da.Array of float32, or of uint8 for raw pixels
            Computed only when asked; reading, extraction and transformation are one task a chunk.
        index : (m,) int64
            Row of each in the collection, ascending.
        """
        X, index = self.extracted(collection, split)
        if not self.transformation.changes:
            return X, index
        width = self.width if self.transformation.components is None else len(self.transformation.components)
        rows = X.map_blocks(
            _transform,
            transformation=broadcast(self.transformation),
            dtype=np.float32,
            chunks=(X.chunks[0], (width,)),
            meta=np.empty((0, 0), np.float32),
        )
        return rows, index

    def to_pixels(self, centres: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """Turn (k, n_features) centres into (k, height * width * channels) pixels, 0-255; None if that cannot be."""
        return self.transformation.invert(centres) if self.settings.kind == "pixels" else None

    @property
    def scale(self) -> str:
        """What distances and inertia are measured on, in words."""
        if self.settings.raw:
            return "on the scale of the pixels, 0-255"
        chosen = self.settings.model_dump(exclude_defaults=True)
        return f"on the scale of the features ({', '.join(f'{key}: {value}' for key, value in chosen.items())})"

    def extracted(self, collection: Collection, split: str) -> tuple[da.Array, NDArray[np.int64]]:
        """Return what `rows` returns, before the transformation: (m, width) of uint8 or float32."""
        X, index = collection.rows(split)
        if self.stored is None:
            return X, index
        return collection.lazy_rows(index, partial(_read_stored, self.stored), self.width, np.float32), index

    def _read(self, folder: Path, start: int, stop: int) -> Block:
        if self.stored is None:
            return zarr_groups.read_block(folder, start, stop).reshape(stop - start, -1)
        return zarr_groups.read_rows(self.stored, start, stop)


def raw_features(image_shape: tuple[int, ...]) -> Features:
    """Return those that leave the pixels of images of (height, width, channels) as they are."""
    return Features(sections.Features(), Transformation(), None, int(np.prod(image_shape)), "")


def open_features(run: str | Path) -> Features:
    """Open what the stage fit has fitted of the features.

    Parameters
    ----------
    run
        Run folder. Where no features were fitted, its rows are raw pixels.

    Returns
    -------
    Features
        Opening them executes nothing; a user's function is imported when rows are made.

    Raises
    ------
    UserError
        The folder is no run folder, its features are not finished, or of another version of the format.
    """
    run = location(run).absolute()
    folder = run / "features"
    if not folder.exists():
        zarr_groups.read_attrs(run / "collection.zarr")
        return raw_features(zarr_groups.read_layout(run / "collection.zarr").shape[1:])
    arrays, attrs = zarr_groups.read_model(folder / TRANSFORMATION)
    settings = sections.Features.model_validate(attrs["settings"])
    return Features(
        settings,
        Transformation.of(arrays, unit=settings.normalize == "l2"),
        None if settings.kind == "pixels" else folder / ROWS,
        attrs["width"],
        attrs["fingerprint"],
    )


def _transform(block: Block, *, transformation: Transformation) -> Block:
    return transformation.apply(block)


def _read_stored(stored: Path, folder: Path, start: int, stop: int) -> NDArray[np.float32]:
    return zarr_groups.read_rows(stored, start, stop)


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
