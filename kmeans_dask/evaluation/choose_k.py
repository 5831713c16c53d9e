"""How many clusters: three criteria, each with its K, and the reason in words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_AS_STABLE = 0.05
"""A larger K is preferred to one whose adjusted Rand index is higher by no more than this."""


@dataclass(frozen=True)
class Choice:
    """The chosen K, that of each criterion, and why.

    Attributes
    ----------
    k : int
    knee, silhouette, stability : int
    reason : str
    """

    k: int
    knee: int
    silhouette: int
    stability: int
    reason: str


def choose_k(
    ks: Sequence[int], inertias: Sequence[float], silhouettes: Sequence[float | None], stabilities: Sequence[float]
) -> Choice:
    """Choose the number of clusters.

    Parameters
    ----------
    ks
        Candidates, at least one.
    inertias
        Of the fitted rows, one a candidate.
    silhouettes
        Simplified silhouettes, None for K = 1.
    stabilities
        Adjusted Rand index between two fits with different seeds.

    Returns
    -------
    Choice
        The median of three: the knee of the inertia (the candidate farthest below the straight line from the first to
        the last one, as in Satopaa et al. 2011), the best silhouette, and the largest K about as stable as the best.
    """
    order = np.argsort(ks)
    k = np.asarray(ks)[order]
    inertia, stability = np.asarray(inertias, np.float64)[order], np.asarray(stabilities, np.float64)[order]
    silhouette = np.array([-1.0 if silhouettes[i] is None else silhouettes[i] for i in order], np.float64)
    knee = int(np.argmax(_below_the_chord(k, inertia)))
    best = int(np.argmax(silhouette))
    stable = int(np.flatnonzero(stability >= stability.max() - _AS_STABLE)[-1])
    chosen = sorted((knee, best, stable))[1]
    reason = (
        f"K = {k[chosen]}, the median of three criteria: the inertia bends most at K = {k[knee]}; the simplified "
        f"silhouette is best at K = {k[best]} ({silhouette[best]:.3f}); two seeds agree about best up to "
        f"K = {k[stable]} (adjusted Rand index {stability[stable]:.2f})"
    )
    return Choice(int(k[chosen]), int(k[knee]), int(k[best]), int(k[stable]), reason)


def _below_the_chord(k: np.ndarray, inertia: np.ndarray) -> np.ndarray:
    """How far each point lies below the line from the first to the last, both axes scaled to 0-1."""
    width, height = float(np.ptp(k)), float(np.ptp(inertia))
    if width == 0 or height == 0:
        return np.zeros(len(k))
    return 1 - (k - k[0]) / width - (inertia - inertia[-1]) / height
