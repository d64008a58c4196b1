"""A crew that cannot start says why, and leaves nothing running; a closed log ends those who follow it."""

from __future__ import annotations

import asyncio

import pytest
from crewline.bus.sqlite import open_bus
from crewline.crews.running import Running
from crewline.topics import TopicSpec
from flow_bench import Bench, PlannedBrain, say


async def test_a_crew_whose_role_cannot_be_made_says_why_and_stops(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    start = Running._start

    def fail(self: Running, *parts: object) -> None:
        start(self, *parts)  # type: ignore[arg-type]
        raise ValueError("policies and crew do not fit together")

    monkeypatch.setattr(Running, "_start", fail)
    before = asyncio.all_tasks()
    crew = bench.crew({"desk": PlannedBrain(say("never"))}, capabilities={"desk": ["talk"]})
    async with asyncio.timeout(10):
        with pytest.raises(ValueError, match="do not fit together"):
            await crew.up(state=bench.state).__aenter__()

    left = {task for task in asyncio.all_tasks() - before if not task.done()}
    assert not left, f"{left} still runs"


async def test_a_closed_log_lets_others_run_while_somebody_still_polls_it(bench: Bench) -> None:
    bus = await open_bus(bench.state)
    await bus.create_topics([TopicSpec("t", 1)])
    tail = await bus.tail("t")
    await bus.close()

    async def follow() -> None:
        while True:
            await tail.poll(5.0)

    following = asyncio.create_task(follow())
    await asyncio.sleep(0)
    following.cancel()  # which comes through only if `poll` gives way
    await asyncio.gather(following, return_exceptions=True)

    assert following.cancelled()
