"""Mini-batch steps on one chunk, and the reduction that combines them.

Worker processes import this module instead of the estimator, which would cost them another 1.5 s for dask-ml and
scikit-learn.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kmeans_dask.kmeans.kernels import Block, Floats, Stack, Sums, sum_by_cluster
from kmeans_dask.kmeans.lloyd import add_sums
from kmeans_dask.kmeans.moments import block_moments
from kmeans_dask.kmeans.sampling import row_uniforms, shifted


@dataclass(frozen=True)
class BatchPlan:
    """Parameters of one step, the same for every chunk.

    Attributes
    ----------
    stack : Stack
        Current centres.
    probability : float
        Probability that a row is drawn.
    seed, step : int
        Key of the random numbers.
    n_replacements : int
        Number of random rows to return, one for each centre to reassign.
    """

    stack: Stack
    probability: float
    seed: int
    step: int
    n_replacements: int


@dataclass(frozen=True)
class Batch:
    """Result of one step.

    Attributes
    ----------
    sums : Sums
        Sums and counts by cluster.
    sum_of_squares : float
        Weighted sum of the squared lengths of the shifted rows.
    replacement_keys : (n_replacements,) float64
        Random numbers by which the replacements are ordered.
    replacements : (n_replacements, n_features)
        Random rows of the batch, shifted.
    """

    sums: Sums
    sum_of_squares: float
    replacement_keys: NDArray[np.float64]
    replacements: Floats


def draw_batch(
    block: Block, weights: NDArray[np.float64] | None, row_offset: NDArray[np.int64], *, plan: BatchPlan
) -> Batch:
    """Draw random rows of a block and sum them by their nearest centre.

    Parameters
    ----------
    block : (n_rows, n_features) uint8, float32 or float64
    weights : (n_rows,) float64 or None
        Non-negative row weights; None weights every row by 1. Rows of weight 0 are never drawn.
    row_offset : (1,) int64
        Global index of the block's first row: draws depend on global row indices, not on the chunks.
    plan
        Parameters of the step.

    Returns
    -------
    Batch
    """
    uniforms = row_uniforms(int(row_offset[0]), int(row_offset[0]) + len(block), plan.seed, plan.step)
    chosen = uniforms < plan.probability
    (drawn,) = np.nonzero(chosen if weights is None else chosen & (weights > 0))
    rows, row_weights = block[drawn], None if weights is None else weights[drawn]
    replacements = drawn[np.argsort(uniforms[drawn])[: plan.n_replacements]]
    return Batch(
        sum_by_cluster(rows, row_weights, stack=plan.stack),
        block_moments(rows, row_weights).sum_of_squares(plan.stack.origin),
        uniforms[replacements],
        shifted(block[replacements], plan.stack.origin),
    )


def combine_batches(parts: list[Batch], n_replacements: int) -> Batch:
    """Combine the batches of several blocks.

    Parameters
    ----------
    parts
        At least one batch.
    n_replacements
        Number of random rows to keep in total.

    Returns
    -------
    Batch
    """
    keys = np.concatenate([part.replacement_keys for part in parts])
    order = np.argsort(keys)[:n_replacements]
    return Batch(
        add_sums([part.sums for part in parts]),
        float(sum(part.sum_of_squares for part in parts)),
        keys[order],
        np.concatenate([part.replacements for part in parts])[order],
    )
