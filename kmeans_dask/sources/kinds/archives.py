"""Tar and zip archives, read without unpacking: members are indexed once, then read by position."""

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
from kmeans_dask.sources.kinds.locations import not_found, open_stream, redacted, size_and_mtime
from kmeans_dask.sources.kinds.names import decode_name, is_hidden, item_filter, natural_key
from kmeans_dask.sources.kinds.source_listing import ListRequest, SourceListing, items_table

_MAX_BYTES = 2**30
"""Members above 1 GiB are refused, as each is held in memory in full."""
_MAX_SIDECAR_BYTES = 2**24
"""Sidecar files above 16 MiB are ignored."""
_ZIP_HEADER = struct.Struct("<4s2xHH4xI8xHH")
"""Local file header (APPNOTE 4.3.7), 30 bytes: signature, flags, method, checksum, lengths of name and extra field."""
_ZIP_ENCRYPTED, _ZIP_DATA_DESCRIPTOR = 1, 8
"""Flags of a member: encrypted; checksum in a data descriptor after the data."""
_TAR_BLOCK = 512
_SPARSE = -1
"""Position of a sparse member: its zeros are omitted from the tar file, so its bytes are not contiguous."""
_DAMAGE_ERRORS = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, NotImplementedError, ValueError,
    RuntimeError,  # encrypted members
)  # fmt: skip
"""Exceptions that the standard library raises for damaged archives."""


class _Member(NamedTuple):
    """One file in an archive; tuples sort in natural order, then by the bytes of the path."""

    key: bytes
    path: bytes
    position: int
    bytes: int


def list_archive(file: bytes, inside: str, request: ListRequest) -> SourceListing:
    """Index the images of an archive, in natural order. Hidden members, symbolic links and folders are skipped.

    Parameters
    ----------
    file
        Full path or URL.
    inside
        ``tar``, ``tar.gz`` or ``zip``. A tar.gz file is decompressed once for the index, and again by every task, from
        its beginning to the last image that the task reads.
    request
        Name patterns, and the sidecar files to read.

    Returns
    -------
    SourceListing

    Raises
    ------
    UserError
        The file is not such an archive, is truncated, or contains no images.
    """
    chosen = item_filter(request.include, request.exclude)
    sidecars: dict[bytes, Any] = {}
    members: dict[bytes, _Member] = {}  # of members with the same name the last one counts, as when unpacking
    try:
        with open_stream(file) as stream:
            entries = _zip_members(stream) if inside == "zip" else _tar_members(stream, inside, members)
            for path, position, size, read in entries:
                if is_hidden(path):
                    continue
                if chosen(path):
                    members[path] = _Member(natural_key(path), path, position, size)
                elif request.sidecar is not None and path.endswith(request.sidecar.suffix):
                    sidecars[os.path.splitext(path)[0]] = request.sidecar.value(read())
    except FileNotFoundError:
        raise not_found(file) from None
    except _DAMAGE_ERRORS as error:
        raise UserError(f"{redacted(file)} cannot be read as {inside}: {redacted(error)}; recreate the file") from None
    if not members:
        raise UserError(
            f"{redacted(file)} contains no images; set input.include if their file names have unusual suffixes"
        )
    files = sorted(members.values())
    items = items_table(
        len(files),
        file=file,
        inside=inside,
        position=[member.position for member in files],
        path=[decode_name(member.path) for member in files],
        bytes=[member.bytes for member in files],
        mtime_ns=size_and_mtime(file)[1],
    )
    values = None if request.sidecar is None else [sidecars.get(os.path.splitext(member.path)[0]) for member in files]
    return SourceListing(items, sidecar_values=values)


def member_reader(stream: BinaryIO, inside: str) -> Callable[[int, int], BytesIO]:
    """Return a function that reads a member: (position, size in bytes) -> its contents as a file object.

    Parameters
    ----------
    stream
        The open archive.
    inside
        ``tar``, ``tar.gz`` or ``zip``.

    Returns
    -------
    callable
        Raises `images.ImageError` for a member that is damaged, encrypted or larger than 1 GiB.
    """
    if inside == "zip":
        return lambda position, size: BytesIO(_zip_member(stream, position, size))
    plain = stream if inside == "tar" else cast(BinaryIO, gzip.GzipFile(fileobj=stream))

    def read(position: int, size: int) -> BytesIO:
        if position == _SPARSE:
            raise ImageError(
                "unreadable", "stored as a sparse file in the tar archive; recreate the archive without --sparse"
            )
        _check_size(size)
        plain.seek(position)
        return BytesIO(_read_exactly(plain, size))

    return read


def _tar_members(
    stream: BinaryIO, inside: str, known: Mapping[bytes, _Member]
) -> Iterator[tuple[bytes, int, int, Callable[[], bytes]]]:
    """Yield the files of a tar archive; `known` are the members selected so far, which hard links may refer to."""
    plain = gzip.GzipFile(fileobj=stream) if inside == "tar.gz" else stream
    with tarfile.open(fileobj=plain, mode="r:", encoding="utf-8", errors="surrogateescape") as archive:
        for info in archive:
            archive.members.clear()  # type: ignore[attr-defined]  # it would keep every member: 1 GB for a million
            name = os.fsencode(info.name).removeprefix(b"./")
            if info.isreg():
                position = _SPARSE if info.issparse() else info.offset_data
                yield name, position, info.size, partial(_extract, archive, info)
            elif info.islnk() and (same := known.get(os.fsencode(info.linkname).removeprefix(b"./"))):
                yield name, same.position, same.bytes, bytes
        # tarfile takes a damaged header for the end, which would silently drop the members after it
        plain.seek(archive.offset)
        if plain.read(_TAR_BLOCK) != bytes(_TAR_BLOCK):
            raise tarfile.ReadError(f"damaged or truncated at byte {archive.offset:,}")
        while inside == "tar.gz" and plain.read(2**20):
            pass  # to the end, where the checksum is


def _extract(archive: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(info)
    return file.read(_MAX_SIDECAR_BYTES) if file else b""


def _zip_members(stream: BinaryIO) -> Iterator[tuple[bytes, int, int, Callable[[], bytes]]]:
    with zipfile.ZipFile(stream) as archive:
        for info in archive.infolist():
            if not info.is_dir():
                name = info.filename.encode("utf-8", "surrogateescape")
                yield name, info.header_offset, info.compress_size, partial(_read, archive, info)


def _read(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
    return archive.read(info) if info.file_size <= _MAX_SIDECAR_BYTES else b""  # zipfile reads no more than this size


def _zip_member(stream: BinaryIO, position: int, size: int) -> bytes:
    """Read a member by its local header, without the central directory, which takes seconds for a million members."""
    _check_size(size)
    stream.seek(position)
    signature, flags, method, checksum, name, extra = _ZIP_HEADER.unpack(_read_exactly(stream, _ZIP_HEADER.size))
    if signature != b"PK\x03\x04":
        raise ImageError("unreadable", "the zip archive is damaged here, or has changed since it was listed")
    if flags & _ZIP_ENCRYPTED:
        raise ImageError("unreadable", "encrypted in the zip archive")
    stream.seek(name + extra, os.SEEK_CUR)
    data = _read_exactly(stream, size)
    if flags & _ZIP_DATA_DESCRIPTOR:
        footer = _read_exactly(stream, 8)
        checksum = int.from_bytes(footer[4:] if footer.startswith(b"PK\x07\x08") else footer[:4], "little")
    if method == zipfile.ZIP_DEFLATED:
        data = _inflate(data)
    elif method != zipfile.ZIP_STORED:
        raise ImageError(
            "unreadable", f"unsupported compression method {method} in the zip archive; use stored or deflated"
        )
    if zlib.crc32(data) != checksum:
        raise ImageError("unreadable", "damaged in the zip archive (wrong checksum)")
    return data


def _inflate(data: bytes) -> bytes:
    unpack = zlib.decompressobj(-zlib.MAX_WBITS)
    plain = unpack.decompress(data, _MAX_BYTES)
    if not unpack.eof:
        if unpack.unconsumed_tail:
            raise ImageError("too large", f"more than {_MAX_BYTES:,} bytes when decompressed")
        raise ImageError("unreadable", "its compressed data is truncated")
    return plain


def _check_size(size: int) -> None:
    if size > _MAX_BYTES:
        raise ImageError("too large", f"{size:,} bytes in an archive; the limit is {_MAX_BYTES:,}")


def _read_exactly(stream: BinaryIO, size: int) -> bytes:
    data = stream.read(size)
    if len(data) < size:
        raise ImageError("unreadable", "truncated: the archive ends inside it")
    return data
