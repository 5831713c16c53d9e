"""Rates of earlier runs: measured over estimated seconds of their stages, which predict the time of the next job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from kmeans_dask.config.sections import Config
from kmeans_dask.errors import UserError
from kmeans_dask.pipeline.finished import config_of
from kmeans_dask.pipeline.plan.estimate import Estimate, estimate
from kmeans_dask.pipeline.resume import STAGES, is_finished
from kmeans_dask.sources.batches import batch_limits
from kmeans_dask.storage.object_store import location, reporting_unreachable
from kmeans_dask.storage.run_folder import RunFolder
from kmeans_dask.storage.run_record import RunRecord

_MIN_SECONDS = 5.0
"""Minimum duration of a stage that a rate is derived from: below, its fixed cost of about one second dominates."""

_SCALED = {"ingest": {"size"}, "fit": {"k", "k_range"}, "quantize": {"k"}}
"""Keys whose effect the estimate models; all others must be equal in both runs."""


class Rate(NamedTuple):
    """How a stage of an earlier run compares to its estimate."""

    run: str
    """Name of the run in which it was measured."""
    factor: float
    """Measured seconds divided by the estimate for its items, features, K and workers with the built-in rates."""


def measured_rates(config: Config, estimates: Mapping[str, Estimate]) -> dict[str, Rate]:
    """Derive the rates of the stages of a job from earlier runs in the same output folder.

    Parameters
    ----------
    config
        Config of the job. Its own earlier run comes first, then the most recent ones.
    estimates
        Stage -> estimate with the built-in rates.

    Returns
    -------
    dict
        Stage -> rate. A stage has none if no run completed it in one go with comparable settings, or only in under five
        seconds and with less than half of the work.

    Raises
    ------
    UserError
        The object store of the runs cannot be reached.
    """
    rates: dict[str, Rate] = {}
    for record in _earlier(config):
        try:
            earlier = config_of(record.folder.path)
            for stage in estimates.keys() - rates.keys():
                entry = record.stages.get(stage, {})
                if not entry.get("from_nothing") or _compared(stage, earlier) != _compared(stage, config):
                    continue
                if not is_finished(stage, earlier, record):
                    continue
                estimated_seconds = _estimate_of(earlier, stage, record.stages).seconds
                if entry["seconds"] >= _MIN_SECONDS or estimated_seconds >= estimates[stage].seconds / 2:
                    rates[stage] = Rate(record.folder.path.name, entry["seconds"] / estimated_seconds)
        except (UserError, KeyError, TypeError):  # a run of another version, or with missing files
            continue
    return rates


def _earlier(config: Config) -> Iterator[RunRecord]:
    """Yield the records in the output folder: that of the job itself first, then the most recent ones."""
    output = location(config.output)
    with reporting_unreachable(output):
        folders = [RunFolder(path.parent) for path in output.glob("*/run.json")]
    records = []
    for folder in folders:
        try:
            records.append(RunRecord.read(folder))
        except UserError:
            continue
    records.sort(key=lambda record: str(record.facts.get("changed")), reverse=True)
    yield from sorted(records, key=lambda record: record.folder.path.name != config.name)


def _compared(stage: str, config: Config) -> list[Any]:
    """Return the settings that must be equal in both runs."""
    values: list[Any] = [config.fit is not None and config.fit.k == "auto"]
    for name in STAGES[stage].paced_by:
        section = getattr(config, name)
        values.append(section and section.model_dump(exclude=_SCALED.get(name)))
    return values


def _estimate_of(config: Config, stage: str, stages: Mapping[str, Any]) -> Estimate:
    """Estimate a stage of an earlier run with the built-in rates."""
    entry, ingested = stages[stage], stages.get("ingest", {}).get("summary", {"chunks": 0})
    n_items, n_bytes = ingested.get("items", entry["summary"].get("items")), entry["bytes_read"]
    cores = max(sum(entry["workers"].values()) * entry["threads"], 1)
    most_items, most_bytes = batch_limits(n_items, n_bytes, cores)
    batches = max(n_items // most_items, n_bytes // most_bytes)  # roughly those of batches.plan_batches
    return estimate(
        config, stage, n_items=n_items, n_bytes=n_bytes, chunks=ingested["chunks"], batches=batches, cores=cores
    )
