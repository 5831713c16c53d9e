"""Stage fit: one model for every algorithm and K."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import dask.array as da
import numpy as np

from kmeans_dask import __version__
from kmeans_dask.collection.collection import Collection, open_collection
from kmeans_dask.collection.features import Features
from kmeans_dask.collection.fit_features import ExtractionResult, extraction_tasks, fit_features
from kmeans_dask.config import sections
from kmeans_dask.config.sections import Config, Fit
from kmeans_dask.deploy.tasks import run_tasks
from kmeans_dask.deploy.workers import worker_memory
from kmeans_dask.errors import UserError
from kmeans_dask.kmeans.estimator import KMeans, fit_together
from kmeans_dask.kmeans.kernels import Floats
from kmeans_dask.kmeans.minibatch import MiniBatchKMeans
from kmeans_dask.models.model import Model, read_model, write_model
from kmeans_dask.models.moves import Moves, measure_moves, write_moves
from kmeans_dask.pipeline.console import progress, say, show_table
from kmeans_dask.pipeline.plan.memory import KEPT_FRACTION
from kmeans_dask.storage.checkpoint import Checkpoint
from kmeans_dask.storage.fingerprint import fingerprint_of
from kmeans_dask.storage.publish import remove
from kmeans_dask.storage.run_folder import RunFolder, run_folder

if TYPE_CHECKING:
    from distributed import Client


def run(config: Config, client: Client, *, update: bool = False) -> dict[str, Any]:
    """Fit the models that are missing.

    Parameters
    ----------
    config
        Checked config with the section ``fit``; the run folder has a collection.
    client
        Client connected to the workers.
    update
        Continue from the centres of models that were fitted to an older state of the collection.

    Returns
    -------
    dict
        Number of ``rows`` and ``models``, of the models ``fitted`` by this call, and of those ``updated``, that is,
        continued from old centres.

    Raises
    ------
    UserError
        A K is larger than the number of items that could be read, or the features cannot be extracted.
    """
    assert config.fit is not None
    folder = run_folder(config)
    collection = open_collection(folder.collection)
    features = _prepare_features(config, collection, folder, client)
    X, _ = features.rows(collection, "train")
    if max(config.fit.ks) > len(X):
        raise UserError(
            f"fit.k={max(config.fit.ks)}: only {len(X):,} items could be read; choose at most that many clusters"
        )
    rows = features.settings.model_dump(mode="json") | {
        "image": list(collection.images.shape[1:]),
        "n_features": X.shape[1],
    }
    settings = {**_settings(config), "collection": collection.fingerprint, "rows": rows}
    if features.fingerprint:
        settings["features"] = features.fingerprint
    missing = [
        (algorithm, k) for algorithm in config.fit.algorithm for k in config.fit.ks
        if not _is_fitted(folder, algorithm, k, settings)
    ]  # fmt: skip
    what = "pixels" if features.settings.raw else "features"
    in_memory = X.nbytes <= KEPT_FRACTION * worker_memory(client) or worker_memory(client) == 0
    say(
        f"fit: {len(missing)} models of {X.shape[0]:,} rows x {X.shape[1]:,} features, "
        f"{X.numblocks[0]} tasks per pass, {X.nbytes / 2**20:,.0f} MiB of {what} "
        f"{'kept in memory' if in_memory else 'read from disk on every pass'}"
    )
    if in_memory:
        X = X.persist()
    spherical = features.settings.normalize == "l2"
    continues = update and config.fit.engine != "dask-ml" and not features.transformation.is_data_dependent
    if update and not continues:
        say("fit: models are fitted from scratch, as their old centres belong to other features")
    moves = []
    for algorithm in config.fit.algorithm:
        ks = [k for a, k in missing if a == algorithm]
        old = _old_centres(folder, algorithm, ks, rows) if continues else {}
        for model in _fit_algorithm(X, algorithm, _Fits(config.fit, ks, config.seed, spherical, old, folder, settings)):
            if model.k in old:
                moves.append(measure_moves(X, old[model.k], model))
            write_model(folder.model(algorithm, model.k), replace(model, settings=settings))
    if moves:
        write_moves(moves, folder.moves)
        _show_moves(moves, len(X))
    n_models = len(config.fit.algorithm) * len(config.fit.ks)
    return {"rows": len(X), "models": n_models, "fitted": len(missing), "updated": len(moves)}


def _prepare_features(config: Config, collection: Collection, folder: RunFolder, client: Client) -> Features:
    """Extract the features that are not stored yet, and fit the transformation."""
    settings = config.features or sections.Features()
    tasks = extraction_tasks(settings, collection, folder.path)
    if tasks:
        say(f"features: {settings.kind} of {len(collection.labels):,} items, extracted once; {len(tasks)} tasks to do")
        with progress("features", len(collection.labels), "items") as advance:

            def count(done: ExtractionResult) -> None:
                if done.error:
                    raise UserError(done.error)
                advance(done.items)

            run_tasks(client, tasks, count)
    return fit_features(settings, collection, folder.path, config.seed)


@dataclass(frozen=True)
class _Fits:
    """What the models of one algorithm depend on, apart from the rows."""

    fit: Fit
    ks: list[int]
    """Numbers of clusters of the models to fit."""
    seed: int
    spherical: bool
    """Whether rows and centres have unit length."""
    old: Mapping[int, Floats]
    """Centres to continue from, by K."""
    folder: RunFolder
    settings: Mapping[str, Any]
    """Settings that are saved with each model, and that a checkpoint must match."""

    def init(self, k: int) -> str | Floats:
        """Return the initial centres for a K, or the name of the method that chooses them."""
        return self.old.get(k, self.fit.init)

    def checkpoint(self, algorithm: str, which: list[int]) -> Checkpoint:
        """Return the checkpoint of the models that `which` identifies; only the same fit resumes from it."""
        old = {k: centres.tolist() for k, centres in self.old.items()}
        key = fingerprint_of(__version__, self.settings, which, old)
        return Checkpoint(self.folder.unfinished_fit(algorithm), key)


def _settings(config: Config) -> dict[str, Any]:
    """Return what a model depends on, apart from its algorithm and K: another K leaves existing models as they are."""
    assert config.fit is not None
    return {"seed": config.seed, **config.fit.model_dump(mode="json", exclude={"k", "k_range", "algorithm"})} | (
        {"rivals": True} if config.fit.k == "auto" else {}  # without a rival a model cannot be a candidate
    )


def _is_fitted(folder: RunFolder, algorithm: str, k: int, settings: dict[str, Any]) -> bool:
    try:
        return read_model(folder.model(algorithm, k)).settings == settings
    except UserError:  # missing, or written by another version
        return False


def _old_centres(folder: RunFolder, algorithm: str, ks: list[int], rows: Mapping[str, Any]) -> dict[int, Floats]:
    """Read the centres of existing models with the same kind of features, whatever items they were fitted on."""
    old = {}
    for k in ks:
        with suppress(UserError):
            model = read_model(folder.model(algorithm, k))
            if model.settings.get("rows") == rows:
                old[k] = model.centres
    return old


def _show_moves(moves: list[Moves], n_rows: int) -> None:
    cells = [
        [
            move.model.algorithm,
            str(move.model.k),
            f"{move.distances.mean():.2f}",
            f"{move.distances.max():.2f}",
            f"{move.changed:,}",
            f"{move.changed / n_rows:.2%}",
        ]
        for move in moves
    ]
    columns = ["algorithm", "K", "mean distance", "largest distance", "items that changed cluster", "fraction"]
    show_table("how far clusters moved (details in moved.csv)", columns, cells)


def _fit_algorithm(X: da.Array, algorithm: str, fits: _Fits) -> Iterator[Model]:
    """Yield each model when it is finished; with `k: auto` it has a rival, which shows how stable its K is."""
    if not fits.ks:
        return
    if fits.fit.engine == "dask-ml":
        yield from (_fit_dask_ml(X, k, fits.fit, fits.seed) for k in fits.ks)
        return
    seeds = [fits.seed] if fits.fit.k != "auto" else [fits.seed, (fits.seed + 1) % 2**32]
    if algorithm == "minibatch":
        for k in fits.ks:
            yield _with_rival(*(_fit_minibatch(X, k, seed, fits) for seed in seeds))
            remove(fits.folder.unfinished_fit(algorithm))
        return
    settings = {**fits.fit.model_dump(include={"n_init", "max_iter", "tol"}), "spherical": fits.spherical}
    estimators = [KMeans(k, init=fits.init(k), random_state=s, **settings) for s in seeds for k in fits.ks]
    checkpoint = fits.checkpoint("kmeans", fits.ks)
    with progress(f"fit kmeans K={_names(fits.ks)}", None, "passes") as advance:
        fit_together(estimators, X, on_pass=lambda number, moving: advance(1), checkpoint=checkpoint)
    _log_resumed("kmeans", checkpoint)
    # all models shared one set of passes: seconds are attributed by the number of centres that each moved
    work = [estimator.n_iter_ * estimator.n_clusters for estimator in estimators]
    models = [
        Model.from_estimator(estimator, algorithm, checkpoint.seconds * centres / sum(work))
        for estimator, centres in zip(estimators, work, strict=True)
    ]
    for i in range(len(fits.ks)):
        yield _with_rival(*models[i :: len(fits.ks)])
    remove(fits.folder.unfinished_fit(algorithm))


def _with_rival(model: Model, rival: Model | None = None) -> Model:
    """Attach the centres of the same fit with another seed, if there is one."""
    return model if rival is None else replace(model, rival=rival.centres)


def _log_resumed(what: str, checkpoint: Checkpoint) -> None:
    if checkpoint.seconds_before:
        say(f"fit {what}: resumed an interrupted fit ({checkpoint.seconds_before:.1f} s done)")


def _fit_minibatch(X: da.Array, k: int, seed: int, fits: _Fits) -> Model:
    checkpoint = fits.checkpoint("minibatch", [k, seed])
    with progress(f"fit minibatch K={k}", None, "steps") as advance:
        estimator = MiniBatchKMeans(k, init=fits.init(k), n_init=fits.fit.n_init, random_state=seed)
        estimator.fit_from(checkpoint, X)
        advance(estimator.n_steps_)
    _log_resumed(f"minibatch K={k}", checkpoint)
    return Model.from_estimator(estimator, "minibatch", checkpoint.seconds)


def _fit_dask_ml(X: da.Array, k: int, fit: Fit, seed: int) -> Model:
    """Fit Dask-ML's estimator for comparison: on float32, as uint8 centres are unusable; its inertia is recomputed."""
    from dask_ml.cluster import KMeans as StockKMeans

    start = time.monotonic()
    with progress(f"fit dask-ml K={k}", None, "fits") as advance:
        stock = StockKMeans(k, init=fit.init, max_iter=fit.max_iter, tol=fit.tol, random_state=seed)
        stock.fit(X.astype(np.float32))
        advance(1)
    seconds = time.monotonic() - start
    centres = np.asarray(stock.cluster_centers_, np.float32)
    rescored = KMeans(k, init=centres, max_iter=1).fit(X)
    history = rescored.inertia_history_
    return Model("kmeans", centres, history, float(history[0]), stock.n_iter_, seconds)


def _names(ks: list[int]) -> str:
    return ",".join(str(k) for k in ks)
