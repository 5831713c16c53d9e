"""Which paths are items, in which order they stand, and patterns that stand for several files."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterator, Sequence

SUFFIXES = (
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".webp",
    ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".jp2", ".j2k", ".avif", ".heic", ".heif", ".hif",
)  # fmt: skip
"""A file whose name ends so, in upper or lower case, is an item; decoding shows whether it is an image."""

_ENDINGS = tuple(suffix.encode() for suffix in SUFFIXES)


def text_of_name(path: bytes) -> str:
    """Return a name as text; bytes that are no UTF-8 become backslash escapes."""
    return path.decode("utf-8", "backslashreplace")


def item_filter(include: Sequence[str], exclude: Sequence[str]) -> Callable[[bytes], bool]:
    """Make the function that says whether a relative path is an item.

    Parameters
    ----------
    include
        Shell patterns of the whole path, in which ``*`` also stands for ``/``; none: names that end as `SUFFIXES`.
    exclude
        Patterns of paths that are left out. One that ends with ``/`` stands for all that is below.

    Returns
    -------
    callable
        (path as bytes) -> bool.
    """
    if not include and not exclude:
        return lambda path: path.lower().endswith(_ENDINGS)
    wanted, unwanted = _any_of(include), _any_of(exclude)

    def chosen(path: bytes) -> bool:
        text = text_of_name(path)
        is_wanted = wanted(text) if include else path.lower().endswith(_ENDINGS)
        return is_wanted and not unwanted(text)

    return chosen


def excludes_folder(exclude: Sequence[str]) -> Callable[[bytes], bool]:
    """Make the function that says whether all below a folder is left out by a pattern, so that it need not be read."""
    unwanted = _any_of([pattern for pattern in exclude if pattern.endswith(("*", "/"))])
    return lambda path: unwanted(text_of_name(path) + "/")


def natural_key(path: bytes) -> bytes:
    """Sort key: ``img2`` before ``img10``; the rest by its bytes. Names that differ in zeros alone share a key."""
    return _DIGITS.sub(_with_length, path)


def is_hidden(path: bytes) -> bool:
    """Say whether a part of a relative path begins with a dot."""
    return path.startswith(b".") or b"/." in path


def expand_braces(pattern: str) -> Iterator[str]:
    """Yield the names that ``{a,b}`` and ``{000..127}`` in a pattern stand for, as in a shell; there may be several."""
    found = re.search(r"\{([^{}]*(?:,|\.\.)[^{}]*)\}", pattern)
    if found is None:
        yield pattern
        return
    span = re.fullmatch(r"([0-9]+)\.\.([0-9]+)", found[1])
    if span:
        width = len(span[1]) if span[1].startswith("0") else 0
        choices = [str(number).zfill(width) for number in range(int(span[1]), int(span[2]) + 1)]
    else:
        choices = found[1].split(",")
    for choice in choices:
        yield from expand_braces(pattern[: found.start()] + choice + pattern[found.end() :])


def _any_of(patterns: Sequence[str]) -> Callable[[str], bool]:
    whole = [f"{pattern}*" if pattern.endswith("/") else pattern for pattern in patterns]
    matcher = re.compile("|".join(map(fnmatch.translate, whole)) or r"(?!)")
    return lambda text: matcher.match(text) is not None


_DIGITS = re.compile(rb"0*([0-9]+)")


def _with_length(digits: re.Match[bytes]) -> bytes:
    """Write a number so that bytes sort as numbers do: its length first, which sorts where digits do."""
    number = digits[1]
    size = len(number)
    return _LENGTHS[size] + number if size < 256 else b"0%c%c%b" % (*divmod(min(size, 0xFFFF), 256), number)


_LENGTHS = [b"0\0%c" % size for size in range(256)]
