"""Remapping and encoding images of every mode: errors, transparency, colour profiles, formats."""

from __future__ import annotations

import io
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms
from sklearn.datasets import load_sample_image

from kmeans_dask.colours.palettes import fit_palette, quantize_image
from kmeans_dask.colours.remap import encode, prepare_image, read_pixels, remap
from kmeans_dask.colours.spaces import to_space
from kmeans_dask.colours.table import psnr
from kmeans_dask.sources.images import open_image

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def photo():
    return load_sample_image("china.jpg")[::3, ::3].copy()


def test_remapped_image_and_its_error(photo):
    prepared = prepare_image(photo)
    image, errors = remap(prepared, fit_palette(prepared.table, 30))
    mse = errors["rgb"]
    assert image.mode == "P"
    remapped = np.asarray(image.convert("RGB"))
    assert remapped.shape == photo.shape
    squared = (remapped.astype(float) - photo) ** 2
    assert mse == pytest.approx(squared.sum(axis=2).mean())
    assert psnr(mse) == pytest.approx(10 * np.log10(255**2 / squared.mean()))
    assert psnr(0.0) == np.inf


@pytest.mark.parametrize(("k", "bits"), [(2, 1), (4, 2), (6, 4), (30, 8)])
def test_png_uses_smallest_bit_depth(photo, k, bits):
    image = quantize_image(photo, k)
    data = encode(image, "png")
    assert data[24] == bits
    back = Image.open(io.BytesIO(data))
    assert back.mode == "P"
    assert np.array_equal(np.asarray(back), np.asarray(image))
    assert len(back.getpalette()) == 3 * k


def test_arrays_and_pillow_images_give_the_same_result(photo):
    grey = photo[..., 0]
    from_array, from_image = quantize_image(photo, 6), quantize_image(Image.fromarray(photo), 6)
    assert np.array_equal(from_array.convert("RGB"), from_image.convert("RGB"))
    assert np.array_equal(quantize_image(grey, 6), quantize_image(Image.fromarray(grey), 6))
    assert np.array_equal(
        quantize_image(grey, 6).convert("RGB"), quantize_image(np.stack([grey] * 3, 2), 6).convert("RGB")
    )


@pytest.mark.parametrize(
    "mode",
    [
        "1",
        "L",
        "LA",
        "La",
        "P",
        "PA",
        "RGB",
        "RGBA",
        "RGBX",
        "RGBa",
        "CMYK",
        "YCbCr",
        "HSV",
        "LAB",
        "I",
        "F",
        "I;16",
        "I;16B",
    ],
)
def test_every_pillow_mode(photo, mode):
    wide = {"I;16": "<u2", "I;16B": ">u2", "I": np.int32, "F": np.float32}
    if mode in wide:
        image = Image.fromarray((photo[..., 0].astype(np.uint16) * 257).astype(wide[mode]))
    else:
        over = {"LA": "L", "La": "LA", "PA": "P", "RGBa": "RGBA"}
        image = Image.fromarray(photo).convert("L" if mode in ("LA", "La") else "RGB")
        image = image.convert(over.get(mode, image.mode)).convert(mode)
    assert image.mode == mode
    result = quantize_image(image, 6)
    assert result.mode == "P"
    assert result.size == image.size
    assert len(result.palette.colors) == (2 if mode == "1" else 6)


def test_exif_orientation_is_applied():
    image = Image.new("RGB", (4, 2))
    image.getexif()[0x0112] = 6
    stream = io.BytesIO()
    image.save(stream, "JPEG", exif=image.getexif())
    assert quantize_image(Image.open(stream), 2).size == (2, 4)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1)])
def test_odd_shapes(shape):
    pixels = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    assert quantize_image(pixels, 6).size == shape[::-1]


def test_grey_modes_have_one_channel():
    assert read_pixels(Image.new("L", (3, 2))).shape == (2, 3, 1)
    assert read_pixels(Image.new("P", (3, 2))).shape == (2, 3, 3)


# alpha


def with_hole(photo):
    """Return a photo with a fully transparent (green) upper left quarter, and the mask of its opaque part."""
    alpha = np.full(photo.shape[:2], 255, np.uint8)
    alpha[: photo.shape[0] // 2, : photo.shape[1] // 2] = 0
    pixels = np.where(alpha[..., np.newaxis] > 0, photo, np.array([0, 255, 0], np.uint8))
    return Image.fromarray(np.dstack([pixels, alpha])), alpha > 0


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_opaque_alpha_changes_nothing(photo, mode):
    plain = Image.fromarray(photo).convert(mode[:-1])
    first, second = quantize_image(plain, 6), quantize_image(plain.convert(mode), 6)
    assert encode(first, "png") == encode(second, "png")


def test_transparent_pixels_are_ignored_and_share_one_entry(photo):
    image, opaque = with_hole(photo)
    result = quantize_image(image, 6)
    assert result.mode == "P"
    assert np.array_equal(np.asarray(result) == result.info["transparency"], ~opaque)
    assert len(result.getpalette()) == 3 * 7
    expected = fit_palette(prepare_image(photo[opaque][:, np.newaxis]).table, 6)
    assert np.array_equal(np.array(result.getpalette()).reshape(-1, 3)[1:], expected)


@pytest.mark.parametrize("kind", ["png", "webp", "gif"])
def test_transparency_survives_every_format(photo, kind):
    image, opaque = with_hole(photo)
    remapped = quantize_image(image, 6)
    back = np.asarray(Image.open(io.BytesIO(encode(remapped, kind))).convert("RGBA"))
    assert np.array_equal(back[..., 3], np.where(opaque, 255, 0))
    assert np.array_equal(back[opaque], np.asarray(remapped.convert("RGBA"))[opaque])


def test_error_is_over_opaque_pixels(photo):
    image, opaque = with_hole(photo)
    prepared = prepare_image(image)
    remapped, errors = remap(prepared, fit_palette(prepared.table, 6))
    difference = np.asarray(remapped.convert("RGB"))[opaque].astype(float) - photo[opaque]
    assert errors["rgb"] == pytest.approx((difference**2).sum(axis=1).mean())


@pytest.mark.parametrize("dither", ["none", "floyd-steinberg", "ordered"])
def test_transparent_entry_replaces_rarest_of_256_colours(photo, dither):
    image, opaque = with_hole(photo)
    assert len(quantize_image(image, 256).getpalette()) == 3 * 256
    palette = fit_palette(prepare_image(photo).table, 256)
    remapped, _ = remap(prepare_image(image), palette, dither=dither)
    assert len(remapped.getpalette()) == 3 * 256
    assert np.array_equal(np.asarray(remapped) == 0, ~opaque)
    assert {tuple(c) for c in np.array(remapped.getpalette()).reshape(-1, 3)[1:]} <= {tuple(c) for c in palette}


@pytest.mark.parametrize("dither", ["none", "floyd-steinberg"])
def test_fully_transparent_image(dither):
    result = quantize_image(Image.new("RGBA", (4, 3), (255, 0, 0, 0)), 2, dither=dither)
    assert np.asarray(result.convert("RGBA"))[..., 3].tolist() == [[0] * 4] * 3


def test_partly_transparent_pixels_are_composited_over_white():
    result = quantize_image(Image.new("RGBA", (2, 2), (255, 0, 0, 127)), 2)
    assert result.convert("RGBA").getpixel((0, 0)) == (255, 128, 128, 255)


def test_palette_image_with_transparency():
    image = Image.new("P", (3, 1))
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.putdata([0, 1, 2])
    stream = io.BytesIO()
    image.save(stream, "PNG", transparency=1)
    result = quantize_image(Image.open(stream), 2).convert("RGBA")
    assert [result.getpixel((x, 0)) for x in (0, 2)] == [(255, 0, 0, 255), (0, 0, 255, 255)]
    assert result.getpixel((1, 0))[3] == 0


# more than 256 colours, formats, profiles


@pytest.mark.parametrize("hole", [False, True])
def test_more_than_256_colours_are_rgb(photo, hole):
    image = with_hole(photo)[0] if hole else Image.fromarray(photo)
    result = quantize_image(image, 700)
    assert result.mode == ("RGBA" if hole else "RGB")
    pixels = np.asarray(result)
    visible = pixels[pixels[..., 3] > 0] if hole else pixels.reshape(-1, 3)
    assert len(np.unique(visible[:, :3], axis=0)) == 700


@pytest.mark.parametrize("kind", ["png", "webp", "gif"])
def test_formats_are_lossless(photo, kind):
    image = quantize_image(photo, 30)
    back = Image.open(io.BytesIO(encode(image, kind)))
    assert back.format == kind.upper()
    assert np.array_equal(np.asarray(back.convert("RGB")), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("k", [2, 16])
def test_packed_png_is_not_larger_than_pillows(photo, k):
    image = quantize_image(photo, k)
    stream = io.BytesIO()
    image.save(stream, "PNG", compress_level=6, compress_type=zlib.Z_DEFAULT_STRATEGY)
    assert len(encode(image, "png")) <= stream.tell()


@pytest.mark.parametrize("kind", ["png", "webp"])
@pytest.mark.parametrize("k", [6, 300])
def test_rgb_profile_is_kept(photo, kind, k):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    stream = io.BytesIO()
    Image.fromarray(photo).save(stream, "PNG", icc_profile=profile)
    data = encode(quantize_image(Image.open(stream), k), kind)
    assert Image.open(io.BytesIO(data)).info["icc_profile"] == profile


def test_profile_of_another_colour_model_is_dropped(photo):
    image = Image.fromarray(photo).convert("CMYK")
    image.info["icc_profile"] = bytes(16) + b"CMYK" + bytes(108)
    assert "icc_profile" not in quantize_image(image, 6).info


def test_animation_uses_first_frame(tmp_path):
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "green", "blue")]
    for kind in ("gif", "webp", "png", "tiff"):
        path = tmp_path / f"moving.{kind}"
        frames[0].save(path, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "webp" else {}))
        result = quantize_image(open_image(path, max_pixels=100), 2)
        assert result.convert("RGB").getcolors() == [(16, (255, 0, 0))]
        assert getattr(Image.open(io.BytesIO(encode(result, "png"))), "n_frames", 1) == 1


def test_oklab_error(photo):
    prepared = prepare_image(photo)
    image, errors = remap(prepared, fit_palette(prepared.table, 6, space="oklab"), space="oklab")
    remapped = np.asarray(image.convert("RGB"))
    assert errors["rgb"] == pytest.approx(((remapped.astype(float) - photo) ** 2).sum(axis=2).mean())
    difference = to_space(remapped.reshape(-1, 3), "oklab") - to_space(photo.reshape(-1, 3), "oklab")
    assert errors["oklab"] == pytest.approx((difference**2).sum(axis=0).mean(), rel=1e-5)
