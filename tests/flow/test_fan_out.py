"""Three crews on one topic of transactions: each in a group of its own, each at its own pace. On Kafka."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from crewline.bus import Message
from crewline.bus.opening import open_address
from crewline.crews.running import Crew, Running
from crewline.seal import make_keys
from crewline.testing import until
from crewline.topics import TopicSpec
from crewline.triggers import TriggerRule
from flow_bench import Bench, PlannedBrain, say

COUNT = 12


class Held(PlannedBrain):
    """Answers when it is let."""

    def __init__(self) -> None:
        super().__init__(self._wait)
        self.go = asyncio.Event()

    async def _wait(self, request: Any) -> Any:
        await self.go.wait()
        return say("screened")


class Desk:
    """One topic of transactions, and crews that watch it: each has its own namespace, keys and state."""

    def __init__(self, address: str, folder: Path) -> None:
        self.address, self.folder = address, folder
        self.topic = f"transactions-{uuid.uuid4().hex[:8]}"
        self.stack = AsyncExitStack()

    def crew(self, name: str, brain: PlannedBrain) -> Crew:
        crew = Bench(self.folder).crew({name: brain}, capabilities={name: [f"{name}.look"]}, name=f"{self.topic}.{name}")
        rule = TriggerRule("payment", self.topic, "event.card", [f"{name}.look"], concurrency=COUNT)
        return replace(crew, triggers=[rule], partitions=2)

    async def up(self, name: str, brain: PlannedBrain) -> Running:
        keys = self.folder / name / "keys"
        make_keys(keys)
        return await self.stack.enter_async_context(
            self.crew(name, brain).up(state=self.folder / name, bus=self.address, keys=keys)
        )

    async def pay(self, first: int, count: int) -> None:
        bus = await open_address(self.address)
        await bus.create_topics([TopicSpec(self.topic, 3)])
        await bus.append([
            Message(self.topic, f"c-{n}".encode(), json.dumps({"card": f"c-{n}"}).encode()) for n in range(first, first + count)
        ])  # fmt: skip
        await bus.close()


@pytest.fixture
async def desk(kafka_address: str, tmp_path: Path) -> AsyncIterator[Desk]:
    desk = Desk(kafka_address, tmp_path)
    await desk.pay(0, 0)
    async with desk.stack:
        yield desk


async def test_three_crews_see_every_transaction_each_at_its_own_pace(desk: Desk) -> None:
    fraud, trend, compliance = PlannedBrain(say("scored")), PlannedBrain(say("compared")), Held()
    running = [await desk.up(name, brain) for name, brain in (("fraud", fraud), ("trend", trend), ("compliance", compliance))]
    await desk.pay(0, COUNT)

    await until(lambda: len(fraud.asked) == len(trend.asked) == COUNT, seconds=40)
    await until(lambda: len(compliance.asked) == COUNT, seconds=40)
    open_firings = [sum(gate.inside for gate in role.gates.values()) for role in (each.triggers for each in running) if role]
    assert open_firings[2] == COUNT, "compliance is still at its first; nobody waits for it"
    compliance.go.set()
    await until(lambda: not any(state.firings for each in running for state in each.engines["triggers"].states()), seconds=40)

    for brain in (fraud, trend, compliance):
        cards = sorted(json.loads(request.messages[-1].text)["card"] for request in brain.asked)
        assert cards == sorted(f"c-{n}" for n in range(COUNT))
    groups = {lag.group for lag in await running[0].bus.lags() if lag.topic == desk.topic}
    assert groups == {f"{desk.topic}.{name}.triggers.payment" for name in ("fraud", "trend", "compliance")}


async def test_a_crew_that_was_away_catches_up_without_the_others_noticing(desk: Desk) -> None:
    fraud, trend = PlannedBrain(say("scored")), PlannedBrain(say("compared"))
    await desk.up("fraud", fraud)
    await desk.pay(0, COUNT)
    await until(lambda: len(fraud.asked) == COUNT, seconds=40)
    assert trend.asked == []

    late = await desk.up("trend", trend)
    await desk.pay(COUNT, 3)
    await until(lambda: len(trend.asked) == COUNT + 3, seconds=40)
    await until(lambda: len(fraud.asked) == COUNT + 3, seconds=40)

    assert late.roster.crew.endswith(".trend")
    assert {len(request.messages) for request in [*fraud.asked, *trend.asked]} == {1}, "each transaction is a conversation of its own"
