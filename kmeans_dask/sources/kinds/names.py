"""File names: which paths are items, their natural order, and pattern expansion."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterator, Sequence

SUFFIXES = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".webp",
    ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".jp2", ".j2k", ".avif", ".heic", ".heif", ".hif",
)  # fmt: skip
"""File names with these suffixes, in any case, are items; only decoding shows whether they are images."""

_SUFFIX_BYTES = tuple(suffix.encode() for suffix in SUFFIXES)


def decode_name(path: bytes) -> str:
    """Decode a file name; bytes that are not UTF-8 become backslash escapes."""
    return path.decode("utf-8", "backslashreplace")


def item_filter(include: Sequence[str], exclude: Sequence[str]) -> Callable[[bytes], bool]:
    """Return a function that checks whether a relative path is an item.

    Parameters
    ----------
    include
        Shell patterns for the whole path, in which ``*`` also matches ``/``; if empty, all names that end in one of
        `SUFFIXES`.
    exclude
        Patterns of paths to skip. A trailing ``/`` means everything below that folder.

    Returns
    -------
    callable
        (path as bytes) -> bool.
    """
    if not include and not exclude:
        return lambda path: path.lower().endswith(_SUFFIX_BYTES)
    included, excluded = _any_of(include), _any_of(exclude)

    def is_item(path: bytes) -> bool:
        text = decode_name(path)
        is_included = included(text) if include else path.lower().endswith(_SUFFIX_BYTES)
        return is_included and not excluded(text)

    return is_item


def excludes_folder(exclude: Sequence[str]) -> Callable[[bytes], bool]:
    """Return a function that checks whether everything below a folder is excluded, so that it need not be read."""
    excluded = _any_of([pattern for pattern in exclude if pattern.endswith(("*", "/"))])
    return lambda path: excluded(decode_name(path) + "/")


def natural_key(path: bytes) -> bytes:
    """Return a natural sort key (``img2`` before ``img10``). Names that differ only in leading zeros share a key."""
    return _DIGITS.sub(_with_length, path)


def is_hidden(path: bytes) -> bool:
    """Return whether any part of a relative path begins with a dot."""
    return path.startswith(b".") or b"/." in path


def expand_braces(pattern: str) -> Iterator[str]:
    """Expand all ``{a,b}`` and ``{000..127}`` in a pattern, as in a shell."""
    match = re.search(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}", pattern)
    if match is None:
        yield pattern
        return
    span = re.fullmatch(r"([0-9]+)\.\.([0-9]+)", match[1])
    if span:
        width = len(span[1]) if span[1].startswith("0") else 0
        choices = [str(number).zfill(width) for number in range(int(span[1]), int(span[2]) + 1)]
    else:
        choices = match[1].split(",")
    for choice in choices:
        yield from expand_braces(pattern[: match.start()] + choice + pattern[match.end() :])


def _any_of(patterns: Sequence[str]) -> Callable[[str], bool]:
    globs = [f"{pattern}*" if pattern.endswith("/") else pattern for pattern in patterns]
    matcher = re.compile("|".join(map(fnmatch.translate, globs)) or r"(?!)")
    return lambda text: matcher.match(text) is not None


_DIGITS = re.compile(rb"0*([0-9]+)")


def _with_length(digits: re.Match[bytes]) -> bytes:
    """Prefix a number with its length so that byte order is numeric order; the prefix sorts among the digits."""
    number = digits[1]
    size = len(number)
    return _LENGTHS[size] + number if size < 256 else b"0%c%c%b" % (*divmod(min(size, 0xFFFF), 256), number)


_LENGTHS = [b"0\0%c" % size for size in range(256)]
