"""One image file, opened and decoded. A bad file is an `ImageError`.

Importing this module changes two settings of the process; both hold for all threads and cannot be set for one
call. ``PIL.Image.MAX_IMAGE_PIXELS`` becomes None: Pillow warns from 89 million pixels and refuses twice as
many, here `max_pixels` decides, before a pixel is decoded. And Pillow's warnings about damaged metadata are
not shown: one a file would fill the workers' logs, and what hinders reading the pixels is an `ImageError`. What
libtiff itself writes to standard error of damaged files stays: Pillow has no switch for it, and turning the
descriptor away would turn away what other threads write.
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

from kmeans_dask.sources.normalize import Filter, Mode, Range, Resize, extremes, normalize, range_of, to_bytes

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
"""Formats that are read; HEIF with the extra ``heif``. Left out: what starts another program (EPS), what can hide an
image larger than its header says (ICO, ICNS), and what is told by guessing (TGA would read some text files)."""

_HINT = "" if "HEIF" in FORMATS else "; HEIC needs the extra heif"

_IN_MEMORY = 32 * 2**20
"""Files up to 32 MiB are read at once (a third faster for files of 300 bytes); of larger ones Pillow reads
the header first, so that a huge file costs no memory before its size is known."""

_ORIENTATION, _TURNED = 0x0112, range(2, 9)
"""Tag of the orientation (EXIF 2.32, 4.6.4; TIFF has the same) and its values that ask for a turn or a mirror."""

_ORIENTATION_KEYS = frozenset(("exif", "Raw profile type exif", "xmp", "XML:com.adobe.xmp"))

_DRAFT_MARGIN = 4
"""A JPEG is decoded smaller down to 4 times the size. 3,416 x 5,120 to 64 x 64: 5 times faster, 0.6 grey levels
away in the mean; without a margin (250 x 250 to 64 x 64 at 1/2) it would be 2.6 levels, to save a quarter."""


class ImageError(ValueError):
    """An image that cannot be used.

    Attributes
    ----------
    status : str
        ``missing``, ``unreadable`` or ``too large``; ``crashed`` or ``hung`` of one that ended its process.
        ``str(error)`` is the reason, one line for people.
    """

    def __init__(self, status: Status, reason: str) -> None:
        super().__init__(status, reason)
        self.status = status
        self.reason = reason

    def __str__(self) -> str:
        """Return the reason."""
        return self.reason


Plain = bytes | str | os.PathLike[str] | BinaryIO | NDArray[Any] | ImageError
"""What an image is read from."""


class Ranged(NamedTuple):
    """An image whose numbers, where they are no bytes, have a known range."""

    content: Plain
    range: Range


Content = Plain | Ranged
"""What an image is read from, with or without the range of its numbers."""


class Decoded(NamedTuple):
    """A decoded image and what the file was before it was brought to one size and mode."""

    pixels: NDArray[np.uint8]
    """(height, width, channels) uint8."""
    width: int
    """Pixels, after the EXIF orientation."""
    height: int
    """Pixels, after the EXIF orientation."""
    mode: str
    """Pillow's mode, such as ``P`` or ``I;16``."""
    changes: list[str]
    """What was done beside resizing: keys of `normalize.POLICY`, in their order."""


class _Loaded(NamedTuple):
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
    """Read one image as a row of a collection.

    Parameters
    ----------
    file
        Path (bytes for names that are no valid text), an open binary file, pixels (height, width) or (height, width,
        1, 3 or 4) of any number type, or the error that was met on the way to them.
    size
        Height and width in pixels of the result.
    mode
        ``L``: one grey channel; ``RGB``: three.
    max_pixels
        Pixels of the file's image above which it is not decoded.
    resize, resampling, background
        See `normalize.normalize`.

    Returns
    -------
    Decoded
        Pixels (height, width, 1 or 3) uint8, the original width, height and mode, and what was done.

    Raises
    ------
    ImageError
        Whatever is wrong with the file.
    """
    if isinstance(file, np.ndarray) and file.dtype == np.uint8 and file.shape[:2] == size:
        pixels = file.reshape(*size, -1)
        if pixels.shape[2] == (1 if mode == "L" else 3):  # a row as it is wanted
            return Decoded(pixels, size[1], size[0], mode, [])
    loaded = _open(*_apart(file), max_pixels, (mode, _DRAFT_MARGIN * max(size)))
    try:
        pixels, changes = normalize(
            loaded.image, mode=mode, size=size, resize=resize, resampling=resampling, background=background
        )
    except Exception as error:  # see _open
        raise _image_error(error) from error
    return Decoded(pixels, loaded.width, loaded.height, loaded.mode, loaded.changes + changes)


def open_image(file: Content, *, max_pixels: int) -> Image.Image:
    """Open and load one image: its first frame, turned as EXIF says, in the mode of the file.

    Parameters
    ----------
    file
        Path (bytes for names that are no valid text), an open binary file, pixels (height, width) or (height, width,
        1, 3 or 4) of any number type, or the error that was met on the way to them.
    max_pixels
        Pixels (width x height) above which the image is not decoded.

    Returns
    -------
    PIL.Image.Image
        Loaded; the file is closed if it was given as a path.

    Raises
    ------
    ImageError
        Status ``missing``: no such file. ``too large``: more than `max_pixels` or than the memory.
        ``unreadable``: everything else (empty, no image, truncated, corrupt, no permission, a folder).
    """
    return _open(*_apart(file), max_pixels, None).image


def pixels_of(path: bytes) -> int:
    """Return the pixels (width x height) that the header of an image file tells; 0 if it tells none.

    No pixel is decoded, but a hostile file may end the process even so.
    """
    try:
        if not os.path.isfile(path):  # opening a pipe would wait
            return 0
        with Image.open(path, formats=FORMATS) as image:
            return image.width * image.height
    except Exception:  # see _open
        return 0


def _apart(file: Content) -> tuple[Plain, Range | None]:
    return file if isinstance(file, Ranged) else (file, None)


def _open(file: Plain, known: Range | None, max_pixels: int, draft: tuple[Mode, int] | None) -> _Loaded:
    """Open and load; `draft` is the mode and the side in pixels that a JPEG may be decoded down to."""
    if isinstance(file, ImageError):
        raise file
    try:
        if isinstance(file, np.ndarray):
            return _image_of(file, known, max_pixels)
        if not isinstance(file, (bytes, str, os.PathLike)):
            return _load(file, known, max_pixels, draft)
        with open(file, "rb", buffering=0) as raw:
            facts = os.fstat(raw.fileno())
            if not stat.S_ISREG(facts.st_mode):
                raise ImageError("unreadable", "not a regular file")
            if facts.st_size == 0:
                raise ImageError("unreadable", "empty file (0 bytes)")
            if facts.st_size <= _IN_MEMORY:
                return _load(io.BytesIO(raw.read()), known, max_pixels, draft)
            return _load(io.BufferedReader(raw), known, max_pixels, draft)
    # Hostile bytes make Pillow's decoders raise nearly anything: OSError, SyntaxError, struct.error,
    # ValueError, EOFError, KeyError, OverflowError, MemoryError. None may end the task of the other images.
    except Exception as error:
        raise _image_error(error) from error


def _load(stream: Any, known: Range | None, max_pixels: int, draft: tuple[Mode, int] | None) -> _Loaded:
    image = Image.open(stream, formats=FORMATS)
    (width, height), mode = image.size, image.mode
    _check_size(width, height, max_pixels)
    changes = []
    if _has_more_frames(image):
        changes.append("first frame")
    if draft is not None and _draft(image, *draft):
        changes.append("draft")
    if image.tile and mode[0] != "I" and ";16" in str(image.tile[0].args):
        changes.append("16 bits")  # of colours: Pillow itself takes the high byte
    turned_by_pillow = isinstance(image, TiffImagePlugin.TiffImageFile) and image.tag_v2.get(_ORIENTATION) in _TURNED
    image.load()
    loaded = image.size
    if turned_by_pillow or _turn(image):
        changes.insert(0, "turned")
    if image.size != loaded:
        width, height = height, width
    if known and image.mode[0] in "IF":
        numbers = np.asarray(image)
        grey = Image.fromarray(to_bytes(numbers, known))
        return _Loaded(grey, width, height, mode, [*changes, _kind_of(numbers.dtype)])
    return _Loaded(image, width, height, mode, changes)


def _image_of(pixels: NDArray[Any], known: Range | None, max_pixels: int) -> _Loaded:
    height, width = pixels.shape[:2]
    _check_size(width, height, max_pixels)
    if pixels.ndim == 3 and pixels.shape[2] == 1:
        pixels = pixels[:, :, 0]
    changes: list[str] = []
    if pixels.dtype == np.bool_:
        pixels = pixels * np.uint8(255)
    elif pixels.dtype != np.uint8 or known:
        is_whole = pixels.dtype.kind in "ui"
        if known is None and is_whole and pixels.dtype.itemsize != 2:
            known = range_of(pixels.dtype, *extremes(pixels), is_one_image=False)
        if not (is_whole and known == (0, 255)):  # bytes that were saved in a wider type
            changes.append(_kind_of(pixels.dtype))
        pixels = to_bytes(pixels, known)
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return _Loaded(image, width, height, image.mode, changes)


def _kind_of(dtype: np.dtype[Any]) -> str:
    return "floats" if dtype.kind == "f" else "16 bits" if dtype.itemsize == 2 else "32 bits"


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width * height > max_pixels:
        raise ImageError("too large", f"{width} x {height} pixels, more than max_pixels={max_pixels}")


def _has_more_frames(image: Image.Image) -> bool:
    with suppress(Exception):  # a damaged second frame: the first one is read
        return bool(getattr(image, "is_animated", False))
    return False


def _draft(image: Image.Image, mode: Mode, side: int) -> bool:
    """Let libjpeg decode a JPEG to 1/2, 1/4 or 1/8 where that leaves `side` pixels both ways; grey without chroma."""
    if image.format not in ("JPEG", "MPO") or min(image.size) < 2 * side:
        return False
    return image.draft("L" if mode == "L" else None, (side, side)) is not None


def _turn(image: Image.Image) -> bool:
    """Turn an image as its metadata says."""
    if _ORIENTATION_KEYS.isdisjoint(image.info):
        return False
    with suppress(Exception):  # broken metadata: the pixels are good, they stay as they lie in the file
        if image.getexif().get(_ORIENTATION) in _TURNED:
            ImageOps.exif_transpose(image, in_place=True)
            return True
    return False


def _image_error(error: Exception) -> ImageError:
    """Say what happened in one line for people."""
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
