"""Archives, read without unpacking them: the members of a tar or zip file are indexed once, and read by position."""

from __future__ import annotations

import gzip
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from io import BytesIO
from typing import Any, BinaryIO, NamedTuple, cast

from kmeans_dask.errors import UserError
from kmeans_dask.sources.images import ImageError
from kmeans_dask.sources.kinds.locations import look_at, not_there, open_stream, shown
from kmeans_dask.sources.kinds.names import is_hidden, item_filter, natural_key, text_of_name
from kmeans_dask.sources.kinds.source_listing import ListRequest, SourceListing, found

_MOST_BYTES = 2**30
"""A member above 1 GiB is not read: it would be in memory as a whole."""
_MOST_BESIDE = 2**24
"""A file beside an image tells nothing if it is above 16 MiB."""
_ZIP_HEADER = struct.Struct("<4s2xHH4xI8xHH")
"""Of a member: signature, flags, method, checksum, lengths of name and extra field; 30 bytes."""
_ZIP_ENCRYPTED, _ZIP_SUMS_BEHIND = 1, 8
"""Flags of a member; of the second, the checksum stands behind the data."""
_TAR_BLOCK = 512
_SPARSE = -1
"""Position of a member whose zeros are left out of the tar file: its bytes are in no one place."""
_DAMAGE = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, NotImplementedError, ValueError,
    RuntimeError,  # a member that is encrypted
)  # fmt: skip
"""What the standard library raises of damaged archives."""


class _Member(NamedTuple):
    """One file of an archive; tuples sort in natural order, then by the bytes of the path."""

    key: bytes
    path: bytes
    position: int
    bytes: int


def list_archive(file: bytes, inside: str, wanted: ListRequest) -> SourceListing:
    """Index the images of an archive, in natural order. Hidden members, symbolic links and folders are skipped.

    Parameters
    ----------
    file
        Full path or URL.
    inside
        ``tar``, ``tar.gz`` or ``zip``. A tar.gz file is decompressed once to be indexed, and by every task from its
        beginning to the last image that the task reads.
    wanted
        Patterns, and whether files beside the images are read.

    Returns
    -------
    SourceListing

    Raises
    ------
    UserError
        It is no such archive, is cut off, or holds no image.
    """
    chosen = item_filter(wanted.include, wanted.exclude)
    told: dict[bytes, Any] = {}
    members: dict[bytes, _Member] = {}  # of members with one name the last one counts, as when it is unpacked
    try:
        with open_stream(file) as stream:
            found_members = _zip_members(stream) if inside == "zip" else _tar_members(stream, inside, members)
            for path, position, size, read in found_members:
                if is_hidden(path):
                    continue
                if chosen(path):
                    members[path] = _Member(natural_key(path), path, position, size)
                elif wanted.beside is not None and path.endswith(wanted.beside.ending):
                    told[os.path.splitext(path)[0]] = wanted.beside.value(read())
    except FileNotFoundError:
        raise not_there(file) from None
    except _DAMAGE as error:
        raise UserError(f"{shown(file)} cannot be read as {inside}: {shown(error)}; make it anew") from None
    if not members:
        raise UserError(f"{shown(file)} holds no image; give input.include if they have other endings than usual")
    files = sorted(members.values())
    items = found(
        len(files),
        file=file,
        inside=inside,
        position=[member.position for member in files],
        path=[text_of_name(member.path) for member in files],
        bytes=[member.bytes for member in files],
        mtime_ns=look_at(file)[1],
    )
    values = None if wanted.beside is None else [told.get(os.path.splitext(member.path)[0]) for member in files]
    return SourceListing(items, beside=values)


def member_reader(stream: BinaryIO, inside: str) -> Callable[[int, int], BytesIO]:
    """Make the function that reads a member: (position, bytes) -> its bytes as a file.

    Parameters
    ----------
    stream
        The archive, open.
    inside
        ``tar``, ``tar.gz`` or ``zip``.

    Returns
    -------
    callable
        It raises `images.ImageError` for a member that is damaged, encrypted or larger than 1 GiB.
    """
    if inside == "zip":
        return lambda position, size: BytesIO(_zip_member(stream, position, size))
    plain = stream if inside == "tar" else cast(BinaryIO, gzip.GzipFile(fileobj=stream))

    def read(position: int, size: int) -> BytesIO:
        if position == _SPARSE:
            raise ImageError("unreadable", "stored as a sparse file in the tar archive; make it without --sparse")
        _check_size(size)
        plain.seek(position)
        return BytesIO(_exactly(plain, size))

    return read


def _tar_members(
    stream: BinaryIO, inside: str, known: Mapping[bytes, _Member]
) -> Iterator[tuple[bytes, int, int, Callable[[], bytes]]]:
    """Yield the files of a tar archive; `known` are those that were chosen up to now, which hard links may name."""
    plain = gzip.GzipFile(fileobj=stream) if inside == "tar.gz" else stream
    with tarfile.open(fileobj=plain, mode="r:", encoding="utf-8", errors="surrogateescape") as archive:
        for info in archive:
            archive.members.clear()  # type: ignore[attr-defined]  # it would keep all: a gigabyte for a million
            name = os.fsencode(info.name).removeprefix(b"./")
            if info.isreg():
                position = _SPARSE if info.issparse() else info.offset_data
                yield name, position, info.size, partial(_extract, archive, info)
            elif info.islnk() and (same := known.get(os.fsencode(info.linkname).removeprefix(b"./"))):
                yield name, same.position, same.bytes, bytes
        # a damaged header is taken for the end, and the members behind it would be missing without a word
        plain.seek(archive.offset)
        if plain.read(_TAR_BLOCK) != bytes(_TAR_BLOCK):
            raise tarfile.ReadError(f"damaged or cut off at byte {archive.offset:,}")
        while inside == "tar.gz" and plain.read(2**20):
            pass  # to its end, where the checksum stands


def _extract(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(info)
    return file.read(_MOST_BESIDE) if file else b""


def _zip_members(stream: BinaryIO) -> Iterator[tuple[bytes, int, int, Callable[[], bytes]]]:
    with zipfile.ZipFile(stream) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                name = info.filename.encode("utf-8", "surrogateescape")
                yield name, info.header_offset, info.compress_size, partial(_read, archive, info)


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    return archive.read(info) if info.file_size <= _MOST_BESIDE else b""  # and it reads no more than that


def _zip_member(stream: BinaryIO, position: int, size: int) -> bytes:
    """Read a member by its header, without the directory: that of a million members takes seconds to read."""
    _check_size(size)
    stream.seek(position)
    signature, flags, method, checksum, name, extra = _ZIP_HEADER.unpack(_exactly(stream, _ZIP_HEADER.size))
    if signature != b"PK\x03\x04":
        raise ImageError("unreadable", "the zip archive is damaged here, or has changed")
    if flags & _ZIP_ENCRYPTED:
        raise ImageError("unreadable", "encrypted in the zip archive")
    stream.seek(name + extra, os.SEEK_CUR)
    data = _exactly(stream, size)
    if flags & _ZIP_SUMS_BEHIND:
        behind = _exactly(stream, 8)
        checksum = int.from_bytes(behind[4:] if behind.startswith(b"PK\x07\x08") else behind[:4], "little")
    if method == zipfile.ZIP_DEFLATED:
        data = _inflated(data)
    elif method != zipfile.ZIP_STORED:
        raise ImageError("unreadable", f"compression method {method} of the zip archive; stored and deflated are read")
    if zlib.crc32(data) != checksum:
        raise ImageError("unreadable", "damaged in the zip archive: its checksum is another one")
    return data


def _inflated(data: bytes) -> bytes:
    unpack = zlib.decompressobj(-zlib.MAX_WBITS)
    plain = unpack.decompress(data, _MOST_BYTES)
    if not unpack.eof:
        raise ImageError("too large" if unpack.unconsumed_tail else "unreadable", "its compressed data do not end")
    return plain


def _check_size(size: int) -> None:
    if size > _MOST_BYTES:
        raise ImageError("too large", f"{size:,} bytes in an archive; at most {_MOST_BYTES:,} are read")


def _exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise ImageError("unreadable", "the archive ends within it")
    return data
