"""Rough time and disk usage of the stages of a job, from measured rates."""

from __future__ import annotations

from typing import NamedTuple

from kmeans_dask.config.sections import Config
from kmeans_dask.pipeline.plan.memory import row_bytes

PASSES = {"kmeans": 15, "minibatch": 4}
"""Passes over all rows of a fit of MNIST with the default `fit.tol`: initial centres, iterations, final assignment. All
mini-batch steps together read about two passes' worth of rows."""
EVALUATE_PASSES = 2
"""Passes over all rows of an evaluation."""

_INGEST = 134e-6, 19e-9
"""Core seconds per item and per byte of its file: PNGs of MNIST, JPEGs of LFW (benchmarks/RESULTS.md, 2.6 GHz)."""
_QUANTIZE = 2e-3, 250e-9
"""The same for quantizing in one K: LFW and BSDS500."""
_ANOTHER_K = 0.44
"""Fraction of these costs that each further K adds."""
_MULTIPLY = 120e9
"""Floating-point operations per second and core in a pass."""
_TASK, _PASS = 1e-3, 0.05
"""Scheduler seconds per task, and overhead per pass."""
_SAMPLE_ROWS = 50
"""Rows per centre in the sample that initial centres are refined on; one process reads it about 20 times."""
_REPORT = 10.0
"""Seconds for the report."""
_TABLES = 150
"""Bytes per item in all tables, without the 24 of each model."""
_BLOCK = 4096
"""Block size of a file system: the least that an output file occupies."""


class Estimate(NamedTuple):
    """Estimate of one stage."""

    tasks: int
    """Number of tasks in all passes."""
    passes: int
    """Number of passes over the items."""
    seconds: float
    """Wall time."""
    disk: int
    """Bytes written."""


def estimate(
    config: Config, stage: str, *, n_items: int, n_bytes: int, chunks: int, batches: int, cores: int
) -> Estimate:
    """Estimate the tasks, passes, time and disk space of a stage.

    Parameters
    ----------
    config
        Checked config with the section of the stage.
    stage
        Name of the stage.
    n_items, n_bytes
        Number of items, and total bytes of their files.
    chunks, batches
        Number of tasks in a pass, and in quantize.
    cores
        Total threads of all workers.

    Returns
    -------
    Estimate
    """
    n_features = row_bytes(config)
    n_k = len((config.quantize.k if config.quantize else None) or [1])
    if stage == "ingest":
        seconds = (_INGEST[0] * n_items + _INGEST[1] * n_bytes) / cores + _TASK * chunks
        return Estimate(chunks, 1, seconds, n_items * (n_features + _TABLES))
    if stage == "quantize":
        counts = 2 if config.quantize and config.quantize.palette == "shared" else 1
        work = (_QUANTIZE[0] * n_items + _QUANTIZE[1] * n_bytes) * (1 + _ANOTHER_K * (n_k - 1))
        return Estimate(batches * counts, counts, work / cores + _TASK * batches, n_k * max(n_bytes, n_items * _BLOCK))
    if stage == "report":
        return Estimate(0, 0, _REPORT, 8 * 2**20)
    assert config.fit is not None
    # each pass has a reduction tree with 8 inputs per node: 1/8 + 1/64 + ... = 1/7 more tasks
    centres, n_models = sum(config.fit.ks), len(config.fit.ks) * len(config.fit.algorithm)
    pass_seconds = 2.0 * n_items * n_features * centres / _MULTIPLY / cores + _PASS + _TASK * chunks * 8 / 7
    if stage == "evaluate":
        passes = EVALUATE_PASSES
        return Estimate(2 * chunks, passes, passes * pass_seconds * len(config.fit.algorithm), 24 * n_items * n_models)
    passes = sum(PASSES[algorithm] for algorithm in config.fit.algorithm) * config.fit.n_init
    init = sum(2.0 * min(_SAMPLE_ROWS * k, n_items) * n_features * k * 20 / _MULTIPLY for k in config.fit.ks)
    disk = 4 * n_features * centres * len(config.fit.algorithm)
    return Estimate(
        round(passes * chunks * 8 / 7), passes, passes * pass_seconds + 2 * init * len(config.fit.algorithm), disk
    )
