"""The scores of every model, computed from the results of the two passes, and the choice of K."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from kmeans_dask.evaluation.cluster_facts import ClusterMeasurements
from kmeans_dask.evaluation.first_pass import FirstPass
from kmeans_dask.evaluation.internal_metrics import cluster_means, internal_scores
from kmeans_dask.evaluation.metrics import agreement, label_map, mapped_accuracy, one_to_one, scores
from kmeans_dask.evaluation.second_pass import ModelStatistics, SecondPass
from kmeans_dask.kmeans.kernels import Stack
from kmeans_dask.models.model import Model, column_prefix


@dataclass(frozen=True)
class EvaluatedModel:
    """A model with its results from the first pass.

    Attributes
    ----------
    model : Model
        The fitted model.
    clusters : ClusterMeasurements
        Counts and distances of its clusters, and their labels.
    means : (k, n_features) float64
        Means of the fitted rows of each cluster.
    tables : (2, k, n_classes) int64
        Contingency tables of the fitted and of the held-out items.
    inertias : (2,) float64
        Inertia of the fitted and of the held-out items.
    stability : float or None
        Adjusted Rand index between this fit and one with another seed; None without such a fit.
    """

    model: Model
    clusters: ClusterMeasurements
    means: NDArray[np.float64]
    tables: NDArray[np.int64]
    inertias: NDArray[np.float64]
    stability: float | None

    @property
    def statistics(self) -> ModelStatistics:
        """Statistics for the second pass."""
        clusters = self.clusters
        n = np.maximum(clusters.sizes[0], 1)
        mean = clusters.distances / n
        deviation = np.sqrt(np.maximum(clusters.squared_distances / n - mean**2, 0.0))
        # rounding leaves a tiny deviation if all distances are equal; any other item would then be an outlier
        deviation = np.where(deviation > 1e-6 * mean, deviation, 0.0)
        return ModelStatistics(
            name=column_prefix(self.model),
            centres=self.model.centres,
            means=self.means,
            label_map=clusters.label_map,
            purities=clusters.purities,
            mean_distances=mean,
            deviations=deviation,
        )


def split_by_model(models: Sequence[Model], first: FirstPass) -> list[EvaluatedModel]:
    """Split the results of the first pass by model, and label the clusters by majority vote.

    Parameters
    ----------
    models
        The models that the first pass was run with.
    first
        Its result for all chunks.

    Returns
    -------
    list of EvaluatedModel
    """
    within, tables, exemplars = first.counts.within, first.counts.tables, first.exemplars
    centres = [*(model.centres for model in models), *(m.rival for m in models if m.rival is not None)]
    means = cluster_means(within, Stack.of(centres))
    rivals = iter(first.counts.rivals)
    evaluated, start = [], 0
    for model in models:
        own = slice(start, start := start + model.k)
        contingency = tables[0, own]
        clusters = ClusterMeasurements(
            algorithm=model.algorithm,
            centres=model.centres,
            label_map=label_map(contingency),
            contingency=contingency,
            sizes=within.sizes[:, own],
            squared_distances=within.squared_distances[0, own],
            distances=within.distances[0, own],
            max_distances=within.max_distances[0, own],
            silhouettes=within.fitted_silhouettes[own],
            nearest=exemplars.nearest.rows[own],
            farthest=exemplars.farthest.rows[own],
            sample=exemplars.sample.rows[own],
        )
        stability = None if model.rival is None else agreement(next(rivals))["adjusted_rand"]
        inertias = within.squared_distances[:, own].sum(axis=1)
        evaluated.append(EvaluatedModel(model, clusters, means[own], tables[:, own], inertias, stability))
    return evaluated


def metrics_rows(evaluated: Sequence[EvaluatedModel], second: SecondPass) -> list[dict[str, Any]]:
    """Compute the metrics of all models: the rows of metrics.json.

    Parameters
    ----------
    evaluated
        Models with their results from the first pass.
    second
        Result of the second pass for all chunks.

    Returns
    -------
    list of dict
        One row per model; ``chosen`` is None, see `choose_models`.
    """
    ends = np.cumsum([each.model.k for each in evaluated])[:-1]
    return [
        _metrics_row(each, scatter) for each, scatter in zip(evaluated, np.split(second.scatter, ends), strict=True)
    ]


def _metrics_row(evaluated: EvaluatedModel, scatter: NDArray[np.float64]) -> dict[str, Any]:
    model, clusters = evaluated.model, evaluated.clusters
    n_train, n_holdout = (int(n) for n in clusters.sizes.sum(axis=1))
    train = scores(evaluated.tables[0], clusters.label_map)
    holdout = scores(evaluated.tables[1], clusters.label_map)
    accuracy = train.pop("accuracy")
    matching = one_to_one(evaluated.tables[0])
    return {
        "algorithm": model.algorithm,
        "k": model.k,
        "seconds": model.seconds,
        "iterations": model.iterations,
        "inertia": model.inertia,
        "inertia_per_sample": model.inertia / n_train,
        "inertia_per_sample_holdout": float(evaluated.inertias[1]) / n_holdout if n_holdout else None,
        "empty_clusters": int((clusters.sizes[0] == 0).sum()),
        **train,
        "accuracy_train": accuracy,
        "accuracy_holdout": holdout["accuracy"],
        "accuracy_one_to_one": mapped_accuracy(evaluated.tables[0], matching),
        "accuracy_one_to_one_holdout": mapped_accuracy(evaluated.tables[1], matching),
        **internal_scores(
            clusters.sizes[0],
            clusters.squared_distances,
            clusters.silhouettes,
            scatter,
            model.centres,
            evaluated.means,
        ),
        "stability": evaluated.stability,
        "chosen": None,
    }


def choose_models(algorithms: Sequence[str], rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Choose K for each algorithm, and set ``chosen`` in the rows to true or false.

    Parameters
    ----------
    algorithms
        Algorithms that were fitted.
    rows
        From `metrics_rows`; changed in place.

    Returns
    -------
    list of dict
        One entry per algorithm: ``algorithm`` and the attributes of `Choice`.
    """
    choices = []
    for algorithm in algorithms:
        own = [row for row in rows if row["algorithm"] == algorithm]
        columns = ([row[key] for row in own] for key in ("k", "inertia", "silhouette", "stability"))
        choice = choose_k(*columns)
        for row in own:
            row["chosen"] = row["k"] == choice.k
        choices.append({"algorithm": algorithm, **asdict(choice)})
    return choices


_STABILITY_TOLERANCE = 0.05
"""Difference of adjusted Rand indices up to which two K count as equally stable; the larger one is preferred."""


@dataclass(frozen=True)
class Choice:
    """The chosen K and the reason.

    Attributes
    ----------
    k : int
        Chosen number of clusters.
    knee, silhouette, stability : int
        Number of clusters preferred by each criterion.
    reason : str
        Explanation in one sentence.
    """

    k: int
    knee: int
    silhouette: int
    stability: int
    reason: str


def choose_k(
    ks: Sequence[int], inertias: Sequence[float], silhouettes: Sequence[float | None], stabilities: Sequence[float]
) -> Choice:
    """Choose the number of clusters.

    Parameters
    ----------
    ks
        Candidates for K, at least one, in any order.
    inertias
        Inertia of the fitted rows for each candidate.
    silhouettes
        Simplified silhouette for each candidate; None for K = 1.
    stabilities
        Adjusted Rand index between two fits with different seeds for each candidate.

    Returns
    -------
    Choice
        The median of three criteria: the knee of the inertia curve, the best silhouette, and the largest K whose
        stability is within 0.05 of the best.

    References
    ----------
    V. Satopaa et al., Finding a "Kneedle" in a Haystack: Detecting Knee Points in System Behavior, 2011.
    """
    order = np.argsort(ks)
    k = np.asarray(ks)[order]
    inertia, stability = np.asarray(inertias, np.float64)[order], np.asarray(stabilities, np.float64)[order]
    silhouette = np.array([-1.0 if silhouettes[i] is None else silhouettes[i] for i in order], np.float64)
    knee = int(np.argmax(_depth_below_chord(k, inertia)))
    best = int(np.argmax(silhouette))
    stable = int(np.flatnonzero(stability >= stability.max() - _STABILITY_TOLERANCE)[-1])
    chosen = sorted((knee, best, stable))[1]
    reason = (
        f"K = {k[chosen]}, the median of three criteria: the inertia bends most at K = {k[knee]}; the simplified "
        f"silhouette is best at K = {k[best]} ({silhouette[best]:.3f}); two seeds agree nearly best up to "
        f"K = {k[stable]} (adjusted Rand index {stability[stable]:.2f})"
    )
    return Choice(int(k[chosen]), int(k[knee]), int(k[best]), int(k[stable]), reason)


def _depth_below_chord(k: np.ndarray, inertia: np.ndarray) -> np.ndarray:
    """Return the distance of each point below the line from the first to the last one, with both axes scaled to 0-1."""
    width, height = float(np.ptp(k)), float(np.ptp(inertia))
    if width == 0 or height == 0:
        return np.zeros(len(k))
    return 1 - (k - k[0]) / width - (inertia - inertia[-1]) / height
