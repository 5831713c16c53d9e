from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from kmeans_dask.report.thumbnails import ACROSS, TILE_SIDE, TileSheets, encode_webp, make_tiles, pack, shrink


def tile(sheets: TileSheets, number: int) -> NDArray[np.uint8]:
    """Cut a tile out of its sheet, as the page does."""
    sheet = np.asarray(Image.open(io.BytesIO(sheets.images[number // ACROSS**2])).convert("RGB"))
    position = number % ACROSS**2
    x, y = position % ACROSS * sheets.pitch[0], position // ACROSS * sheets.pitch[1]
    return sheet[y : y + sheets.height, x : x + sheets.width]


def test_small_grey_tiles_are_lossless():
    tiles = np.random.default_rng(0).integers(0, 256, (ACROSS**2 + 40, 9, 7, 1), dtype=np.uint8)

    sheets = pack(tiles)

    assert len(sheets.images) == 2
    for number in (0, 1, ACROSS, ACROSS**2 - 1, ACROSS**2, ACROSS**2 + 39):
        np.testing.assert_array_equal(tile(sheets, number)[:, :, 1:2], tiles[number])


def test_lossy_tiles_do_not_bleed_into_each_other():
    tiles = np.zeros((40, 20, 20, 3), np.uint8)
    tiles[::2] = (255, 0, 0)
    tiles[1::2] = (0, 0, 255)

    sheets = pack(tiles)

    assert sheets.pitch == (32, 32)
    for number in (0, 1, 33, 39):
        difference = np.abs(tile(sheets, number).astype(int) - tiles[number])
        assert difference[1:, 1:].max() <= 8  # decoders smooth one pixel across block edges


@pytest.mark.parametrize(
    ("shape", "expected"), [((28, 28), (28, 28)), ((250, 100), (64, 26)), ((1, 4096), (1, 64)), ((64, 65), (63, 64))]
)
def test_large_images_become_small_tiles(shape: tuple[int, int], expected: tuple[int, int]):
    tiles = make_tiles(np.full((2, *shape, 3), 77, np.uint8))

    assert tiles.shape == (2, *expected, 3)
    assert max(tiles.shape[1:3]) <= TILE_SIDE
    assert (tiles == 77).all()


def test_no_tiles():
    sheets = pack(make_tiles(np.zeros((0, 100, 100, 1), np.uint8)))

    assert (sheets.n, sheets.images) == (0, [])


def test_shrinking_without_smoothing_adds_no_colours():
    image = np.zeros((90, 60, 3), np.uint8)
    image[::2] = 255

    small = shrink(image, 30, smooth=False)

    assert small.shape == (30, 20, 3)
    assert set(np.unique(small)) <= {0, 255}
    assert shrink(image, 100, smooth=True).shape == image.shape


def test_lossless_round_trip():
    image = np.random.default_rng(1).integers(0, 256, (30, 20, 3), dtype=np.uint8)

    back = np.asarray(Image.open(io.BytesIO(encode_webp(image, lossless=True))))

    np.testing.assert_array_equal(back, image)
