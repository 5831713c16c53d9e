"""Decode rows of a manifest to pixels and facts about each image; a bad image is black, with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from kmeans_dask.config.sections import Ingest
from kmeans_dask.sources.images import ImageError, decode
from kmeans_dask.sources.manifest import MANIFEST_SCHEMA
from kmeans_dask.sources.reading import find_unreadable, raise_if_source_lost, read_contents

DECODE_SCHEMA = pa.schema(
    [
        ("width", pa.int32()),  # of the image file, in pixels; null if it could not be decoded
        ("height", pa.int32()),
        ("mode", pa.string()),  # mode of the image file in Pillow, such as "P"
        ("changes", pa.list_(pa.string())),  # conversions other than resizing: keys of `normalize.POLICY`
        ("status", pa.string()),  # "ok", the status of the ImageError, or "removed"
        ("error", pa.string()),  # why it failed; null if it did not
    ]
)

ITEMS_SCHEMA = pa.schema([*MANIFEST_SCHEMA, *DECODE_SCHEMA])
"""Columns of the manifest and of `DECODE_SCHEMA`. Row i is row i of the images."""


def decode_rows(
    manifest: pa.Table, config: Ingest, max_pixels: int, *, careful: bool = False
) -> tuple[NDArray[np.uint8], pa.Table]:
    """Read and decode the images of some items.

    Parameters
    ----------
    manifest : pyarrow.Table of n rows
        Manifest rows of the items; schema `sources.MANIFEST_SCHEMA`.
    config
        Size, mode and how to resize.
    max_pixels
        Images with more pixels are not decoded.
    careful
        Whether to try each item in a child process first, because decoding one of them may crash its process.

    Returns
    -------
    block : (n, height, width, channels) uint8
        Bad images are black.
    items : pyarrow.Table of n rows
        Schema `ITEMS_SCHEMA`, with the status and error of bad images.

    Raises
    ------
    JobError
        The source is no longer available.
    """
    read = partial(
        decode,
        size=config.size,
        mode=config.mode,
        max_pixels=max_pixels,
        resize=config.resize,
        resampling=config.filter,
        background=config.background,
    )
    block = np.zeros((len(manifest), *row_shape(config)), np.uint8)
    facts: list[tuple[Any, ...]] = [()] * len(manifest)
    for row, content in read_contents(manifest, find_unreadable(manifest, read) if careful else None):
        try:
            decoded = read(content)
        except ImageError as error:
            raise_if_source_lost(manifest, row, error)
            facts[row] = (None, None, None, None, error.status, str(error))
        else:
            block[row] = decoded.pixels
            facts[row] = (*decoded[1:], "ok", None)
    return block, add_decode_columns(manifest, facts)


def row_shape(config: Ingest) -> tuple[int, int, int]:
    """Return the height, width and channels of an item."""
    return (*config.size, 1 if config.mode == "L" else 3)


def add_decode_columns(manifest: pa.Table, facts: Sequence[tuple[Any, ...]]) -> pa.Table:
    """Append the values of `DECODE_SCHEMA`, one tuple per item, to rows of the manifest; schema `ITEMS_SCHEMA`."""
    values = zip(*facts, strict=True) if facts else [()] * len(DECODE_SCHEMA)
    columns = [pa.array(column, field.type) for column, field in zip(values, DECODE_SCHEMA, strict=True)]
    return pa.table([*manifest.columns, *columns], schema=ITEMS_SCHEMA)
