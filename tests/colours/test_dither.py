"""Dithering: against a plain implementation, and what it is for."""

from __future__ import annotations

import numpy as np
import pytest

from kmeans_dask.colours.dither import dithered
from kmeans_dask.colours.remap import picture_of, remap
from kmeans_dask.colours.table import map_pixels

RNG = np.random.default_rng(0)
BLACK_AND_WHITE = np.array([[0, 0, 0], [255, 255, 255]], np.uint8)


def floyd_steinberg(pixels, palette):
    """Textbook version, rows alternately from left and from right."""
    rest = pixels.astype(float)
    height, width, _ = rest.shape
    labels = np.zeros((height, width), int)
    for y in range(height):
        step = 1 if y % 2 == 0 else -1
        for x in range(width)[::step]:
            wanted = np.clip(rest[y, x], 0, 255)
            labels[y, x] = ((palette.astype(float) - wanted) ** 2).sum(axis=1).argmin()
            error = wanted - palette[labels[y, x]]
            for dy, dx, share in ((0, step, 7), (1, -step, 3), (1, 0, 5), (1, step, 1)):
                if y + dy < height and 0 <= x + dx < width:
                    rest[y + dy, x + dx] += error * share / 16
    return labels


@pytest.mark.parametrize("shape", [(9, 13), (1, 7), (7, 1), (1, 1)])
def test_floyd_steinberg_is_the_textbooks(shape):
    pixels = RNG.integers(0, 256, (*shape, 3), dtype=np.uint8)
    palette = RNG.integers(0, 256, (5, 3), dtype=np.uint8)
    labels = dithered(pixels, None, palette, "floyd-steinberg")
    assert np.array_equal(labels, floyd_steinberg(pixels, palette))


@pytest.mark.parametrize("method", ["floyd-steinberg", "ordered"])
@pytest.mark.parametrize("level", [32, 100, 128, 200])
def test_areas_keep_their_mean(method, level):
    labels = dithered(np.full((64, 64, 1), level, np.uint8), None, BLACK_AND_WHITE, method)
    assert labels.mean() * 255 == pytest.approx(level, abs=4)


@pytest.mark.parametrize("method", ["floyd-steinberg", "ordered"])
def test_an_image_of_palette_colours_stays_and_the_error_is_measured(method):
    palette = np.array([[0, 0, 0], [200, 10, 10], [255, 255, 255]], np.uint8)
    pixels = palette[RNG.integers(0, 3, (20, 20))]
    if method == "floyd-steinberg":  # a pattern may move colours that are close to each other
        assert np.array_equal(dithered(pixels, None, palette, method), map_pixels(pixels, palette))
    noise = RNG.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    image, errors = remap(picture_of(noise), palette, dither=method)
    painted = np.asarray(image.convert("RGB")).astype(float)
    assert errors["rgb"] == pytest.approx(((painted - noise) ** 2).sum(axis=2).mean())


def test_transparent_pixels_give_and_take_no_error():
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
def test_one_colour(method):
    assert not dithered(np.full((3, 3, 3), 7, np.uint8), None, np.array([[9, 9, 9]], np.uint8), method).any()
