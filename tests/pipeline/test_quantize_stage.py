"""The quantize stage as a job: alone, with given and shared palettes, and retried after failures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from kmeans_dask.colours.palette_files import read_palette
from kmeans_dask.storage.publish import read_json
from tests.support.jobs import Result, write_config
from tests.support.page import Page

Command = Callable[..., Result]
ALONE: dict[str, Any] = {**dict.fromkeys(("ingest", "fit", "evaluate")), "report": {"samples": 3}}
PALETTE = np.array([[0, 0, 0], [250, 250, 250], [200, 30, 30]], np.uint8)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    (folder / "a").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in ("a/one.png", "a/two.png", "three.png", "three.bmp"):
        Image.fromarray(rng.integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(folder / name)
    (folder / "broken.jpg").write_bytes(b"no image")
    return folder


def job(folder: Path, photos: Path, **settings: Any) -> Path:
    return write_config(folder, photos, input={"path": str(photos)}, quantize=settings, **ALONE)


def times_of(run: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in run.glob("quantized/**/*.png")}


def test_retry_rewrites_only_failed_images(command: Command, photos: Path, tmp_path: Path):
    result = command("run", job(tmp_path, photos, k=[2, 6]))
    run = tmp_path / "runs" / "small"
    assert result.status == 0
    assert f"kmeans-dask retry {run}" in result.err.replace("\n", " ")
    before = times_of(run)

    Image.new("RGB", (4, 4), "red").save(photos / "broken.jpg")
    result = command("retry", run)

    assert result.status == 0
    assert "2 outputs that failed" in result.err
    assert "1 items to do" in result.err
    after = times_of(run)
    assert len(after) == len(before) + 2
    assert before.items() <= after.items()
    assert set(pq.read_table(run / "quantized.parquet")["status"].to_pylist()) == {"ok"}
    assert read_json(run / "run.json")["state"] == "finished"
    assert "0 outputs that failed" in command("retry", run).err
    assert times_of(run) == after


def test_adding_k_keeps_existing_images(command: Command, photos: Path, tmp_path: Path):
    config = job(tmp_path, photos, k=[6])
    assert command("run", config).status == 0
    before = times_of(tmp_path / "runs" / "small")
    assert command("run", config, "quantize.k=[2,6]").status == 0
    after = times_of(tmp_path / "runs" / "small")
    assert len(after) == 2 * len(before) == 8
    assert before.items() <= after.items()


def test_inputs_with_colliding_output_names(command: Command, photos: Path, tmp_path: Path):
    result = command("run", job(tmp_path, photos, k=[2]))
    assert "three.bmp -> three.bmp.png, three.png -> three.png.png" in result.err
    for name in ("three.bmp.png", "three.png.png", "a/one.png"):
        assert (tmp_path / "runs/small/quantized/2" / name).exists()


def test_given_palette(command: Command, photos: Path, tmp_path: Path):
    Image.fromarray(PALETTE[np.newaxis]).save(tmp_path / "three.png")
    result = command("run", job(tmp_path, photos, palette=str(tmp_path / "three.png")))
    run = tmp_path / "runs" / "small"
    assert result.status == 0
    outputs = list((run / "quantized" / "3").glob("**/*.png"))
    assert len(outputs) == 4
    for path in outputs:
        with Image.open(path) as image:
            assert {colour for _, colour in image.convert("RGB").getcolors() or []} <= {
                tuple(c) for c in PALETTE.tolist()
            }
    assert np.array_equal(np.unique(read_palette(run / "palettes" / "3.gpl"), axis=0), np.unique(PALETTE, axis=0))


def test_changed_palette_file_is_detected(command: Command, photos: Path, tmp_path: Path):
    palette = tmp_path / "three.json"
    palette.write_text('["#000000", "#fafafa", "#c81e1e"]')
    config = job(tmp_path, photos, palette=str(palette))
    assert command("run", config).status == 0
    before = times_of(tmp_path / "runs" / "small")
    palette.write_text("[[0, 0, 0], [250, 250, 250], [200, 30, 30]]\n")  # the same colours
    assert "quantize: already finished" in command("run", config).err
    assert times_of(tmp_path / "runs" / "small") == before

    palette.write_text('["#000000", "#fafafa", "#1ec81e"]')
    result = command("run", config)
    assert result.status == 0
    assert "quantize: the config changed; running it again: quantize.palette, its colours was" in result.err
    assert read_palette(tmp_path / "runs/small/palettes/3.gpl").tolist()[2] == [30, 200, 30]
    for path in (tmp_path / "runs/small/quantized").glob("**/*.png"):
        with Image.open(path) as image:
            assert (200, 30, 30) not in {colour for _, colour in image.convert("RGB").getcolors() or []}


def test_unreadable_palette_is_refused(command: Command, photos: Path, tmp_path: Path):
    result = command("run", job(tmp_path, photos, palette="nowhere.gpl"))
    assert result.status == 2
    assert "cannot read palette nowhere.gpl" in result.err


@pytest.mark.parametrize("weight", ["pixels", "images"])
def test_shared_palette_is_written_as_files(command: Command, photos: Path, tmp_path: Path, weight: str):
    result = command("run", job(tmp_path, photos, k=[5, 300], palette="shared", weight=weight))
    run = tmp_path / "runs" / "small"
    assert result.status == 0
    assert "count colours: 5 items in" in result.err
    for k in (5, 300):
        palettes = [read_palette(run / "palettes" / f"{k}.{kind}") for kind in ("gpl", "json", "png")]
        assert {len(palette) for palette in palettes} == {k}
        assert len({np.unique(palette, axis=0).tobytes() for palette in palettes}) == 1
    result = command("run", tmp_path / "job.yaml", "quantize.k=[5,7,300]")
    assert result.status == 0
    assert "colours already counted" in result.err


def test_report_shows_errors_and_palettes(command: Command, photos: Path, tmp_path: Path):
    command("run", job(tmp_path, photos, k=[2, 6], space="oklab"))
    run = tmp_path / "runs" / "small"
    names = {path.name for path in (run / "sheets").iterdir()}
    assert names >= {"quantized-errors.png", "before-after.png", "quantized-worst.png", "palettes.png"}
    page = Page(run / "report.html")
    colours = page.data["colours"]
    rows = [row for row in pq.read_table(run / "quantized.parquet").to_pylist() if row["status"] == "ok"]
    for row_of_k in colours["table"]:
        of_k = [row for row in rows if row["k"] == row_of_k["k"]]
        assert row_of_k["images"] == len(of_k)
        assert row_of_k["mse_oklab"] == pytest.approx(np.mean([row["mse_oklab"] for row in of_k]))
    assert sum(sum(h["counts"]) + h["exact"] for h in colours["histograms"]) == len(rows)
    worst = max((row for row in rows if row["k"] == 6), key=lambda row: row["mse"])
    assert next(row for row in colours["worst"] if row["k"] == 6)["path"] == worst["path"]
    for image in colours["images"]:
        for version in image["versions"]:
            drawn = page.image(f"image-{version['image']}").convert("RGB")
            found = {"#" + bytes(colour).hex() for _, colour in drawn.getcolors() or []}
            assert found <= set(version["palette"])
            assert len(version["palette"]) <= version["k"]


def test_report_of_images_without_error(command: Command, tmp_path: Path):
    (tmp_path / "flat").mkdir()
    Image.new("RGB", (6, 6), "red").save(tmp_path / "flat" / "red.png")
    assert command("run", job(tmp_path, tmp_path / "flat", k=[2, 300])).status == 0


def test_output_of_the_run_is_refused_as_input(command: Command, photos: Path, tmp_path: Path):
    config = job(tmp_path, photos, k=[2, 6])
    assert command("run", config).status == 0
    before = times_of(tmp_path / "runs" / "small")
    (tmp_path / "link").symlink_to(tmp_path / "runs/small/quantized")
    for folder in ("runs/small/quantized/6", "link/6", "link"):
        result = command("run", config, f"input.path={tmp_path / folder}")
        assert result.status == 2
        assert "change name or output" in result.err
    assert times_of(tmp_path / "runs" / "small") == before
