from __future__ import annotations

import base64
import io
import pickle
import struct
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageOps

from kmeans_dask.sources.images import ImageError, decode, encode_png, open_image
from kmeans_dask.sources.normalize import Mode

LIMIT = 1_000_000


def saved(image: Image.Image, kind: str, **options: object) -> io.BytesIO:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    stream.seek(0)
    return stream


def photo(height: int = 40, width: int = 60) -> Image.Image:
    """A smooth colour image, so that a JPEG of it is nearly exact."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([4 * x, 6 * y, 255 - 2 * (x + y)], axis=2).astype(np.uint8))


def reason_of(file: object, max_pixels: int = LIMIT) -> ImageError:
    with pytest.raises(ImageError) as caught:
        decode(file, size=(4, 4), mode="L", max_pixels=max_pixels)  # type: ignore[arg-type]
    assert str(caught.value)
    assert "\n" not in str(caught.value)
    return caught.value


# -- valid files are read exactly


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_matching_mode_and_size_is_bitwise_identical(tmp_path: Path, mode: str) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (7, 5) if mode == "L" else (7, 5, 3), dtype=np.uint8)
    file = tmp_path / "x.png"
    file.write_bytes(encode_png(pixels))
    for name in (file, str(file), bytes(file), io.BytesIO(file.read_bytes())):
        decoded = decode(name, size=(7, 5), mode=mode, max_pixels=LIMIT)
        np.testing.assert_array_equal(decoded.pixels, pixels.reshape(7, 5, -1))
        assert decoded.pixels.dtype == np.uint8
        assert decoded[1:] == (5, 7, mode, [])


def test_undecodable_file_name(tmp_path: Path) -> None:
    name = bytes(tmp_path) + b"/caf\xe9\n.png"
    with open(name, "wb") as file:
        file.write(encode_png(np.full((2, 2), 9, np.uint8)))
    assert decode(name, size=(2, 2), mode="L", max_pixels=LIMIT).pixels.ravel().tolist() == [9] * 4


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "JPEG2000"])
def test_formats(kind: str) -> None:
    decoded = decode(saved(photo(), kind), size=(40, 60), mode="RGB", max_pixels=LIMIT)
    error = np.abs(decoded.pixels.astype(int) - np.asarray(photo()))
    assert error.mean() < 12  # GIF has 256 colours


def test_very_wide_image() -> None:
    decoded = decode(saved(Image.new("L", (65_000, 1), 77), "PNG"), size=(28, 28), mode="L", max_pixels=LIMIT)
    assert set(decoded.pixels.ravel().tolist()) == {77}


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_16_bit_files_are_scaled(kind: str) -> None:
    values = np.array([[0, 255, 256, 32768, 65535]], np.uint16)
    decoded = decode(saved(Image.fromarray(values), kind), size=(1, 5), mode="L", max_pixels=LIMIT)
    assert decoded.pixels.ravel().tolist() == [0, 0, 1, 128, 255]
    assert decoded.mode == "I;16"


def test_16_bit_pgm_is_scaled() -> None:
    header = b"P5 3 1 65535\n"
    file = io.BytesIO(header + np.array([0, 32768, 65535], ">u2").tobytes())
    assert decode(file, size=(1, 3), mode="L", max_pixels=LIMIT).pixels.ravel().tolist() == [0, 128, 255]


# -- transparency


@pytest.mark.parametrize("transparency", [1, b"\xff\x00\xff"])
def test_transparent_palette_entry(transparency: int | bytes) -> None:
    image = Image.new("P", (3, 1))
    image.putpalette([0, 0, 0, 200, 0, 0, 0, 0, 200])
    image.putdata([0, 1, 2])
    file = saved(image, "PNG", transparency=transparency)
    decoded = decode(file, size=(1, 3), mode="RGB", max_pixels=LIMIT)
    assert decoded.pixels.tolist() == [[[0, 0, 0], [255, 255, 255], [0, 0, 200]]]
    assert decoded.mode == "P"


@pytest.mark.parametrize(("mode", "key"), [("L", 50), ("RGB", (50, 50, 50))])
def test_transparent_colour_key(mode: str, key: int | tuple[int, ...]) -> None:
    image = Image.fromarray(np.array([[50, 60]], np.uint8)).convert(mode)
    decoded = decode(saved(image, "PNG", transparency=key), size=(1, 2), mode=mode, max_pixels=LIMIT)
    assert decoded.pixels[0, :, 0].tolist() == [255, 60]


# -- orientation and frames


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize(("orientation", "turn"), [(6, Image.Transpose.ROTATE_270), (3, Image.Transpose.ROTATE_180)])
def test_exif_orientation_is_applied(kind: str, orientation: int, turn: Image.Transpose) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode(saved(photo(), kind, exif=exif), size=(60, 40), mode="RGB", max_pixels=LIMIT)
    upright = photo().transpose(turn)
    assert (decoded.width, decoded.height) == upright.size
    error = np.abs(decoded.pixels.astype(int) - np.asarray(upright.resize((40, 60), Image.Resampling.BOX)))
    assert error.mean() < 5


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_broken_exif_is_ignored() -> None:
    file = saved(photo(), "PNG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    decoded = decode(file, size=(40, 60), mode="RGB", max_pixels=LIMIT)
    np.testing.assert_array_equal(decoded.pixels, np.asarray(photo()))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_only_the_first_frame_is_read(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    file = saved(frames[0], kind, save_all=True, append_images=frames[1:])
    red, green, blue = decode(file, size=(1, 1), mode="RGB", max_pixels=LIMIT).pixels.ravel().tolist()
    assert red > 240
    assert max(green, blue) < 15


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF", "AVIF"])
def test_multiple_frames_are_recorded(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    one, three = saved(frames[0], kind), saved(frames[0], kind, save_all=True, append_images=frames[1:])
    recorded = [decode(file, size=(8, 8), mode="RGB", max_pixels=LIMIT).changes for file in (one, three)]
    assert ["first frame" in changes for changes in recorded] == [False, True]


def test_gif_truncated_in_second_frame_is_read() -> None:
    frames = [Image.new("L", (8, 8), level) for level in (50, 150, 250)]
    whole = saved(frames[0], "GIF", save_all=True, append_images=frames[1:]).getvalue()
    second = whole.index(b",", whole.index(b",") + 1)
    for length in range(second, len(whole)):
        decoded = decode(io.BytesIO(whole[:length]), size=(1, 1), mode="L", max_pixels=LIMIT)
        assert decoded.pixels.item() == 50


def test_orientation_is_recorded() -> None:
    for orientation in (1, 2, 8):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for kind in ("JPEG", "PNG", "TIFF", "AVIF"):
            changes = decode(saved(photo(), kind, exif=exif), size=(40, 60), mode="RGB", max_pixels=LIMIT).changes
            assert changes == ([] if orientation == 1 else ["turned"]), (kind, orientation)


def test_16_bit_colour_is_recorded() -> None:
    rows = (np.arange(12).reshape(2, 6) * 5000).astype(">u2")
    header = struct.pack(">IIBBBBB", 2, 2, 16, 2, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    file = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", data) + png_chunk(b"IEND", b"")
    decoded = decode(io.BytesIO(file), size=(2, 2), mode="RGB", max_pixels=LIMIT)
    np.testing.assert_array_equal(decoded.pixels.reshape(2, 6), rows >> 8)
    assert decoded.changes == ["16 bits"]


HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWljAAAAAG1pZjFoZWljbWlhZgAAAX1tZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9j"
    "AAAAAERAAAEAAQAAAAABoQABAAAAAAAAAHkAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA/Wlw"
    "cnAAAADdaXBjbwAAAHZodmNDAQNwAAAAkAAAAAAAHvAA/P34+AAADwNgAAEAGEABDAH//wNwAAADAJAAAAMAAAMAHroCQGEAAQAqQgEBA3AA"
    "AAMAkAAAAwAAAwAeoCCBBZbq5Ka5uAhoMCAAAAMDIAAAAwAhYgABAAZEAcFzwIkAAAATY29scm5jbHgAAQANAAaAAAAAFGlzcGUAAAAAAAAA"
    "QAAAAEAAAAAoY2xhcAAAAEAAAAABAAAAMAAAAAEAAAAAAAAAAv////AAAAACAAAAEHBpeGkAAAAAAwgICAAAABhpcG1hAAAAAAAAAAEAAQWB"
    "AgMFhAAAAIFtZGF0AAAAdSgBrwng42833Wm//IoPI90I/9FCUgmEHgu6kY3StT7cMyR7mC05ixznkbgfV9qjNurd2sS7bK62CYmaZGu1lIwx"
    "uJc0MPyLA05TRj1gCD7hm5AxnMH+2+wz//nMNfSCAqZdeur+98za0nEzGfcl5SYZxUK+/w=="
)
"""64 x 48 pixels, red, the upper left 21 x 21 blue."""


def test_heic() -> None:
    decoded = decode(io.BytesIO(HEIC), size=(48, 64), mode="RGB", max_pixels=LIMIT)
    assert decoded[1:] == (64, 48, "RGB", [])
    np.testing.assert_allclose(decoded.pixels[5, 5], (0, 0, 255), atol=3)
    np.testing.assert_allclose(decoded.pixels[40, 40], (255, 0, 0), atol=3)


# -- large JPEGs are decoded at reduced scale


def large_photo(side: int = 1000) -> Image.Image:
    return photo(20, 30).resize((side * 3 // 2, side), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_reduced_scale_jpeg_looks_the_same(mode: Mode, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = saved(large_photo(), "JPEG", quality=92, exif=exif)
    decoded = decode(file, size=(24, 24), mode=mode, max_pixels=10 * LIMIT)
    upright = ImageOps.exif_transpose(Image.open(file))
    exact = np.asarray(upright.convert(mode).resize((24, 24), Image.Resampling.BOX)).reshape(24, 24, -1)
    assert (decoded.width, decoded.height) == upright.size
    assert decoded.mode == "RGB"
    assert "draft" in decoded.changes
    assert np.abs(decoded.pixels.astype(int) - exact).mean() < 1.5
    assert decoded.pixels.shape == exact.shape


@pytest.mark.parametrize(("side", "drafted"), [(799, False), (800, True)])
def test_reduced_scale_is_at_least_four_times_the_size(side: int, drafted: bool) -> None:
    decoded = decode(saved(large_photo(side), "JPEG"), size=(50, 100), mode="RGB", max_pixels=10 * LIMIT)
    assert ("draft" in decoded.changes) == drafted  # at 1/2 the shorter side has 400 pixels


def test_open_image_keeps_full_scale() -> None:
    assert open_image(saved(large_photo(), "JPEG"), max_pixels=10 * LIMIT).size == (1500, 1000)


def test_png_is_not_decoded_at_reduced_scale() -> None:
    assert decode(saved(large_photo(), "PNG"), size=(9, 9), mode="RGB", max_pixels=10 * LIMIT).changes == []


# -- errors are one line


def test_missing_file(tmp_path: Path) -> None:
    assert reason_of(tmp_path / "no.png").status == "missing"
    assert reason_of(tmp_path / "no.png" / "x.png").status == "missing"


def test_folder_is_unreadable(tmp_path: Path) -> None:
    folder = tmp_path / "folder.png"
    folder.mkdir()
    error = reason_of(folder)
    assert (error.status, str(error)) == ("unreadable", "a folder, not a file")


def test_device_is_unreadable() -> None:
    assert "regular" in str(reason_of("/dev/zero"))


def test_empty_file_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "x.png").touch()
    error = reason_of(tmp_path / "x.png")
    assert (error.status, str(error)) == ("unreadable", "empty file (0 bytes)")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"just some text\n" * 50,
        bytes(5000),
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        bytes(range(256)) * 9,
    ],
)
def test_not_an_image(content: bytes) -> None:
    assert reason_of(io.BytesIO(content)).status == "unreadable"


def status_of(content: bytes) -> str:
    """Decode and return "ok" or the status of the ImageError; any other exception fails the test."""
    try:
        decoded = decode(io.BytesIO(content), size=(4, 4), mode="L", max_pixels=LIMIT)
    except ImageError as error:
        return error.status
    return "ok" if decoded.pixels.shape == (4, 4, 1) else "wrong shape"


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "JPEG2000"])
def test_truncated_file_is_unreadable(kind: str) -> None:
    whole = saved(photo(), kind).getvalue()
    lengths = range(0, len(whole) - 1, max(1, len(whole) // 60))
    counts = Counter(status_of(whole[:length]) for length in lengths)
    assert set(counts) <= {"unreadable", "ok"}
    assert counts["unreadable"] > 50  # the last few bytes are often only an end mark


def test_reason_of_truncated_jpeg() -> None:
    whole = saved(photo(), "JPEG").getvalue()
    assert "truncated" in str(reason_of(io.BytesIO(whole[:-200])))


def test_corrupted_bytes_only_raise_image_error() -> None:
    rng = np.random.default_rng(0)
    for kind in ("PNG", "JPEG", "GIF", "TIFF", "BMP", "WEBP"):
        whole = np.frombuffer(saved(photo(), kind).getvalue(), np.uint8)
        for _ in range(60):
            damaged = whole.copy()
            damaged[rng.integers(0, len(whole), 8)] = rng.integers(0, 256, 8)
            assert status_of(damaged.tobytes()) in ("ok", "unreadable", "too large")


def png_chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def test_max_pixels_is_checked_before_decoding() -> None:
    ihdr = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    file = b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", ihdr) + png_chunk(b"IDAT", bytes(40))
    error = reason_of(io.BytesIO(file), max_pixels=200_000_000)
    assert (error.status, str(error)) == ("too large", "60000 x 60000 pixels, more than max_pixels=200000000")


def test_max_pixels_is_inclusive() -> None:
    file = saved(Image.new("L", (100, 10), 5), "PNG").getvalue()
    assert open_image(io.BytesIO(file), max_pixels=1000).size == (100, 10)
    assert reason_of(io.BytesIO(file), max_pixels=999).status == "too large"


def test_max_pixels_may_exceed_pillows_limit() -> None:
    file = saved(Image.new("1", (20_000, 10_000)), "PNG")
    assert open_image(file, max_pixels=200_000_000).size == (20_000, 10_000)


def test_decompression_bomb_in_text_chunk() -> None:
    text = png_chunk(b"zTXt", b"Comment\x00\x00" + zlib.compress(bytes(100_000_000)))
    plain = encode_png(np.zeros((4, 4), np.uint8))
    assert status_of(plain[:33] + text + plain[33:]) == "unreadable"  # 33: after signature and header


def test_large_file_is_read_lazily(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "x.png"
    photo().save(file)
    monkeypatch.setattr("kmeans_dask.sources.images._READ_WHOLE_BYTES", 10)
    pixels = decode(file, size=(40, 60), mode="RGB", max_pixels=LIMIT).pixels
    np.testing.assert_array_equal(pixels, np.asarray(photo()))


def test_image_error_is_picklable() -> None:
    error = pickle.loads(pickle.dumps(ImageError("too large", "huge")))
    assert (error.status, str(error)) == ("too large", "huge")
