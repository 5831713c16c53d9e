"""Numbers of arrays that are not bytes: all images of a source are read alike; a stated range holds for files too."""

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
from kmeans_dask.sources.ranges import ranges_of
from tests.support.jobs import Said, write_config

DARK = np.array([[0.0, 1.0], [0.5, 0.25]])
"""An image that might be shares of white, or nearly black bytes."""
BRIGHT = np.array([[0.0, 255.0], [128.0, 64.0]])
CONFIG = Ingest(size=(2, 2), mode="L")


def read(path: Path | list[str], usual: tuple[float, float] | None = None, **options: Any) -> tuple[np.ndarray, Any]:
    """Pixels (n, 4) of a source, and its items."""
    source = Input(path=path if isinstance(path, list) else str(path), labels="none", **options)
    items = list_items(source, 0, Path("none"), usual=usual)
    block, told = decode_rows(items, CONFIG, source.max_pixels)
    assert set(told["status"].to_pylist()) == {"ok"}
    return block.reshape(len(block), -1), told


@pytest.mark.parametrize("kind", ["npy", "npz", "zarr"])
def test_a_dark_image_is_read_as_the_others_of_its_array(kind: str, tmp_path: Path) -> None:
    images = np.stack([DARK, BRIGHT, DARK]).astype(np.float32)
    path = tmp_path / f"x.{kind}"
    if kind == "zarr":
        zarr.create_array(path, data=images, chunks=(1, 2, 2))
    else:
        (np.save if kind == "npy" else np.savez)(path, images)

    pixels, items = read(path)

    np.testing.assert_array_equal(pixels, [[0, 1, 0, 0], [0, 255, 128, 64], [0, 1, 0, 0]])
    assert ranges_of(items) == {(0.0, 255.0): 3}
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
def test_ranges_by_type_and_extremes(
    values: np.ndarray, expected: list[int], span: tuple[float, float] | None, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", values.reshape(1, 2, 2))

    pixels, items = read(tmp_path / "x.npy")

    assert pixels[0].tolist() == expected
    assert ranges_of(items) == ({span: 1} if span else {})


def test_arrays_of_one_source_have_one_range_a_kind(tmp_path: Path) -> None:
    np.save(tmp_path / "1.npy", DARK[None])
    np.save(tmp_path / "2.npy", BRIGHT[None])
    np.save(tmp_path / "3.npy", (256 * BRIGHT[None]).astype(np.uint16))
    np.save(tmp_path / "4.npy", BRIGHT[None].astype(np.uint8))
    held = tmp_path / "held.npy"
    np.save(held, DARK[None])

    pixels, items = read([str(tmp_path / f"{i}.npy") for i in (1, 2, 3, 4)], holdout=str(held))

    bright = [0, 255, 128, 64]
    np.testing.assert_array_equal(pixels, [[0, 1, 0, 0], bright, bright, bright, [0, 1, 0, 0]])
    assert ranges_of(items) == {(0, 255): 3, (0, 65535): 1}


def test_a_stated_range_holds_for_arrays_and_grey_files(tmp_path: Path) -> None:
    """12 bits of a microscope, in files and arrays of 16."""
    values = np.array([[0, 4095], [2048, 9999]], np.uint16)
    Image.fromarray(values).save(tmp_path / "a.tif")
    Image.fromarray(values).save(tmp_path / "b.png")
    Image.fromarray(values.astype(np.float32)).save(tmp_path / "c.tif")
    Image.fromarray(np.array([[7, 8], [9, 10]], np.uint8)).save(tmp_path / "d.png")
    np.save(tmp_path / "x.npy", values[None])
    np.save(tmp_path / "y.npy", np.array([[[1, 2], [3, 4]]], np.uint8))

    files, told = read(tmp_path, range=[0, 4095])
    arrays, _ = read([str(tmp_path / "x.npy"), str(tmp_path / "y.npy")], range=[0, 4095])

    wanted = [0, 255, 128, 255]
    np.testing.assert_array_equal(files, [wanted, wanted, wanted, [7, 8, 9, 10]])
    np.testing.assert_array_equal(arrays, [wanted, [0, 0, 0, 0]])
    assert told["changes"].to_pylist() == [["16 bits"], ["16 bits"], ["floats"], []]
    assert read(tmp_path)[0][0].tolist() == [0, 15, 8, 39]


@pytest.mark.parametrize(
    ("usual", "expected"),
    [((0, 255), [0, 1, 0, 0]), ((0, 1), [0, 255, 128, 64]), ((-1, 1), [128, 255, 191, 159]), ((50, 60), None)],
)
def test_the_range_of_a_run_holds_where_the_numbers_fit(
    usual: tuple[float, float], expected: list[int] | None, tmp_path: Path
) -> None:
    np.save(tmp_path / "x.npy", DARK[None])

    assert read(tmp_path / "x.npy", usual)[0][0].tolist() == (expected or [0, 255, 128, 64])


def test_what_cannot_be_read_is_told_row_by_row(tmp_path: Path) -> None:
    array = zarr.create_array(tmp_path / "x.zarr", data=np.stack([DARK, BRIGHT]), chunks=(1, 2, 2))
    assert array.nchunks == 2
    (tmp_path / "x.zarr" / "c" / "0" / "0" / "0").write_bytes(b"damaged")

    items = list_items(Input(path=str(tmp_path / "x.zarr"), labels="none"), 0, tmp_path)
    block, told = decode_rows(items, CONFIG, 10)

    assert ranges_of(items) == {(0, 255): 2}
    assert told["status"].to_pylist() == ["unreadable", "ok"]
    assert block[1].ravel().tolist() == [0, 255, 128, 64]


def test_arrays_that_have_not_changed_are_not_read_again(tmp_path: Path) -> None:
    """Seen by a value that has changed though size and time of the file have not."""
    path = tmp_path / "x.npy"
    np.save(path, DARK[None])
    source = Input(path=str(path), labels="none")
    first = list_items(source, 0, tmp_path)
    facts = path.stat()
    np.save(path, BRIGHT[None])
    os.utime(path, ns=(facts.st_atime_ns, facts.st_mtime_ns))

    assert ranges_of(list_items(source, 0, tmp_path, known=first)) == {(0, 1): 1}
    assert ranges_of(list_items(source, 0, tmp_path)) == {(0, 255): 1}


def test_an_array_that_tells_more_has_all_read_again_and_says_so(command: Callable[..., Said], tmp_path: Path) -> None:
    folder = tmp_path / "arrays"
    folder.mkdir()
    np.save(folder / "1.npy", np.stack([DARK] * 3))
    options = {"input": {"path": f"{folder}/*.npy", "labels": "none"}, "ingest": {"size": [2, 2], "mode": "L"}}
    config = write_config(tmp_path, folder, **options, fit=None, evaluate=None, quantize=None)

    first = command("ingest", config)
    np.save(folder / "2.npy", np.stack([BRIGHT]))
    second = command("ingest", config)

    assert "small: numbers are taken as 0 to 1 (black to white); input.range states another range" in first.lines
    assert "small: the input has changed: 1 items added, 3 changed, 0 removed" in second.lines
    assert "small: numbers were taken as 0 to 1 before: all such images are read again" in second.lines
    assert "small: numbers are taken as 0 to 255 (black to white); input.range states another range" in second.lines
    collection = open_collection(tmp_path / "runs" / "small" / "collection.zarr")
    with dask.config.set(scheduler="sync"):
        pixels = collection.images.compute().reshape(4, 4)
    np.testing.assert_array_equal(pixels, [[0, 1, 0, 0]] * 3 + [[0, 255, 128, 64]])
    assert "numbers" not in command("ingest", config).err


def test_numbers_are_not_judged_by_what_is_left_of_a_source_that_goes_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "in"
    folder.mkdir()
    np.save(folder / "a.npy", np.stack([DARK, BRIGHT]))

    def lose(values: np.ndarray) -> tuple[float, float]:
        folder.rename(tmp_path / "elsewhere")
        return extremes(values)

    monkeypatch.setattr(ranges, "extremes", lose)
    with pytest.raises(UserError, match=f"went away while it was read: {folder}"):
        read(folder / "a.npy")
