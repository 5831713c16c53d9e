"""Images of any kind brought to one: 8 bits, one mode, one size. `POLICY` says how, and each image what was done."""

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
"""Of numbers that are no bytes: which of them is black, and which is white."""

POLICY = {
    "turned": "turned as the EXIF orientation says",
    "first frame": "of an animation or of several pages the first is read",
    "draft": "a JPEG much larger than the size is decoded at 1/2, 1/4 or 1/8, never below 4 times the size",
    "alpha": "laid over the background",
    "palette": "colours are looked up before resizing",
    "16 bits": "the high byte is taken",
    "32 bits": "integers within 0-65535 are taken as 16 bits, others stretched from their minimum to their maximum",
    "floats": "within 0-1 shares of white, within 0-255 bytes, others stretched from their minimum to their maximum",
    "CMYK by profile": "to sRGB through the ICC profile of the file, perceptual intent",
    "CMYK by formula": "no usable ICC profile: Pillow's plain formula",
    "colour model": "YCbCr, LAB, HSV: Pillow's plain formulas",
    "profile unused": "an ICC profile of grey or RGB: ignored, the bytes are taken as sRGB",
    "colour to grey": "luma of ITU-R 601-2",
    "grey to colour": "three equal channels",
}
"""What may be done to an image beside resizing -> how. The keys are counted: they are the words of ``changes``."""

_HIGH_BYTE: Range = (0.0, 65535.0)
_ROUNDING = 0.001
"""Share of white that floats may be beyond black and white: 1.0000001 is a rounding error, no byte."""

_STRIP = 256
"""Lines of an image that are laid over the background at a time."""

_GREY_MODES = ("1", "L", "LA", "La", "F")
"""And I, I;16, I;16B ..."""


class Normalized(NamedTuple):
    """An image as a row of a collection."""

    pixels: NDArray[np.uint8]
    """(height, width, 1 or 3); it may be read-only."""
    changes: list[str]
    """What was done beside resizing: keys of `POLICY`."""


def to_array(image: Image.Image, *, mode: Mode) -> NDArray[np.uint8]:
    """Bring an image to 8 bits and one mode over white: the pixels of `normalize`, in the image's size."""
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
    """Bring an image of any mode to 8 bits, one mode and one size, as `POLICY` says.

    The mode comes first, then the size: indices of a palette cannot be averaged, and hidden colours under
    transparent pixels must not bleed. Of values that are not finite, infinity is white, the others are black.

    Parameters
    ----------
    image
        Any mode of Pillow, upright.
    mode
        ``L``: grey; ``RGB``.
    size
        Height and width in pixels; None keeps the image's.
    resize
        ``stretch``: stretched to the size. ``crop``: scaled until it covers the size, the middle is kept. ``pad``:
        scaled until it lies within the size, the rest is background.
    resampling
        Filter. ``box``: a pixel is the mean of the source pixels it covers (enlarged: the nearest one).
    background
        Colour as CSS writes it, under transparent pixels and around padded images.

    Returns
    -------
    Normalized
    """
    plain, changes = _to_grey_or_colour(image, mode, background)
    if size is not None and plain.size != (size[1], size[0]):
        plain = _to_size(plain, mode, (size[1], size[0]), resize, Image.Resampling[resampling.upper()], background)
    if plain.mode != mode:  # grey to RGB only now: resizing one channel costs a third
        plain = plain.convert(mode)
    return Normalized(np.asarray(plain).reshape(plain.height, plain.width, -1), changes)


def _to_grey_or_colour(image: Image.Image, mode: Mode, background: str) -> tuple[Image.Image, list[str]]:
    """Bring an image to mode L or RGB, and to L if that is wanted; tell what was done, to RGB included."""
    if image.mode == mode and not image.info:  # nearly every image of a data set
        return image, []
    plain, changes = _to_8_bits(image, background)
    is_grey = image.mode in _GREY_MODES or image.mode[0] == "I"
    if is_grey and mode == "RGB":
        changes.append("grey to colour")
    elif mode == "L" and not is_grey:
        changes.append("colour to grey")
    return plain.convert("L") if plain.mode == "1" or mode == "L" != plain.mode else plain, changes


def _to_8_bits(image: Image.Image, background: str) -> tuple[Image.Image, list[str]]:
    """Bring an image to mode 1, L or RGB; tell what was done."""
    kind = image.mode
    if kind[0] in "IF":  # I, F, I;16, I;16B ...: Pillow's convert would clip them at 255
        change = {"F": "floats", "I": "32 bits"}.get(kind, "16 bits")
        return Image.fromarray(to_bytes(np.asarray(image))), [change]
    if kind == "CMYK":
        by_profile = _by_profile(image)
        return by_profile or image.convert("RGB"), ["CMYK by profile" if by_profile else "CMYK by formula"]
    changes = ["profile unused"] if image.info.get("icc_profile") else []
    if kind in ("P", "PA"):
        changes.append("palette")
    elif kind in ("YCbCr", "LAB", "HSV"):
        changes.append("colour model")
    if image.has_transparency_data:
        return _over(image, background), [*changes, "alpha"]
    return image if kind in ("1", "L", "RGB") else image.convert("RGB"), changes


def _over(image: Image.Image, background: str) -> Image.Image:
    plain = Image.new("RGB", image.size)
    for top in range(0, image.height, _STRIP):  # whole copies of a large photo would be three more
        box = (0, top, image.width, min(top + _STRIP, image.height))
        part = image.crop(box)
        if part.mode in ("La", "RGBa"):  # premultiplied; Pillow converts them only to their plain twins
            part = part.convert(part.mode.upper())
        below = Image.new("RGBA", part.size, background)
        plain.paste(Image.alpha_composite(below, part.convert("RGBA")).convert("RGB"), box)
    return plain


def _by_profile(image: Image.Image) -> Image.Image | None:
    """Convert CMYK through the file's profile; None if there is none, or none that can be used."""
    profile = image.info.get("icc_profile")
    if not profile:
        return None
    try:
        return ImageCms.applyTransform(image, _transform_of(profile))
    except (ImageCms.PyCMSError, OSError, ValueError):  # damaged, or of another colour model
        return None


@lru_cache(maxsize=4)  # making one takes longer than using it, and a folder holds few different ones of 0.5-2 MB
def _transform_of(profile: bytes) -> ImageCms.ImageCmsTransform:
    return ImageCms.buildTransform(
        ImageCms.ImageCmsProfile(io.BytesIO(profile)), ImageCms.createProfile("sRGB"), "CMYK", "RGB"
    )


def _to_size(
    image: Image.Image, mode: Mode, size: tuple[int, int], resize: Resize, resampling: Image.Resampling, background: str
) -> Image.Image:
    """Bring an image to a size (width, height)."""
    if resize == "stretch":
        return image.resize(size, resampling)
    if resize == "crop":
        return ImageOps.fit(image, size, resampling)
    scale = min(size[0] / image.width, size[1] / image.height)
    inner = max(1, round(image.width * scale)), max(1, round(image.height * scale))  # 65,000 x 1 keeps a row
    padded = Image.new(mode, size, background)
    padded.paste(image.resize(inner, resampling).convert(mode), ((size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2))
    return padded


def range_of(dtype: np.dtype[Any], low: float, high: float, *, is_one_image: bool) -> Range:
    """Judge which numbers are black and white, by the least and the greatest one that there is.

    Parameters
    ----------
    dtype
        Integers or floats.
    low, high
        Of all numbers, as `extremes` tells.
    is_one_image
        Whether they are those of one image, not of a whole array. Of an image of integers nothing tells whether all are
        small because it is dark: they are 16 bits. An array of hundreds of images that has none above 255 is of bytes.

    Returns
    -------
    Range
    """
    if low > high:  # not one is finite
        return 0.0, 1.0
    is_float = dtype.kind == "f"
    for white in (1.0, 255.0) if is_float else (65535.0,) if is_one_image else (255.0, 65535.0):
        slack = _ROUNDING * white if is_float else 0.0
        if -slack <= low and high <= white + slack:
            return 0.0, white
    return low, high


def extremes(values: NDArray[Any]) -> Range:
    """Return the least and the greatest finite number; (infinity, -infinity) if there is none."""
    if values.dtype.kind != "f":
        return float(values.min()), float(values.max())
    finite = np.isfinite(values)
    return float(values.min(where=finite, initial=np.inf)), float(values.max(where=finite, initial=-np.inf))


@np.errstate(invalid="ignore")  # signalling NaNs, which hostile files hold
def to_bytes(values: NDArray[Any], given: Range | None = None) -> NDArray[np.uint8]:
    """Scale numbers of any range to bytes, as `POLICY` says; what is beyond the range is black or white.

    Parameters
    ----------
    values : (height, width) or (height, width, channels)
        Integers or floats.
    given
        Which of them are black and white; None: judged by these values alone.

    Returns
    -------
    uint8 of the same shape
    """
    if values.dtype.kind == "u" and values.dtype.itemsize == 2 and given in (None, _HIGH_BYTE):
        return (values >> 8).astype(np.uint8)
    black, white = given or range_of(values.dtype, *extremes(values), is_one_image=True)
    by_high_byte = values.dtype.kind != "f" and (black, white) == _HIGH_BYTE
    factor = 1 / 256 if by_high_byte else 255 / (white - black) if white > black else 0.0
    round_ = np.floor if by_high_byte else np.rint
    result = np.empty(values.shape, np.uint8)
    for row in range(0, len(values), 64):  # a whole large photo as float64 would be eight times the result
        part = np.nan_to_num(values[row : row + 64].astype(np.float64), nan=black, posinf=white, neginf=black)
        result[row : row + 64] = round_((part.clip(black, white) - black) * factor)
    return result
