"""Initial centres: what is drawn, and what it depends on."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.cluster import kmeans_plusplus
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning

from kmeans_dask.kmeans import seeding
from kmeans_dask.kmeans.lloyd import prepare
from kmeans_dask.kmeans.sampling import row_uniforms
from kmeans_dask.kmeans.seeding import Data, InitSpec, choose_centres

DIGITS = load_digits().data.astype(np.uint8)
SORTED_DIGITS = DIGITS[np.argsort(load_digits().target, kind="stable")]


def data_of(rows: NDArray, chunks: int | tuple[int, ...] = 400, weights: NDArray | None = None) -> Data:
    X = da.from_array(rows, chunks=(chunks, rows.shape[1]))
    return prepare(X, None if weights is None else da.from_array(weights, chunks=(X.chunks[0],)))[0]


def spec_of(k: int, init: str | NDArray = "k-means||", seed: int = 0, rounds: int = 5) -> InitSpec:
    return InitSpec(k, init, 2.0, rounds, seed)


def cost_of(rows: NDArray, centres: NDArray, weights: NDArray | float = 1.0) -> float:
    return float((((rows[:, None].astype(np.float64) - centres[None]) ** 2).sum(axis=2).min(axis=1) * weights).sum())


def algorithm_2(rows: NDArray, first: int, spec: InitSpec, weights: NDArray | None = None) -> tuple[list[int], NDArray]:
    """Bahmani et al. 2012, algorithm 2, steps 1-7, with distances in float32 as in the chunks."""
    values = rows.astype(np.float64)
    w = np.ones(len(rows)) if weights is None else weights
    candidates = [first]
    for number in range(spec.rounds):
        squared = np.stack([((values - values[c]) ** 2).sum(axis=1) for c in candidates]).astype(np.float32)
        cost = squared.min(axis=0) * w
        u = row_uniforms(0, len(rows), spec.seed, number)
        candidates += np.nonzero(u < spec.oversampling * spec.k * cost / cost.sum())[0].tolist()
    squared = np.stack([((values - values[c]) ** 2).sum(axis=1) for c in candidates]).astype(np.float32)
    return candidates, np.bincount(squared.argmin(axis=0), w, len(candidates))


def index_of(rows: NDArray, row: NDArray) -> int:
    (index,) = np.nonzero((rows == row).all(axis=1))
    return int(index[0])


CHUNKS = [(1797,), (400, 400, 400, 400, 197), (0, 1000, 0, 1, 796, 0), (1,) * 10 + (1787,)]


@pytest.mark.parametrize("chunks", CHUNKS)
@pytest.mark.parametrize("weighted", [False, True])
def test_k_means_parallel_follows_algorithm_2(chunks: tuple[int, ...], weighted: bool) -> None:
    weights = np.random.default_rng(3).integers(0, 4, len(DIGITS)).astype(float) if weighted else None
    specs = [spec_of(10, seed=7), spec_of(25, seed=8, rounds=2)]
    results = seeding._k_means_parallel(data_of(DIGITS, chunks, weights), specs)
    for spec, (candidates, candidate_weights) in zip(specs, results, strict=True):
        first = index_of(DIGITS, candidates[0])
        expected, expected_weights = algorithm_2(DIGITS, first, spec, weights)
        np.testing.assert_array_equal(candidates, DIGITS[expected])
        np.testing.assert_array_equal(candidate_weights, expected_weights)


@pytest.mark.parametrize("weighted", [False, True])
def test_candidate_weights_add_up_to_the_total(weighted: bool) -> None:
    weights = np.random.default_rng(3).uniform(0, 4, len(DIGITS)) if weighted else None
    ((candidates, candidate_weights),) = seeding._k_means_parallel(data_of(DIGITS, weights=weights), [spec_of(12)])
    assert candidate_weights.min() > 0
    assert candidate_weights.sum() == pytest.approx(len(DIGITS) if weights is None else weights.sum(), rel=1e-12)
    # five rounds of 24 expected draws; the standard deviation (Poisson) is 11
    assert 60 < len(candidates) < 180


def test_rows_of_weight_0_are_never_candidates() -> None:
    weights = np.zeros(len(DIGITS))
    weights[1000:1100] = 2.0
    ((candidates, candidate_weights),) = seeding._k_means_parallel(
        data_of(DIGITS, weights=weights), [spec_of(5, rounds=8)]
    )
    rows = {row.tobytes() for row in DIGITS[1000:1100]}
    assert all(candidate.astype(np.uint8).tobytes() in rows for candidate in candidates)
    assert candidate_weights.sum() == 200


def test_scale_of_the_weights_does_not_matter() -> None:
    weights = np.random.default_rng(3).uniform(0, 1, len(DIGITS))
    ((candidates, candidate_weights),) = seeding._k_means_parallel(data_of(DIGITS, weights=weights), [spec_of(10)])
    ((others, heavier),) = seeding._k_means_parallel(data_of(DIGITS, weights=4 * weights), [spec_of(10)])
    np.testing.assert_array_equal(candidates, others)
    np.testing.assert_array_equal(4 * candidate_weights, heavier)


@pytest.mark.parametrize("init", ["k-means||", "k-means++", "random"])
def test_centres_depend_neither_on_chunks_nor_on_other_models(init: str) -> None:
    alone = choose_centres(data_of(DIGITS), [spec_of(20, init, seed=5)])[0]
    others = [spec_of(7, "k-means||", seed=1), spec_of(20, init, seed=5), spec_of(9, "random", seed=2)]
    for chunks in CHUNKS:
        np.testing.assert_array_equal(choose_centres(data_of(DIGITS, chunks), others)[1], alone)


@pytest.mark.parametrize("init", ["k-means||", "k-means++", "random"])
def test_first_centre_of_sorted_data_is_random(init: str) -> None:
    data = data_of(SORTED_DIGITS)
    if init == "k-means||":
        chosen = [seeding._k_means_parallel(data, [spec_of(2, seed=s, rounds=1)])[0][0][0] for s in range(40)]
    else:
        chosen = [choose_centres(data, [spec_of(1, init, seed=s)])[0][0] for s in range(40)]
    where = np.array([index_of(SORTED_DIGITS, row) for row in chosen])
    assert len(set(where.tolist())) > 30
    # uniform over the rows: 20 ± 3.2 in each half
    assert 8 <= (where < len(SORTED_DIGITS) / 2).sum() <= 32


@pytest.mark.parametrize("init", ["k-means||", "k-means++", "random"])
def test_first_centre_depends_on_sample_weight(init: str) -> None:
    rows = np.arange(100, dtype=np.float64)[:, None]
    weights = np.where(np.arange(100) < 10, 9.0, 1.0)  # half the weight is in the first ten rows
    data = data_of(rows, 30, weights)
    hits = 0
    for seed in range(60):
        if init == "k-means||":
            first = seeding._k_means_parallel(data, [spec_of(1, seed=seed, rounds=1)])[0][0][0]
        else:
            first = choose_centres(data, [spec_of(1, init, seed=seed)])[0][0]
        hits += bool(data.origin is not None and first + data.origin < 9.5)
    assert 15 <= hits <= 45  # 30 ± 3.9


def test_random_init_draws_distinct_rows() -> None:
    rows = np.arange(50, dtype=np.float64)[:, None]
    data = data_of(rows, 7)
    (centres,) = choose_centres(data, [spec_of(50, "random")])
    assert sorted((centres + data.origin).ravel().tolist()) == pytest.approx(rows.ravel().tolist())


def test_given_centres_are_used() -> None:
    rows = np.random.default_rng(0).normal(5, 1, (100, 2))
    data = data_of(rows)
    (centres,) = choose_centres(data, [spec_of(3, rows[:3])])
    np.testing.assert_allclose(centres + data.origin, rows[:3], rtol=1e-12)


def test_k_means_plus_plus_uses_weights() -> None:
    # the rows at 0, of weight 0 or 1e-9, must not become centres
    rows = np.concatenate([np.zeros((99, 1)), np.full((100, 1), 10.0), np.full((100, 1), 11.0)])
    weights = np.concatenate([[0.0], np.full(98, 1e-9), np.full(100, 1.0), np.full(100, 1.0)])
    data = data_of(rows, 50, weights)
    for seed in range(10):
        (centres,) = choose_centres(data, [spec_of(2, "k-means++", seed=seed)])
        assert sorted((centres + data.origin).round(6).ravel().tolist()) == [10, 11]


def test_too_few_rows_with_weight_raise() -> None:
    data = data_of(DIGITS, weights=np.r_[np.ones(3), np.zeros(len(DIGITS) - 3)])
    for init in ("k-means++", "random"):
        with pytest.raises(ValueError, match="only 3 rows have a sample_weight above 0; 5 are needed"):
            choose_centres(data, [spec_of(5, init)])


def test_fewer_distinct_rows_than_clusters_warn() -> None:
    rows = np.repeat(np.array([[1, 2], [3, 4], [200, 0]], np.uint8), [500, 1, 30], axis=0)
    for seed in range(5):
        with pytest.warns(ConvergenceWarning, match="only 3 distinct rows, fewer than the 6 clusters"):
            (centres,) = choose_centres(data_of(rows, 100), [spec_of(6, seed=seed)])
        assert centres.shape == (6, 2)
        assert {tuple(c) for c in centres.tolist()} == {(1, 2), (3, 4), (200, 0)}


def test_k_means_parallel_adds_rounds_until_there_are_k_candidates() -> None:
    # one round expects 2k draws, which need not hit all k distinct rows
    rows = np.repeat(np.arange(40, dtype=np.uint8)[:, None], 3, axis=0)
    for seed in range(5):
        (centres,) = choose_centres(data_of(rows, 50), [spec_of(40, seed=seed, rounds=1)])
        assert sorted(centres.ravel().tolist()) == list(range(40))


@pytest.mark.parametrize("k", [10, 60])
def test_k_means_parallel_is_as_good_as_greedy_k_means_plus_plus(k: int) -> None:
    data = data_of(DIGITS, 600)
    specs = [spec_of(k, seed=seed) for seed in range(10)]
    ours = [cost_of(DIGITS, centres) for centres in choose_centres(data, specs)]
    theirs = [
        cost_of(DIGITS, kmeans_plusplus(DIGITS.astype(np.float64), k, random_state=seed)[0]) for seed in range(10)
    ]
    # even better: reclustered candidates are means, not rows
    assert np.mean(ours) <= np.mean(theirs)


def test_k_means_plus_plus_is_as_good_as_scikit_learn() -> None:
    data = data_of(DIGITS, 600)
    ours = [cost_of(DIGITS, choose_centres(data, [spec_of(30, "k-means++", seed=s)])[0]) for s in range(8)]
    theirs = [cost_of(DIGITS, kmeans_plusplus(DIGITS.astype(np.float64), 30, random_state=s)[0]) for s in range(8)]
    assert np.mean(ours) <= 1.03 * np.mean(theirs)
