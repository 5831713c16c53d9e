"""Unusual and hostile files for image folders, each with its expected outcome."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MAX_PIXELS = 1_000_000


class Expected(NamedTuple):
    """Expected outcome of a file."""

    status: str
    words: str = ""
    """Part of the error, or for readable items of the changes."""


OK = Expected("ok")
UNREADABLE = Expected("unreadable")
TOO_LARGE = Expected("too large", "more than max_pixels")


def picture(height: int = 12, width: int = 16) -> Image.Image:
    noise = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def saved(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def chunk(name: bytes, body: bytes) -> bytes:
    """Return a chunk of a PNG file."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(width: int, height: int, data: bytes, *, bits: int = 8, colour: int = 0, before: bytes = b"") -> bytes:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def zeros(count: int) -> bytes:
    """Return `count` zero bytes, compressed a thousand to one."""
    packer, part = zlib.compressobj(9), bytes(2**20)
    packed = [packer.compress(part) for _ in range(count // len(part))]
    return b"".join([*packed, packer.compress(bytes(count % len(part))), packer.flush()])


def frames(kind: str) -> bytes:
    """Return a file with three frames."""
    more = [Image.new("RGB", (16, 12), colour) for colour in ("lime", "blue")]
    return saved(picture(), kind, save_all=True, append_images=more)


def truncated() -> Iterator[tuple[str, bytes, Expected]]:
    """Truncate files at every tenth byte, up to the point where only the end marker is missing."""
    for kind, ends in (("PNG", 16), ("JPEG", 20), ("GIF", 12)):
        whole = saved(picture(), kind)
        for length in range(0, len(whole) - ends, 10):
            yield f"truncated/{kind.lower()}{length:04d}.{kind.lower()}", whole[:length], UNREADABLE


def bombs() -> Iterator[tuple[str, bytes, Expected]]:
    """Small files that demand much memory."""
    side = 20_000
    small = zlib.compress(bytes(12))
    text = zeros(200 * 2**20)
    many = b"".join(chunk(b"zTXt", b"a\0\0" + zeros(2**20 - 100)) for _ in range(80))
    yield "bombs/pixels.png", png(side, side, zeros(side * (side // 8 + 1)), bits=1), TOO_LARGE
    yield "bombs/claim.png", png(60_000, 60_000, b"x"), TOO_LARGE
    yield "bombs/wide.png", png(2**31 - 1, 1, b"x"), TOO_LARGE
    for name, keyword in (("zTXt", b"a\0\0"), ("iTXt", b"a\0\1\0\0\0"), ("iCCP", b"a\0\0")):
        before = chunk(name.encode(), keyword + text)
        yield f"bombs/{name}.png", png(3, 3, small, before=before), UNREADABLE
    yield "bombs/many texts.png", png(3, 3, small, before=many), UNREADABLE
    screen = b"GIF89a" + struct.pack("<HHBBB", 1, 1, 0, 0, 0)
    yield "bombs/frame.gif", screen + b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\2\1\0\0;", TOO_LARGE
    yield "bombs/screen.gif", b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + b";", UNREADABLE
    yield (
        "bombs/claim.bmp",
        b"BM" + struct.pack("<IIIIiiHHIIiiII", 54, 0, 54, 40, 50_000, 50_000, 1, 24, *[0] * 6),
        TOO_LARGE,
    )
    yield "bombs/claim.ppm", b"P6 99999 99999 255\n", TOO_LARGE
    whole = bytearray(saved(picture(), "JPEG"))
    frame = whole.index(b"\xff\xc0")
    whole[frame + 5 : frame + 9] = struct.pack(">HH", 65_000, 65_000)
    yield "bombs/claim.jpg", bytes(whole), TOO_LARGE
    tiff = bytearray(saved(picture(), "TIFF"))
    for tag, side_of_picture in ((256, 16), (257, 12)):
        field = tiff.index(struct.pack("<HHII", tag, 4, 1, side_of_picture))
        tiff[field + 8 : field + 12] = struct.pack("<I", 300_000)
    yield "bombs/claim.tiff", bytes(tiff), TOO_LARGE
    webp = b"VP8X" + struct.pack("<II", 10, 0) + (16_382).to_bytes(3, "little") * 2
    yield "bombs/claim.webp", b"RIFF" + struct.pack("<I", len(webp) + 4) + b"WEBP" + webp, UNREADABLE


def content() -> Iterator[tuple[str, bytes, Expected]]:
    """Files that are not images, or not what their name or header claims."""
    jpeg, whole = saved(picture(), "JPEG"), saved(picture(), "PNG")
    yield "content/empty.png", b"", Expected("unreadable", "empty file")
    yield "content/nothing.png", bytes(5000), UNREADABLE
    yield "content/noise.jpg", np.random.default_rng(1).bytes(5000), UNREADABLE
    yield "content/text.png", b"just some text\n" * 50, Expected("unreadable", "not an image")
    yield "content/page.jpg", b"<!doctype html><title>404</title>", Expected("unreadable", "not an image")
    yield "content/drawing.png", b"<svg xmlns='http://www.w3.org/2000/svg'/>", UNREADABLE
    yield "content/program.gif", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", UNREADABLE
    yield "content/archive.png", b"PK\3\4" + bytes(100), UNREADABLE
    yield "content/jpeg named.png", jpeg, OK
    yield "content/png named.JPEG", whole, OK
    yield "content/more at the end.png", whole + b"<script>" * 99, OK
    yield "content/twice.jpg", jpeg + jpeg, OK
    yield "content/more at the start.png", b"\n" + whole, UNREADABLE
    yield "content/no pixels.png", png(0, 0, zlib.compress(b"")), UNREADABLE
    yield "content/few pixels.png", png(9, 9, zlib.compress(bytes(20))), OK  # Pillow fills the rest with black
    yield "content/many pixels.png", png(9, 9, zlib.compress(bytes(2000))), OK
    yield "content/header twice.png", whole[:33] + whole[8:], OK
    yield "content/wrong sum.png", whole[:29] + b"\0\0\0\0" + whole[33:], UNREADABLE
    yield "content/no data.ppm", b"P6 10 10 255\n", UNREADABLE
    yield "content/letters.ppm", b"P3 2 2 255\nred green blue", UNREADABLE
    yield (
        "content/upside down.bmp",
        saved(picture(), "BMP")[:22] + struct.pack("<i", -12) + saved(picture(), "BMP")[26:],
        OK,
    )
    yield "content/one.png", saved(Image.new("L", (1, 1), 9), "PNG"), OK
    yield "content/wide.png", saved(Image.new("L", (65_000, 1), 9), "PNG"), OK
    yield "content/high.png", saved(Image.new("RGB", (1, 65_000), "red"), "PNG"), OK
    yield "content/wide.jpg", saved(Image.new("L", (65_000, 1), 9), "JPEG"), OK


def metadata() -> Iterator[tuple[str, bytes, Expected]]:
    """Files with orientation tags, colour profiles and broken metadata."""
    turned, broken = Image.Exif(), b"Exif\0\0II*\0\xff\xff\xff\xff"
    turned[0x0112] = 6
    for kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF"):
        yield f"metadata/turned.{kind.lower()}", saved(picture(), kind, exif=turned), Expected("ok", "turned")
    for kind in ("JPEG", "PNG", "WEBP"):
        yield f"metadata/broken exif.{kind.lower()}", saved(picture(), kind, exif=broken), OK
        profiled = saved(picture(), kind, icc_profile=b"no profile")
        yield f"metadata/broken profile.{kind.lower()}", profiled, Expected("ok", "profile unused")
    circle = b"Exif\0\0II*\0\x08\0\0\0" + struct.pack("<HHHIII", 1, 0x8769, 4, 1, 8, 8)
    yield "metadata/exif in a circle.jpg", saved(picture(), "JPEG", exif=circle), OK
    cmyk = picture().convert("CMYK")
    yield "metadata/cmyk.jpg", saved(cmyk, "JPEG"), Expected("ok", "CMYK by formula")
    yield "metadata/cmyk.tiff", saved(cmyk, "TIFF"), Expected("ok", "CMYK by formula")
    for name, profile in (("good", cmyk_profile()), ("cut", cmyk_profile()[:400]), ("text", b"no profile")):
        change = "CMYK by profile" if name == "good" else "CMYK by formula"
        yield f"metadata/cmyk {name}.jpg", saved(cmyk, "JPEG", icc_profile=profile), Expected("ok", change)
        yield f"metadata/cmyk {name}.tiff", saved(cmyk, "TIFF", icc_profile=profile), Expected("ok", change)


def modes() -> Iterator[tuple[str, bytes, Expected]]:
    """Files of every mode, and files with several frames."""
    changes = {"P": "palette", "LA": "alpha", "RGBA": "alpha", "YCbCr": "colour model", "LAB": "colour model"}
    for mode in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "LAB"):
        image = Image.new("LAB", (9, 7), (99, 120, 140)) if mode == "LAB" else picture(7, 9).convert(mode)
        yield f"modes/{mode}.tiff", saved(image, "TIFF"), Expected("ok", changes.get(mode, ""))
        if mode in ("1", "L", "LA", "P", "RGB", "RGBA"):
            yield f"modes/{mode}.png", saved(image, "PNG"), Expected("ok", changes.get(mode, ""))
    for dtype, change in (("<u2", "16 bits"), (">u2", "16 bits"), ("<i4", "32 bits"), ("<f4", "floats")):
        values = np.linspace(-9, 70_000, 63).astype(dtype).reshape(7, 9)
        yield f"modes/{dtype[1:]}{dtype[0] == '>'}.tiff", saved(Image.fromarray(values), "TIFF"), Expected("ok", change)
    floats: NDArray[np.float32] = np.full((7, 9), np.nan, np.float32)
    floats[0, :2] = np.inf, -np.inf
    yield "modes/not a number.tiff", saved(Image.fromarray(floats), "TIFF"), Expected("ok", "floats")
    yield "modes/not a number.pfm", b"Pf\n9 7\n-1.0\n" + floats.tobytes(), Expected("ok", "floats")
    yield "modes/u2.png", saved(Image.fromarray(np.full((7, 9), 999, np.uint16)), "PNG"), Expected("ok", "16 bits")
    colours = png(3, 1, zlib.compress(bytes(19)), bits=16, colour=2)
    yield "modes/u2 colours.png", colours, Expected("ok", "16 bits")
    yield "modes/u2.pgm", b"P5 2 2 65535\n" + bytes(8), Expected("ok", "32 bits")
    for kind in ("GIF", "WEBP", "PNG", "TIFF", "AVIF", "MPO"):
        name = "jpg" if kind == "MPO" else kind.lower()
        yield f"modes/frames.{name}", frames(kind), Expected("ok", "first frame")


def names() -> Iterator[tuple[bytes, bytes, Expected]]:
    """File names that are hard to handle."""
    whole = saved(picture(), "PNG")
    for name in (
        "two words", " ", "line\nbreak", "tab\t", "return\r", "quote's \"double\"", "a,b;c", "=1+1", "-rf", "--help",
        "*", "?", "[a-z]", "$(id)", "`id`", "%s%n", "{}", "back\\slash", "\\xe9", "CON", "~", "~root", "a..", "dots...",
        "\x01\x1b[31m", "<img src=x onerror=alert(1)>", "<!--", "&amp;", "{{ 7 * 7 }}", "שלום", "مرحبا", "\u202eexe",
        "日本語", "😀", "e\u0301", "\u00e9", "A", "a", "Ä", "ä", "x" * 246,
    ):  # fmt: skip
        yield os.fsencode(f"names/{name}.png"), whole, OK
    for name in (b"caf\xe9", b"\xff\xfe", b"\xc3\x28", b"\xed\xa0\x80"):
        yield b"names/" + name + b".png", whole, OK
    yield b"names/<b>label</b>/caf\xe9/" + "ש".encode() + b".png", whole, OK


def cmyk_profile() -> bytes:
    """Build a CMYK ICC profile (ICC.1:2022, 7.2 and 10.10, lut8Type): white paper, black ink, grey colours."""
    grid = [(0 if corner & 1 else 128 if corner else 255, 128, 128) for corner in range(16)]  # black varies fastest
    identity = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes((4, 3, 2, 0))
    lut += struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    lut += identity * 4 + b"".join(map(bytes, grid)) + identity * 3
    white = struct.pack(">3i", 63190, 65536, 54061)  # D50
    tags = {
        b"desc": b"desc" + bytes(4) + struct.pack(">I", 2) + b"x\0" + bytes(78),
        b"wtpt": b"XYZ " + bytes(4) + white,
        b"A2B0": lut,
    }
    table, data, offset = struct.pack(">I", len(tags)), b"", 128 + 4 + 12 * len(tags)
    for name, value in tags.items():
        table += name + struct.pack(">2I", offset + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    head = bytes(4) + b"\x02\x40\0\0" + b"prtrCMYKLab " + bytes(12) + b"acsp" + bytes(28) + white + bytes(48)
    return struct.pack(">I", 128 + len(table) + len(data)) + head + table + data


def write_hostile(folder: Path) -> dict[bytes, Expected]:
    """Write all hostile files to a folder.

    Parameters
    ----------
    folder
        Created by this function.

    Returns
    -------
    dict
        Relative path of each item -> expected outcome. Files that are not items are left out.
    """
    root, expected = os.fsencode(folder), {}
    files = [
        (os.fsencode(path), data, want)
        for part in (truncated, bombs, content, metadata, modes)
        for path, data, want in part()
    ]
    for path, data, want in [*files, *names()]:
        full = os.path.join(root, path)
        os.makedirs(os.path.dirname(full), exist_ok=True)
        assert not os.path.exists(full), path
        with open(full, "wb") as file:
            file.write(data)
        expected[path] = want
    return expected | _special(folder)


def _special(folder: Path) -> dict[bytes, Expected]:
    """Create folders, links, pipes, and a file without read permission."""
    special = folder / "special"
    (special / "folder.png").mkdir(parents=True)
    (special / "empty.png").mkdir()
    picture().save(special / "folder.png" / "inside.png")
    picture().save(special / "locked.png")
    (special / "locked.png").chmod(0)
    (special / "link.png").symlink_to(special / "folder.png" / "inside.png")
    (special / "nowhere.png").symlink_to(special / "gone.png")
    (special / "circle1.png").symlink_to(special / "circle2.png")
    (special / "circle2.png").symlink_to(special / "circle1.png")
    (special / "self.png").symlink_to("self.png")
    (special / "loop").symlink_to(folder)  # links to folders are not followed
    (special / "linked.png").symlink_to(special / "folder.png")
    (special / "null.png").symlink_to("/dev/zero")
    os.mkfifo(special / "pipe.png")
    picture().save(special / ".hidden.png")
    locked = OK if os.access(special / "locked.png", os.R_OK) else Expected("unreadable", "Permission denied")
    circle = Expected("unreadable", "symbolic links")
    return {
        b"special/folder.png/inside.png": OK,
        b"special/link.png": OK,
        b"special/locked.png": locked,
        b"special/nowhere.png": Expected("missing", "no such file"),
        b"special/circle1.png": circle,
        b"special/circle2.png": circle,
        b"special/self.png": circle,
    }
