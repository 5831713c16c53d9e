"""Convert any image to 8 bits, one mode and one size, as defined by `POLICY`, and record what was done."""

from __future__ import annotations

import io
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps

Mode = Literal["L", "RGB"]
Resize = Literal["stretch", "crop", "pad"]
Filter = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]
Range = tuple[float, float]
"""Values shown as black and as white, for values that are not bytes."""

POLICY = {
    "turned": "rotated or mirrored according to the EXIF orientation",
    "first frame": "only the first frame or page is read",
    "draft": "a JPEG much larger than the target size is decoded at 1/2, 1/4 or 1/8, never below 4 times that size",
    "alpha": "composited over the background colour",
    "palette": "palette indices are converted to colours before resizing",
    "16 bits": "only the high byte is kept",
    "32 bits": "integers within 0-65535 are treated as 16 bits; others are stretched from minimum to maximum",
    "floats": "within 0-1 fractions of white, within 0-255 bytes; others are stretched from minimum to maximum",
    "CMYK by profile": "converted to sRGB through the embedded ICC profile, perceptual intent",
    "CMYK by formula": "converted with Pillow's formula, because there is no usable ICC profile",
    "colour model": "YCbCr, LAB and HSV are converted with Pillow's formulas",
    "profile unused": "the ICC profile of a grey or RGB image is ignored; its bytes are treated as sRGB",
    "colour to grey": "ITU-R 601-2 luma",
    "grey to colour": "three equal channels",
}
"""Conversion besides resizing -> how it is done. The keys are the values of the column ``changes``."""

_HIGH_BYTE: Range = (0.0, 65535.0)
_RANGE_TOLERANCE = 0.001
"""Tolerance beyond black and white for floats, as a fraction of white: 1.0000001 is a rounding error, not a byte."""

_STRIP = 256
"""Image lines composited over the background at a time."""

_GREY_MODES = ("1", "L", "LA", "La", "F")
"""Grey modes, besides those that begin with I: I, I;16, I;16B ..."""


class Normalized(NamedTuple):
    """A normalized image, ready to become a row of a collection."""

    pixels: NDArray[np.uint8]
    """(height, width, 1 or 3) uint8; may be read-only."""
    changes: list[str]
    """Conversions applied besides resizing: keys of `POLICY`."""


def to_array(image: Image.Image, *, mode: Mode) -> NDArray[np.uint8]:
    """Return the pixels of `normalize` in the original size, over white: (height, width, 1 or 3) uint8."""
    return normalize(image, mode=mode).pixels


def normalize(
    image: Image.Image,
    *,
    mode: Mode,
    size: tuple[int, int] | None = None,
    resize: Resize = "stretch",
    resampling: Filter = "box",
    background: str = "white",
) -> Normalized:
    """Convert an image of any mode to 8 bits, one mode and one size, as defined by `POLICY`.

    The mode is converted before the size: palette indices cannot be averaged, and colours hidden under transparent
    pixels must not bleed. Infinity becomes white; NaN and minus infinity become black.

    Parameters
    ----------
    image
        Upright image of any Pillow mode.
    mode
        ``L`` (grey) or ``RGB``.
    size
        Height and width in pixels; None keeps the original size.
    resize
        ``stretch``: ignore the aspect ratio. ``crop``: scale to cover the size and keep the centre. ``pad``: scale to
        fit within the size and fill the rest with the background.
    resampling
        Pillow filter. With ``box``, a pixel is the mean of the source pixels it covers (the nearest one if enlarged).
    background
        CSS colour under transparent pixels and around padded images.

    Returns
    -------
    Normalized
    """
    plain, changes = _to_grey_or_colour(image, mode, background)
    if size is not None and plain.size != (size[1], size[0]):
        plain = _to_size(plain, mode, (size[1], size[0]), resize, Image.Resampling[resampling.upper()], background)
    if plain.mode != mode:  # grey becomes RGB last: resizing one channel costs a third of three
        plain = plain.convert(mode)
    return Normalized(np.asarray(plain).reshape(plain.height, plain.width, -1), changes)


def _to_grey_or_colour(image: Image.Image, mode: Mode, background: str) -> tuple[Image.Image, list[str]]:
    """Convert an image to L or RGB, leaving grey images grey; return it with all changes, including grey to colour."""
    if image.mode == mode and not image.info:  # the common case in data sets
        return image, []
    plain, changes = _to_8_bits(image, background)
    is_grey = image.mode in _GREY_MODES or image.mode[0] == "I"
    if is_grey and mode == "RGB":
        changes.append("grey to colour")
    elif mode == "L" and not is_grey:
        changes.append("colour to grey")
    if plain.mode == "1" or (mode == "L" and plain.mode != "L"):
        plain = plain.convert("L")
    return plain, changes


def _to_8_bits(image: Image.Image, background: str) -> tuple[Image.Image, list[str]]:
    """Convert an image to mode 1, L or RGB; return it with the changes."""
    kind = image.mode
    if kind[0] in "IF":  # I, F, I;16, I;16B ...: Pillow's convert would clip them at 255
        change = {"F": "floats", "I": "32 bits"}.get(kind, "16 bits")
        return Image.fromarray(to_bytes(np.asarray(image))), [change]
    if kind == "CMYK":
        by_profile = _convert_by_profile(image)
        return by_profile or image.convert("RGB"), ["CMYK by profile" if by_profile else "CMYK by formula"]
    changes = ["profile unused"] if image.info.get("icc_profile") else []
    if kind in ("P", "PA"):
        changes.append("palette")
    elif kind in ("YCbCr", "LAB", "HSV"):
        changes.append("colour model")
    if image.has_transparency_data:
        return _composite(image, background), [*changes, "alpha"]
    return image if kind in ("1", "L", "RGB") else image.convert("RGB"), changes


def _composite(image: Image.Image, background: str) -> Image.Image:
    plain = Image.new("RGB", image.size)
    for top in range(0, image.height, _STRIP):  # whole-image steps would make three more copies of a large photo
        box = (0, top, image.width, min(top + _STRIP, image.height))
        part = image.crop(box)
        if part.mode in ("La", "RGBa"):  # premultiplied; Pillow converts these only to LA and RGBA
            part = part.convert(part.mode.upper())
        below = Image.new("RGBA", part.size, background)
        plain.paste(Image.alpha_composite(below, part.convert("RGBA")).convert("RGB"), box)
    return plain


def _convert_by_profile(image: Image.Image) -> Image.Image | None:
    """Convert CMYK to sRGB through the embedded profile; None if there is no usable one."""
    profile = image.info.get("icc_profile")
    if not profile:
        return None
    try:
        return ImageCms.applyTransform(image, _transform_of(profile))
    except (ImageCms.PyCMSError, OSError, ValueError):  # damaged, or for another colour model
        return None


@lru_cache(maxsize=4)  # building one is slower than applying it; a folder has few distinct profiles, of 0.5-2 MB
def _transform_of(profile: bytes) -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), "CMYK", "RGB"
    )


def _to_size(
    image: Image.Image, mode: Mode, size: tuple[int, int], resize: Resize, resampling: Image.Resampling, background: str
) -> Image.Image:
    """Resize an image to (width, height)."""
    if resize == "stretch":
        return image.resize(size, resampling)
    if resize == "crop":
        return ImageOps.fit(image, size, resampling)
    scale = min(size[0] / image.width, size[1] / image.height)
    inner = max(1, round(image.width * scale)), max(1, round(image.height * scale))  # 65,000 x 1 keeps one row
    padded = Image.new(mode, size, background)
    padded.paste(image.resize(inner, resampling).convert(mode), ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2))
    return padded


def infer_range(dtype: np.dtype[Any], low: float, high: float, *, is_one_image: bool) -> Range:
    """Infer the values of black and white from the smallest and largest value.

    Parameters
    ----------
    dtype
        Integer or float dtype of the values.
    low, high
        Result of `extremes`.
    is_one_image
        Whether the values come from a single image rather than a whole array. An integer image with small values only
        may just be dark, so it is treated as 16 bits; an array of hundreds of images without a value above 255 holds
        bytes.

    Returns
    -------
    Range
    """
    if low > high:  # no finite value
        return 0.0, 1.0
    is_float = dtype.kind == "f"
    integer_whites = (65535.0,) if is_one_image else (255.0, 65535.0)
    for white in (1.0, 255.0) if is_float else integer_whites:
        slack = _RANGE_TOLERANCE * white if is_float else 0.0
        if -slack <= low and high <= white + slack:
            return 0.0, white
    return low, high


def extremes(values: NDArray[Any]) -> Range:
    """Return the smallest and largest finite value; (infinity, -infinity) if there is none."""
    if values.dtype.kind != "f":
        return float(values.min()), float(values.max())
    finite = np.isfinite(values)
    return float(values.min(where=finite, initial=np.inf)), float(values.max(where=finite, initial=-np.inf))


@np.errstate(invalid="ignore")  # signalling NaNs in hostile files
def to_bytes(values: NDArray[Any], given: Range | None = None) -> NDArray[np.uint8]:
    """Scale values of any range to bytes, as defined by `POLICY`; values outside the range are clipped.

    Parameters
    ----------
    values : (height, width) or (height, width, channels)
        Integers or floats.
    given
        Values shown as black and as white; None: inferred from `values` alone.

    Returns
    -------
    ndarray of uint8
        Same shape as `values`.
    """
    if values.dtype.kind == "u" and values.dtype.itemsize == 2 and given in (None, _HIGH_BYTE):
        return (values >> 8).astype(np.uint8)
    black, white = given or infer_range(values.dtype, *extremes(values), is_one_image=True)
    by_high_byte = values.dtype.kind != "f" and (black, white) == _HIGH_BYTE
    factor = 1 / 256 if by_high_byte else 255 / (white - black) if white > black else 0.0
    round_ = np.floor if by_high_byte else np.rint
    result = np.empty(values.shape, np.uint8)
    for row in range(0, len(values), 64):  # a large photo as float64 would take eight times the memory of the result
        part = np.nan_to_num(values[row : row + 64].astype(np.float64), nan=black, posinf=white, neginf=black)
        result[row : row + 64] = round_((part.clip(black, white) - black) * factor)
    return result
