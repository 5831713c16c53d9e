"""Quantizing a folder of real files, on Dask's synchronous scheduler."""

from __future__ import annotations

import pickle
import shutil

import dask
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from pydantic import ValidationError

from kmeans_dask.colours.palette_files import read_palette
from kmeans_dask.colours.quantize import QuantizeJob, finish_quantized, missing_outputs, quantize_tasks
from kmeans_dask.colours.shared_palette import count_tasks, fit_shared
from kmeans_dask.config.sections import Quantize
from kmeans_dask.errors import JobError
from kmeans_dask.sources.batches import plan_batches
from kmeans_dask.sources.manifest import read_manifest, write_manifest
from kmeans_dask.storage.journal import QUANTIZED_SCHEMA, find_journal
from tests.support.brute_force import nearest_indices
from tests.support.manifests import manifest_of

RNG = np.random.default_rng(0)
MAX_PIXELS = 10_000


def noise(height=20, width=30):
    return RNG.integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def photos(tmp_path):
    """Five images in two folders, and three files that cannot be quantized."""
    folder = tmp_path / "photos"
    for path in ("a/one.png", "a/two.png", "b/one.png", "b/three.webp", "four.png"):
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise()).save(folder / path, lossless=True)
    (folder / "broken.jpg").write_bytes(b"not an image")
    (folder / "empty.png").write_bytes(b"")
    Image.new("L", (200, 200)).save(folder / "large.png")
    return folder


PATHS = ["a/one.png", "a/two.png", "b/one.png", "b/three.webp", "broken.jpg", "empty.png", "four.png", "large.png"]


@pytest.fixture
def run(tmp_path, photos):
    folder = tmp_path / "run"
    folder.mkdir()
    write_manifest(manifest_of(photos, PATHS), folder / "manifest.parquet")
    return folder


def tasks_of(run, seed=0, given=None, **settings):
    if given is None:
        settings.setdefault("k", [2, 6])
    settings = Quantize(**settings)
    job = QuantizeJob(run / "manifest.parquet", run, settings, seed, MAX_PIXELS)
    missing = missing_outputs(job, given)
    palettes = given
    if missing and settings.palette == "shared":
        batches = plan_batches(read_manifest(run / "manifest.parquet"))
        dask.compute(*count_tasks(job, batches), scheduler="synchronous")
        with dask.config.set(scheduler="synchronous"):
            palettes = fit_shared(job)
    return quantize_tasks(job, missing, palettes)


def quantize(run, seed=0, given=None, **settings):
    summaries = dask.compute(*tasks_of(run, seed, given, **settings), scheduler="synchronous")
    return summaries, finish_quantized(run, settings.get("k", [len(p) for p in given.values()] if given else [2, 6]))


def outputs(run):
    return {str(file.relative_to(run)): file.read_bytes() for file in sorted(run.glob("quantized/**/*.png"))}


def test_every_image_is_written_or_recorded_as_failed(run, photos):
    summaries, table = quantize(run)
    assert [(summary.done, summary.failed) for summary in summaries] == [(5, 3)]
    assert table.schema.equals(QUANTIZED_SCHEMA)
    rows = table.to_pylist()
    assert [(row["path"], row["k"]) for row in rows] == [(path, k) for path in PATHS for k in (2, 6)]
    for row in rows:
        if row["status"] != "ok":
            continue
        original = np.asarray(Image.open(photos / row["path"]).convert("RGB")).astype(float)
        image = Image.open(run / row["output"])
        assert image.mode == "P"
        assert len(image.getpalette()) // 3 == row["colours"] == row["k"]
        error = ((np.asarray(image.convert("RGB")) - original) ** 2).sum(axis=2).mean()
        assert row["mse"] == pytest.approx(error)
        assert row["psnr"] == pytest.approx(10 * np.log10(3 * 255**2 / error))
        assert row["bytes_in"] == (photos / row["path"]).stat().st_size
        assert row["bytes_out"] == (run / row["output"]).stat().st_size
        assert row["seconds"] > 0
    assert (run / "quantized/6/b/three.png").exists()
    bad = {row["path"]: (row["status"], row["error"]) for row in rows if row["status"] != "ok"}
    assert set(bad) == {"broken.jpg", "empty.png", "large.png"}
    assert bad["large.png"] == ("too large", "200 x 200 pixels, more than max_pixels=10000")
    assert bad["empty.png"] == ("unreadable", "empty file (0 bytes)")
    assert pq.read_table(run / "quantized.parquet").equals(table)
    assert sorted(path.name for path in (run / "quantized").iterdir()) == ["2", "6"]
    assert table["mse_oklab"].null_count == len(table)
    assert not list(run.glob("**/*.partial"))


def test_planning_reads_no_image(run, photos):
    for file in photos.glob("**/*.*"):
        file.unlink()
    assert len(tasks_of(run)) == 1


def test_task_size_is_independent_of_batch_size(photos, tmp_path):
    """The scheduler keeps the arguments of every task in memory."""
    sizes = []
    for n in (1024, 10 * 1024):
        folder = tmp_path / str(n)
        folder.mkdir()
        paths = [f"many/{number:05}.png" for number in range(n)]
        write_manifest(manifest_of(photos, paths), folder / "manifest.parquet")
        sizes.append(max(len(pickle.dumps(task.dask)) for task in tasks_of(folder, k=[3])))
    assert sizes[1] == pytest.approx(sizes[0], abs=20)


def test_finished_run_has_no_tasks(run):
    quantize(run)
    before = {path: path.stat().st_mtime_ns for path in run.glob("**/*")}
    assert tasks_of(run) == []
    assert {path: path.stat().st_mtime_ns for path in run.glob("**/*")} == before


def test_changed_settings_or_items_start_over(run, photos):
    quantize(run)
    assert len(tasks_of(run, seed=1)) == 1
    assert not (run / "quantized").exists()
    assert len(tasks_of(run, sample=0.5)) == 1
    write_manifest(manifest_of(photos, PATHS[:-1]), run / "manifest.parquet")
    assert len(tasks_of(run)) == 1


@pytest.mark.parametrize("palette", ["image", "shared"])
def test_interrupted_run_resumes_with_the_same_files(run, photos, tmp_path, palette):
    paths = []
    for number in range(600):  # eight batches of 75
        paths.append(f"many/{number:03}.png")
        (photos / "many").mkdir(exist_ok=True)
        Image.fromarray(noise(4, 5)).save(photos / paths[-1])
    write_manifest(manifest_of(photos, paths), run / "manifest.parquet")
    settings = {"k": [3], "palette": palette}
    _, whole = quantize(run, **settings)
    expected = outputs(run)
    assert len(expected) == len(whole) == 600

    other = tmp_path / "interrupted"
    other.mkdir()
    write_manifest(manifest_of(photos, paths), other / "manifest.parquet")
    tasks = tasks_of(other, **settings)
    assert len(tasks) == 8
    dask.compute(tasks[2:], scheduler="synchronous")
    (truncated,) = other.glob("quantized.journal/*/000000000525-*.jsonl")  # as if killed while writing the tenth image
    lines = truncated.read_bytes().splitlines(keepends=True)
    truncated.write_bytes(b"".join(lines[:9]) + lines[9][:20])
    with pytest.raises(JobError, match="216 of 600 outputs"):
        finish_quantized(other, [3])
    done = [other / f"quantized/3/many/{number:03}.png" for number in range(150, 534)]
    before = [path.stat().st_mtime_ns for path in done]
    summaries, table = quantize(other, **settings)
    assert [(summary.start, summary.done) for summary in summaries] == [(0, 75), (75, 75), (525, 66)]
    assert [path.stat().st_mtime_ns for path in done] == before
    assert outputs(other) == expected
    assert table.drop_columns("seconds").equals(whole.drop_columns("seconds"))


def test_adding_k_keeps_existing_outputs(run):
    quantize(run, k=[6])
    before = {path: path.stat().st_mtime_ns for path in run.glob("quantized/**/*.png")}
    _, table = quantize(run, k=[2, 6])
    assert table["k"].to_pylist() == [2, 6] * len(PATHS)
    assert {path: path.stat().st_mtime_ns for path in run.glob("quantized/6/**/*.png")} == before
    assert len(list(run.glob("quantized/2/**/*.png"))) == len(before) == 5


def test_retry_redoes_only_failed_items(run, photos):
    quantize(run)
    before = {path: path.stat().st_mtime_ns for path in run.glob("quantized/**/*.png")}
    Image.fromarray(noise()).save(photos / "broken.jpg")
    assert tasks_of(run) == []
    assert find_journal(run).forget_failed() == 6
    summaries, table = quantize(run)
    assert [(summary.done, summary.failed) for summary in summaries] == [(1, 2)]
    fixed = [row for row in table.to_pylist() if row["path"] == "broken.jpg"]
    assert [(row["status"], row["bytes_in"]) for row in fixed] == [("ok", (photos / "broken.jpg").stat().st_size)] * 2
    after = {path: path.stat().st_mtime_ns for path in run.glob("quantized/**/*.png")}
    assert len(after) == len(before) + 2
    assert before.items() <= after.items()


def test_output_is_independent_of_other_items(run, photos):
    quantize(run, k=[6])
    expected = (run / "quantized/6/four.png").read_bytes()
    write_manifest(manifest_of(photos, ["four.png"]), run / "manifest.parquet")
    (run / "quantized/6/four.png").unlink()
    quantize(run, k=[6])
    assert (run / "quantized/6/four.png").read_bytes() == expected


def test_threads_write_the_same_files(run, photos):
    write_manifest(manifest_of(photos, PATHS * 40), run / "manifest.parquet")
    dask.compute(*tasks_of(run), scheduler="threads", num_workers=4)
    several = outputs(run)
    shutil.rmtree(run / "quantized.journal")
    quantize(run)
    assert outputs(run) == several


def test_missing_file_and_too_long_name_are_recorded(run, photos):
    long = "x" * 251 + ".png"
    Image.fromarray(noise()).save(photos / long)
    (photos / ("x" * 251 + ".PNG")).write_bytes((photos / long).read_bytes())
    write_manifest(manifest_of(photos, [long, long.upper(), "gone.png"]), run / "manifest.parquet")
    _, table = quantize(run, k=[2])
    assert table["status"].to_pylist() == ["not written", "missing", "missing"]
    assert not list(run.glob("**/*.partial"))


def test_image_of_few_colours_has_no_error(run, photos):
    Image.new("RGB", (5, 5), "red").save(photos / "red.png")
    write_manifest(manifest_of(photos, ["red.png"]), run / "manifest.parquet")
    _, table = quantize(run, k=[6])
    row = table.to_pylist()[0]
    assert (row["colours"], row["mse"], row["psnr"]) == (1, 0.0, None)


@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_truncated_file_is_recorded(run, photos, kind):
    Image.fromarray(noise(90, 100)).save(photos / f"half.{kind}")
    data = (photos / f"half.{kind}").read_bytes()
    (photos / f"half.{kind}").write_bytes(data[: len(data) // 2])
    write_manifest(manifest_of(photos, ["four.png", f"half.{kind}", "a/one.png"]), run / "manifest.parquet")
    summaries, table = quantize(run, k=[2, 6])
    assert [(summary.done, summary.failed) for summary in summaries] == [(2, 1)]
    assert table["status"].to_pylist() == ["ok", "ok", "unreadable", "unreadable", "ok", "ok"]
    assert not list(run.glob("quantized/**/half*"))


def test_opaque_rgba_equals_rgb(run, photos):
    pixels = noise(30, 40)
    Image.fromarray(pixels).save(photos / "x.png")
    Image.fromarray(pixels).convert("RGBA").save(photos / "b" / "x.png")
    for name in ("x.png", "b/x.png"):
        write_manifest(manifest_of(photos, [name]), run / "manifest.parquet")
        quantize(run, k=[6], palette="shared")
        (run / f"quantized/6/{name}").rename(run / f"{name.replace('/', '-')}")
    assert (run / "x.png").read_bytes() == (run / "b-x.png").read_bytes()


def test_inputs_are_unchanged(run, photos):
    before = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in photos.glob("**/*.*")}
    quantize(run)
    assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in photos.glob("**/*.*")} == before


def test_finish_without_journal_raises(tmp_path):
    write_manifest(manifest_of(tmp_path, ["a.png"]), tmp_path / "manifest.parquet")
    with pytest.raises(JobError, match="run the stage quantize"):
        finish_quantized(tmp_path, [2])


def test_webp_output(run):
    _, table = quantize(run, k=[6], format="webp")
    good = [row for row in table.to_pylist() if row["status"] == "ok"]
    assert {(run / row["output"]).read_bytes()[8:15] for row in good} == {b"WEBPVP8"}
    assert {row["output"].rpartition(".")[2] for row in good} == {"webp"}


def test_image_too_large_for_format_is_recorded(run, photos):
    Image.new("L", (16_500, 1)).save(photos / "wide.png")
    write_manifest(manifest_of(photos, ["wide.png", "four.png"]), run / "manifest.parquet")
    settings = Quantize(k=[2], format="webp")
    job = QuantizeJob(run / "manifest.parquet", run, settings, 0, 100_000)
    dask.compute(*quantize_tasks(job, missing_outputs(job)), scheduler="synchronous")
    assert finish_quantized(run, [2])["status"].to_pylist() == ["not written", "ok"]


def test_more_than_256_colours(run):
    _, table = quantize(run, k=[300])
    row = table.to_pylist()[0]
    assert (row["status"], row["colours"]) == ("ok", 300)
    pixels = np.asarray(Image.open(run / row["output"]))
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) == 300


def test_palette_files(run):
    _, table = quantize(run, k=[6], palette_files=["gpl", "json", "png"])
    for row in table.to_pylist():
        if row["status"] == "ok":
            expected = np.unique(np.asarray(Image.open(run / row["output"]).convert("RGB")).reshape(-1, 3), axis=0)
            for kind in ("gpl", "json", "png"):
                name = row["output"].removeprefix("quantized/").removesuffix("png")
                palette = read_palette(run / "palettes" / f"{name}{kind}")
                assert np.array_equal(np.unique(palette, axis=0), expected)


def test_given_palette_is_mapped_exactly(run, photos):
    palette = RNG.integers(0, 256, (5, 3), dtype=np.uint8)
    _, table = quantize(run, given={5: palette}, palette="five.gpl")
    for row in table.to_pylist():
        if row["status"] == "ok":
            pixels = np.asarray(Image.open(photos / row["path"]).convert("RGB"))
            remapped = np.asarray(Image.open(run / row["output"]).convert("RGB"))
            assert np.array_equal(remapped, palette[nearest_indices(pixels, palette)])
    assert tasks_of(run, given={5: palette}, palette="five.gpl") == []
    assert len(tasks_of(run, given={5: palette[::-1]}, palette="five.gpl")) == 1


def test_oklab_records_both_errors(run):
    _, table = quantize(run, k=[6], space="oklab")
    good = [row for row in table.to_pylist() if row["status"] == "ok"]
    assert all(0 < row["mse_oklab"] < row["mse"] for row in good)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "give k"),
        ({"palette": "p.gpl", "k": [6]}, "remove k"),
        ({"k": [300], "format": "gif"}, "gif supports at most 256"),
        ({"k": [6], "dither": "ordered", "space": "oklab"}, "use space rgb"),
        ({"k": [70_000]}, "65536"),
    ],
)
def test_incompatible_settings_raise(settings, message):
    with pytest.raises(ValidationError, match=message):
        Quantize(**settings)


def test_batches_are_limited_by_items_and_bytes():
    def batches(sizes, threads=1):
        return plan_batches(pa.table({"bytes": pa.array(sizes, pa.int64())}), threads)

    assert batches([100] * 600) == [(start, start + 75) for start in range(0, 600, 75)]
    assert batches([100] * 100) == [(0, 64), (64, 100)]
    assert {stop - start for start, stop in batches([100] * 102_400)} == {1024}
    assert batches([100] * 1024, 2) == [(start, start + 64) for start in range(0, 1024, 64)]
    assert batches([3 * 2**20] * 3) == [(0, 1), (1, 2), (2, 3)]
    assert batches([2**20] * 64)[0] == (0, 4)
    assert batches([2**30, 1, 1]) == [(0, 1), (1, 3)]
    assert batches([]) == []
