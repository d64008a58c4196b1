"""What the tests of triggers share: a place to run crews, events to send, and what came of them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from crewline import events as ev
from crewline.bus import Bus, Message, Record
from crewline.bus.opening import open_address
from crewline.crews.running import Crew, Running
from crewline.seal import make_keys
from crewline.testing import until
from crewline.topics import TopicSpec
from crewline.triggers import TakenUntil, TriggerRule, Triggers, WindowRule
from flow_bench import Bench, PlannedBrain

START_MS = 1_795_600_800_000  # 2026-11-25 10:00 UTC
MINUTE = 60_000


@dataclass
class World:
    """One place to run crews with triggers: a bus, a topic of the outside world, a namespace."""

    address: str
    state: Path
    name: str
    outside: str
    producer: Bus | None = None

    def crew(self, brains: dict[str, PlannedBrain], *rules: TriggerRule, **more: Any) -> Crew:
        bench = Bench(self.state)
        capabilities: dict[str, Sequence[str]] = {agent: [f"{agent}.do"] for agent in brains}
        crew = bench.crew(brains, capabilities=capabilities, name=self.name, **more)
        return replace(crew, triggers=list(rules), partitions=3)

    @asynccontextmanager
    async def up(self, crew: Crew, **more: Any) -> AsyncIterator[Running]:
        make_keys(self.state / "keys")
        async with crew.up(state=self.state, bus=self.address, keys=self.state / "keys", **more) as running:
            yield running

    async def bus(self) -> Bus:
        """Return the bus of whoever writes the outside topic."""
        if self.producer is None:
            self.producer = await open_address(self.address)
        return self.producer

    async def close(self) -> None:
        """Close that bus; the next use opens another, which learns the topic as it is then."""
        producer, self.producer = self.producer, None
        if producer is not None:
            await producer.close()

    async def make_topic(self, partitions: int = 2) -> None:
        await (await self.bus()).create_topics([TopicSpec(self.outside, partitions)])

    async def send(self, *events: Any, key: bytes = b"") -> None:
        await (await self.bus()).append([Message(self.outside, key, json.dumps(each).encode()) for each in events])


def rule_for(world: World, name: str = "burst", **said: Any) -> TriggerRule:
    """A trigger on the world's outside topic that asks the agent `desk`."""
    usual: dict[str, Any] = {"topic": world.outside, "key": "event.card", "asks": ["desk.do"]}
    return TriggerRule(name, **(usual | said))


def pay(card: str, minute: float, amount: float = 100.0) -> dict[str, Any]:
    return {"card": card, "amount": amount, "at": START_MS + int(minute * MINUTE)}


BURST: dict[str, Any] = {
    "time": "event.at",
    "window": WindowRule("tumbling", 10 * MINUTE, 10 * MINUTE),
    "aggregates": {"n": "count()", "total": "sum(event.amount)"},
    "when": "n >= 3",
    "input": {"card": "event.card", "n": "n", "total": "total", "from": "window.start"},
}


async def everything(bus: Bus, topic: str) -> list[Record]:
    """Return every record of a topic."""
    begins, ends = await bus.offsets(topic)
    found: list[Record] = []
    for partition, begin in begins.items():
        offset = begin
        while offset < ends[partition]:
            batch = await bus.read(topic, partition, offset)
            found += batch.records
            offset = batch.next_offset
    return found


async def intents(running: Running) -> dict[str, list[ev.IntentPublished]]:
    """Return the intents that were published, by id."""
    found: dict[str, list[ev.IntentPublished]] = {}
    for record in await everything(running.bus, running.roster.topics.conversations):
        event = ev.decode(record.headers, record.value)
        if isinstance(event.event, ev.IntentPublished):
            found.setdefault(event.id, []).append(event.event)
    return found


async def finished(running: Running) -> list[ev.TurnFinished]:
    """Return how turns ended."""
    ended: dict[str, ev.TurnFinished] = {}
    for record in await everything(running.bus, running.roster.topics.conversations):
        event = ev.decode(record.headers, record.value)
        if isinstance(event.event, ev.TurnFinished):
            ended[event.id] = event.event
    return list(ended.values())


async def letters(running: Running) -> list[dict[str, str]]:
    """Return the dead letters' headers, and their values as `value`."""
    return [
        {name: value.decode() for name, value in record.headers} | {"value": (record.value or b"").decode("utf-8", "replace")}
        for record in await everything(running.bus, running.roster.topics.dead_letters)
    ]


async def has_finished(running: Running, count: int) -> list[ev.TurnFinished]:
    async def enough() -> list[ev.TurnFinished] | None:
        ended = await finished(running)
        return ended if len(ended) >= count else None

    ended: list[ev.TurnFinished] = await until(enough, seconds=30.0)
    return ended


def role_of(running: Running) -> Triggers:
    assert running.triggers is not None
    return running.triggers


async def settled(running: Running) -> None:
    """Wait until no firing is open and every event of the outside topics was taken and folded."""
    rules = {rule.name: rule for rule in running.crew.triggers}
    store = running.engines["triggers"]._store
    taken = TakenUntil(rules, namespace=running.crew.name, bus_of=lambda _: running.bus, store=store, clock_ms=lambda: 1)
    for name in rules:
        await taken(name, 1)

    async def quiet() -> bool:
        engine = running.engines["triggers"]
        _, ends = await running.bus.offsets(running.roster.topics.triggers)
        folded = all(engine._parts[p].next_offset >= end for p, end in ends.items())
        return folded and not any(state.firings or state.letters for state in engine.states())

    await until(quiet, seconds=30.0)
