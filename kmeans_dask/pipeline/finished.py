"""A finished run, opened by its folder."""

from __future__ import annotations

import json
from pathlib import Path

from kmeans_dask.config.loading import load_config
from kmeans_dask.config.sections import Config
from kmeans_dask.errors import UserError
from kmeans_dask.models.model import Model, read_model
from kmeans_dask.storage.object_store import location, reporting_unreachable
from kmeans_dask.storage.run_folder import RunFolder
from kmeans_dask.storage.run_record import RunRecord


def config_of(path: str | Path, cluster: str | None = None) -> Config:
    """Read the config that a run was made with, wherever its folder is now.

    Parameters
    ----------
    path
        Run folder.
    cluster
        As for `config.loading.load_config`.

    Returns
    -------
    Config

    Raises
    ------
    UserError
        The folder is not a run, or was made by another version.
    """
    folder = location(path).resolve()
    with reporting_unreachable(folder):
        is_run = (folder / "run.json").exists() and (folder / "config.yaml").exists()
    if not is_run:
        raise UserError(f"{path} is not a run folder; give one, for example runs/digits")
    overrides = [f"output={json.dumps(str(folder.parent))}", f"name={json.dumps(folder.name)}"]
    try:
        config = load_config(folder / "config.yaml", overrides)
    except UserError as error:
        raise UserError(f"{path} was made by another version ({error}); rerun its job to recreate it") from None
    return config if cluster is None else load_config(folder / "config.yaml", overrides, cluster)


def choose_model(config: Config, folder: RunFolder, k: int | None, algorithm: str | None) -> Model:
    """Open one of the evaluated models of a run.

    Parameters
    ----------
    config
        Config of the run.
    folder
        Run folder.
    k
        Number of clusters; None: the K that `fit.k: auto` chose, otherwise the largest.
    algorithm
        ``kmeans`` or ``minibatch``; None: the first one of the config.

    Returns
    -------
    Model
        Model with a label map.

    Raises
    ------
    UserError
        The run has no such model, or its models have not been evaluated.
    """
    if config.fit is None or config.evaluate is None:
        raise UserError(f"{folder.path} has no evaluated models; its config needs the sections fit and evaluate")
    stages = RunRecord.read(folder).stages
    if "evaluate" not in stages:
        raise UserError(f"the models of {folder.path} are not evaluated yet; run fit and evaluate first")
    algorithm = algorithm or config.fit.algorithm[0]
    chosen = {entry["algorithm"]: entry["k"] for entry in stages["evaluate"]["summary"].get("choice", [])}
    k = k or chosen.get(algorithm, max(config.fit.ks))
    if algorithm not in config.fit.algorithm or k not in config.fit.ks:
        ks = ", ".join(map(str, config.fit.ks))
        raise UserError(
            f"{folder.path} has no model {algorithm}, K = {k}; it has {' and '.join(config.fit.algorithm)}, K = {ks}"
        )
    return read_model(folder.model(algorithm, k))
