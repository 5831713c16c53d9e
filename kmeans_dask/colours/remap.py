"""One image on its way through quantization: pixels and colour table, remapping to a palette, encoding.

Fully transparent pixels have no colour: they are left out of fits and errors, and share one transparent palette entry.
Partly transparent pixels are composited over white and become opaque. Metadata is dropped, except for RGB ICC profiles;
a profile of another colour model would not fit the output.
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

FORMAT_BYTES: dict[Format, int] = {"png": 0, "webp": 30, "gif": 0}
"""Memory that the encoder of a format needs, in bytes per pixel; the memory plan of a job reads this table."""

PALETTE_SIZE = 256
"""Maximum entries of an image's palette, including the transparent one; images of more colours are written as RGB."""

PNG_LEVEL = 4
"""zlib compression level. 250 x 250 photos at K=30 on one core: 18.0 kB in 1.0 ms (level 1: 20.7 kB in 0.9 ms; level 6,
Pillow's default: 17.3 kB in 3.5 ms; level 9: 17.2 kB in 7.7 ms). Above level 4, zlib's longer searches save 4 % of the
size and take longer than all other steps together."""

_PACKED_COLOURS = 16
"""Up to this many palette entries, a byte packs several pixels and zlib finds hardly anything but runs: restricting it
to runs gives smaller files in half the time. 250 x 250 photos at K=6: 4.7 kB in 0.40 ms (level 4: 5.4 kB in 0.68 ms;
level 6: 5.1 kB in 1.5 ms). Diagrams shrink too. At K=32 files would be 15-40 % larger."""

_ERROR_BLOCK = 2**16
"""Pixels per block when errors are measured; a whole photo at once would need 50 bytes per pixel."""

_GREY_MODES = ("1", "L", "LA", "La", "I", "F")


class PreparedImage(NamedTuple):
    """An image with its colour table, ready to be quantized."""

    pixels: NDArray[np.uint8]
    """(height, width, 1 or 3) grey or RGB pixels."""
    opaque: NDArray[np.bool_] | None
    """(height, width) mask of the pixels that are not fully transparent; None: all of them."""
    icc_profile: bytes | None
    """RGB colour profile."""
    table: ColourTable
    """Colours of the opaque pixels; empty if there are none."""
    table_rows: NDArray[np.int32]
    """(n_opaque,) table row of each opaque pixel."""


def prepare_image(image: Image.Image | NDArray[np.uint8]) -> PreparedImage:
    """Extract the pixels of an image and count its colours.

    Parameters
    ----------
    image
        Pillow image of any mode, already upright; or an array (height, width, 1 or 3) or (height, width) uint8.

    Returns
    -------
    PreparedImage

    Raises
    ------
    ValueError
        The array has another dtype or shape.
    """
    opaque, icc_profile = None, None
    if isinstance(image, Image.Image):
        pixels = read_pixels(image)
        if image.has_transparency_data:
            visible = _alpha(image) > 0
            opaque = None if visible.all() else visible
        profile = image.info.get("icc_profile") or b""
        icc_profile = profile if profile[16:20] == b"RGB " else None  # colour space of the data: ICC.1:2022, 7.2.6
        del image  # frees 4 bytes per pixel if the caller has no other reference
    else:
        pixels = image[..., np.newaxis] if image.ndim == 2 else image
    if opaque is None:
        table, index = index_colours(pixels)
    elif opaque.any():
        table, index = index_colours(pixels[opaque][:, np.newaxis])
    else:
        table, index = ColourTable(np.empty((0, 3), np.uint8), np.empty(0, np.int64)), np.empty(0, np.int32)
    return PreparedImage(pixels, opaque, icc_profile, table, index)


def read_pixels(image: Image.Image) -> NDArray[np.uint8]:
    """Return the pixels of an image: (height, width, 1) uint8 if its mode is grey, else (height, width, 3)."""
    is_grey = image.mode in _GREY_MODES or image.mode.startswith("I;16")
    return to_array(image, mode="L" if is_grey else "RGB")


def remap(
    image: PreparedImage, palette: NDArray[np.uint8], *, space: Space = "rgb", dither: Dither = "none"
) -> tuple[Image.Image, dict[Space, float]]:
    """Map every pixel to a palette colour: exactly the nearest one, unless dithering is on.

    Parameters
    ----------
    image
        From `prepare_image`.
    palette : (k, 3) uint8
        May be empty if no pixel is opaque.
    space
        Colour space of the distances; dithering always uses RGB.
    dither
        See `dither.dithered`.

    Returns
    -------
    image : PIL.Image.Image
        Mode P, with the transparent entry first if there is one; above 256 colours RGB, or RGBA with transparency.
        If the transparent entry would be the 257th, it replaces the colour with the fewest pixels.
    errors : dict
        ``rgb``: mean over the opaque pixels of the squared RGB distance, summed over the channels. With space
        ``oklab``, also the same in OKLab.
    """
    table, errors = image.table, dict.fromkeys(("rgb", space), 0.0)
    if dither == "none" or len(palette) == 0:
        labels, squared = nearest(to_space(table.colours, space), np.ascontiguousarray(to_space(palette, space).T))
        flat = expand(labels, image.table_rows)
        errors = {
            measure: _mean(
                table, squared if measure == space else _squared_errors(table.colours, palette[labels], measure)
            )
            for measure in errors
        }
    else:
        flat = dithered(image.pixels, image.opaque, palette, dither).reshape(-1)
        flat = flat if image.opaque is None else flat[image.opaque.reshape(-1)]
        for start in range(0, len(flat), _ERROR_BLOCK):
            labels = flat[start : start + _ERROR_BLOCK]
            colours = table.colours[image.table_rows[start : start + _ERROR_BLOCK]]
            for measure in errors:
                squared = _squared_errors(colours, palette[labels], measure)
                errors[measure] += float(squared.sum(dtype=np.float64)) / len(flat)
    if image.opaque is not None and len(palette) == PALETTE_SIZE:
        rarest = np.bincount(flat, minlength=len(palette)).argmin()
        return remap(image, np.delete(palette, rarest, axis=0), space=space, dither=dither)
    return _to_pillow(image, flat, palette), errors


def encode(image: Image.Image, kind: Format) -> bytes:
    """Encode a remapped image losslessly.

    Parameters
    ----------
    image
        From `remap`.
    kind
        ``png``: with the fewest bits per pixel (1, 2, 4 or 8) that hold the palette. ``webp``: lossless. ``gif``: at
        most 256 colours, without the ICC profile.

    Returns
    -------
    bytes

    Raises
    ------
    OSError, ValueError, struct.error
        The format does not support this image size or mode.
    """
    stream = io.BytesIO()
    if kind == "png":
        packed = image.palette is not None and len(image.palette.palette) <= 3 * _PACKED_COLOURS
        strategy = zlib.Z_RLE if packed else zlib.Z_DEFAULT_STRATEGY
        image.save(stream, "PNG", compress_level=PNG_LEVEL, compress_type=strategy)
    elif kind == "webp":
        profile = image.info.get("icc_profile", b"")  # Pillow drops the profile when it converts the mode
        image.save(stream, "WEBP", lossless=True, quality=50, method=3, icc_profile=profile)
    else:
        image.save(stream, "GIF")
    return stream.getvalue()


def _alpha(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode in ("La", "RGBa"):  # premultiplied; Pillow converts them only to LA and RGBA
        image = image.convert(image.mode.upper())
    plain = image if image.getbands()[-1] == "A" else image.convert("RGBA")
    return np.asarray(plain.getchannel("A"))


def _squared_errors(colours: NDArray[np.uint8], remapped: NDArray[np.uint8], space: Space) -> NDArray[np.float32]:
    """Return the squared distance of each colour to its replacement, (m,) float32, summed over the channels."""
    squared: NDArray[np.float32] = ((to_space(colours, space) - to_space(remapped, space)) ** 2).sum(axis=0)
    return squared


def _mean(table: ColourTable, squared: NDArray[np.float32]) -> float:
    return mean_squared_error(table, squared) if len(table) else 0.0


def _to_pillow(image: PreparedImage, flat: NDArray[np.integer], palette: NDArray[np.uint8]) -> Image.Image:
    """Build the output image from the palette indices of the opaque pixels."""
    opaque, shape = image.opaque, (image.pixels.shape[0], image.pixels.shape[1])
    if len(palette) > PALETTE_SIZE:
        if opaque is None:
            output = Image.fromarray(palette[flat].reshape(*shape, 3))
        else:
            pixels = np.zeros((*shape, 4), np.uint8)
            pixels[opaque, :3], pixels[opaque, 3] = palette[flat], 255
            output = Image.fromarray(pixels)
    elif opaque is None:
        output = Image.fromarray(flat.astype(np.uint8, copy=False).reshape(shape))
        output.putpalette(palette.tobytes())
    else:  # the transparent entry comes first, so that PNG stores a single byte of transparency
        indices = np.zeros(shape, np.uint8)
        indices[opaque] = flat + 1
        output = Image.fromarray(indices)
        output.putpalette(b"\0\0\0" + palette.tobytes())
        output.info["transparency"] = 0
    if image.icc_profile:
        output.info["icc_profile"] = image.icc_profile
    return output
