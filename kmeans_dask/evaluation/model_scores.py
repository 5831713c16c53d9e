"""The scores of every model, from what the two passes have counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kmeans_dask.evaluation.choose_k import choose_k
from kmeans_dask.evaluation.cluster_facts import ClusterNumbers
from kmeans_dask.evaluation.first_pass import FirstPass
from kmeans_dask.evaluation.internal_metrics import means_of, spread_scores
from kmeans_dask.evaluation.metrics import (
    agreement,
    label_map,
    one_to_one,
    scores,
    share_right,
)
from kmeans_dask.evaluation.second_pass import Known
from kmeans_dask.kmeans.kernels import Stack
from kmeans_dask.models.model import Model, column_prefix


@dataclass(frozen=True)
class EvaluatedModel:
    """One model with what the first look has told of it."""

    model: Model
    numbers: ClusterNumbers
    means: NDArray[np.float64]
    tables: NDArray[np.int64]
    inertias: NDArray[np.float64]
    stability: float | None

    @property
    def purities(self) -> NDArray[np.float64]:
        """Share of the labelled fitted items of each cluster that are of its label."""
        return self.tables[0].max(axis=1, initial=0) / np.maximum(self.tables[0].sum(axis=1), 1)

    @property
    def known(self) -> Known:
        """What the second look wants to know."""
        n = np.maximum(self.numbers.sizes[0], 1)
        mean = self.numbers.distances / n
        deviation = np.sqrt(np.maximum(self.numbers.squared / n - mean**2, 0.0))
        # of two equal distances rounding leaves a deviation that would make any item an outlier
        deviation = np.where(deviation > 1e-6 * mean, deviation, 0.0)
        return Known(
            column_prefix(self.model), self.model.centres, self.means, self.numbers.label_map, self.purities,
            mean, deviation,
        )  # fmt: skip


def split_by_model(models: Sequence[Model], look: FirstPass) -> list[EvaluatedModel]:
    """Cut what was counted of the stacked clusters into models, and vote on the labels."""
    spread, tables, extremes = look.counts.spread, look.counts.tables, look.extremes
    centres = [*(model.centres for model in models), *(m.rival for m in models if m.rival is not None)]
    means = means_of(spread, Stack.of(centres))
    rivals = iter(look.counts.rivals)
    evaluated, start = [], 0
    for model in models:
        mine = slice(start, start := start + model.k)
        table = tables[0, mine]
        numbers = ClusterNumbers(
            model.algorithm, model.centres, label_map(table), table, spread.sizes[:, mine], spread.squared[0, mine],
            spread.distances[0, mine], spread.largest[0, mine], spread.fitted_silhouettes[mine],
            extremes.nearest.rows[mine], extremes.farthest.rows[mine], extremes.sample.rows[mine],
        )  # fmt: skip
        stability = None if model.rival is None else agreement(next(rivals))["adjusted_rand"]
        inertias = spread.squared[:, mine].sum(axis=1)
        evaluated.append(EvaluatedModel(model, numbers, means[mine], tables[:, mine], inertias, stability))
    return evaluated


def metrics_row(of_model: EvaluatedModel, scatter: NDArray[np.float64]) -> dict[str, Any]:
    """Return the metrics of one model, its row of metrics.json.

    Parameters
    ----------
    of_model
        The model with the result of the first pass.
    scatter : (k,) float64
        Sum of distances of the rows of each cluster to the cluster's mean, from the second pass.

    Returns
    -------
    dict
    """
    model, numbers = of_model.model, of_model.numbers
    n_train, n_holdout = (int(n) for n in numbers.sizes.sum(axis=1))
    train = scores(of_model.tables[0], numbers.label_map)
    holdout = scores(of_model.tables[1], numbers.label_map)
    accuracy = train.pop("accuracy")
    matched = one_to_one(of_model.tables[0])
    return {
        "algorithm": model.algorithm,
        "k": model.k,
        "seconds": model.seconds,
        "iterations": model.iterations,
        "inertia": model.inertia,
        "inertia_per_sample": model.inertia / n_train,
        "inertia_per_sample_holdout": float(of_model.inertias[1]) / n_holdout if n_holdout else None,
        "empty_clusters": int((numbers.sizes[0] == 0).sum()),
        **train,
        "accuracy_train": accuracy,
        "accuracy_holdout": holdout["accuracy"],
        "accuracy_one_to_one": share_right(of_model.tables[0], matched),
        "accuracy_one_to_one_holdout": share_right(of_model.tables[1], matched),
        **spread_scores(numbers.sizes[0], numbers.squared, numbers.silhouettes, scatter, model.centres, of_model.means),
        "stability": of_model.stability,
        "chosen": None,
    }


def choose_models(algorithms: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Choose the K of each algorithm, and mark it in its row."""
    choices = []
    for algorithm in algorithms:
        mine = [row for row in rows if row["algorithm"] == algorithm]
        columns = ([row[key] for row in mine] for key in ("k", "inertia", "silhouette", "stability"))
        choice = choose_k(*columns)
        for row in mine:
            row["chosen"] = row["k"] == choice.k
        choices.append({"algorithm": algorithm, **asdict(choice)})
    return choices
