"""A simulation that finds nothing may be blind: it must find each of these, planted by name."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "simulation"))

from bugs import BUGS, planted
from world import Simulation

SEEDS_MAX = 600


@pytest.mark.parametrize("name", sorted(BUGS))
def test_a_planted_bug_is_found(name: str) -> None:
    _, trouble = BUGS[name]
    with planted(name):
        found = next((seed for seed in range(SEEDS_MAX) if Simulation(seed, trouble=trouble).run().wrong), None)
    assert found is not None, f"{SEEDS_MAX} schedules did not show it"


def test_what_was_planted_is_taken_out_again() -> None:
    for name, (_, trouble) in BUGS.items():
        with planted(name):
            pass
        assert not Simulation(0, trouble=trouble).run().wrong, name
