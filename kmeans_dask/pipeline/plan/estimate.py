"""How long the stages of a job take, and how much disk, from measured rates: a rough figure, said before the start."""

from __future__ import annotations

from typing import NamedTuple

from kmeans_dask.config.sections import Config
from kmeans_dask.pipeline.plan.memory import row_bytes

PASSES = {"kmeans": 15, "minibatch": 4}
"""Reads of all rows of a fit of MNIST with the default `fit.tol`: its start, its passes, the last assignment. Steps of
mini-batches together read about two passes."""
EVALUATE_PASSES = 2

_INGEST = 134e-6, 19e-9
"""Seconds of a core an item and a byte of its file: PNGs of MNIST, JPEGs of LFW (benchmarks/RESULTS.md, 2.6 GHz)."""
_QUANTIZE = 2e-3, 250e-9
"""The same for one K, and the share of it that another K adds: LFW and BSDS500."""
_ANOTHER_K = 0.44
_MULTIPLY = 120e9
"""Multiplications and additions of a core a second in a pass."""
_TASK, _PASS = 1e-3, 0.05
"""Seconds of the scheduler a task, and of a pass for itself."""
_START_ROWS = 50
"""Rows a centre of the sample that a start is refined on, which is read about 20 times by one process."""
_REPORT = 10.0
_TABLES = 150
"""Bytes an item of all tables, without those of each model, 24."""
_BLOCK = 4096
"""Of a file system: the least that an output takes."""


class Estimate(NamedTuple):
    """Of one stage."""

    tasks: int
    passes: int
    seconds: float
    disk: int
    """Bytes that are written."""


def estimate(
    config: Config, stage: str, *, n_items: int, n_bytes: int, chunks: int, batches: int, cores: int
) -> Estimate:
    """Say roughly what a stage takes.

    Parameters
    ----------
    config
        With the section of the stage.
    stage
        Its name.
    n_items, n_bytes
        Items, and the bytes of their files together.
    chunks, batches
        Tasks of a pass, and of quantize.
    cores
        Threads of all workers together.

    Returns
    -------
    Estimate
    """
    width = row_bytes(config)
    n_k = len((config.quantize.k if config.quantize else None) or [1])
    if stage == "ingest":
        seconds = (_INGEST[0] * n_items + _INGEST[1] * n_bytes) / cores + _TASK * chunks
        return Estimate(chunks, 1, seconds, n_items * (width + _TABLES))
    if stage == "quantize":
        counts = 2 if config.quantize and config.quantize.palette == "shared" else 1
        work = (_QUANTIZE[0] * n_items + _QUANTIZE[1] * n_bytes) * (1 + _ANOTHER_K * (n_k - 1))
        return Estimate(batches * counts, counts, work / cores + _TASK * batches, n_k * max(n_bytes, n_items * _BLOCK))
    if stage == "report":
        return Estimate(0, 0, _REPORT, 8 * 2**20)
    assert config.fit is not None
    centres, n_models = sum(config.fit.ks), len(config.fit.ks) * len(config.fit.algorithm)
    a_pass = 2.0 * n_items * width * centres / _MULTIPLY / cores + _PASS + _TASK * chunks * 8 / 7
    if stage == "evaluate":
        passes = EVALUATE_PASSES
        return Estimate(2 * chunks, passes, passes * a_pass * len(config.fit.algorithm), 24 * n_items * n_models)
    passes = sum(PASSES[algorithm] for algorithm in config.fit.algorithm) * config.fit.n_init
    starts = sum(2.0 * min(_START_ROWS * k, n_items) * width * k * 20 / _MULTIPLY for k in config.fit.ks)
    disk = 4 * width * centres * len(config.fit.algorithm)
    return Estimate(
        round(passes * chunks * 8 / 7), passes, passes * a_pass + 2 * starts * len(config.fit.algorithm), disk
    )
