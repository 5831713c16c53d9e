from __future__ import annotations

import io

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from kmeans_dask.report.thumbnails import ACROSS, TILE_SIDE, Sheets, encode_webp, pack, tiles_of, within


def tile(sheets: Sheets, number: int) -> NDArray[np.uint8]:
    """Cut a tile out of its sheet, as the page does."""
    picture = np.asarray(Image.open(io.BytesIO(sheets.pictures[number // ACROSS**2])).convert("RGB"))
    place = number % ACROSS**2
    x, y = place % ACROSS * sheets.pitch[0], place // ACROSS * sheets.pitch[1]
    return picture[y : y + sheets.height, x : x + sheets.width]


def test_small_grey_tiles_are_kept_bit_by_bit():
    tiles = np.random.default_rng(0).integers(0, 256, (ACROSS**2 + 40, 9, 7, 1), dtype=np.uint8)

    sheets = pack(tiles)

    assert len(sheets.pictures) == 2
    for number in (0, 1, ACROSS, ACROSS**2 - 1, ACROSS**2, ACROSS**2 + 39):
        np.testing.assert_array_equal(tile(sheets, number)[:, :, 1:2], tiles[number])


def test_lossy_tiles_do_not_run_into_each_other():
    tiles = np.zeros((40, 20, 20, 3), np.uint8)
    tiles[::2] = (255, 0, 0)
    tiles[1::2] = (0, 0, 255)

    sheets = pack(tiles)

    assert sheets.pitch == (32, 32)
    for number in (0, 1, 33, 39):
        apart = np.abs(tile(sheets, number).astype(int) - tiles[number])
        assert apart[1:, 1:].max() <= 8  # decoders smooth colours over the edge of a block, by one pixel


@pytest.mark.parametrize(
    ("shape", "expected"), [((28, 28), (28, 28)), ((250, 100), (64, 26)), ((1, 4096), (1, 64)), ((64, 65), (63, 64))]
)
def test_large_images_become_small_tiles(shape: tuple[int, int], expected: tuple[int, int]):
    tiles = tiles_of(np.full((2, *shape, 3), 77, np.uint8))

    assert tiles.shape == (2, *expected, 3)
    assert max(tiles.shape[1:3]) <= TILE_SIDE
    assert (tiles == 77).all()


def test_no_tiles():
    sheets = pack(tiles_of(np.zeros((0, 100, 100, 1), np.uint8)))

    assert (sheets.n, sheets.pictures) == (0, [])


def test_a_smaller_picture_without_mixing_has_no_new_colour():
    image = np.zeros((90, 60, 3), np.uint8)
    image[::2] = 255

    small = within(image, 30, mix=False)

    assert small.shape == (30, 20, 3)
    assert set(np.unique(small)) <= {0, 255}
    assert within(image, 100, mix=True).shape == image.shape


def test_an_exact_picture_comes_back():
    image = np.random.default_rng(1).integers(0, 256, (30, 20, 3), dtype=np.uint8)

    back = np.asarray(Image.open(io.BytesIO(encode_webp(image, exact=True))))

    np.testing.assert_array_equal(back, image)
