"""Reading and writing palette files."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from kmeans_dask.colours.palette_files import palette_strip, read_palette, write_palette
from kmeans_dask.errors import UserError

PALETTE = np.array([[0, 0, 0], [200, 10, 30], [255, 255, 255]], np.uint8)


@pytest.mark.parametrize("suffix", [".gpl", ".json", ".png"])
@pytest.mark.parametrize("k", [1, 3, 16, 17, 300])
def test_round_trip(tmp_path, suffix, k):
    palette = np.stack([np.arange(k) // 2, np.arange(k) // 2, np.arange(k) // 2 + np.arange(k) % 2], 1).astype(np.uint8)
    write_palette(tmp_path / f"p{suffix}", palette)
    assert np.array_equal(np.unique(read_palette(tmp_path / f"p{suffix}"), axis=0), np.unique(palette, axis=0))
    assert [path.name for path in tmp_path.iterdir()] == [f"p{suffix}"]


def test_gimp_palette(tmp_path):
    text = "GIMP Palette\nName: three\nColumns: 4\n# words 1 2 3\n  0   0   0\tBlack\n200 10 30 red\n\n255 255 255\n"
    (tmp_path / "p.gpl").write_text(text)
    assert np.array_equal(read_palette(tmp_path / "p.gpl"), PALETTE)


@pytest.mark.parametrize(
    "text",
    [
        '["#000000", "#C80a1e", "#ffffff", "#000000"]',
        "[[0,0,0],[200,10,30],[255,255,255]]",
        '{"colours": ["#000000", [200, 10, 30], "#ffffff"]}',
        '{"colors": ["#000000", [200, 10, 30], "#ffffff"]}',
    ],
)
def test_json_palettes_keep_their_order(tmp_path, text):
    (tmp_path / "p.json").write_text(text)
    assert np.array_equal(read_palette(tmp_path / "p.json"), PALETTE)


def test_palette_from_image(tmp_path):
    Image.fromarray(PALETTE[np.array([[0, 2, 1], [2, 2, 2]])]).save(tmp_path / "p.bmp")
    assert np.array_equal(read_palette(tmp_path / "p.bmp"), PALETTE)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("p.gpl", "palette", "first line is not 'GIMP Palette'"),
        ("p.gpl", "GIMP Palette\n", "has 0 colours; must have 1-65,536"),
        ("p.gpl", "GIMP Palette\n300 0 0\n", "is not a colour"),
        ("p.json", "[", "'#rrggbb' or three integers"),
        ("p.json", "3", "not a list of colours"),
        ("p.json", '["red"]', "'red' is not a colour"),
        ("p.json", "[[1, 2]]", "is not a colour"),
        ("p.json", "[[1, 2, 2.5]]", "is not a colour"),
        ("p.json", '{"red": 1}', "colours must be"),
        ("p.png", "no image", "not an image"),
    ],
)
def test_broken_file_raises(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_palette(tmp_path / name)
    assert name in str(error.value)


def test_missing_file_raises(tmp_path):
    for name in ("p.gpl", "p.json", "p.png"):
        with pytest.raises(UserError, match="cannot read palette"):
            read_palette(tmp_path / name)


def test_strip_has_only_the_palette_colours():
    palette = np.arange(17 * 3, dtype=np.uint8).reshape(17, 3)
    strip = palette_strip(palette)
    assert strip.shape == (64, 512, 3)
    assert np.array_equal(np.unique(strip.reshape(-1, 3), axis=0), palette)
