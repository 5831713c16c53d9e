"""`list_images` and `read_image`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from kmeans_dask import list_images, read_image
from kmeans_dask.errors import UserError


def test_list_images(images: Path):
    table = list_images(images)

    assert table["path"].to_pylist()[:2] == ["bar/001.png", "bar/004.png"]
    assert table["label"].to_pylist()[-1] == "ring"
    assert table["bytes"].to_pylist()[0] == (images / "bar/001.png").stat().st_size
    assert len(list_images([images / "bar", str(images / "disc")])) == 40
    assert list_images(str(images), labels="none")["label"].null_count == 60


def test_list_images_of_a_missing_folder_raises(tmp_path: Path):
    with pytest.raises(UserError, match="nowhere"):
        list_images(tmp_path / "nowhere")


def test_read_image_is_upright_and_over_white(tmp_path: Path):
    pixels = np.arange(24, dtype=np.uint8).reshape(4, 6)
    exif = Image.Exif()
    exif[0x0112] = 3  # turned by 180 degrees
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    Image.new("RGBA", (5, 4), (200, 0, 0, 0)).save(tmp_path / "transparent.png")

    assert np.array_equal(read_image(tmp_path / "turned.png", mode="L")[:, :, 0], pixels[::-1, ::-1])
    assert read_image(str(tmp_path / "turned.png")).shape == (4, 6, 3)
    assert read_image(tmp_path / "transparent.png").min() == 255


def test_unreadable_image_raises(tmp_path: Path):
    (tmp_path / "bad.png").write_bytes(b"not an image")

    with pytest.raises(ValueError, match="not an image"):
        read_image(tmp_path / "bad.png")
    with pytest.raises(ValueError, match="no such file"):
        read_image(tmp_path / "missing.png")
    Image.new("L", (20, 20)).save(tmp_path / "large.png")
    with pytest.raises(ValueError, match="more than max_pixels=100"):
        read_image(tmp_path / "large.png", max_pixels=100)
