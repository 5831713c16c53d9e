"""Value ranges of arrays: all images of a source are scaled alike; a given range also applies to files."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dask
import numpy as np
import pytest
import zarr
from PIL import Image

from kmeans_dask.collection.collection import open_collection
from kmeans_dask.collection.decoding import decode_rows
from kmeans_dask.config.sections import Ingest, Input
from kmeans_dask.errors import UserError
from kmeans_dask.sources import ranges
from kmeans_dask.sources.listing import list_items
from kmeans_dask.sources.normalize import extremes
from kmeans_dask.sources.ranges import count_ranges
from tests.support.jobs import Result, write_config

DARK = np.array([[0.0, 1.0], [0.5, 0.25]])
"""An image that might hold fractions of white, or nearly black bytes."""
BRIGHT = np.array([[0.0, 255.0], [128.0, 64.0]])
CONFIG = Ingest(size=(2, 2), mode="L")


def read(
    path: Path | list[str], preferred: tuple[float, float] | None = None, **options: Any
) -> tuple[np.ndarray, Any]:
    """Return the pixels (n, 4) of a source, and its items."""
    source = Input(path=path if isinstance(path, list) else str(path), labels="none", **options)
    items = list_items(source, 0, Path("none"), preferred_range=preferred)
    block, decoded = decode_rows(items, CONFIG, source.max_pixels)
    assert set(decoded["status"].to_pylist()) == {"ok"}
    return block.reshape(len(block), -1), decoded


@pytest.mark.parametrize("kind", ["npy", "npz", "zarr"])
def test_dark_image_is_scaled_like_the_rest_of_its_array(kind: str, tmp_path: Path) -> None:
    images = np.stack([DARK, BRIGHT, DARK]).astype(np.float32)
    path = tmp_path / f"x.{kind}"
    if kind == "zarr":
        zarr.create_array(path, data=images, chunks=(1, 2, 2))
    else:
        (np.save if kind == "npy" else np.savez)(path, images)

    pixels, items = read(path)

    np.testing.assert_array_equal(pixels, [[0, 1, 0, 0], [0, 255, 128, 64], [0, 1, 0, 0]])
    assert count_ranges(items) == {(0.0, 255.0): 3}
    assert {*items["changes"].to_pylist()[0]} == {"floats"}


@pytest.mark.parametrize(
    ("values", "expected", "span"),
    [
        (np.array([0, 0.2, 1.0000001, -1e-9]), [0, 51, 255, 0], (0, 1)),
        (np.array([np.nan, 0.2, np.inf, -np.inf]), [0, 51, 255, 0], (0, 1)),
        (np.array([np.nan] * 4), [0, 0, 0, 0], (0, 1)),
        (np.array([-1.0, 0, 3, 1], np.float16), [0, 64, 255, 128], (-1, 3)),
        (np.array([0, 7, 255, 1], np.uint16), [0, 7, 255, 1], (0, 255)),
        (np.array([0, 7, 255, 1], ">i8"), [0, 7, 255, 1], (0, 255)),
        (np.array([0, 256, 65535, 511], np.uint16), [0, 1, 255, 1], (0, 65535)),
        (np.array([0, 256, 65535, 511], np.uint32), [0, 1, 255, 1], (0, 65535)),
        (np.array([0, 0, 2**32 - 1, 2**31], np.uint32), [0, 0, 255, 128], (0, 2**32 - 1)),
        (np.array([-128, 127, 0, 0], np.int8), [0, 255, 128, 128], (-128, 127)),
        (np.array([0, 7, 1, 1], np.uint8), [0, 7, 1, 1], None),
        (np.array([False, True, True, False]), [0, 255, 255, 0], None),
    ],
)
def test_range_by_dtype_and_extremes(
    values: np.ndarray, expected: list[int], span: tuple[float, float] | None, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", values.reshape(1, 2, 2))

    pixels, items = read(tmp_path / "x.npy")

    assert pixels[0].tolist() == expected
    assert count_ranges(items) == ({span: 1} if span else {})


def test_one_range_per_kind_of_dtype(tmp_path: Path) -> None:
    np.save(tmp_path / "1.npy", DARK[None])
    np.save(tmp_path / "2.npy", BRIGHT[None])
    np.save(tmp_path / "3.npy", (256 * BRIGHT[None]).astype(np.uint16))
    np.save(tmp_path / "4.npy", BRIGHT[None].astype(np.uint8))
    held = tmp_path / "held.npy"
    np.save(held, DARK[None])

    pixels, items = read([str(tmp_path / f"{i}.npy") for i in (1, 2, 3, 4)], holdout=str(held))

    bright = [0, 255, 128, 64]
    np.testing.assert_array_equal(pixels, [[0, 1, 0, 0], bright, bright, bright, [0, 1, 0, 0]])
    assert count_ranges(items) == {(0, 255): 3, (0, 65535): 1}


def test_given_range_applies_to_arrays_and_grey_files(tmp_path: Path) -> None:
    """12-bit microscope images in 16-bit files and arrays."""
    values = np.array([[0, 4095], [2048, 9999]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.tif")
    Image.fromarray(values).save(tmp_path / "b.png")
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "c.tif")
    Image.fromarray(np.array([[7, 8], [9, 10]], np.uint8)).save(tmp_path / "d.png")
    np.save(tmp_path / "x.npy", values[None])
    np.save(tmp_path / "y.npy", np.array([[[1, 2], [3, 4]]], np.uint8))

    files, items = read(tmp_path, range=[0, 4095])
    arrays, _ = read([str(tmp_path / "x.npy"), str(tmp_path / "y.npy")], range=[0, 4095])

    wanted = [0, 255, 128, 255]
    np.testing.assert_array_equal(files, [wanted, wanted, wanted, [7, 8, 9, 10]])
    np.testing.assert_array_equal(arrays, [wanted, [0, 0, 0, 0]])
    assert items["changes"].to_pylist() == [["16 bits"], ["16 bits"], ["floats"], []]
    assert read(tmp_path)[0][0].tolist() == [0, 15, 8, 39]


@pytest.mark.parametrize(
    ("preferred", "expected"),
    [((0, 255), [0, 1, 0, 0]), ((0, 1), [0, 255, 128, 64]), ((-1, 1), [128, 255, 191, 159]), ((50, 60), None)],
)
def test_preferred_range_is_used_where_values_fit(
    preferred: tuple[float, float], expected: list[int] | None, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", DARK[None])

    assert read(tmp_path / "x.npy", preferred)[0][0].tolist() == (expected or [0, 255, 128, 64])


def test_unreadable_rows_are_reported_individually(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "x.zarr", data=np.stack([DARK, BRIGHT]), chunks=(1, 2, 2))
    assert array.nchunks == 2
    (tmp_path / "x.zarr" / "c" / "0" / "0" / "0").write_bytes(b"damaged")

    items = list_items(Input(path=str(tmp_path / "x.zarr"), labels="none"), 0, tmp_path)
    block, decoded = decode_rows(items, CONFIG, 10)

    assert count_ranges(items) == {(0, 255): 2}
    assert decoded["status"].to_pylist() == ["unreadable", "ok"]
    assert block[1].ravel().tolist() == [0, 255, 128, 64]


def test_unchanged_arrays_are_not_reread(tmp_path: Path) -> None:
    """Shown by changing a value while keeping the size and time of the file."""
    path = tmp_path / "x.npy"
    np.save(path, DARK[None])
    source = Input(path=str(path), labels="none")
    first = list_items(source, 0, tmp_path)
    facts = path.stat()
    np.save(path, BRIGHT[None])
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))

    assert count_ranges(list_items(source, 0, tmp_path, previous=first)) == {(0, 1): 1}
    assert count_ranges(list_items(source, 0, tmp_path)) == {(0, 255): 1}


def test_new_array_with_wider_range_causes_a_reread(command: Callable[..., Result], tmp_path: Path) -> None:
    folder = tmp_path / "arrays"
    folder.mkdir()
    np.save(folder / "1.npy", np.stack([DARK] * 3))
    options = {"input": {"path": f"{folder}/*.npy", "labels": "none"}, "ingest": {"size": [2, 2], "mode": "L"}}
    config = write_config(tmp_path, folder, **options, fit=None, evaluate=None, quantize=None)

    first = command("ingest", config)
    np.save(folder / "2.npy", np.stack([BRIGHT]))
    second = command("ingest", config)

    assert "small: pixel values are read as 0 to 1 (black to white); input.range changes this" in first.lines
    assert "small: the input changed: 1 items added, 3 changed, 0 removed" in second.lines
    assert "small: pixel values were read as 0 to 1 before; such images are read again" in second.lines
    assert "small: pixel values are read as 0 to 255 (black to white); input.range changes this" in second.lines
    collection = open_collection(tmp_path / "runs" / "small" / "collection.zarr")
    with dask.config.set(scheduler="sync"):
        pixels = collection.images.compute().reshape(4, 4)
    np.testing.assert_array_equal(pixels, [[0, 1, 0, 0]] * 3 + [[0, 255, 128, 64]])
    assert "numbers" not in command("ingest", config).err


def test_source_lost_while_inferring_range_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    folder = tmp_path / "in"
    folder.mkdir()
    np.save(folder / "a.npy", np.stack([DARK, BRIGHT]))

    def lose(values: np.ndarray) -> tuple[float, float]:
        folder.rename(tmp_path / "elsewhere")
        return extremes(values)

    monkeypatch.setattr(ranges, "extremes", lose)
    with pytest.raises(UserError, match=f"became unavailable while it was read: {folder}"):
        read(folder / "a.npy")
