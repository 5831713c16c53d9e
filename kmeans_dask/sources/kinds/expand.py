"""Expand an entry of ``input.path`` into sources: a folder, archive, array ..., or everything a pattern matches."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from kmeans_dask.errors import UserError
from kmeans_dask.sources.kinds.locations import file_system, full_path, is_remote, redacted
from kmeans_dask.sources.kinds.names import expand_braces, item_filter, natural_key
from kmeans_dask.sources.kinds.source_listing import ListRequest

_SUFFIX_KINDS = {
    ".tar": "tar", ".tar.gz": "tar.gz", ".tgz": "tar.gz", ".zip": "zip", ".npy": "npy", ".npz": "npz", ".zarr": "zarr",
    ".parquet": "parquet", ".pq": "parquet", ".txt": "list", ".csv": "list", ".idx": "idx", ".idx.gz": "idx",
    "-ubyte": "idx", "-ubyte.gz": "idx",
}  # fmt: skip
"""Suffix of a source's name, in any case -> kind of source."""


class SourceLocation(NamedTuple):
    """One source of items."""

    file: bytes
    """Full path or URL."""
    name: bytes
    """Prefix of its item paths if there are several sources or a pattern; for a single file, its item path."""
    kind: str
    """A value of `_SUFFIX_KINDS`, ``folder`` or ``file``."""


def find_sources(name: str, request: ListRequest, key: str) -> Iterator[SourceLocation]:
    """Yield the sources of one config entry: the entry itself, or the matches of its braces and wildcards."""
    is_existing = not is_remote(name) and os.path.lexists(full_path(name))  # its name may contain braces
    for pattern in [name] if is_existing else list(expand_braces(name)):
        file = full_path(pattern)
        has_wildcards = glob.has_magic(pattern.partition("?")[0] if is_remote(pattern) else pattern)
        if has_wildcards and (is_remote(pattern) or not os.path.lexists(file)):
            yield from _matches(file, request, key)
        else:
            base = _stem(os.path.basename(file.rstrip(b"/")))
            yield SourceLocation(file, base, _kind_of(file, pattern, key))


def _matches(pattern: bytes, request: ListRequest, key: str) -> Iterator[SourceLocation]:
    """Yield the images and other sources that match a pattern, in natural order."""
    fixed = re.split(rb"[*?\[]", pattern, maxsplit=1)[0].rpartition(b"/")[0]
    if is_remote(pattern):
        fs, path = file_system(os.fsdecode(pattern))
        files = [fs.unstrip_protocol(match).encode() for match in fs.glob(path)]
    else:
        files = list(set(_glob(pattern)))
    chosen = item_filter(request.include, request.exclude)
    sources = []
    for file in sorted(files, key=lambda file: (natural_key(file), file)):
        name = file[len(fixed) + 1 :]
        kind = _suffix_kind(file)
        if kind not in (None, "list"):
            sources.append(SourceLocation(file, _stem(name), kind or ""))
        elif chosen(name) and (is_remote(file) or not os.path.isdir(file)):
            sources.append(SourceLocation(file, name, "file"))
    if not sources:
        raise UserError(f"{key}={redacted(pattern)} matches no images or archives; correct the pattern")
    yield from sources


def _glob(pattern: bytes) -> Iterator[bytes]:
    """Yield the matches of an absolute pattern. ``**`` matches folders at any depth, but follows no links (cycles)."""
    if pattern.endswith(b"/**"):
        pattern += b"/*"
    head, deep, tail = pattern.partition(b"/**/")
    if not deep:
        yield from glob.glob(pattern)
        return
    for start in glob.glob(head or b"/"):
        for folder, folders, _ in os.walk(start):
            folders[:] = [name for name in folders if not name.startswith(b".")]
            yield from _glob(os.path.join(glob.escape(folder), tail))


def _suffix_kind(file: bytes) -> str | None:
    name = os.fsdecode(file).lower()
    if is_remote(file):
        name = name.partition("?")[0]
    return next((kind for suffix, kind in _SUFFIX_KINDS.items() if name.rstrip("/").endswith(suffix)), None)


def _kind_of(file: bytes, name: str, key: str) -> str:
    """Return the kind of a source, by its name or because it is a folder."""
    kind = _suffix_kind(file)
    if not is_remote(file):
        if not os.path.exists(file):
            raise UserError(f"{key}={name}: no such file or folder ({os.fsdecode(file)}); give an existing one")
        if os.path.isdir(file) and kind != "zarr":
            is_zarr = any(os.path.exists(file + name) for name in (b"/zarr.json", b"/.zarray", b"/.zgroup"))
            return "zarr" if is_zarr else "folder"
    if kind is not None:
        return kind
    if item_filter((), ())(file.partition(b"?")[0] if is_remote(file) else file):
        return "file"
    if is_remote(file):
        return "folder"
    raise UserError(
        f"{key}={name} is not a supported file; must be a folder, glob, image, or one of {' '.join(_SUFFIX_KINDS)}"
    )


def _stem(name: bytes) -> bytes:
    """Return a name without the suffix that determines its kind."""
    text = name.partition(b"?")[0].rstrip(b"/")
    suffixes = sorted((suffix for suffix in _SUFFIX_KINDS if suffix.startswith(".")), key=len, reverse=True)
    match = next((suffix for suffix in suffixes if text.lower().endswith(suffix.encode())), "")
    return text[: len(text) - len(match)]
