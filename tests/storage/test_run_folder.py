from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from kmeans_dask.config.sections import Config
from kmeans_dask.errors import UserError
from kmeans_dask.storage.publish import read_json
from kmeans_dask.storage.run_folder import RunFolder, run_folder
from kmeans_dask.storage.run_record import RunRecord, open_run

SETTINGS = {"seed": 0, "fit.k": [3, 5]}


def config_for(output: Path, **changes: object) -> Config:
    values = {"name": "small", "output": str(output), "input": {"path": "photos"}, "quantize": {"k": 2}, **changes}
    return Config.model_validate(values)


def test_new_run_folder_records_config_and_versions(tmp_path: Path):
    config = config_for(tmp_path / "runs", seed=5)

    run = open_run(config)

    assert run.folder.path == tmp_path / "runs" / "small" == run_folder(config).path
    assert sorted(path.name for path in run.folder.path.iterdir()) == ["config.yaml", "run.json"]
    assert Config.model_validate(yaml.safe_load((run.folder.path / "config.yaml").read_text())) == config
    record = RunRecord.read(run.folder)
    assert (record.state, record.facts["seed"], record.stages) == ("running", 5, {})
    assert {"host", "python", "changed"} <= record.facts.keys()
    assert {"kmeans-dask", "dask", "numpy", "zarr"} <= record.facts["versions"].keys()


def test_paths_are_inside_the_run_folder(tmp_path: Path):
    run = RunFolder(tmp_path)

    assert run.model("kmeans", 10) == tmp_path / "models" / "kmeans" / "k=10.zarr"
    names = {run.manifest, run.collection, run.clusters, run.metrics, run.items, run.quantized, run.sheets, run.report}
    assert {path.parent for path in names} == {tmp_path}
    assert len(names) == 8


def test_stage_is_finished_only_with_the_same_settings(tmp_path: Path):
    run = open_run(config_for(tmp_path))

    run.finish("fit", SETTINGS, {"models": 2}, 1.23456)

    assert run.finished("fit", SETTINGS) == {"models": 2}
    assert run.finished("fit", {**SETTINGS, "seed": 1}) is None
    assert run.finished("evaluate", SETTINGS) is None
    assert run.stages["fit"]["seconds"] == 1.235


def test_settings_are_compared_as_json(tmp_path: Path):
    run = open_run(config_for(tmp_path))

    run.finish("fit", {"size": (8, 8)}, {}, 0.0)

    assert run.finished("fit", {"size": [8, 8]}) == {}
    assert run.changes("fit", {"size": (8, 8)}) == []


def test_changes_name_old_and_new_values(tmp_path: Path):
    run = open_run(config_for(tmp_path))
    run.finish("fit", SETTINGS, {}, 0.0)

    assert run.changes("fit", {"seed": 0, "fit.k": [3]}) == ["fit.k was [3, 5], is now [3]"]
    assert run.changes("fit", {"seed": 1, "fit.k": [3, 5], "fit.tol": 0}) == [
        "fit.tol was None, is now 0",
        "seed was 0, is now 1",
    ]
    assert run.changes("evaluate", SETTINGS) == []  # it never ran


def test_forgotten_stage_is_not_finished(tmp_path: Path):
    run = open_run(config_for(tmp_path))
    run.finish("ingest", {}, {}, 0.0)
    run.finish("fit", SETTINGS, {}, 0.0)

    run.forget("fit")
    run.forget("evaluate")

    assert run.finished("fit", SETTINGS) is None
    assert run.finished("ingest", {}) == {}


def test_reopening_keeps_finished_stages(tmp_path: Path):
    run = open_run(config_for(tmp_path))
    run.finish("fit", SETTINGS, {"models": 2}, 0.0)
    run.set_state("failed")

    again = open_run(config_for(tmp_path, seed=7))

    assert again.finished("fit", SETTINGS) == {"models": 2}
    assert (again.state, again.facts["seed"]) == ("running", 7)


def test_fresh_run_keeps_nothing(tmp_path: Path):
    run = open_run(config_for(tmp_path))
    run.finish("fit", SETTINGS, {}, 0.0)
    (run.folder.path / "models").mkdir()
    run.folder.report.write_text("old")

    again = open_run(config_for(tmp_path), fresh=True)

    assert sorted(path.name for path in run.folder.path.iterdir()) == ["config.yaml", "run.json"]
    assert again.finished("fit", SETTINGS) is None


@pytest.mark.parametrize("fresh", [False, True])
def test_other_folders_are_left_alone(tmp_path: Path, fresh: bool):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "thesis.txt").write_text("precious")

    with pytest.raises(UserError, match=r"small is not a run folder .* remove it yourself or change name"):
        open_run(config_for(tmp_path), fresh=fresh)

    assert [path.name for path in (tmp_path / "small").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize("fresh", [False, True])
def test_run_killed_at_its_start_resumes(tmp_path: Path, fresh: bool):
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / ".0123456789abcdef.partial").write_text('{"sta')

    run = open_run(config_for(tmp_path), fresh=fresh)

    assert run.state == "running"


@pytest.mark.parametrize("fresh", [False, True])
@pytest.mark.parametrize("name", ["runs", "runs/small"])
def test_file_where_the_folder_should_be(tmp_path: Path, name: str, fresh: bool):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text("kept")

    with pytest.raises(UserError, match=r"cannot write the run folder .* set output to a folder you may write to"):
        open_run(config_for(tmp_path / "runs"), fresh=fresh)

    assert (tmp_path / name).read_text() == "kept"


@pytest.mark.parametrize("text", ["{", "[]", '{"stages": 3}', "null", '{"state": "running"}'])
def test_invalid_record_raises(tmp_path: Path, text: str):
    run = open_run(config_for(tmp_path))
    (run.folder.path / "run.json").write_text(text)

    with pytest.raises(UserError, match=r"run\.json is not the record of a run; remove it, or run with --fresh"):
        open_run(config_for(tmp_path))

    assert open_run(config_for(tmp_path), fresh=True).stages == {}


def test_record_in_memory_equals_the_file(tmp_path: Path):
    run = open_run(config_for(tmp_path))

    assert read_json(run.folder.path / "run.json") == {**run.facts, "stages": run.stages}
