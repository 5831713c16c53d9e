"""A picture as it is quantized: its pixels, what of them can be seen, its colours counted; painted and encoded.

Pixels that are fully transparent are no colours: they take no part in a fit or an error, and become one transparent
entry. Pixels that are partly transparent are laid over white and become opaque. Metadata is not kept, but for an ICC
profile of RGB; one of another colour model would not fit the output.
"""

from __future__ import annotations

import io
import zlib
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from kmeans_dask.colours.dither import Dither, dithered
from kmeans_dask.colours.spaces import Space, to_space
from kmeans_dask.colours.table import ColourTable, expand, index_colours, mean_squared_error, nearest
from kmeans_dask.sources.normalize import to_array

Format = Literal["png", "webp", "gif"]

PALETTE_COLOURS = 256
"""Entries of a palette at most, the transparent one included; images of more colours are written as RGB."""

PNG_LEVEL = 4
"""zlib's level. 250 x 250 photos, one core: K=30 18.0 kB in 1.0 ms (level 1: 20.7 kB in 0.9 ms; 6, Pillow's
default: 17.3 kB in 3.5 ms; 9: 17.2 kB in 7.7 ms). Above 4 zlib searches far for 4 % of the size, and would take
longer than everything else together."""

_PACKED_COLOURS = 16
"""Up to so many entries a byte holds several pixels, and zlib finds little but runs: told to look for nothing else it
makes smaller files in half the time. 250 x 250 photos, K=6: 4.7 kB in 0.40 ms (level 4: 5.4 kB in 0.68 ms; 6: 5.1 kB
in 1.5 ms); diagrams too become smaller. At K=32 the files would be 15-40 % larger."""

_AT_A_TIME = 2**16
"""Pixels whose errors are measured together: those of a whole photo would take 50 bytes a pixel."""

_GREY_MODES = ("1", "L", "LA", "La", "I", "F")


class Picture(NamedTuple):
    """An image that can be quantized."""

    pixels: NDArray[np.uint8]
    """(height, width, 1 or 3): grey or RGB."""
    opaque: NDArray[np.bool_] | None
    """(height, width): pixels that are not fully transparent; None: all."""
    icc_profile: bytes | None
    """Colour profile of RGB."""
    table: ColourTable
    """Colours of the opaque pixels; empty if there are none."""
    rows: NDArray[np.int32]
    """(opaque pixels,): row of the table that each of them has."""


def picture_of(image: Image.Image | NDArray[np.uint8]) -> Picture:
    """Read the pixels of an image and count its colours.

    Parameters
    ----------
    image
        Any mode of Pillow, upright; or an array (height, width, 1 or 3) or (height, width) uint8.

    Returns
    -------
    Picture

    Raises
    ------
    ValueError
        The array has another dtype or shape.
    """
    opaque, icc_profile = None, None
    if isinstance(image, Image.Image):
        pixels = read_pixels(image)
        if image.has_transparency_data:
            seen = _alpha(image) > 0
            opaque = None if seen.all() else seen
        profile = image.info.get("icc_profile") or b""
        icc_profile = profile if profile[16:20] == b"RGB " else None  # ICC.1:2022, 7.2.6: the data's colour space
        del image  # 4 bytes a pixel, unless the caller still has it
    else:
        pixels = image[..., np.newaxis] if image.ndim == 2 else image
    if opaque is None:
        table, index = index_colours(pixels)
    elif opaque.any():
        table, index = index_colours(pixels[opaque][:, np.newaxis])
    else:
        table, index = ColourTable(np.empty((0, 3), np.uint8), np.empty(0, np.int64)), np.empty(0, np.int32)
    return Picture(pixels, opaque, icc_profile, table, index)


def read_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Return the pixels of an image as (height, width, 1) uint8 if its mode is grey, else (height, width, 3)."""
    is_grey = image.mode in _GREY_MODES or image.mode.startswith("I;16")
    return to_array(image, mode="L" if is_grey else "RGB")


def remap(
    picture: Picture, palette: NDArray[np.uint8], *, space: Space = "rgb", dither: Dither = "none"
) -> tuple[Image.Image, dict[Space, float]]:
    """Give every pixel a palette colour: without dithering, exactly the nearest one.

    Parameters
    ----------
    picture
    palette : (k, 3) uint8
        Empty only if no pixel is opaque.
    space
        What distances are measured in; dithering measures in RGB.
    dither
        See `dither.dithered`.

    Returns
    -------
    image : PIL.Image.Image
        Mode P, with the transparent entry first if there is one; of more than 256 colours RGB, or RGBA if pixels
        are transparent. A transparent entry that would be the 257th takes the place of the colour with the fewest
        pixels.
    errors : dict
        ``rgb``: mean squared RGB distance to the opaque pixels, the sum over the three channels. With space
        ``oklab`` also that in OKLab.
    """
    table, errors = picture.table, dict.fromkeys(("rgb", space), 0.0)
    if dither == "none" or len(palette) == 0:
        labels, squared = nearest(to_space(table.colours, space), np.ascontiguousarray(to_space(palette, space).T))
        flat = expand(labels, picture.rows)
        errors = {
            each: _mean(table, squared if each == space else _apart(table.colours, palette[labels], each))
            for each in errors
        }
    else:
        flat = dithered(picture.pixels, picture.opaque, palette, dither).reshape(-1)
        flat = flat if picture.opaque is None else flat[picture.opaque.reshape(-1)]
        for start in range(0, len(flat), _AT_A_TIME):
            labels = flat[start : start + _AT_A_TIME]
            colours = table.colours[picture.rows[start : start + _AT_A_TIME]]
            for each in errors:
                errors[each] += float(_apart(colours, palette[labels], each).sum(dtype=np.float64)) / len(flat)
    if picture.opaque is not None and len(palette) == PALETTE_COLOURS:
        rarest = np.bincount(flat, minlength=len(palette)).argmin()
        return remap(picture, np.delete(palette, rarest, axis=0), space=space, dither=dither)
    return _image(picture, flat, palette), errors


def encode(image: Image.Image, kind: Format) -> bytes:
    """Encode a painted image without loss.

    Parameters
    ----------
    image
        From `paint`.
    kind
        ``png``: with the smallest of 1, 2, 4 or 8 bits that holds the palette. ``webp``: lossless. ``gif``: at most
        256 colours; it keeps no ICC profile.

    Returns
    -------
    bytes

    Raises
    ------
    OSError, ValueError, struct.error
        The format does not hold an image of this size or mode.
    """
    stream = io.BytesIO()
    if kind == "png":
        packed = image.palette is not None and len(image.palette.palette) <= 3 * _PACKED_COLOURS
        strategy = zlib.Z_RLE if packed else zlib.Z_DEFAULT_STRATEGY
        image.save(stream, "PNG", compress_level=PNG_LEVEL, compress_type=strategy)
    elif kind == "webp":
        profile = image.info.get("icc_profile", b"")  # Pillow loses it where it converts the mode
        image.save(stream, "WEBP", lossless=True, quality=50, method=3, icc_profile=profile)
    else:
        image.save(stream, "GIF")
    return stream.getvalue()


def _alpha(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode in ("La", "RGBa"):  # premultiplied; Pillow converts them only to their plain twins
        image = image.convert(image.mode.upper())
    plain = image if image.getbands()[-1] == "A" else image.convert("RGBA")
    return np.asarray(plain.getchannel("A"))


def _apart(colours: NDArray[np.uint8], painted: NDArray[np.uint8], space: Space) -> NDArray[np.float32]:
    """Squared distance of each colour, (m,), to what it is painted in."""
    squared: NDArray[np.float32] = ((to_space(colours, space) - to_space(painted, space)) ** 2).sum(axis=0)
    return squared


def _mean(table: ColourTable, squared: NDArray[np.float32]) -> float:
    return mean_squared_error(table, squared) if len(table) else 0.0


def _image(picture: Picture, flat: NDArray[np.integer], palette: NDArray[np.uint8]) -> Image.Image:
    """Image of the palette indices of the opaque pixels."""
    opaque, shape = picture.opaque, (picture.pixels.shape[0], picture.pixels.shape[1])
    if len(palette) > PALETTE_COLOURS:
        if opaque is None:
            image = Image.fromarray(palette[flat].reshape(*shape, 3))
        else:
            pixels = np.zeros((*shape, 4), np.uint8)
            pixels[opaque, :3], pixels[opaque, 3] = palette[flat], 255
            image = Image.fromarray(pixels)
    elif opaque is None:
        image = Image.fromarray(flat.astype(np.uint8, copy=False).reshape(shape))
        image.putpalette(palette.tobytes())
    else:  # the transparent entry stands first: PNG then stores one byte of transparency
        indices = np.zeros(shape, np.uint8)
        indices[opaque] = flat + 1
        image = Image.fromarray(indices)
        image.putpalette(b"\0\0\0" + palette.tobytes())
        image.info["transparency"] = 0
    if picture.icc_profile:
        image.info["icc_profile"] = picture.icc_profile
    return image
