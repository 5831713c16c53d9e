from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from sklearn import metrics as reference

from kmeans_dask import majority_label_map, score_clusters

RNG = np.random.default_rng(0)
LABELS = RNG.integers(4, size=500)
CLUSTERS = np.where(RNG.random(500) < 0.6, LABELS, RNG.integers(7, size=500)).astype(np.int32)
REFERENCES = {
    "homogeneity": reference.homogeneity_score,
    "completeness": reference.completeness_score,
    "v_measure": reference.v_measure_score,
    "adjusted_rand": reference.adjusted_rand_score,
    "mutual_information": reference.mutual_info_score,
    "normalized_mutual_information": reference.normalized_mutual_info_score,
    "adjusted_mutual_information": reference.adjusted_mutual_info_score,
}


def test_scores_equal_scikit_learn():
    mapping = majority_label_map(LABELS[:300], CLUSTERS[:300])

    for part in (slice(0, 300), slice(300, 500)):
        scored = score_clusters(LABELS[part], CLUSTERS[part], mapping)
        assert {name: scored[name] for name in REFERENCES} == pytest.approx(
            {name: function(LABELS[part], CLUSTERS[part]) for name, function in REFERENCES.items()}
        )
        assert scored["accuracy"] == reference.accuracy_score(LABELS[part], mapping[CLUSTERS[part]])


def test_dask_array_is_computed():
    clusters = da.from_array(CLUSTERS, chunks=120)

    assert majority_label_map(LABELS, clusters).tolist() == majority_label_map(LABELS, CLUSTERS).tolist()
    mapping = majority_label_map(LABELS, clusters)
    assert score_clusters(LABELS, clusters, mapping) == score_clusters(LABELS, CLUSTERS, mapping)


def test_ties_go_to_the_lowest_class_and_empty_clusters_to_none():
    mapping = majority_label_map([1, 0, -1, 2], [0, 0, 1, 3], n_clusters=5)

    assert mapping.tolist() == [0, -1, -1, 2, -1]
    assert mapping.dtype == np.int32


def test_items_of_clusters_without_a_label_count_as_wrong():
    assert score_clusters([0, 0, 1, -1], [0, 1, 2, 2], [0, -1, 1])["accuracy"] == pytest.approx(2 / 3)


def test_a_held_out_class_may_be_unknown():
    assert score_clusters([0, 5], [0, 1], [0, 1])["accuracy"] == 0.5


def test_without_labels_all_scores_are_none():
    mapping = majority_label_map([-1, -1], [0, 1])

    assert mapping.tolist() == [-1, -1]
    assert set(score_clusters([-1, -1], [0, 1], mapping).values()) == {None}


def test_different_lengths_raise():
    with pytest.raises(ValueError, match=r"labels have shape \(2,\), clusters \(3,\)"):
        majority_label_map([0, 1], [0, 1, 1])


def test_cluster_missing_from_the_map_raises():
    with pytest.raises(ValueError, match="cluster 2 in a table of 2"):
        score_clusters([0, 1], [0, 2], [0, 1])
