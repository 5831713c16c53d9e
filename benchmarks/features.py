"""Accuracy and cost of features other than raw pixels on MNIST.

``python -m benchmarks.features RUN``, where RUN is the finished run of configs/mnist.yaml; it is only read.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from distributed import Client, wait

from benchmarks.common import machine, seconds, table, workers
from kmeans_dask import KMeans
from kmeans_dask.collection.collection import Collection, open_collection
from kmeans_dask.collection.fit_features import ExtractionResult, extraction_tasks, fit_features
from kmeans_dask.config.sections import Features
from kmeans_dask.deploy.tasks import run_tasks
from kmeans_dask.evaluation.metrics import contingency_block, label_map, scores

VARIANTS: dict[str, dict[str, Any]] = {
    "raw pixels": {},
    "scale 255": {"scale": 255},
    "scale standard": {"scale": "standard"},
    "mean removal": {"centre": True},
    "PCA 50": {"pca": 50},
    "L2, spherical": {"normalize": "l2"},
    "mean removal, L2, spherical": {"centre": True, "normalize": "l2"},
    "HOG": {"kind": "hog"},
    "HOG, PCA 50": {"kind": "hog", "pca": 50},
    "HOG, L2, spherical": {"kind": "hog", "normalize": "l2"},
}
KS = (10, 256)


def check(done: ExtractionResult) -> None:
    """Stop at the first chunk that failed."""
    assert done.error is None, done.error


def measure(client: Client, collection: Collection, settings: Features, run: Path) -> list[list[str]]:
    """Extract the features, fit both K one after the other, and score them; return one table row per K."""

    def extract() -> Any:
        run_tasks(client, extraction_tasks(settings, collection, run), check)
        features = fit_features(settings, collection, run, 0)
        X = features.rows(collection, "train")[0].persist()
        wait(X)
        return features, X

    extracted, (features, X) = seconds(extract)
    rows = []
    held, held_index = features.rows(collection, "holdout")
    labels = collection.labels[collection.rows("train")[1]], collection.labels[held_index]
    for k in KS:
        model = KMeans(k, random_state=0, spherical=settings.normalize == "l2")
        fitted, _ = seconds(lambda model=model: model.fit(X))
        clusters = np.asarray(model.labels_), np.asarray(model.predict(held))
        n_labels = len(collection.class_names)
        tables = [contingency_block(c, true, k, n_labels) for c, true in zip(clusters, labels, strict=True)]
        mapping = label_map(tables[0])
        train, holdout = (scores(part, mapping) for part in tables)
        cells = [f"{X.shape[1]:,}", f"{k}", f"{extracted:.1f}", f"{fitted:.1f}", f"{model.n_iter_}"]
        rows.append([*cells, f"{train['v_measure']:.4f}", f"{train['accuracy']:.4f}", f"{holdout['accuracy']:.4f}"])
    return rows


def main() -> None:
    """Measure all variants on the same workers, after a warm-up."""
    collection = open_collection(Path(sys.argv[1]) / "collection.zarr")
    print(machine())
    columns = ("features", "n_features", "K", "s to extract", "s to fit", "passes", "V", "accuracy, train", "held-out")
    with workers() as client:
        X = collection.rows("train")[0][:4096].astype(np.float32)
        KMeans(4, random_state=0).fit(X), KMeans(4, random_state=0).fit(X.astype(np.uint8))

        def lines() -> Any:
            for name, keys in VARIANTS.items():
                with tempfile.TemporaryDirectory() as scratch:
                    yield from ((name, *row) for row in measure(client, collection, Features(**keys), Path(scratch)))

        table("MNIST", columns, lines())


if __name__ == "__main__":
    main()
