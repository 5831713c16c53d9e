"""Palette files: GIMP palettes (.gpl), JSON and images."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kmeans_dask.colours.palettes import sort_by_luma
from kmeans_dask.colours.table import colour_table
from kmeans_dask.errors import UserError
from kmeans_dask.sources.images import ImageError, encode_png, open_image
from kmeans_dask.storage.object_store import location, path_or_bytes
from kmeans_dask.storage.publish import publish

_MAX_COLOURS = 65_536
_SWATCH = 32
"""Side of one colour in a palette strip, in pixels."""
_MAX_IMAGE_PIXELS = 100_000_000


def read_palette(path: str | Path) -> NDArray[np.uint8]:
    """Read a palette from a file.

    Parameters
    ----------
    path
        ``.gpl``: a GIMP palette. ``.json``: a list of colours, each ``"#rrggbb"`` or ``[red, green, blue]``, or an
        object with such a list under ``colours`` or ``colors``. Any other suffix: an image, whose distinct colours
        form the palette.

    Returns
    -------
    (k, 3) uint8
        Distinct colours: in file order for .gpl and JSON, sorted by luma for images.

    Raises
    ------
    UserError
        The file cannot be read, or does not contain 1-65,536 colours.
    """
    path = location(path)
    try:
        suffix = path.suffix.lower()
        if suffix == ".gpl":
            colours = _parse_gpl(path.read_text(encoding="utf-8", errors="replace"))
        elif suffix == ".json":
            colours = _parse_json(json.loads(path.read_text(encoding="utf-8")))
        else:
            image = open_image(path_or_bytes(path), max_pixels=_MAX_IMAGE_PIXELS)
            colours = sort_by_luma(colour_table(np.asarray(image.convert("RGB"))).colours).tolist()
    except (OSError, ImageError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"cannot read palette {path}: {reason}; use a .gpl file, a .json file or an image") from None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"palette {path}: {error}; colours must be '#rrggbb' or three integers 0-255") from None
    distinct = list(dict.fromkeys(map(tuple, colours)))
    if not 1 <= len(distinct) <= _MAX_COLOURS:
        raise UserError(f"palette {path} has {len(distinct):,} colours; must have 1-{_MAX_COLOURS:,}")
    return np.array(distinct, np.uint8)


def palette_digest(palette: NDArray[np.uint8]) -> str:
    """Hash a palette to 16 hexadecimal digits; the order of its colours matters."""
    return hashlib.sha256(np.ascontiguousarray(palette).tobytes()).hexdigest()[:16]


def write_palette(path: Path, palette: NDArray[np.uint8]) -> None:
    """Write a palette to a file atomically.

    Parameters
    ----------
    path
        The suffix selects the format: ``.gpl``, ``.json`` or ``.png`` (see `palette_strip`).
    palette : (k, 3) uint8
    """
    if path.suffix == ".gpl":
        rows = "".join(f"{r:3d} {g:3d} {b:3d}\t#{r:02x}{g:02x}{b:02x}\n" for r, g, b in palette.tolist())
        data = f"GIMP Palette\nName: {path.stem}\nColumns: 16\n#\n{rows}".encode()
    elif path.suffix == ".json":
        data = (json.dumps([f"#{r:02x}{g:02x}{b:02x}" for r, g, b in palette.tolist()]) + "\n").encode()
    else:
        data = encode_png(palette_strip(palette))
    with publish(path) as partial:
        partial.write_bytes(data)


def palette_strip(palette: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Draw a palette as an image, with 16 colours per row.

    Parameters
    ----------
    palette : (k, 3) uint8

    Returns
    -------
    (32 * rows, 32 * columns, 3) uint8
        The last colour fills the rest of the last row, so that the image contains only the palette's colours.
    """
    columns = min(len(palette), 16)
    rows = -(-len(palette) // columns)
    cells = palette[np.minimum(np.arange(rows * columns), len(palette) - 1)].reshape(rows, columns, 3)
    return cells.repeat(_SWATCH, axis=0).repeat(_SWATCH, axis=1)


def _parse_gpl(text: str) -> list[tuple[int, ...]]:
    lines = text.splitlines()
    if not lines or lines[0].strip() != "GIMP Palette":
        raise ValueError("the first line is not 'GIMP Palette'")
    rows = [re.match(r"\s*(\d+)\s+(\d+)\s+(\d+)(\s|$)", line) for line in lines[1:]]
    return [_checked([int(channel) for channel in row.groups()[:3]]) for row in rows if row]


def _parse_json(value: object) -> list[tuple[int, ...]]:
    if isinstance(value, dict):
        value = value["colours"] if "colours" in value else value["colors"]
    if not isinstance(value, list):
        raise TypeError("not a list of colours")
    return [_from_hex(colour) if isinstance(colour, str) else _checked(colour) for colour in value]


def _from_hex(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        raise ValueError(f"{text!r} is not a colour")
    return tuple(bytes.fromhex(text[1:]))


def _checked(channels: list[int]) -> tuple[int, ...]:
    if len(channels) != 3 or not all(isinstance(value, int) and 0 <= value <= 255 for value in channels):
        raise ValueError(f"{channels!r} is not a colour")
    return tuple(channels)
