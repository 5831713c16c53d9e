"""Two finished runs, told how well their clusters agree."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score, v_measure_score

from kmeans_dask.cli import main
from kmeans_dask.cli.compare import compare
from tests.support.jobs import Said, write_config

Command = Callable[..., Said]


@pytest.fixture(scope="module")
def runs(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the runs ``all``, of 60 images, and ``some``, of 55 of them and three others, with another seed."""
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


def test_the_figures_are_those_of_the_items_of_both(command: Command, runs: Path):
    said = command("compare", runs / "all", runs / "some", "--k", 8)
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
    assert said.status == 0
    assert said.lines == [
        f"compare: 55 items are in both and count; 5 are only in {runs / 'all'}, 3 only in {runs / 'some'}"
    ]
    for figure in (found.adjusted_rand, found.adjusted_mutual_information, found.v_measure, found.one_to_one):
        assert f"{figure:.4f}" in said.out
    assert f"{runs / 'some'} (kmeans, K = 8)" in said.out.replace("\n", "")


def test_a_run_agrees_with_itself(command: Command, runs: Path):
    found = compare(str(runs / "all"), str(runs / "all"), algorithm="minibatch")

    assert (found.items, found.adjusted_rand, found.one_to_one) == (60, 1, 1)
    assert command("compare", runs / "all", runs / "all").err == ""


def test_mistakes_are_one_line(command: Command, runs: Path, images: Path, tmp_path: Path):
    shutil.copytree(runs / "all", tmp_path / "empty")
    clusters = tmp_path / "empty" / "clusters.parquet"
    pq.write_table(pq.read_table(clusters).slice(0, 0), clusters)

    for arguments, told in (
        ([runs / "all", images], f"{images} is no run folder"),
        ([runs / "all", runs / "some", "--k", 4], "has no model kmeans, K = 4"),
        ([runs / "all", tmp_path / "empty"], "they have no item in common; give two runs of the same images"),
    ):
        said = command("compare", *arguments)
        assert (said.status, len(said.lines)) == (2, 1)
        assert told in said.err
