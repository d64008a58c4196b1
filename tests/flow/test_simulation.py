"""Whatever goes wrong, in whatever order: the promise of architecture.md, section 1, holds."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "simulation"))

from world import Simulation

SEEDS = 200
MORE = 800  # in a bound by count, so that a slow machine tests the same; `make simulate` runs more


@pytest.mark.parametrize("seed", range(SEEDS))
def test_the_promise_holds(seed: int) -> None:
    result = Simulation(seed).run()
    assert not result.wrong, f"{result.wrong[:3]}; again: SEED={seed}"


@pytest.mark.parametrize("block", range(8))
def test_the_promise_holds_for_many_more(block: int) -> None:
    first = SEEDS + block * MORE // 8
    failed = {seed: result.wrong[0] for seed in range(first, first + MORE // 8) if (result := Simulation(seed).run()).wrong}
    assert not failed, f"again: SEED={min(failed)}"


@pytest.mark.parametrize("seed", [3, 77])
def test_a_seed_is_the_same_schedule_again(seed: int) -> None:
    logs = []
    for _ in range(2):
        simulation = Simulation(seed)
        simulation.run()
        logs.append([record[:5] for log in simulation.broker.logs[simulation.topics.conversations] for record in log])
    assert logs[0] == logs[1]
