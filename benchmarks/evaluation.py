"""Cost and accuracy of evaluation, and how many planted label errors it finds.

``python -m benchmarks.evaluation RUN [SECTION ...]``, where RUN is the run folder of ``configs/mnist.yaml``.
"""

from __future__ import annotations

from benchmarks.common import Mnist, machine, median, table, workers  # isort: skip

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from scipy.optimize import linear_sum_assignment
from sklearn import metrics as reference

from kmeans_dask.collection.features import raw_features
from kmeans_dask.evaluation.duplicates import Sketcher
from kmeans_dask.evaluation.first_pass import Chunk, Counts, EvaluationContext, add_counts, count_block
from kmeans_dask.evaluation.internal_metrics import cluster_means, internal_scores, scatter_block
from kmeans_dask.evaluation.label_issues import label_issues_block
from kmeans_dask.evaluation.metrics import contingency_block, label_map, scores
from kmeans_dask.kmeans.kernels import NearestTwo, Stack, assign, assign_two
from kmeans_dask.models.model import Model, read_model
from kmeans_dask.reduction import broadcast, map_chunks, tree_reduce
from kmeans_dask.storage.publish import read_json

SWEEP = (10, 16, 36, 64, 144, 256)
Rows = Iterator[tuple[Any, ...]]


def models_of(run: Path) -> list[Model]:
    return [read_model(run / "models" / "kmeans" / f"k={k}.zarr") for k in SWEEP]


def mistakes(data: Mnist, run: Path, seeds: int = 5) -> Rows:
    """1 % of the labels changed at random: how many of them are listed as label issues at K = 256."""
    centres = models_of(run)[-1].centres
    (clusters,), (squared,) = assign(data.train, Stack.of([centres]))
    rows, distances = np.arange(len(data.train)), np.sqrt(squared)
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        labels = data.labels.copy()
        changed = rng.choice(len(labels), len(labels) // 100, replace=False)
        labels[changed] = (labels[changed] + rng.integers(1, 10, len(changed))) % 10
        counts = contingency_block(clusters, labels, len(centres), 10)
        purities = counts.max(axis=1) / np.maximum(counts.sum(axis=1), 1)
        found = label_issues_block(data.train, rows, labels, clusters, distances, centres, label_map(counts), purities)
        right = np.isin(found.rows, changed)
        n = len(changed)
        yield seed, n, len(right), right.sum(), right[: 3 * n].sum(), right[:n].sum()


def truth(data: Mnist, run: Path) -> Rows:
    """Compare a run's metrics with scikit-learn on the fitted images; report the largest difference over all models."""
    table = pq.read_table(run / "clusters.parquet")
    table = table.filter(pc.equal(table["split"], "train"))
    labels = np.unique(table["label"].to_numpy(zero_copy_only=False), return_inverse=True)[1]
    pixels = data.train.astype(np.float64)
    worst: dict[str, float] = {}
    for row in read_json(run / "metrics.json"):
        clusters = table[f"{row['algorithm']}_k{row['k']}_cluster"].to_numpy()
        counts = reference.cluster.contingency_matrix(labels, clusters)
        voted, matched = counts.argmax(axis=0), linear_sum_assignment(counts, maximize=True)
        theirs = {
            "homogeneity": reference.homogeneity_score(labels, clusters),
            "completeness": reference.completeness_score(labels, clusters),
            "v_measure": reference.v_measure_score(labels, clusters),
            "adjusted_rand": reference.adjusted_rand_score(labels, clusters),
            "mutual_information": reference.mutual_info_score(labels, clusters),
            "normalized_mutual_information": reference.normalized_mutual_info_score(labels, clusters),
            "adjusted_mutual_information": reference.adjusted_mutual_info_score(labels, clusters),
            "accuracy_train": reference.accuracy_score(labels, voted[np.unique(clusters, return_inverse=True)[1]]),
            "accuracy_one_to_one": counts[matched].sum() / len(labels),
            "davies_bouldin": reference.davies_bouldin_score(pixels, clusters),
            "calinski_harabasz": reference.calinski_harabasz_score(pixels, clusters),
        }
        for name, value in theirs.items():
            worst[name] = max(worst.get(name, 0.0), abs(row[name] - value) / max(1.0, abs(value)))
    yield from ((name, f"{difference:.1e}") for name, difference in worst.items())


def speed(data: Mnist, run: Path) -> Rows:
    """All metrics for six K on 60,000 images against one assignment pass; two workers, pixels in their memory."""
    stack = Stack.of([model.centres for model in models_of(run)])
    names = tuple(str(k) for k in SWEEP)
    context = EvaluationContext(raw_features((28, 28, 1)), stack, names, (), 10, Sketcher.of(models_of(run)), 0)
    with workers():
        X = data.X.persist()
        labels = da.from_array(data.labels, chunks=(X.chunks[0],)).persist()
        base = median(lambda: tree_reduce(map_chunks(_inertias, X, stack=broadcast(stack)), _add).compute())
        wall = median(lambda: _all_metrics(X, labels, context))
    yield "one assignment pass", f"{base:.3f}", "1.00"
    yield "all metrics", f"{wall:.3f}", f"{wall / base:.2f}"


def _all_metrics(X: da.Array, labels: da.Array, context: EvaluationContext) -> list[dict[str, Any]]:
    """Run both passes and compute the scores, as the stage does."""
    first_pass = map_chunks(_first_pass, X, labels, context=broadcast(context)).persist()
    counts: Counts = tree_reduce(map_chunks(_counts_of, first_pass), add_counts).compute()
    ends = context.stack.offsets[1:-1]
    means = np.split(cluster_means(counts.within, context.stack), ends)
    scatter = tree_reduce(map_chunks(_scatter, X, first_pass, means=broadcast(Stack.of(means))), _add).compute()
    rows = []
    for m, (begin, end) in enumerate(zip(context.stack.offsets[:-1], context.stack.offsets[1:], strict=True)):
        p, within = slice(begin, end), counts.within
        rows.append(
            scores(counts.tables[0, p], label_map(counts.tables[0, p]))
            | internal_scores(
                within.sizes[0, p], within.squared_distances[0, p], within.fitted_silhouettes[p], scatter[p],
                context.stack.centres[p], means[m],
            )
        )  # fmt: skip
    return rows


def _first_pass(block: np.ndarray, labels: np.ndarray, *, context: EvaluationContext) -> tuple[Counts, NearestTwo]:
    nearest = assign_two(block, context.stack)
    chunk = Chunk(block, np.zeros(len(block), np.int8), labels, pa.table({}))
    return count_block(chunk, nearest, context), nearest


def _counts_of(result: tuple[Counts, NearestTwo]) -> Counts:
    return result[0]


def _scatter(block: np.ndarray, result: tuple[Counts, NearestTwo], *, means: Stack) -> np.ndarray:
    return scatter_block(block, np.zeros(len(block), np.int8), result[1].clusters, means)


def _inertias(block: np.ndarray, *, stack: Stack) -> np.ndarray:
    return assign(block, stack)[1].sum(axis=1)


def _add(parts: list[np.ndarray]) -> np.ndarray:
    return np.sum(parts, axis=0)


SECTIONS: dict[str, tuple[Callable[[Mnist, Path], Rows], tuple[str, ...]]] = {
    "mistakes": (mistakes, ("seed", "changed", "listed", "found", "in the first 3 x changed", "in the first changed")),
    "truth": (truth, ("metric", "largest difference, relative above 1")),
    "speed": (speed, ("what", "seconds", "x one assignment pass")),
}


def main() -> None:
    """Run the sections named on the command line, or all of them."""
    run = Path(sys.argv[1])
    data = Mnist(run)
    print(machine())
    for name in sys.argv[2:] or SECTIONS:
        function, columns = SECTIONS[name]
        assert function.__doc__ is not None
        table(f"{name}: {function.__doc__.splitlines()[0]}", columns, function(data, run))


if __name__ == "__main__":
    main()
