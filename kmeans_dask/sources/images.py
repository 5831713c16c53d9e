"""Open and decode a single image; any bad file raises `ImageError`.

Importing this module changes two process-wide settings that Pillow cannot set per call:

- ``PIL.Image.MAX_IMAGE_PIXELS`` becomes None. Pillow warns above 89 million pixels and refuses twice as many; here
  `max_pixels` decides, before any pixel is decoded.
- Pillow's warnings about damaged metadata are silenced. One per file would flood the worker logs, and anything that
  prevents reading the pixels raises `ImageError` anyway.

libtiff still writes to standard error about damaged files: Pillow has no switch for it, and redirecting the file
descriptor would swallow the output of other threads.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import warnings
from contextlib import suppress
from typing import Any, BinaryIO, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, TiffImagePlugin, UnidentifiedImageError

from kmeans_dask.sources.normalize import Filter, Mode, Range, Resize, extremes, infer_range, normalize, to_bytes

Status = Literal["missing", "unreadable", "too large", "crashed", "hung"]

Image.MAX_IMAGE_PIXELS = None
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")

Image.init()
with suppress(ImportError):  # the extra heif
    from pi_heif import register_heif_opener

    register_heif_opener()

FORMATS = tuple(
    name
    for name in ("PNG", "JPEG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "PPM", "JPEG2000", "AVIF", "HEIF")
    if name in Image.OPEN
)
"""Supported formats; HEIF needs the extra ``heif``. Excluded: EPS, which runs another program; ICO and ICNS, which can
hide an image larger than their header claims; TGA, which has no signature and would accept some text files."""

_HINT = "" if "HEIF" in FORMATS else "; HEIC needs the extra heif"

_READ_WHOLE_BYTES = 32 * 2**20
"""Files up to 32 MiB are read in one go (a third faster for 300-byte files). For larger ones Pillow reads the header
first, so a huge file costs no memory before its dimensions have been checked."""

_ORIENTATION, _ROTATED = 0x0112, range(2, 9)
"""Orientation tag (EXIF 2.32, 4.6.4; the same in TIFF), and its values that require a rotation or reflection."""

_ORIENTATION_KEYS = frozenset(("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"))

_DRAFT_MARGIN = 4
"""JPEGs are decoded at reduced scale, but never below 4 times the target size. From 3,416 x 5,120 to 64 x 64 this is
5 times faster, with a mean difference of 0.6 grey levels. Without the margin (250 x 250 to 64 x 64 at 1/2) the
difference would be 2.6 levels, for a quarter of the time saved."""


class ImageError(ValueError):
    """An image that cannot be used; ``str(error)`` is the reason, in one line.

    Attributes
    ----------
    status : str
        ``missing``, ``unreadable`` or ``too large``; ``crashed`` or ``hung`` if decoding killed or blocked its process.
    reason : str
        One line, meant for people.
    """

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(status, reason)
        self.status = status
        self.reason = reason

    def __str__(self) -> str:
        """Return the reason."""
        return self.reason


Plain = bytes | str | os.PathLike[str] | BinaryIO | NDArray[Any] | ImageError
"""Anything an image can be read from."""


class Ranged(NamedTuple):
    """An image whose value range is known, in case its values are not bytes."""

    content: Plain
    """Where the image is read from."""
    range: Range
    """Values shown as black and as white."""


Content = Plain | Ranged
"""Anything an image can be read from, with or without a value range."""


class Decoded(NamedTuple):
    """A decoded image in the requested size and mode, with facts about the original."""

    pixels: NDArray[np.uint8]
    """(height, width, channels) uint8."""
    width: int
    """Original width in pixels, after applying the EXIF orientation."""
    height: int
    """Original height in pixels, after applying the EXIF orientation."""
    mode: str
    """Original Pillow mode, such as ``P`` or ``I;16``."""
    changes: list[str]
    """Conversions applied besides resizing: keys of `normalize.POLICY`, in its order."""


class _Loaded(NamedTuple):
    """An opened image, with the facts about the original that `Decoded` reports."""

    image: Image.Image
    width: int
    height: int
    mode: str
    changes: list[str]


def decode(
    file: Content,
    *,
    size: tuple[int, int],
    mode: Mode,
    max_pixels: int,
    resize: Resize = "stretch",
    resampling: Filter = "box",
    background: str = "white",
) -> Decoded:
    """Decode one image into a row of a collection.

    Parameters
    ----------
    file
        Path (bytes for names that are not valid text), open binary file, pixel array of shape (height, width) or
        (height, width, 1 | 3 | 4) and any numeric dtype, or the error raised while fetching it.
    size
        Height and width of the result in pixels.
    mode
        ``L`` for one grey channel, ``RGB`` for three.
    max_pixels
        Largest image (width x height, in pixels) that is decoded.
    resize, resampling, background
        See `normalize.normalize`.

    Returns
    -------
    Decoded
        Pixels (height, width, 1 or 3) uint8, the original width, height and mode, and the conversions applied.

    Raises
    ------
    ImageError
        The image cannot be used, for any reason.
    """
    if isinstance(file, np.ndarray) and file.dtype == np.uint8 and file.shape[:2] == size:
        pixels = file.reshape(*size, -1)
        if pixels.shape[2] == (1 if mode == "L" else 3):  # already in the requested form
            return Decoded(pixels, size[1], size[0], mode, [])
    loaded = _open(*_split_range(file), max_pixels, (mode, _DRAFT_MARGIN * max(size)))
    try:
        pixels, changes = normalize(
            loaded.image, mode=mode, size=size, resize=resize, resampling=resampling, background=background
        )
    except Exception as error:  # see _open
        raise _image_error(error) from error
    return Decoded(pixels, loaded.width, loaded.height, loaded.mode, loaded.changes + changes)


def open_image(file: Content, *, max_pixels: int) -> Image.Image:
    """Open and load one image: the first frame, upright according to EXIF, in the mode of the file.

    Parameters
    ----------
    file
        Path (bytes for names that are not valid text), open binary file, pixel array of shape (height, width) or
        (height, width, 1 | 3 | 4) and any numeric dtype, or the error raised while fetching it.
    max_pixels
        Largest image (width x height, in pixels) that is decoded.

    Returns
    -------
    PIL.Image.Image
        Fully loaded; the file is closed if `file` is a path.

    Raises
    ------
    ImageError
        ``missing``: no such file. ``too large``: exceeds `max_pixels` or the available memory. ``unreadable``:
        everything else (empty, not an image, truncated, corrupt, no permission, a folder).
    """
    return _open(*_split_range(file), max_pixels, None).image


def header_pixels(path: bytes) -> int:
    """Return width x height according to the header of an image file, or 0 if it cannot be read.

    No pixel is decoded, but even so a hostile file may crash the process.
    """
    try:
        if not os.path.isfile(path):  # opening a pipe would block
            return 0
        with Image.open(path, formats=FORMATS) as image:
            return image.width * image.height
    except Exception:  # see _open
        return 0


def _split_range(file: Content) -> tuple[Plain, Range | None]:
    return file if isinstance(file, Ranged) else (file, None)


def _open(file: Plain, known_range: Range | None, max_pixels: int, draft: tuple[Mode, int] | None) -> _Loaded:
    """Open and load; `draft` is the target mode and the smallest side in pixels for reduced-scale JPEG decoding."""
    if isinstance(file, ImageError):
        raise file
    try:
        if isinstance(file, np.ndarray):
            return _image_of(file, known_range, max_pixels)
        if not isinstance(file, (bytes, str, os.PathLike)):
            return _load(file, known_range, max_pixels, draft)
        with open(file, "rb", buffering=0) as raw:
            facts = os.fstat(raw.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise ImageError("unreadable", "not a regular file")
            if facts.st_size == 0:
                raise ImageError("unreadable", "empty file (0 bytes)")
            if facts.st_size <= _READ_WHOLE_BYTES:
                return _load(io.BytesIO(raw.read()), known_range, max_pixels, draft)
            return _load(io.BufferedReader(raw), known_range, max_pixels, draft)
    # Hostile bytes make Pillow's decoders raise nearly anything: OSError, SyntaxError, struct.error,
    # ValueError, EOFError, KeyError, OverflowError, MemoryError. None may fail the task of the other images.
    except Exception as error:
        raise _image_error(error) from error


def _load(stream: Any, known_range: Range | None, max_pixels: int, draft: tuple[Mode, int] | None) -> _Loaded:
    image = Image.open(stream, formats=FORMATS)
    (width, height), mode = image.size, image.mode
    _check_size(width, height, max_pixels)
    changes = []
    if _has_more_frames(image):
        changes.append("first frame")
    if draft is not None and _draft(image, *draft):
        changes.append("draft")
    if image.tile and mode[0] != "I" and ";16" in str(image.tile[0].args):
        changes.append("16 bits")  # colour images: Pillow itself keeps only the high byte
    upright_by_pillow = isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_ORIENTATION) in _ROTATED
    image.load()
    stored_size = image.size
    if upright_by_pillow or _make_upright(image):
        changes.insert(0, "turned")
    if image.size != stored_size:
        width, height = height, width
    if known_range and image.mode[0] in "IF":
        values = np.asarray(image)
        grey = Image.fromarray(to_bytes(values, known_range))
        return _Loaded(grey, width, height, mode, [*changes, _kind_of(values.dtype)])
    return _Loaded(image, width, height, mode, changes)


def _image_of(pixels: NDArray[Any], known_range: Range | None, max_pixels: int) -> _Loaded:
    height, width = pixels.shape[:2]
    _check_size(width, height, max_pixels)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    changes: list[str] = []
    if pixels.dtype == np.bool_:
        pixels = pixels * np.uint8(255)
    elif pixels.dtype != np.uint8 or known_range:
        is_integer = pixels.dtype.kind in "ui"
        if known_range is None and is_integer and pixels.dtype.itemsize != 2:
            known_range = infer_range(pixels.dtype, *extremes(pixels), is_one_image=False)
        if not (is_integer and known_range == (0, 255)):  # not bytes merely saved in a wider dtype
            changes.append(_kind_of(pixels.dtype))
        pixels = to_bytes(pixels, known_range)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return _Loaded(image, width, height, image.mode, changes)


def _kind_of(dtype: np.dtype[Any]) -> str:
    return "floats" if dtype.kind == "f" else "16 bits" if dtype.itemsize == 2 else "32 bits"


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError("too large", f"{width} x {height} pixels, more than max_pixels={max_pixels}")


def _has_more_frames(image: Image.Image) -> bool:
    with suppress(Exception):  # a damaged second frame does not affect the first
        return bool(getattr(image, "is_animated", False))
    return False


def _draft(image: Image.Image, mode: Mode, side: int) -> bool:
    """Decode a JPEG at 1/2, 1/4 or 1/8 if both sides stay >= `side` pixels; skip the chroma for grey."""
    if image.format not in ("JPEG", "MPO") or min(image.size) < 2 * side:
        return False
    return image.draft("L" if mode == "L" else None, (side, side)) is not None


def _make_upright(image: Image.Image) -> bool:
    """Make the image upright according to its metadata; return whether it changed."""
    if _ORIENTATION_KEYS.isdisjoint(image.info):
        return False
    with suppress(Exception):  # broken metadata: the pixels are still good, keep their orientation
        if image.getexif().get(_ORIENTATION) in _ROTATED:
            ImageOps.exif_transpose(image, in_place=True)
            return True
    return False


def _image_error(error: Exception) -> ImageError:
    """Turn any exception into a one-line `ImageError`."""
    if isinstance(error, ImageError):
        return error
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return ImageError("missing", "no such file")
    if isinstance(error, MemoryError):
        return ImageError("too large", "not enough memory to decode it")
    if isinstance(error, UnidentifiedImageError):
        return ImageError("unreadable", f"not an image, or a damaged header (read: {', '.join(FORMATS)}{_HINT})")
    if isinstance(error, OSError) and error.errno is not None:
        is_folder = error.errno == errno.EISDIR
        return ImageError("unreadable", "a folder, not a file" if is_folder else os.strerror(error.errno))
    message = " ".join(str(error).split()) or "damaged data"
    if not isinstance(error, OSError):
        message = f"{type(error).__name__}: {message}"
    return ImageError("unreadable", message[:200])


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode (height, width) grey or (height, width, 3) colour uint8 pixels as the bytes of a PNG file."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()
