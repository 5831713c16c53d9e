from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from kmeans_dask.config.sections import Config
from kmeans_dask.errors import UserError
from kmeans_dask.storage.publish import read_json
from kmeans_dask.storage.run_folder import RunFolder, open_run, run_folder

SETTINGS = {"seed": 0, "fit.k": [3, 5]}


def config_for(output: Path, **changes: object) -> Config:
    values = {"name": "small", "output": str(output), "input": {"path": "photos"}, "quantize": {"k": 2}, **changes}
    return Config.model_validate(values)


def test_a_new_run_folder_tells_what_it_is(tmp_path: Path):
    config = config_for(tmp_path / "runs", seed=5)

    run = open_run(config)

    assert run.path == tmp_path / "runs" / "small" == run_folder(config).path
    assert sorted(path.name for path in run.path.iterdir()) == ["config.yaml", "run.json"]
    assert Config.model_validate(yaml.safe_load((run.path / "config.yaml").read_text())) == config
    record = run.read()
    assert (record["state"], record["seed"], record["stages"]) == ("running", 5, {})
    assert {"host", "python", "changed"} <= record.keys()
    assert {"kmeans-dask", "dask", "numpy", "zarr"} <= record["versions"].keys()


def test_every_path_lies_in_the_run_folder(tmp_path: Path):
    run = RunFolder(tmp_path)

    assert run.model("kmeans", 10) == tmp_path / "models" / "kmeans" / "k=10.zarr"
    names = {run.manifest, run.collection, run.clusters, run.metrics, run.items, run.quantized, run.sheets, run.report}
    assert {path.parent for path in names} == {tmp_path}
    assert len(names) == 8


def test_a_stage_is_finished_with_the_settings_that_it_had(tmp_path: Path):
    run = open_run(config_for(tmp_path))

    run.finish("fit", SETTINGS, {"models": 2}, 1.23456)

    assert run.finished("fit", SETTINGS) == {"models": 2}
    assert run.finished("fit", {**SETTINGS, "seed": 1}) is None
    assert run.finished("evaluate", SETTINGS) is None
    assert run.read()["stages"]["fit"]["seconds"] == 1.235


def test_settings_are_compared_as_json_holds_them(tmp_path: Path):
    run = open_run(config_for(tmp_path))

    run.finish("fit", {"size": (8, 8)}, {}, 0.0)

    assert run.finished("fit", {"size": [8, 8]}) == {}
    assert run.changes("fit", {"size": (8, 8)}) == []


def test_changes_name_the_old_and_the_new_value(tmp_path: Path):
    run = open_run(config_for(tmp_path))
    run.finish("fit", SETTINGS, {}, 0.0)

    assert run.changes("fit", {"seed": 0, "fit.k": [3]}) == ["fit.k was [3, 5], is now [3]"]
    assert run.changes("fit", {"seed": 1, "fit.k": [3, 5], "fit.tol": 0}) == [
        "fit.tol was None, is now 0",
        "seed was 0, is now 1",
    ]
    assert run.changes("evaluate", SETTINGS) == []  # it never ran


def test_a_forgotten_stage_is_not_finished(tmp_path: Path):
    run = open_run(config_for(tmp_path))
    run.finish("ingest", {}, {}, 0.0)
    run.finish("fit", SETTINGS, {}, 0.0)

    run.forget("fit")
    run.forget("evaluate")

    assert run.finished("fit", SETTINGS) is None
    assert run.finished("ingest", {}) == {}


def test_opening_again_keeps_what_is_finished(tmp_path: Path):
    run = open_run(config_for(tmp_path))
    run.finish("fit", SETTINGS, {"models": 2}, 0.0)
    run.set_state("failed")

    again = open_run(config_for(tmp_path, seed=7))

    assert again.finished("fit", SETTINGS) == {"models": 2}
    assert (again.read()["state"], again.read()["seed"]) == ("running", 7)


def test_a_fresh_run_keeps_nothing(tmp_path: Path):
    run = open_run(config_for(tmp_path))
    run.finish("fit", SETTINGS, {}, 0.0)
    (run.path / "models").mkdir()
    run.report.write_text("old")

    open_run(config_for(tmp_path), fresh=True)

    assert sorted(path.name for path in run.path.iterdir()) == ["config.yaml", "run.json"]
    assert run.finished("fit", SETTINGS) is None


@pytest.mark.parametrize("fresh", [False, True])
def test_a_folder_that_is_no_run_is_left_alone(tmp_path: Path, fresh: bool):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "thesis.txt").write_text("precious")

    with pytest.raises(UserError, match=r"small is no run folder .* remove it yourself or change name"):
        open_run(config_for(tmp_path), fresh=fresh)

    assert [path.name for path in (tmp_path / "small").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("fresh", [False, True])
def test_a_run_that_was_killed_while_it_began_goes_on(tmp_path: Path, fresh: bool):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / ".0123456789abcdef.partial").write_text('{"sta')

    run = open_run(config_for(tmp_path), fresh=fresh)

    assert run.read()["state"] == "running"


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("name", ["runs", "runs/small"])
def test_a_file_in_the_place_of_the_folder(tmp_path: Path, name: str, fresh: bool):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("kept")

    with pytest.raises(UserError, match=r"cannot write the run folder .* set output to a folder you may write to"):
        open_run(config_for(tmp_path / "runs"), fresh=fresh)

    assert (tmp_path / name).read_text() == "kept"


@pytest.mark.parametrize("text", ["{", "[]", '{"stages": 3}', "null", '{"state": "running"}'])
def test_a_record_that_is_none(tmp_path: Path, text: str):
    run = open_run(config_for(tmp_path))
    (run.path / "run.json").write_text(text)

    with pytest.raises(UserError, match=r"run\.json is not the record of a run; remove it, or run with --fresh"):
        open_run(config_for(tmp_path))

    assert open_run(config_for(tmp_path), fresh=True).read()["stages"] == {}


def test_the_record_is_readable_json(tmp_path: Path):
    run = open_run(config_for(tmp_path))

    assert read_json(run.path / "run.json") == run.read()
