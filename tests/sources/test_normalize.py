from __future__ import annotations

import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from kmeans_dask.sources.normalize import POLICY, Mode, Resize, normalize, to_array


def photo(height: int = 40, width: int = 60) -> Image.Image:
    """A smooth colour image."""
    y, x = np.mgrid[0:height, 0:width]
    return Image.fromarray(np.stack([4 * x, 6 * y, 255 - 2 * (x + y)], axis=2).astype(np.uint8))


# -- size


def test_shrinking_averages_covered_pixels() -> None:
    pixels = np.array([[0, 100, 10, 10], [100, 200, 10, 50]], np.uint8)
    assert normalize(Image.fromarray(pixels), mode="L", size=(1, 2)).pixels.tolist() == [[[100], [20]]]


def test_enlarging_and_stretching() -> None:
    image = Image.fromarray(np.array([[10], [20]], np.uint8))
    assert normalize(image, mode="L", size=(4, 2)).pixels[:, :, 0].tolist() == [[10, 10]] * 2 + [[20, 20]] * 2


# -- modes


@pytest.mark.parametrize(
    "mode",
    [
        *("1", "L", "P", "RGB", "RGBX", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "LA", "PA", "La", "RGBa"),
        *("I", "F", "I;16", "I;16L", "I;16B"),
    ],
)
@pytest.mark.parametrize("wanted", ["L", "RGB"])
def test_every_pillow_mode_becomes_8_bits(mode: str, wanted: str) -> None:
    pixels = normalize(Image.new(mode, (6, 4)), mode=wanted, size=(2, 3)).pixels
    assert pixels.shape == (2, 3, 1 if wanted == "L" else 3)
    assert pixels.dtype == np.uint8


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBX", "YCbCr", "LAB", "HSV", "CMYK"])
def test_white_stays_white_in_every_colour_model(mode: str) -> None:
    white = Image.new("RGB", (2, 2), "white")
    image = Image.new("LAB", (2, 2), (255, 128, 128)) if mode == "LAB" else white.convert(mode)
    assert to_array(image, mode="RGB").min() >= 254
    assert to_array(image, mode="L").min() >= 254


def test_grey_is_luma() -> None:
    image = Image.fromarray(np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255]]], np.uint8))
    assert to_array(image, mode="L").ravel().tolist() == [76, 150, 29]  # 0.299, 0.587, 0.114 of 255


def test_grey_to_colour_commutes_with_resizing() -> None:
    grey = photo().convert("L")
    as_grey = normalize(grey, mode="L", size=(9, 7)).pixels
    np.testing.assert_array_equal(normalize(grey, mode="RGB", size=(9, 7)).pixels, np.repeat(as_grey, 3, axis=2))


def test_big_endian_16_bit() -> None:
    image = Image.frombytes("I;16B", (2, 1), np.array([0x1234, 0xFFFF], ">u2").tobytes())
    assert to_array(image, mode="L").ravel().tolist() == [0x12, 0xFF]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0.0, 0.5, 1.0], [0, 128, 255]),
        ([0.0, 100.4, 255.0], [0, 100, 255]),
        ([-1.0, 0.0, 1.0], [0, 128, 255]),
        ([0.0, 500.0, 1000.0], [0, 128, 255]),
        ([np.nan, 500.0, 1000.0], [0, 0, 255]),
        ([-np.inf, 0.5, np.inf], [0, 128, 255]),
        ([-1e-7, 0.5, 1.0000001], [0, 128, 255]),
        ([-3e38, 0.0, 3e38], [0, 128, 255]),
        ([np.nan, np.nan, np.nan], [0, 0, 0]),
        ([300.0, 300.0, 300.0], [0, 0, 0]),
    ],
)
def test_floating_point_ranges(values: list[float], expected: list[int]) -> None:
    image = Image.fromarray(np.array([values], np.float32))
    assert to_array(image, mode="L").ravel().tolist() == expected


def test_32_bit_integers_beyond_16_bits_are_stretched() -> None:
    image = Image.fromarray(np.array([[-100_000, 0, 100_000]], np.int32))
    assert to_array(image, mode="RGB")[0, :, 0].tolist() == [0, 128, 255]


# -- transparency


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA"])
def test_hidden_colours_do_not_bleed(mode: str) -> None:
    image = Image.new("RGBA", (2, 1), (255, 0, 0, 0)).convert(mode if mode != "PA" else "RGBA")
    if mode == "PA":
        image = Image.new("PA", (2, 1), (0, 0))
    assert to_array(image, mode="RGB").tolist() == [[[255, 255, 255]] * 2]
    assert to_array(image, mode="L").ravel().tolist() == [255, 255]


def test_half_transparent_black_over_white_is_grey() -> None:
    assert to_array(Image.new("RGBA", (1, 1), (0, 0, 0, 128)), mode="L").item() == 127
    assert to_array(Image.new("RGBa", (1, 1), (0, 0, 0, 128)), mode="L").item() == 127


@pytest.mark.parametrize(("background", "colour"), [("#0a80ff", (10, 128, 255)), ("black", (0, 0, 0))])
@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa"])
def test_background_colour(mode: str, background: str, colour: tuple[int, int, int]) -> None:
    image = Image.new("RGBA", (2, 1), (200, 200, 200, 255))
    image.putpixel((1, 0), (200, 200, 200, 0))
    row = normalize(image.convert(mode), mode="RGB", background=background)
    assert row.pixels.tolist() == [[[200] * 3, list(colour)]]
    assert "alpha" in row.changes


# -- resizing and filters


def stripes() -> Image.Image:
    """8 x 4 pixels (width x height): 2 columns red, 4 green, 2 blue."""
    pixels = np.zeros((4, 8, 3), np.uint8)
    pixels[:, :2, 0] = pixels[:, 2:6, 1] = pixels[:, 6:, 2] = 255
    return Image.fromarray(pixels)


RESIZES: tuple[Resize, ...] = ("stretch", "crop", "pad")
RED, GREEN, BLUE, WHITE = [255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255]


def test_stretch_crop_and_pad() -> None:
    rows = {resize: normalize(stripes(), mode="RGB", size=(4, 4), resize=resize).pixels.tolist() for resize in RESIZES}
    assert rows["stretch"] == [[RED, GREEN, GREEN, BLUE]] * 4
    assert rows["crop"] == [[GREEN] * 4] * 4
    assert rows["pad"] == [[WHITE] * 4, *[[RED, GREEN, GREEN, BLUE]] * 2, [WHITE] * 4]


@pytest.mark.parametrize("resize", RESIZES)
@pytest.mark.parametrize("mode", ["L", "RGB"])
@pytest.mark.parametrize("shape", [(1, 1), (3, 1), (1, 65_000), (700, 2), (28, 28)])
def test_every_resize_mode_gives_the_size_for_any_shape(resize: Resize, mode: Mode, shape: tuple[int, int]) -> None:
    image = Image.fromarray(np.full(shape, 90, np.uint8))
    pixels = normalize(image, mode=mode, size=(5, 9), resize=resize, background="black").pixels
    assert pixels.shape == (5, 9, 1 if mode == "L" else 3)
    assert set(np.unique(pixels).tolist()) <= {0, 90}
    assert 90 in pixels


def test_grey_image_is_padded_in_colour() -> None:
    pixels = normalize(Image.new("L", (4, 2), 7), mode="RGB", size=(2, 2), resize="pad", background="#ff0000").pixels
    assert pixels.tolist() == [[[7, 7, 7]] * 2, [RED] * 2]


def test_filters_match_pillow() -> None:
    image = photo()
    for resampling in ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"):
        expected = image.resize((9, 7), Image.Resampling[resampling.upper()])
        pixels = normalize(image, mode="RGB", size=(7, 9), resampling=resampling).pixels
        np.testing.assert_array_equal(pixels, np.asarray(expected))


# -- CMYK


def lab_profile(lab_of_cyan: tuple[int, int, int]) -> bytes:
    """Build a CMYK ICC profile (ICC.1:2022, 7.2 and 10.10, lut8Type): white paper, black ink and the given cyan."""
    with_cyan = [lab_of_cyan if corner & 8 else (255, 128, 128) for corner in range(16)]  # cyan varies slowest
    grid = [(0, 128, 128) if corner & 1 else lab for corner, lab in enumerate(with_cyan)]  # and black fastest
    identity = bytes(range(256))
    lut = b"mft1" + bytes(4) + bytes((4, 3, 2, 0))
    lut += struct.pack(">9i", *(65536 if i % 4 == 0 else 0 for i in range(9)))
    lut += identity * 4 + b"".join(map(bytes, grid)) + identity * 3
    text = b"desc" + bytes(4) + struct.pack(">I", 2) + b"x\0" + bytes(78)
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    tags = {b"desc": text, b"wtpt": white, b"A2B0": lut}
    offset, table, data = 128 + 4 + 12 * len(tags), struct.pack(">I", len(tags)), b""
    for name, value in tags.items():
        table += name + struct.pack(">2I", offset + len(data), len(value))
        data += value + bytes(-len(value) % 4)
    head = bytes(4) + b"\x02\x40\0\0" + b"prtrCMYKLab " + bytes(12) + b"acsp" + bytes(28)
    head += struct.pack(">3i", 63190, 65536, 54061) + bytes(48)
    return struct.pack(">I", 128 + len(table) + len(data)) + head + table + data


def test_cmyk_uses_its_profile() -> None:
    cyan = Image.new("CMYK", (2, 2), (255, 0, 0, 0))
    by_formula = normalize(cyan, mode="RGB")
    cyan.info["icc_profile"] = lab_profile((128, 128, 128))  # L = 50.2, a = b = 0: a mid grey
    by_profile = normalize(cyan, mode="RGB")

    assert (by_formula.pixels[0, 0].tolist(), by_formula.changes) == ([0, 255, 255], ["CMYK by formula"])
    assert by_profile.changes == ["CMYK by profile"]
    np.testing.assert_allclose(by_profile.pixels, 119, atol=2)  # sRGB of L* 50.2: 119.4
    paper = Image.new("CMYK", (2, 2))
    paper.info["icc_profile"] = lab_profile((128, 128, 128))
    assert normalize(paper, mode="L").pixels.min() >= 253


@pytest.mark.parametrize("damage", ["short", "flipped", "of RGB", "text"])
def test_unusable_profile_is_ignored(damage: str) -> None:
    whole = lab_profile((128, 128, 128))
    image = Image.new("CMYK", (2, 2), (255, 0, 0, 0))
    image.info["icc_profile"] = {
        "short": whole[:300],
        "flipped": bytes(255 - byte for byte in whole),
        "of RGB": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
        "text": b"no profile",
    }[damage]
    row = normalize(image, mode="RGB")
    assert (row.pixels[0, 0].tolist(), row.changes) == ([0, 255, 255], ["CMYK by formula"])


# -- recorded changes


@pytest.mark.parametrize(
    ("kind", "wanted", "changes"),
    [
        ("L", "L", []),
        ("RGB", "RGB", []),
        ("1", "L", []),
        ("L", "RGB", ["grey to colour"]),
        ("RGB", "L", ["colour to grey"]),
        ("RGBX", "RGB", []),
        ("P", "RGB", ["palette"]),
        ("P", "L", ["palette", "colour to grey"]),
        ("PA", "RGB", ["palette", "alpha"]),
        ("LA", "L", ["alpha"]),
        ("RGBA", "RGB", ["alpha"]),
        ("RGBa", "L", ["alpha", "colour to grey"]),
        ("YCbCr", "RGB", ["colour model"]),
        ("LAB", "RGB", ["colour model"]),
        ("HSV", "L", ["colour model", "colour to grey"]),
        ("CMYK", "RGB", ["CMYK by formula"]),
        ("I;16", "L", ["16 bits"]),
        ("I;16B", "RGB", ["16 bits", "grey to colour"]),
        ("I", "L", ["32 bits"]),
        ("F", "RGB", ["floats", "grey to colour"]),
    ],
)
def test_changes_of_every_mode(kind: str, wanted: Mode, changes: list[str]) -> None:
    recorded = normalize(Image.new(kind, (2, 2)), mode=wanted, size=(4, 4)).changes
    assert recorded == changes
    assert set(recorded) <= POLICY.keys()


def test_unused_profile_is_recorded() -> None:
    image = Image.new("RGB", (1, 1))
    image.info["icc_profile"] = b"any"
    assert normalize(image, mode="RGB").changes == ["profile unused"]


def test_signalling_nans() -> None:
    values = np.array([[0x7FA00000, 0x3F800000, 0]], np.uint32).view(np.float32)  # NaN, 1, 0
    assert to_array(Image.fromarray(values), mode="L").ravel().tolist() == [0, 255, 0]


def test_large_floats_are_scaled_in_parts() -> None:
    values = np.linspace(-5, 15, 200 * 3, dtype=np.float32).reshape(200, 3)
    pixels = to_array(Image.fromarray(values), mode="L")[:, :, 0]
    np.testing.assert_array_equal(pixels, np.rint((values.astype(np.float64) + 5) * 12.75))
