"""Every stage on a small folder of images, one by one and by the one command for all."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image
from sklearn.metrics import (
    accuracy_score,
    adjusted_rand_score,
    completeness_score,
    homogeneity_score,
    normalized_mutual_info_score,
    v_measure_score,
)

from kmeans_dask import open_collection
from kmeans_dask.cli import main
from kmeans_dask.models.model import read_model
from kmeans_dask.pipeline.resume import STAGES
from kmeans_dask.storage.publish import read_json
from kmeans_dask.storage.zarr_groups import read_attrs
from tests.support.images import LABELS, draw_images
from tests.support.jobs import write_config
from tests.support.page import Page

MODELS = [("kmeans", 3), ("kmeans", 5), ("minibatch", 3), ("minibatch", 5)]


@pytest.fixture(scope="module")
def by_stage(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of five calls, one per stage."""
    folder = tmp_path_factory.mktemp("by_stage")
    config = str(write_config(folder, images))
    for stage in STAGES:
        assert main.main([stage, config]) == 0
    return folder / "runs" / "small"


@pytest.fixture(scope="module")
def at_once(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Run folder of a single call, on other workers, without a report."""
    folder = tmp_path_factory.mktemp("at_once")
    config = write_config(folder, images, cluster={"kind": "local", "n_workers": 1}, report=None)
    assert main.main(["run", str(config)]) == 0
    return folder / "runs" / "small"


def run(folder: Path, source: Path, **changes: Any) -> Path:
    """Run all stages except quantize and report, unless ``changes`` add them, and return the run folder."""
    config = write_config(folder, source, **{"quantize": None, "report": None, **changes})
    assert main.main(["run", str(config)]) == 0
    return folder / "runs" / "small"


def clusters_of(run_folder: Path) -> dict[str, list[Any]]:
    return pq.read_table(run_folder / "clusters.parquet").to_pydict()


def test_run_folder_contents(by_stage: Path):
    names = {path.name for path in by_stage.iterdir()}
    assert names >= {
        "clusters.parquet", "collection.zarr", "config.yaml", "items.csv", "manifest.parquet", "metrics.json", "models",
        "quantized", "quantized.parquet", "report.html", "run.json", "sheets",
    }  # fmt: skip
    assert sorted(str(path.relative_to(by_stage)) for path in by_stage.glob("models/*/*")) == [
        f"models/{algorithm}/k={k}.zarr" for algorithm, k in MODELS
    ]
    assert [path for path in by_stage.rglob("*") if "part" in path.name] == []  # no parts and no partial files are left


def test_run_record(by_stage: Path):
    record = read_json(by_stage / "run.json")

    assert record["state"] == "finished"
    assert record["seed"] == 0
    assert list(record["stages"]) == ["listing", "ingest", "fit", "evaluate", "quantize", "report"]
    summary = record["stages"]["ingest"]["summary"]
    assert summary.pop("content").isalnum()
    assert summary == {"items": 60, "failed": 0, "chunks": 1, "changes": {}}
    assert record["stages"]["fit"]["summary"] == {"rows": 48, "models": 4, "fitted": 4, "updated": 0}
    assert record["stages"]["quantize"]["summary"] == {"items": 60, "failed": 0, "outputs": 120}
    assert yaml.safe_load((by_stage / "config.yaml").read_text())["fit"]["k"] == [3, 5]


def test_collection_contents(by_stage: Path, images: Path):
    collection = open_collection(by_stage / "collection.zarr")

    assert collection.images.shape == (60, 16, 16, 3)
    assert collection.class_names == tuple(sorted(LABELS))
    assert collection.items["split"].to_pylist().count("holdout") == 12
    for row, path in enumerate(collection.items["path"].to_pylist()):
        assert collection.class_names[collection.labels[row]] == path.split("/")[0]
    pixels = collection.images[7].compute(scheduler="sync")
    with Image.open(images / collection.items["path"][7].as_py()) as image:
        expected = np.asarray(image.resize((16, 16), Image.Resampling.BOX))
    assert np.array_equal(pixels, expected)


def test_single_stages_equal_one_run(by_stage: Path, at_once: Path):
    for algorithm, k in MODELS:
        one, other = (read_model(folder / "models" / algorithm / f"k={k}.zarr") for folder in (by_stage, at_once))
        assert one.centres.tobytes() == other.centres.tobytes()
        assert np.array_equal(one.label_map, other.label_map)
    assert clusters_of(by_stage) == clusters_of(at_once)
    for path in (by_stage / "quantized").rglob("*.png"):
        assert path.read_bytes() == (at_once / path.relative_to(by_stage)).read_bytes()
    assert not (at_once / "report.html").exists()


def test_clusters_table_has_one_row_per_item(by_stage: Path):
    rows = clusters_of(by_stage)
    names = [f"{algorithm}_k{k}_{value}" for algorithm, k in MODELS for value in ("cluster", "distance")]
    labels = [f"{algorithm}_k{k}_label" for algorithm, k in MODELS]

    assert set(rows) == {"path", "split", "label", *names, *labels}
    assert rows["path"] == pq.read_table(by_stage / "manifest.parquet")["path"].to_pylist()
    assert len(rows["path"]) == 60
    for algorithm, k in MODELS:
        assert set(rows[f"{algorithm}_k{k}_cluster"]) <= set(range(k))


def test_clusters_and_distances_match_the_centres(by_stage: Path):
    rows = clusters_of(by_stage)
    pixels = open_collection(by_stage / "collection.zarr").images.compute(scheduler="sync").reshape(60, -1)
    for algorithm, k in MODELS:
        centres = read_model(by_stage / "models" / algorithm / f"k={k}.zarr").centres
        squared = ((pixels[:, None, :].astype(float) - centres.astype(float)) ** 2).sum(axis=2)
        assert rows[f"{algorithm}_k{k}_cluster"] == squared.argmin(axis=1).tolist()
        np.testing.assert_allclose(rows[f"{algorithm}_k{k}_distance"], np.sqrt(squared.min(axis=1)), rtol=1e-6)


def test_metrics_match_scikit_learn(by_stage: Path):
    rows = {name: np.array(values) for name, values in clusters_of(by_stage).items()}
    metrics = read_json(by_stage / "metrics.json")
    train, held = rows["split"] == "train", rows["split"] == "holdout"

    assert [(row["algorithm"], row["k"]) for row in metrics] == MODELS
    for row in metrics:
        prefix = f"{row['algorithm']}_k{row['k']}"
        truth, cluster = rows["label"][train], rows[f"{prefix}_cluster"][train]
        squared, predicted = rows[f"{prefix}_distance"].astype(float) ** 2, rows[f"{prefix}_label"]
        assert row["homogeneity"] == pytest.approx(homogeneity_score(truth, cluster))
        assert row["completeness"] == pytest.approx(completeness_score(truth, cluster))
        assert row["v_measure"] == pytest.approx(v_measure_score(truth, cluster))
        assert row["adjusted_rand"] == pytest.approx(adjusted_rand_score(truth, cluster))
        assert row["normalized_mutual_information"] == pytest.approx(normalized_mutual_info_score(truth, cluster))
        assert row["accuracy_train"] == pytest.approx(accuracy_score(truth, predicted[train]))
        assert row["accuracy_holdout"] == pytest.approx(accuracy_score(rows["label"][held], predicted[held]))
        assert row["inertia"] == pytest.approx(squared[train].sum(), rel=1e-5)
        assert row["inertia_per_sample"] == pytest.approx(squared[train].mean(), rel=1e-5)
        assert row["inertia_per_sample_holdout"] == pytest.approx(squared[held].mean(), rel=1e-5)
        assert row["empty_clusters"] == row["k"] - len(set(cluster))
        assert row["seconds"] > 0
        assert row["iterations"] >= 1


def test_cluster_label_is_the_majority_of_its_fitted_items(by_stage: Path):
    rows = {name: np.array(values) for name, values in clusters_of(by_stage).items()}
    for algorithm, k in MODELS:
        model = read_model(by_stage / "models" / algorithm / f"k={k}.zarr")
        assert model.counts is not None
        for cluster in range(k):
            here = rows[f"{algorithm}_k{k}_cluster"] == cluster
            fitted = rows["label"][here & (rows["split"] == "train")]
            names, counts = np.unique(fitted, return_counts=True)
            assert model.counts[cluster] == len(fitted)
            assert set(rows[f"{algorithm}_k{k}_label"][here]) == {names[counts.argmax()]}


def test_three_shapes_are_three_clusters(by_stage: Path):
    """Discs, bars and rings of different colours, which any working clustering separates."""
    (metrics,) = [row for row in read_json(by_stage / "metrics.json") if (row["algorithm"], row["k"]) == MODELS[0]]

    assert metrics["accuracy_train"] == metrics["accuracy_holdout"] == 1.0
    assert metrics["v_measure"] == pytest.approx(1.0)


def test_items_csv_has_one_row_per_item(by_stage: Path):
    with open(by_stage / "items.csv", newline="") as file:
        rows = list(csv.DictReader(file))

    assert [row["path"] for row in rows] == clusters_of(by_stage)["path"]
    assert {(row["status"], row["error"]) for row in rows} == {("ok", "")}


def test_quantized_images_keep_paths_and_have_few_colours(by_stage: Path, images: Path):
    paths = sorted(path.relative_to(images) for path in images.rglob("*.png"))
    for k in (2, 6):
        folder = by_stage / "quantized" / str(k)
        assert sorted(path.relative_to(folder) for path in folder.rglob("*.png")) == paths
        for path in paths:
            with Image.open(folder / path) as image:
                assert image.size == (24, 24)
                colours = image.convert("RGB").getcolors()
            assert colours is not None
            assert 2 <= len(colours) <= k


def test_quantized_table_matches_the_images(by_stage: Path, images: Path):
    rows = pq.read_table(by_stage / "quantized.parquet").to_pylist()

    assert [(row["path"], row["k"]) for row in rows] == [
        (path, k) for path in clusters_of(by_stage)["path"] for k in (2, 6)
    ]
    for row in rows[::17]:
        with Image.open(images / row["path"]) as original, Image.open(by_stage / row["output"]) as output:
            difference = np.asarray(original, float) - np.asarray(output.convert("RGB"), float)
        assert row["mse"] == pytest.approx((difference**2).sum(axis=2).mean())
        assert row["psnr"] == pytest.approx(10 * np.log10(255**2 * 3 / row["mse"]))
        assert row["bytes_in"] == (images / row["path"]).stat().st_size
        assert row["bytes_out"] == (by_stage / row["output"]).stat().st_size
        assert row["status"] == "ok"


def test_report_plots_are_written_as_files(by_stage: Path):
    of_models = {f"{what}-{a}-k{k}" for a, k in MODELS for what in ("centres", "confusion")}
    names = {"samples", "label-counts", "curves", "before-after"} | of_models

    assert {path.name for path in (by_stage / "sheets").iterdir()} >= {f"{name}.png" for name in names}
    for path in (by_stage / "sheets").iterdir():
        with Image.open(path) as image:
            image.load()
            assert len(image.convert("RGB").getcolors(2**24) or []) > 2  # not an empty sheet


def test_holdout_folder_is_scored_but_not_fitted(images: Path, tmp_path: Path):
    draw_images(tmp_path / "other", count=9)
    white = Image.new("RGB", (24, 24), "white")
    white.save(tmp_path / "other" / "disc" / "white.png")

    folder = run(tmp_path, images, input={"path": str(images), "holdout": str(tmp_path / "other")}, fit={"k": 3})

    rows = clusters_of(folder)
    assert rows["split"] == ["train"] * 60 + ["holdout"] * 10
    model = read_model(folder / "models" / "kmeans" / "k=3.zarr")
    assert model.counts is not None
    assert model.counts.sum() == 60
    (metrics,) = read_json(folder / "metrics.json")
    assert metrics["accuracy_train"] == 1.0
    assert metrics["accuracy_holdout"] in (0.9, 1.0)
    # the white image is far from all centres: if it were fitted, one of the three would be white
    assert max(rows["kmeans_k3_distance"][60:]) > 2 * max(rows["kmeans_k3_distance"][:60])


def test_unlabelled_images_have_clusters_but_no_scores(images: Path, tmp_path: Path):
    folder = run(tmp_path, images, input={"path": str(images), "labels": "none"}, report={"samples": 4})

    rows = clusters_of(folder)
    assert set(rows["label"]) == set(rows["kmeans_k3_label"]) == {None}
    assert set(rows["kmeans_k3_cluster"]) == {0, 1, 2}
    for row in read_json(folder / "metrics.json"):
        assert row["homogeneity"] is row["accuracy_train"] is row["accuracy_holdout"] is None
        assert row["inertia"] > 0
    data = Page(folder / "report.html").data
    assert data["labels"] == {"names": [], "counts": []}
    assert [model["confusion"] for model in data["models"]] == [[]] * len(data["models"])


def test_grey_images(images: Path, tmp_path: Path):
    folder = run(tmp_path, images, ingest={"size": [8, 12], "mode": "L"}, fit={"k": 3}, report={"samples": 4})

    assert open_collection(folder / "collection.zarr").images.shape == (60, 8, 12, 1)
    assert read_model(folder / "models" / "kmeans" / "k=3.zarr").centres.shape == (3, 96)
    assert (folder / "sheets" / "centres-kmeans-k3.png").exists()


def test_dask_ml_engine(images: Path, tmp_path: Path):
    folder = run(tmp_path, images, fit={"k": [3, 5], "engine": "dask-ml"})

    rows = {name: np.array(values) for name, values in clusters_of(folder).items()}
    for row in read_json(folder / "metrics.json"):
        squared = rows[f"kmeans_k{row['k']}_distance"][rows["split"] == "train"].astype(float) ** 2
        assert row["inertia"] == pytest.approx(squared.sum(), rel=1e-5)  # true inertia, unlike the engine's own


@pytest.mark.parametrize("init", ["k-means++", "random"])
def test_other_inits(images: Path, tmp_path: Path, init: str):
    folder = run(tmp_path, images, fit={"k": 3, "init": init, "n_init": 4, "algorithm": ["minibatch", "kmeans"]})

    for algorithm in ("minibatch", "kmeans"):
        assert read_attrs(folder / "models" / algorithm / "k=3.zarr", "model")["settings"]["init"] == init
    assert [row["accuracy_train"] for row in read_json(folder / "metrics.json")] == [1.0, 1.0]


def test_only_quantize(images: Path, tmp_path: Path):
    shared = {"k": 4, "palette": "shared", "sample": 0.7, "init": "random", "algorithm": "minibatch"}
    none = dict.fromkeys(("ingest", "fit", "evaluate"))

    folder = run(tmp_path, images, input={"path": str(images)}, quantize=shared, report={"samples": 3}, **none)

    colours = set()
    for path in (folder / "quantized" / "4").rglob("*.png"):
        with Image.open(path) as image:
            colours |= {colour for _, colour in image.convert("RGB").getcolors() or []}
    assert len(list((folder / "quantized" / "4").rglob("*.png"))) == 60
    assert len(colours) == 4
    with open(folder / "items.csv", newline="") as file:
        assert [row["status"] for row in csv.DictReader(file)] == ["ok"] * 60
    assert not (folder / "collection.zarr").exists()
    data = Page(folder / "report.html").data
    assert data["models"] == []
    assert [len(palette["colours"]) for palette in data["colours"]["palettes"]] == [4]


def test_only_ingest(images: Path, tmp_path: Path):
    folder = run(tmp_path, images, fit=None, evaluate=None)

    assert open_collection(folder / "collection.zarr").images.shape == (60, 16, 16, 3)
    assert not (folder / "models").exists()
    assert json.loads((folder / "run.json").read_text())["state"] == "finished"


@pytest.mark.parametrize(("name", "items"), [("digits", 1797), ("photos", 2)])
def test_builtin_images(tmp_path: Path, name: str, items: int):
    source = {"builtin": name, "holdout": 0.2 if name == "digits" else None}
    settings = {"ingest": {"size": [8, 8], "mode": "L"}, "fit": {"k": 2 if name == "photos" else 20}}

    folder = run(tmp_path, tmp_path, input=source, **settings)

    rows = clusters_of(folder)
    assert len(rows["path"]) == items
    if name == "digits":
        (metrics,) = read_json(folder / "metrics.json")
        assert set(rows["label"]) == set("0123456789")
        assert 0.7 < metrics["accuracy_holdout"] < 1  # with ten clusters it is 0.8
