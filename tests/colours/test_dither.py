"""Dithering against a textbook implementation, and its purpose: areas keep their mean colour."""

from __future__ import annotations

import numpy as np
import pytest

from kmeans_dask.colours.dither import dithered
from kmeans_dask.colours.remap import prepare_image, remap
from tests.support.brute_force import nearest_indices

RNG = np.random.default_rng(0)
BLACK_AND_WHITE = np.array([[0, 0, 0], [255, 255, 255]], np.uint8)


def floyd_steinberg(pixels, palette):
    """Textbook version, alternating the direction of rows."""
    remaining = pixels.astype(float)
    height, width, _ = remaining.shape
    labels = np.zeros((height, width), int)
    for y in range(height):
        step = 1 if y % 2 == 0 else -1
        for x in range(width)[::step]:
            target = np.clip(remaining[y, x], 0, 255)
            labels[y, x] = ((palette.astype(float) - target) ** 2).sum(axis=1).argmin()
            error = target - palette[labels[y, x]]
            for dy, dx, weight in ((0, step, 7), (1, -step, 3), (1, 0, 5), (1, step, 1)):
                if y + dy < height and 0 <= x + dx < width:
                    remaining[y + dy, x + dx] += error * weight / 16
    return labels


@pytest.mark.parametrize("shape", [(9, 13), (1, 7), (7, 1), (1, 1)])
def test_floyd_steinberg_matches_textbook(shape):
    pixels = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    palette = RNG.integers(0, 256, (5, 3), dtype=np.uint8)
    labels = dithered(pixels, None, palette, "floyd-steinberg")
    assert np.array_equal(labels, floyd_steinberg(pixels, palette))


@pytest.mark.parametrize("method", ["floyd-steinberg", "ordered"])
@pytest.mark.parametrize("level", [32, 100, 128, 200])
def test_uniform_area_keeps_its_mean(method, level):
    labels = dithered(np.full((64, 64, 1), level, np.uint8), None, BLACK_AND_WHITE, method)
    assert labels.mean() * 255 == pytest.approx(level, abs=4)


@pytest.mark.parametrize("method", ["floyd-steinberg", "ordered"])
def test_palette_colours_stay_and_error_is_measured(method):
    palette = np.array([[0, 0, 0], [200, 10, 10], [255, 255, 255]], np.uint8)
    pixels = palette[RNG.integers(0, 3, (20, 20))]
    if method == "floyd-steinberg":  # an ordered pattern may shift colours that are close to each other
        assert np.array_equal(dithered(pixels, None, palette, method), nearest_indices(pixels, palette))
    noise = RNG.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    image, errors = remap(prepare_image(noise), palette, dither=method)
    remapped = np.asarray(image.convert("RGB")).astype(float)
    assert errors["rgb"] == pytest.approx(((remapped - noise) ** 2).sum(axis=2).mean())


def test_transparent_pixels_take_no_part_in_diffusion():
    pixels = np.full((8, 8, 3), 100, np.uint8)
    opaque = np.zeros((8, 8), bool)
    opaque[:, :4] = True
    alone = dithered(pixels[:, :4], None, BLACK_AND_WHITE, "ordered")
    assert np.array_equal(dithered(pixels, opaque, BLACK_AND_WHITE, "ordered")[:, :4], alone)
    other = pixels.copy()
    other[:, 4:] = 255
    diffused = dithered(pixels, opaque, BLACK_AND_WHITE, "floyd-steinberg")
    assert np.array_equal(diffused[:, :4], dithered(other, opaque, BLACK_AND_WHITE, "floyd-steinberg")[:, :4])


@pytest.mark.parametrize("method", ["floyd-steinberg", "ordered"])
def test_palette_of_one_colour(method):
    assert not dithered(np.full((3, 3, 3), 7, np.uint8), None, np.array([[9, 9, 9]], np.uint8), method).any()
