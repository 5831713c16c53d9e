"""The page of a small run against the tables of the run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image

from kmeans_dask import open_collection
from kmeans_dask.cli import main
from kmeans_dask.collection.features import open_features
from kmeans_dask.models.model import read_model
from kmeans_dask.report import thumbnails
from kmeans_dask.report.gallery import make_gallery
from kmeans_dask.report.thumbnails import read_rows, take_turns
from kmeans_dask.storage.publish import read_json
from tests.support.jobs import write_config
from tests.support.page import Page


@pytest.fixture(scope="module")
def run_folder(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder with two models and a report."""
    folder = tmp_path_factory.mktemp("report")
    config = write_config(folder, images, cluster={"kind": "threads", "n_workers": 2}, fit={"k": [3, 5]}, quantize=None)
    assert main.main(["run", str(config)]) == 0
    return folder / "runs" / "small"


@pytest.fixture(scope="module")
def page(run_folder: Path) -> Page:
    return Page(run_folder / "report.html")


def tile(page: Page, kind: str, number: int) -> np.ndarray:
    """Cut a tile out of its sheet."""
    layout = page.data["sheets"][kind]
    x, y = number % layout["across"] * layout["pitch"][0], number // layout["across"] * layout["pitch"][1]
    sheet = np.asarray(page.image(f"{kind}-0").convert("RGB"))
    return sheet[y : y + layout["height"], x : x + layout["width"]].astype(int)


def test_clusters_match_the_table_of_clusters(run_folder: Path, page: Page):
    clusters = pq.read_table(run_folder / "clusters.parquet").to_pydict()
    for model in page.data["models"]:
        name = f"{model['algorithm']}_k{model['k']}"
        items = page.data["items"]
        for cluster in range(model["k"]):
            (members,) = np.nonzero([c == cluster for c in clusters[f"{name}_cluster"]])
            distances = np.array(clusters[f"{name}_distance"], float)[members]
            fitted = np.array(clusters["split"])[members] == "train"
            assert model["size"][cluster] == fitted.sum()
            assert model["size_holdout"][cluster] == (~fitted).sum()
            nearest = [items["row"][number] for number in model["nearest"][cluster]]
            assert set(nearest) <= set(members.tolist())
            assert nearest[0] == members[distances.argmin()]
            assert items["row"][model["farthest"][cluster][0]] == members[distances.argmax()]
            labels = [clusters["label"][row] for row in members]
            shown = {page.data["labels"]["names"][label]: n for label, n in model["mix"][cluster]}
            assert shown == {label: labels.count(label) for label in set(labels)}


def test_confusion_counts_all_items(run_folder: Path, page: Page):
    clusters = pq.read_table(run_folder / "clusters.parquet").to_pydict()
    names = page.data["labels"]["names"]
    for model in page.data["models"]:
        pairs = list(zip(clusters["label"], clusters[f"{model['algorithm']}_k{model['k']}_label"], strict=True))
        shown = {(names[label], names[guess]): n for label, guess, n in model["confusion"]}
        assert shown == {pair: pairs.count(pair) for pair in set(pairs)}


def test_item_tiles_show_the_items(run_folder: Path, page: Page):
    collection = open_collection(run_folder / "collection.zarr")
    items = page.data["items"]
    rows = np.array(items["row"])
    pixels = collection.images.compute(scheduler="sync")
    for number in (0, len(rows) // 2, len(rows) - 1):
        shown = tile(page, "items", number)
        # lossy, but closer to its own image than to any other
        difference = np.abs(pixels.astype(int) - shown).mean(axis=(1, 2, 3))
        assert difference.argmin() == rows[number]
        assert items["path"][number] == collection.items["path"][int(rows[number])].as_py()
        assert items["label"][number] == collection.labels[rows[number]]


def test_centre_tiles_show_the_centres(run_folder: Path, page: Page):
    for model in page.data["models"]:
        centres = read_model(run_folder / "models" / model["algorithm"] / f"k={model['k']}.zarr").centres
        for cluster in (0, model["k"] - 1):
            shown = tile(page, "centres", model["first_centre"] + cluster)
            # lossy, but closer to its own centre than to any other
            assert np.abs(centres - shown.ravel()).mean(axis=1).argmin() == cluster


def test_map_shows_every_readable_item(page: Page):
    drawn = page.data["map"]

    assert len(drawn["x"]) == len(drawn["label"]) == 60
    for m, model in enumerate(page.data["models"]):
        assert len(drawn["centres"][m][0]) == model["k"]
        assert set(drawn["cluster"][m]) == set(range(model["k"]))


def test_metrics_timings_and_facts(run_folder: Path, page: Page):
    assert page.data["metrics"] == read_json(run_folder / "metrics.json")
    assert [stage for stage, _ in page.data["run"]["timings"]] == ["ingest", "fit", "evaluate"]
    assert dict(page.data["run"]["facts"])["items"] == "60"


def test_lists_are_shortened_to_fit_the_page(run_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("kmeans_dask.report.thumbnails.TILE_BYTES", 4000)
    collection = open_collection(run_folder / "collection.zarr")
    models = [read_model(run_folder / "models" / "kmeans" / f"k={k}.zarr") for k in (3, 5)]
    facts = pq.read_table(run_folder / "cluster_facts.parquet")

    gallery = make_gallery(collection, open_features(run_folder), models, facts, run_folder / "clusters.parquet", {})

    assert sum(map(len, gallery.items.images)) < 8000
    assert len(gallery.data["items"]["row"]) < 60
    complete = facts.to_pylist()
    shown = [numbers for model in gallery.data["models"] for numbers in model["nearest"]]
    assert all(len(numbers) <= len(fact["nearest"]) for numbers, fact in zip(shown, complete, strict=True))


def test_queues_take_turns():
    assert take_turns([[1, 2, 3], [4, 1, 5], [6]], 4) == [6, 4, 1, 2]
    assert take_turns([[1, 2], [2, 1]], 9) == [2, 1]
    assert take_turns([], 9) == []


def test_read_rows_in_any_order(run_folder: Path):
    collection = open_collection(run_folder / "collection.zarr")
    pixels = collection.images.compute(scheduler="sync")
    rows = np.array([59, 0, 1, 30, 30, 58])
    got: list[Any] = [None] * len(rows)

    for positions, images in read_rows(collection, rows):
        for position, image in zip(positions.tolist(), images, strict=True):
            got[position] = image

    np.testing.assert_array_equal(got, pixels[rows])


def test_sheets_are_valid_webp(page: Page):
    for kind in ("items", "centres"):
        sheet = page.image(f"{kind}-0")
        assert isinstance(sheet, Image.Image)
        assert sheet.format == "WEBP"
        assert sheet.size[0] == page.data["sheets"][kind]["pitch"][0] * thumbnails.ACROSS
