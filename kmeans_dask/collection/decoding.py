"""Rows of a manifest become pixels, and what decoding told of each; a bad image is black, with its reason."""

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
from kmeans_dask.sources.reading import read_contents, refuse_outage, unreadable

DECODE_SCHEMA = pa.schema(
    [
        ("width", pa.int32()),  # of the file's image, in pixels; null when it could not be decoded
        ("height", pa.int32()),
        ("mode", pa.string()),  # Pillow's name, such as "P"
        ("changes", pa.list_(pa.string())),  # keys of `normalize.POLICY`: what was done beside resizing
        ("status", pa.string()),  # "ok", the status of the ImageError, or "removed"
        ("error", pa.string()),  # its reason; null = none
    ]
)

ITEMS_SCHEMA = pa.schema([*MANIFEST_SCHEMA, *DECODE_SCHEMA])
"""The manifest's columns, and what decoding told. Row i is row i of the images."""


def decode_rows(
    manifest: pa.Table, config: Ingest, max_pixels: int, *, careful: bool = False
) -> tuple[NDArray[np.uint8], pa.Table]:
    """Read and decode some items.

    Parameters
    ----------
    manifest : (n) pyarrow.Table
        Rows of `sources.MANIFEST_SCHEMA`.
    config
        Size and mode.
    max_pixels
        Pixels of one image above which it is not decoded.
    careful
        Whether another process tries the items first, because one of them may end its process.

    Returns
    -------
    block : (n, height, width, channels) uint8
        A bad image is black.
    items : (n) pyarrow.Table
        `ITEMS_SCHEMA`; a bad image has its status and reason.

    Raises
    ------
    JobError
        The source has gone.
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
    told: list[tuple[Any, ...]] = [()] * len(manifest)
    for row, content in read_contents(manifest, unreadable(manifest, read) if careful else None):
        try:
            decoded = read(content)
        except ImageError as error:
            refuse_outage(manifest, row, error)
            told[row] = (None, None, None, None, error.status, str(error))
        else:
            block[row] = decoded.pixels
            told[row] = (*decoded[1:], "ok", None)
    return block, with_columns(manifest, told)


def row_shape(config: Ingest) -> tuple[int, int, int]:
    """Height, width and channels of an item."""
    return (*config.size, 1 if config.mode == "L" else 3)


def with_columns(manifest: pa.Table, told: Sequence[tuple[Any, ...]]) -> pa.Table:
    """Add what decoding told, a tuple an item, to the manifest rows: `ITEMS_SCHEMA`."""
    values = zip(*told, strict=True) if told else [()] * len(DECODE_SCHEMA)
    columns = [pa.array(column, field.type) for column, field in zip(values, DECODE_SCHEMA, strict=True)]
    return pa.table([*manifest.columns, *columns], schema=ITEMS_SCHEMA)
