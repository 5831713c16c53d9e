from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import dask
import numpy as np
import pyarrow.parquet as pq
import pytest

from kmeans_dask.collection.collection import Collection
from kmeans_dask.collection.features import raw_features
from kmeans_dask.collection.ingest import finish_collection, ingest_tasks
from kmeans_dask.config.sections import Ingest, Input
from kmeans_dask.evaluation.first_pass import FirstPass, first_pass_tasks, join_clusters, join_first_passes
from kmeans_dask.evaluation.metrics import label_map
from kmeans_dask.models.model import Model, column_prefix
from kmeans_dask.sources.listing import list_items
from kmeans_dask.sources.manifest import write_manifest
from tests.support.images import draw_images

SIZE = Ingest(size=(96, 96), mode="RGB", chunk_mib=0.001)
"""32 rows of 27,648 features per chunk: the items are two chunks of different lengths."""


RAW = raw_features((96, 96, 3))


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Collection:
    """Collection of drawn images, one of them broken and one without a label."""
    folder = tmp_path_factory.mktemp("evaluation")
    draw_images(folder / "images", count=49)
    (folder / "images" / "bar" / "001.png").write_bytes(b"broken")
    (folder / "images" / "disc" / "048.png").rename(folder / "images" / "unlabelled.png")
    source = Input(path=str(folder / "images"), holdout=0.25)
    write_manifest(list_items(source, 0, folder), folder / "manifest.parquet")
    arguments = folder / "manifest.parquet", folder / "collection.zarr", SIZE, source
    dask.compute(*ingest_tasks(*arguments), scheduler="sync")
    return finish_collection(*arguments)


def pixels_of(collection: Collection) -> np.ndarray:
    return collection.images.compute(scheduler="sync").reshape(len(collection.labels), -1).astype(np.float64)


@pytest.fixture(scope="module")
def models(collection: Collection) -> list[Model]:
    """Models whose centres are items, so that the nearest centre is unambiguous."""
    pixels = pixels_of(collection)
    ok = np.flatnonzero(collection.items["status"].to_numpy() == "ok")
    return [Model("kmeans", pixels[ok[:k]].astype(np.float32), np.zeros(1), 0.0, 1, 0.0) for k in (2, 7)] + [
        Model("minibatch", pixels[ok[-3:]].astype(np.float32), np.zeros(1), 0.0, 1, 0.0)
    ]


@pytest.fixture(scope="module")
def chunks(collection: Collection, models: list[Model], tmp_path_factory: pytest.TempPathFactory):
    """Results of the tasks, and the folder that they wrote to."""
    parts = tmp_path_factory.mktemp("parts")
    return dask.compute(*first_pass_tasks(collection, RAW, models, parts), scheduler="sync"), parts


def expected_distances(collection: Collection, model: Model) -> np.ndarray:
    differences = pixels_of(collection)[:, None, :] - model.centres.astype(np.float64)
    return (differences**2).sum(axis=2)


@pytest.fixture(scope="module")
def first(chunks) -> FirstPass:
    return join_first_passes(list(chunks[0]))


def slices_of(models: list[Model]) -> list[slice]:
    """Return the rows of each model among the stacked clusters."""
    ends = np.cumsum([model.k for model in models])
    return [slice(end - model.k, end) for end, model in zip(ends, models, strict=True)]


def test_counts_of_chunks_add_up(collection: Collection, models: list[Model], chunks, first: FirstPass):
    items = collection.items.to_pydict()
    ok = np.array(items["status"]) == "ok"
    counts = first.counts

    assert len(chunks[0]) == 2
    assert len(ok) == 49
    for own, model in zip(slices_of(models), models, strict=True):
        squared = expected_distances(collection, model)
        nearest = squared.argmin(axis=1)
        for s, split in enumerate(("train", "holdout")):
            in_split = ok & (np.array(items["split"]) == split)
            assert counts.within.sizes[s, own].tolist() == np.bincount(nearest[in_split], minlength=model.k).tolist()
            assert counts.within.squared_distances[s, own].sum() == pytest.approx(squared[in_split].min(axis=1).sum())
            table = np.zeros((model.k, 3), int)
            labelled = in_split & (collection.labels >= 0)
            np.add.at(table, (nearest[labelled], collection.labels[labelled]), 1)
            assert counts.tables[s, own].tolist() == table.tolist()


def test_exemplars_of_every_cluster(collection: Collection, models: list[Model], first: FirstPass):
    ok = collection.items["status"].to_numpy() == "ok"
    for own, model in zip(slices_of(models), models, strict=True):
        squared = expected_distances(collection, model)
        for c in range(model.k):
            members = np.flatnonzero(ok & (squared.argmin(axis=1) == c))
            order = members[np.argsort(squared[members, c], kind="stable")]
            nearest, farthest, sample = (
                each.rows[own][c]
                for each in (first.exemplars.nearest, first.exemplars.farthest, first.exemplars.sample)
            )
            n = min(len(order), 12)
            assert nearest.tolist() == [*order[:n], *[-1] * (12 - n)]
            assert squared[farthest[:n], c].tolist() == pytest.approx(squared[order[::-1][:n], c].tolist())
            assert len(set(sample[:n])) == n
            assert set(sample[:n]) <= set(members)


def test_contingency_with_rivals(collection: Collection, models: list[Model], tmp_path: Path):
    rivals = [replace(models[0], rival=models[0].centres[::-1].copy()), models[2]]

    parts = dask.compute(*first_pass_tasks(collection, RAW, rivals, tmp_path / "parts"), scheduler="sync")
    counts = join_first_passes(list(parts)).counts

    (table,) = counts.rivals
    assert table[[0, 1], [0, 1]].tolist() == [0, 0]  # same clusters in reverse order
    assert table[[0, 1], [1, 0]].tolist() == counts.within.sizes[0, :2].tolist()
    assert pq.read_table(tmp_path / "parts" / "part-000000000000.parquet").column_names[3:] == [
        "kmeans_k2_cluster", "kmeans_k2_distance", "minibatch_k3_cluster", "minibatch_k3_distance",
    ]  # fmt: skip


def test_broken_and_unlabelled_items_are_not_counted(first: FirstPass):
    assert int(first.counts.within.sizes.sum()) == 3 * 48  # without the broken item
    assert int(first.counts.tables.sum()) == 3 * 47  # and without the unlabelled item


def test_join_clusters_keeps_order_of_items(
    collection: Collection, models: list[Model], chunks, first: FirstPass, tmp_path: Path
):
    tables = first.counts.tables[0]
    maps = {column_prefix(model): label_map(tables[own]) for own, model in zip(slices_of(models), models, strict=True)}
    path = tmp_path / "clusters.parquet"

    join_clusters(chunks[1], path, maps, collection.class_names)

    table = pq.read_table(path)
    assert table.column_names[:3] == ["path", "split", "label"]
    for name in ("path", "split", "label"):
        assert table[name].equals(collection.items[name])
    broken = collection.items["status"].to_pylist().index("unreadable")
    ok = np.arange(len(table)) != broken
    for model in models:
        prefix = column_prefix(model)
        clusters, distances, labels = (
            table[f"{prefix}_{name}"].to_pylist() for name in ("cluster", "distance", "label")
        )
        squared = expected_distances(collection, model)
        assert clusters[broken] is distances[broken] is labels[broken] is None
        assert np.array(clusters)[ok].tolist() == squared[ok].argmin(axis=1).tolist()
        np.testing.assert_allclose(np.array(distances)[ok].astype(float) ** 2, squared[ok].min(axis=1), rtol=1e-6)
        names = [collection.class_names[c] if c >= 0 else None for c in maps[prefix]]
        assert [labels[i] for i in np.flatnonzero(ok)] == [names[clusters[i]] for i in np.flatnonzero(ok)]
    assert not chunks[1].exists()


def test_parts_of_earlier_call_are_removed(collection: Collection, models: list[Model], tmp_path: Path):
    parts = tmp_path / "parts"
    parts.mkdir()
    (parts / "part-000000000005.parquet").write_bytes(b"half")

    dask.compute(*first_pass_tasks(collection, RAW, models, parts), scheduler="sync")

    assert sorted(path.name for path in parts.glob("part-*")) == [
        "part-000000000000.parquet",
        "part-000000000032.parquet",
    ]


def test_building_tasks_reads_no_images(collection: Collection, models: list[Model], tmp_path: Path):
    missing = replace(collection, folder=tmp_path / "missing")

    assert len(first_pass_tasks(missing, RAW, models, tmp_path / "parts")) == 2


def test_column_prefix(models: list[Model]):
    assert [column_prefix(model) for model in models] == ["kmeans_k2", "kmeans_k7", "minibatch_k3"]
