"""What a chunk does in a step of mini-batch K-Means, and how that is joined.

Tasks run in worker processes, which import this module alone: dask-ml and scikit-learn, which the estimator needs, take
another second and a half.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from kmeans_dask.kmeans.kernels import Block, Floats, Stack, Sums, sum_by_cluster
from kmeans_dask.kmeans.lloyd import add_sums
from kmeans_dask.kmeans.moments import moments
from kmeans_dask.kmeans.sampling import row_uniforms, shifted


@dataclass(frozen=True)
class Plan:
    """What every chunk needs to know of a step."""

    stack: Stack
    chance: float
    seed: int
    step: int
    spare: int
    """Random rows wanted for starving centres."""


@dataclass(frozen=True)
class Batch:
    """What a step brings back: sums by cluster, sum of squares, and a few random rows, shifted."""

    sums: Sums
    squares: float
    spare_keys: NDArray[np.float64]
    spare: Floats


def draw_batch(block: Block, weights: NDArray[np.float64] | None, first_row: NDArray[np.int64], *, plan: Plan) -> Batch:
    """Draw rows of one block, and sum them by the nearest centre.

    Parameters
    ----------
    block
        (m, n_features) uint8 or floating.
    weights
        (m,) not negative; None: all are 1. Rows that weigh nothing are not drawn.
    first_row
        (1,) number of the block's first row: what is drawn depends on the rows' numbers, not on the chunks.
    plan
        Of this step.

    Returns
    -------
    Batch
        Of this block.
    """
    uniforms = row_uniforms(int(first_row[0]), int(first_row[0]) + len(block), plan.seed, plan.step)
    chosen = uniforms < plan.chance
    (drawn,) = np.nonzero(chosen if weights is None else chosen & (weights > 0))
    rows, row_weights = block[drawn], None if weights is None else weights[drawn]
    lucky = drawn[np.argsort(uniforms[drawn])[: plan.spare]]
    return Batch(
        sum_by_cluster(rows, row_weights, stack=plan.stack),
        moments(rows, row_weights).squares(plan.stack.origin),
        uniforms[lucky],
        shifted(block[lucky], plan.stack.origin),
    )


def combine_batches(parts: list[Batch], spare: int) -> Batch:
    """Join the batches of several blocks.

    Parameters
    ----------
    parts
        At least one.
    spare
        Random rows that are wanted of all blocks together.

    Returns
    -------
    Batch
        Of all of these blocks.
    """
    keys = np.concatenate([part.spare_keys for part in parts])
    order = np.argsort(keys)[:spare]
    return Batch(
        add_sums([part.sums for part in parts]),
        float(sum(part.squares for part in parts)),
        keys[order],
        np.concatenate([part.spare for part in parts])[order],
    )
