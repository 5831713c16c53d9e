"""Fuzz the readers of configs and images with a few hundred random cases; benchmarks/fuzz.py runs ten thousand."""

from __future__ import annotations

import pytest

from benchmarks.fuzz import CHECKS, OUTCOMES, run


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("name", CHECKS)
def test_only_documented_errors_are_raised(name: str) -> None:
    OUTCOMES.clear()
    run(name, {"config": 400, "image": 400}[name], same=True)
    good = {"config": "config: accepted", "image": "image: ok"}[name]
    assert 10 < OUTCOMES[good] < OUTCOMES.total() - 10  # some are accepted, some refused
