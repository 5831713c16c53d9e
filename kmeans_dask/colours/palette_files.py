"""Palettes as files: GIMP's .gpl, JSON, and pictures."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from kmeans_dask.colours.palettes import in_order
from kmeans_dask.colours.table import colour_table
from kmeans_dask.errors import UserError
from kmeans_dask.sources.images import ImageError, encode_png, open_image
from kmeans_dask.storage.object_store import content_of, location
from kmeans_dask.storage.publish import publish

_MOST = 65_536
_SWATCH = 32
"""Pixels of the side of one colour in a strip; 16 colours a row."""
_IMAGE_PIXELS = 100_000_000


def read_palette(path: str | Path) -> NDArray[np.uint8]:
    """Read a palette.

    Parameters
    ----------
    path
        ``.gpl``: GIMP's palette. ``.json``: a list of colours, each ``"#rrggbb"`` or ``[red, green, blue]``, or a
        mapping that has it under ``colours`` or ``colors``. Anything else: an image, whose distinct colours are
        the palette.

    Returns
    -------
    (k, 3) uint8
        Distinct colours: those of a .gpl or JSON file in its order, those of an image by luma.

    Raises
    ------
    UserError
        The file cannot be read, or does not hold 1-65,536 colours.
    """
    path = location(path)
    try:
        suffix = path.suffix.lower()
        if suffix == ".gpl":
            colours = _parse_gpl(path.read_text(encoding="utf-8", errors="replace"))
        elif suffix == ".json":
            colours = _parse_json(json.loads(path.read_text(encoding="utf-8")))
        else:
            image = open_image(content_of(path), max_pixels=_IMAGE_PIXELS)
            colours = in_order(colour_table(np.asarray(image.convert("RGB"))).colours).tolist()
    except (OSError, ImageError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"cannot read palette {path}: {reason}; give a .gpl or .json file, or an image") from None
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"palette {path}: {error}; colours are '#rrggbb' or three numbers 0-255") from None
    distinct = list(dict.fromkeys(map(tuple, colours)))
    if not 1 <= len(distinct) <= _MOST:
        raise UserError(f"palette {path} has {len(distinct):,} colours; allowed are 1-{_MOST:,}")
    return np.array(distinct, np.uint8)


def palette_digest(palette: NDArray[np.uint8]) -> str:
    """Return 16 hexadecimal digits that change with the colours of a palette or their order."""
    return hashlib.sha256(np.ascontiguousarray(palette).tobytes()).hexdigest()[:16]


def write_palette(path: Path, palette: NDArray[np.uint8]) -> None:
    """Write a palette, published by one rename.

    Parameters
    ----------
    path
        Its suffix says the kind: ``.gpl``, ``.json`` or ``.png`` (a strip picture).
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
    """Draw the colours of a palette side by side, 16 a row.

    Parameters
    ----------
    palette : (k, 3) uint8

    Returns
    -------
    (32 * rows, 32 * columns, 3) uint8
        The last row is filled with its last colour, so that the strip has the palette's colours and no other.
    """
    columns = min(len(palette), 16)
    rows = -(-len(palette) // columns)
    cells = palette[np.minimum(np.arange(rows * columns), len(palette) - 1)].reshape(rows, columns, 3)
    return cells.repeat(_SWATCH, axis=0).repeat(_SWATCH, axis=1)


def _parse_gpl(text: str) -> list[tuple[int, ...]]:
    lines = text.splitlines()
    if not lines or lines[0].strip() != "GIMP Palette":
        raise ValueError("its first line is not 'GIMP Palette'")
    rows = [re.match(r"\s*(\d+)\s+(\d+)\s+(\d+)(\s|$)", line) for line in lines[1:]]
    return [_checked([int(number) for number in row.groups()[:3]]) for row in rows if row]


def _parse_json(value: object) -> list[tuple[int, ...]]:
    if isinstance(value, dict):
        value = value["colours"] if "colours" in value else value["colors"]
    if not isinstance(value, list):
        raise TypeError("it is no list of colours")
    return [_from_hex(colour) if isinstance(colour, str) else _checked(colour) for colour in value]


def _from_hex(text: str) -> tuple[int, ...]:
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        raise ValueError(f"{text!r} is no colour")
    return tuple(bytes.fromhex(text[1:]))


def _checked(numbers: list[int]) -> tuple[int, ...]:
    if len(numbers) != 3 or not all(isinstance(number, int) and 0 <= number <= 255 for number in numbers):
        raise ValueError(f"{numbers!r} is no colour")
    return tuple(numbers)
