"""Features: the rows that are clustered, stored in the run folder and computable for any image.

A row is computed in two steps. *Extraction* turns an image into features; unless these are simply the pixels, it may be
slow, so it is done once for all items and the result is stored. The *transformation* (scale, mean, components, length)
is fitted on the train items; it costs one small product per row, and is applied whenever rows are read.
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
"""Names in the folder ``features`` of a run: the extracted features of all items; the transformation, written last."""


@dataclass(frozen=True)
class Features:
    """The features of a run.

    Attributes
    ----------
    settings
        Section `features` of the config; by default, rows are raw pixels.
    transformation
        Transformation fitted on the train rows.
    stored : Path, or None for pixels
        zarr array of the extracted features, (n_items, n_features_in) float32; row i is item i.
    n_features_in : int
        Extracted features per item, before the transformation.
    fingerprint : str
        Hash of the settings, the collection, the file of embeddings and the seed; empty for raw pixels.
    """

    settings: sections.Features
    transformation: Transformation
    stored: Path | None
    n_features_in: int
    fingerprint: str

    def check_new_images(self) -> None:
        """Raise `UserError` if features of new images cannot be computed: they come from a file, or code is missing."""
        if self.settings.kind == "file":
            raise UserError(
                f"this run clustered the rows of {self.settings.path}, which has none for new images; "
                "add their rows to the file, and the images to the input"
            )
        extractor_of(self.settings.kind)

    def transform_block(self, images: NDArray[np.uint8]) -> Block:
        """Compute the rows of any images, in the collection or not.

        Parameters
        ----------
        images : (rows, height, width, channels) uint8
            Images with the size and mode of the collection.

        Returns
        -------
        (rows, n_features)
            uint8 for raw pixels, otherwise float32.

        Raises
        ------
        UserError
            The features come from a file, or the user's function failed or returned another number of features.
        """
        self.check_new_images()
        rows = extract(self.settings.kind, images)
        if rows.shape[1] != self.n_features_in:
            raise UserError(
                f"features.kind={self.settings.kind} returned {rows.shape[1]:,} features per image, but "
                f"{self.n_features_in:,} when the run was fitted; use the same function, and images of the same size"
            )
        return self.transformation.apply(rows)

    def read_chunk(self, folder: Path, start: int, stop: int) -> Block:
        """Read the transformed rows of the items ``start:stop`` of the collection in `folder`."""
        return self.transformation.apply(self._read(folder, start, stop))

    def rows(self, collection: Collection, split: str) -> tuple[da.Array, NDArray[np.int64]]:
        """Return the rows of the decoded items of a split.

        Parameters
        ----------
        collection
            The collection on which the features were fitted.
        split
            ``train`` or ``holdout``.

        Returns
        -------
        X : (m, n_features) da.Array of float32, or of uint8 for raw pixels
            Lazy; reading and transformation are one task per chunk.
        index : (m,) int64
            Their rows in the collection, ascending.
        """
        X, index = self.extracted_rows(collection, split)
        if self.transformation.is_identity:
            return X, index
        components = self.transformation.components
        n_features = self.n_features_in if components is None else len(components)
        rows = X.map_blocks(
            _transform,
            transformation=broadcast(self.transformation),
            dtype=np.float32,
            chunks=(X.chunks[0], (n_features,)),
            meta=np.empty((0, 0), np.float32),
        )
        return rows, index

    def to_pixels(self, centres: NDArray[np.float32]) -> NDArray[np.float32] | None:
        """Turn (k, n_features) centres into (k, height * width * channels) pixels, 0-255; None if impossible."""
        return self.transformation.invert(centres) if self.settings.kind == "pixels" else None

    @property
    def scale(self) -> str:
        """Description of the scale of distances and inertia, for people."""
        if self.settings.raw:
            return "on the scale of the pixels, 0-255"
        chosen = self.settings.model_dump(exclude_defaults=True)
        return f"on the scale of the features ({', '.join(f'{key}: {value}' for key, value in chosen.items())})"

    def extracted_rows(self, collection: Collection, split: str) -> tuple[da.Array, NDArray[np.int64]]:
        """Return the same as `rows`, but before the transformation: (m, n_features_in) uint8 or float32."""
        X, index = collection.rows(split)
        if self.stored is None:
            return X, index
        return collection.lazy_rows(index, partial(_read_stored, self.stored), self.n_features_in, np.float32), index

    def _read(self, folder: Path, start: int, stop: int) -> Block:
        if self.stored is None:
            return zarr_groups.read_block(folder, start, stop).reshape(stop - start, -1)
        return zarr_groups.read_rows(self.stored, start, stop)


def raw_features(image_shape: tuple[int, ...]) -> Features:
    """Return the features that are the raw pixels of images of shape (height, width, channels)."""
    return Features(sections.Features(), Transformation(), None, int(np.prod(image_shape)), "")


def open_features(run: str | Path) -> Features:
    """Open the features that the stage fit has fitted.

    Parameters
    ----------
    run
        Run folder. If no features were fitted, its rows are raw pixels.

    Returns
    -------
    Features
        Opening them executes nothing; a user's function is imported only when rows are computed.

    Raises
    ------
    UserError
        The folder is not a run folder, or its features are unfinished or have another format version.
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
        Transformation.from_arrays(arrays, unit=settings.normalize == "l2"),
        None if settings.kind == "pixels" else folder / ROWS,
        attrs["n_features_in"],
        attrs["fingerprint"],
    )


def _transform(block: Block, *, transformation: Transformation) -> Block:
    return transformation.apply(block)


def _read_stored(stored: Path, folder: Path, start: int, stop: int) -> NDArray[np.float32]:
    return zarr_groups.read_rows(stored, start, stop)


@dataclass(frozen=True)
class Transformation:
    """A transformation fitted on the train rows and applied to any row: ``((row / divisor) - mean) · componentsᵀ``.

    Attributes
    ----------
    divisor : (1,) or (n_features_in,) float32, or None
        One divisor for all features, or one per feature.
    mean : (n_features_in,) float32, or None
        Mean of the divided rows.
    components : (n_components, n_features_in) float32, or None
        Principal components, orthonormal.
    unit : bool
        Whether each row is finally scaled to Euclidean length 1; rows of zeros stay as they are.
    """

    divisor: NDArray[np.float32] | None = None
    mean: NDArray[np.float32] | None = None
    components: NDArray[np.float32] | None = None
    unit: bool = False

    @property
    def is_identity(self) -> bool:
        """Whether rows stay as they are."""
        return not self.unit and not self.arrays()

    @property
    def is_data_dependent(self) -> bool:
        """Whether it depends on the train rows; centres are then meaningless after a fit to other rows."""
        return (
            self.mean is not None or self.components is not None or (self.divisor is not None and self.divisor.size > 1)
        )

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """Return the fitted arrays by name."""
        named = {"divisor": self.divisor, "mean": self.mean, "components": self.components}
        return {name: array for name, array in named.items() if array is not None}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], *, unit: bool) -> Transformation:
        """Restore a transformation from the arrays that `arrays` returned."""
        return cls(arrays.get("divisor"), arrays.get("mean"), arrays.get("components"), unit)

    def apply(self, rows: Block) -> Block:
        """Transform rows.

        Parameters
        ----------
        rows : (m, n_features_in) uint8 or float32

        Returns
        -------
        (m, n_features)
            float32; the rows themselves if the transformation is the identity.
        """
        if self.is_identity:
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
        """Map rows back to extracted features; directions outside the components get their mean.

        Parameters
        ----------
        rows : (m, n_features) float32

        Returns
        -------
        (m, n_features_in) float32, or None if the lengths of the rows are lost
        """
        if self.unit:
            return None
        features = rows.astype(np.float32)
        if self.components is not None:
            features = features @ self.components
        if self.mean is not None:
            features += self.mean
        if self.divisor is not None:
            features *= self.divisor
        return features
