"""The readers of configs and images against a few hundred random cases; benchmarks/fuzz.py draws ten thousand."""

from __future__ import annotations

import pytest

from benchmarks.fuzz import CHECKS, OUTCOMES, run


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("name", CHECKS)
def test_only_documented_errors(name: str) -> None:
    OUTCOMES.clear()
    run(name, {"config": 400, "image": 400}[name], same=True)
    good = {"config": "config: accepted", "image": "image: ok"}[name]
    assert 10 < OUTCOMES[good] < OUTCOMES.total() - 10  # neither all nor none are refused
