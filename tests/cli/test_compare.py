"""``compare``: how well the clusters of two finished runs agree."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, v_measure_score

from kmeans_dask.cli import main
from kmeans_dask.cli.compare import compare
from tests.support.jobs import Result, write_config

Command = Callable[..., Result]


@pytest.fixture(scope="module")
def runs(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the runs ``all`` (60 images) and ``some`` (55 of these and three others, with another seed)."""
    folder = tmp_path_factory.mktemp("two")
    some = folder / "images"
    shutil.copytree(images, some)
    names = sorted(some.rglob("*.png"))
    for number, name in enumerate(names[:5]):
        name.unlink()
        if number < 3:
            shutil.copy(names[20 + number], some / "bar" / f"new{number}.png")
    stages = {"quantize": None, "report": None, "fit": {"k": [3, 8], "algorithm": ["kmeans", "minibatch"]}}
    for name, source, seed in (("all", images, 0), ("some", some, 5)):
        config = write_config(folder, source, name=name, seed=seed, **stages)
        assert main.main(["run", str(config)]) == 0
    return folder / "runs"


def test_scores_cover_common_items(command: Command, runs: Path):
    result = command("compare", runs / "all", runs / "some", "--k", 8)
    found = compare(str(runs / "all"), str(runs / "some"), k=8)

    one, other = (
        {row["path"]: row["kmeans_k8_cluster"] for row in pq.read_table(runs / name / "clusters.parquet").to_pylist()}
        for name in ("all", "some")
    )
    both = sorted(one.keys() & other.keys())
    a, b = [one[path] for path in both], [other[path] for path in both]
    assert found.items == len(both) == 55
    assert found.adjusted_rand == pytest.approx(adjusted_rand_score(a, b), abs=1e-9)
    assert found.adjusted_mutual_information == pytest.approx(adjusted_mutual_info_score(a, b), abs=1e-9)
    assert found.v_measure == pytest.approx(v_measure_score(a, b), abs=1e-9)
    assert result.status == 0
    assert result.lines == [
        f"compare: 55 common items are compared; 5 are only in {runs / 'all'}, 3 only in {runs / 'some'}"
    ]
    for score in (found.adjusted_rand, found.adjusted_mutual_information, found.v_measure, found.one_to_one):
        assert f"{score:.4f}" in result.out
    assert f"{runs / 'some'} (kmeans, K = 8)" in result.out.replace("\n", "")


def test_a_run_agrees_with_itself(command: Command, runs: Path):
    found = compare(str(runs / "all"), str(runs / "all"), algorithm="minibatch")

    assert (found.items, found.adjusted_rand, found.one_to_one) == (60, 1, 1)
    assert command("compare", runs / "all", runs / "all").err == ""


def test_user_errors_are_one_line(command: Command, runs: Path, images: Path, tmp_path: Path):
    shutil.copytree(runs / "all", tmp_path / "empty")
    clusters = tmp_path / "empty" / "clusters.parquet"
    pq.write_table(pq.read_table(clusters).slice(0, 0), clusters)

    for arguments, message in (
        ([runs / "all", images], f"{images} is not a run folder"),
        ([runs / "all", runs / "some", "--k", 4], "has no model kmeans, K = 4"),
        ([runs / "all", tmp_path / "empty"], "they have no item in common; give two runs of the same images"),
    ):
        result = command("compare", *arguments)
        assert (result.status, len(result.lines)) == (2, 1)
        assert message in result.err
