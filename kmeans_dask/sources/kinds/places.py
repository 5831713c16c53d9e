"""What an entry of ``input.path`` stands for: a folder, an archive, an array, or all that a pattern matches."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

from kmeans_dask.errors import UserError
from kmeans_dask.sources.kinds.locations import file_system, full_name, is_remote, shown
from kmeans_dask.sources.kinds.names import expand_braces, item_filter, natural_key
from kmeans_dask.sources.kinds.source_listing import ListRequest

_KINDS = {
    ".tar": "tar", ".tar.gz": "tar.gz", ".tgz": "tar.gz", ".zip": "zip", ".npy": "npy", ".npz": "npz", ".zarr": "zarr",
    ".parquet": "parquet", ".pq": "parquet", ".txt": "list", ".csv": "list", ".idx": "idx", ".idx.gz": "idx",
    "-ubyte": "idx", "-ubyte.gz": "idx",
}  # fmt: skip
"""How the name of a source ends, in upper or lower case, and what it is."""


class Place(NamedTuple):
    """One source."""

    file: bytes
    """Full path or URL."""
    name: bytes
    """Stands before the paths of its items where there are several sources or a pattern; name of a single file."""
    kind: str
    """A value of `_KINDS`, ``folder`` or ``file``."""


def find_places(name: str, wanted: ListRequest, key: str) -> Iterator[Place]:
    """Yield the sources that one entry of the config stands for: itself, or what its braces and ``*`` match."""
    file = full_name(name)
    if is_remote(name) or os.path.lexists(file):
        patterns = list(expand_braces(name)) if is_remote(name) else [name]
    else:
        patterns = list(expand_braces(name))
    for pattern in patterns:
        file = full_name(pattern)
        magic = glob.has_magic(pattern.partition("?")[0] if is_remote(pattern) else pattern)
        if magic and (is_remote(pattern) or not os.path.lexists(file)):
            yield from _matches(file, wanted, key)
        else:
            base = _stem(os.path.basename(file.rstrip(b"/")))
            yield Place(file, base, _kind_of(file, pattern, key))


def _matches(pattern: bytes, wanted: ListRequest, key: str) -> Iterator[Place]:
    """Yield the images and the other sources that a pattern matches, in natural order."""
    fixed = re.split(rb"[*?\[]", pattern, maxsplit=1)[0].rpartition(b"/")[0]
    if is_remote(pattern):
        fs, path = file_system(os.fsdecode(pattern))
        files = [fs.unstrip_protocol(match).encode() for match in fs.glob(path)]
    else:
        files = list(set(_glob(pattern)))
    chosen = item_filter(wanted.include, wanted.exclude)
    places = []
    for file in sorted(files, key=lambda file: (natural_key(file), file)):
        name = file[len(fixed) + 1 :]
        kind = _suffix_kind(file)
        if kind not in (None, "list"):
            places.append(Place(file, _stem(name), kind or ""))
        elif chosen(name) and (is_remote(file) or not os.path.isdir(file)):
            places.append(Place(file, name, "file"))
    if not places:
        raise UserError(f"{key}={shown(pattern)} matches no image and no archive; correct the pattern")
    yield from places


def _glob(pattern: bytes) -> Iterator[bytes]:
    """Yield what a full pattern matches. ``**`` stands for folders of any depth, but for no links: some are circles."""
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
    return next((kind for suffix, kind in _KINDS.items() if name.rstrip("/").endswith(suffix)), None)


def _kind_of(file: bytes, name: str, key: str) -> str:
    """Say what a source is: by its name, or because it is a folder."""
    kind = _suffix_kind(file)
    if not is_remote(file):
        if not os.path.exists(file):
            raise UserError(
                f"{key}={name}: there is no such file or folder ({os.fsdecode(file)}); give an existing one"
            )
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
        f"{key}={name} is a file of no kind that is read; allowed are folders, globs, images, {' '.join(_KINDS)}"
    )


def _stem(name: bytes) -> bytes:
    """Return a name without the ending that says what kind of source it is."""
    text = name.partition(b"?")[0].rstrip(b"/")
    endings = sorted((suffix for suffix in _KINDS if suffix.startswith(".")), key=len, reverse=True)
    ending = next((e for e in endings if text.lower().endswith(e.encode())), "")
    return text[: len(text) - len(ending)]
