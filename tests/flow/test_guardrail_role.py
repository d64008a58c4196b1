"""The guardrail under the real engine, on the embedded log: it judges, survives a restart, and its chain holds."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from crewline import events as ev
from crewline.bus.sqlite import SQLiteBus, open_bus
from crewline.conversation import Conversation, fold
from crewline.crews.running import clock_ms
from crewline.engine import Engine, EngineOptions
from crewline.guardrail import (
    Approvals,
    AuditReport,
    AuditTrail,
    FactRule,
    Guardrail,
    PolicyRule,
    PolicySet,
    verify,
)
from crewline.records import PEOPLE, Reader, Scribe
from crewline.roster import Agent, Roster
from crewline.seal import Keyring, load_keys, make_keys
from crewline.testing import until
from crewline_agents.base import Brain
from crewline_memory.base import Mark, Snapshot
from crewline_tools.base import ToolSpec

PARTITIONS = 2
ORDER = {"type": "object", "properties": {"order_id": {"type": "string"}, "amount": {"type": "number"}}, "required": ["order_id"]}
TOOLS = {"find_order": ToolSpec("find_order", "", ORDER, "read"), "refund": ToolSpec("refund", "", ORDER, "write")}
ROSTER = Roster("guarded", "1", {"desk": Agent("desk", cast(Brain, None), tools=("find_order", "refund"))}, TOOLS)
TOPICS = ROSTER.topics


def policies(timeout_s: float = 600.0) -> PolicySet:
    rules = [
        PolicyRule("within", ("refund",), when="args.amount > facts.order.total", action="deny", reason="Too much."),
        PolicyRule("large", ("refund",), when="args.amount > 50.0", action="require_approval", reason="Large."),
    ]
    facts = [FactRule("order", "find_order", {"order_id": "args.order_id"})]
    return PolicySet(rules, facts=facts, approvals=Approvals(("leads",), timeout_s), epoch=1, name="test")


RULES = policies()


async def order_of_80(tool: str, args: dict[str, Any]) -> Any:
    await asyncio.sleep(0)
    return {"total": 80}


class DictStore:
    """A memory store in a dictionary; it lives as long as the test."""

    def __init__(self) -> None:
        self.parts: dict[tuple[str, int], tuple[Mark, dict[bytes, Snapshot]]] = {}

    async def mark(self, role: str, partition: int) -> Mark | None:
        found = self.parts.get((role, partition))
        return found[0] if found else None

    async def pending(self, role: str, partition: int) -> dict[bytes, Snapshot]:
        found = self.parts.get((role, partition))
        return {key: each for key, each in found[1].items() if each.pending or each.frozen_at is not None} if found else {}

    async def snapshots(self, role: str, partition: int, keys: Sequence[bytes]) -> dict[bytes, Snapshot]:
        found = self.parts.get((role, partition))
        return {key: found[1][key] for key in keys if key in found[1]} if found else {}

    async def write(
        self, role: str, partition: int, mark: Mark, snapshots: Mapping[bytes, Snapshot], *, after: int = 0
    ) -> bool:
        before, kept = self.parts.get((role, partition), (Mark(-1), {}))
        if mark.next_offset <= before.next_offset:
            return False
        self.parts[role, partition] = (replace(mark, snapshots=len({**kept, **snapshots})), {**kept, **snapshots})
        return True

    async def drop(self, role: str, partition: int) -> None:
        self.parts.pop((role, partition), None)

    async def close(self) -> None:
        return None


class Desk:
    """A log, its keys, a store, and guardrails that come and go."""

    def __init__(self, bus: SQLiteBus, keyring: Keyring, file: Path) -> None:
        self.bus, self.keyring, self.file = bus, keyring, file
        self.store = DictStore()
        self.scribe = Scribe(keyring, source="guarded", now_ms=clock_ms)
        self.reader = Reader(keyring, partitions=PARTITIONS)

    @asynccontextmanager
    async def guardrail(self, *, group: str = "guarded.guardrail", rules: PolicySet = RULES) -> AsyncIterator[Engine[Conversation]]:
        audit = AuditTrail(self.scribe, clock_ms=clock_ms, audit_topic=TOPICS.audit, file=self.file, records=5)
        role = Guardrail(ROSTER, policies=rules, scribe=self.scribe, clock_ms=clock_ms, run_fact=order_of_80, audit=audit)
        engine: Engine[Conversation] = Engine(role, bus=self.bus, store=self.store, reader=self.reader, group=group, clock_ms=clock_ms,
                        options=EngineOptions(poll_s=0.05, retry_s_min=0.01))
        running = asyncio.create_task(engine.run())
        await engine.ready()
        try:
            yield engine
        finally:
            engine.stop()
            await running

    async def write(self, key: str, event: ev.Event, id: str, *, signed_by: str | None = None, seal_as: str | None = None) -> None:
        await self.bus.append([self.scribe.message(TOPICS.conversations, key, event, id=id, run=key, signed_by=signed_by, seal_as=seal_as)])

    async def ask(self, key: str, *calls: tuple[str, dict[str, Any]]) -> None:
        """A turn of conversation `key` asks for `calls`."""
        await self.write(key, ev.IntentPublished("Hi", agent="desk", user="u1", origin=ev.Origin("user")), f"{key}:i")
        await self.write(key, ev.TurnStarted(1, f"{key}:i", "desk", "1", 1, ev.Limits()), f"{key}:t1")
        texts = tuple(ev.CallText(f"w{k}", name, json.dumps(args)) for k, (name, args) in enumerate(calls))
        await self.write(key, ev.ModelReplied("desk", 1, calls=texts, catalogue=ROSTER.catalogue("desk")), f"{key}:t1:s1")

    async def state(self, key: str) -> Conversation:
        """Fold the conversation from the log, as any reader would."""
        state = Conversation(key)
        for partition in range(PARTITIONS):
            for record in (await self.bus.read(TOPICS.conversations, partition, 0, records_max=10_000)).records:
                if record.key == key.encode():
                    state = fold(state, self.reader.read(record))
        return state

    async def statuses(self, key: str) -> list[str]:
        turn = (await self.state(key)).turn
        return [call.status for call in turn.calls] if turn else []

    async def becomes(self, key: str, *statuses: str) -> None:
        async def reached() -> bool:
            return await self.statuses(key) == list(statuses)

        await until(reached)

    async def verify(self) -> AuditReport:
        return await verify(self.bus, TOPICS.conversations, audit_topic=TOPICS.audit, keyring=self.keyring, file=self.file)


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    make_keys(tmp_path / "keys")
    bus = await open_bus(tmp_path)
    await bus.create_topics(TOPICS.specs(("main",), partitions=PARTITIONS))
    yield Desk(bus, load_keys(tmp_path / "keys"), tmp_path / "audit.jsonl")
    await bus.close()


async def test_calls_on_the_log_get_signed_verdicts_that_stand(desk: Desk) -> None:
    async with desk.guardrail():
        await desk.ask("c1", ("find_order", {"order_id": "A"}), ("refund", {"order_id": "A", "amount": 60}), ("refund", {"order_id": "A"}))
        await desk.becomes("c1", "granted", "held", "closed")
    turn = (await desk.state("c1")).turn
    assert turn is not None
    verdicts = [call.verdict for call in turn.calls]
    assert [verdict.decision for verdict in verdicts if verdict] == ["allow", "require_approval", "deny"]
    assert [reason.code for verdict in verdicts if verdict for reason in verdict.reasons] == ["policy.large", "policy.error", "policy.error"]


async def test_what_was_asked_while_the_guardrail_was_away_is_judged_when_it_comes(desk: Desk) -> None:
    await desk.ask("c1", ("find_order", {"order_id": "A"}))
    await desk.ask("c2", ("refund", {"order_id": "A", "amount": 5}))
    async with desk.guardrail():
        await desk.becomes("c1", "granted")
        await desk.becomes("c2", "granted")


async def test_an_approval_is_judged_again_also_by_the_next_guardrail(desk: Desk) -> None:
    async with desk.guardrail():
        await desk.ask("c1", ("refund", {"order_id": "A", "amount": 60}))
        await desk.becomes("c1", "held")
    turn = (await desk.state("c1")).turn
    assert turn is not None
    assert turn.calls[0].verdict is not None
    sha256 = turn.calls[0].verdict.args_sha256
    await desk.write("c1", ev.ApprovalDecided("c1:t1:s1:c0", 1, sha256, "approve", "ann"), "decided", signed_by=PEOPLE)
    async with desk.guardrail():
        await desk.becomes("c1", "granted")
    turn = (await desk.state("c1")).turn
    assert turn is not None
    assert turn.calls[0].verdict is not None
    assert turn.calls[0].verdict.by == "person:ann"


async def test_an_approval_that_nobody_gives_is_denied_at_its_deadline(desk: Desk) -> None:
    async with desk.guardrail(rules=policies(timeout_s=0.02)):
        await desk.ask("c1", ("find_order", {"order_id": "A"}), ("refund", {"order_id": "A", "amount": 60}))
        await desk.becomes("c1", "granted", "closed")
    turn = (await desk.state("c1")).turn
    assert turn is not None
    outcome = turn.calls[1].outcome
    assert outcome is not None
    assert outcome.code == "approval.expired"


async def test_two_guardrails_over_one_partition_do_no_harm(desk: Desk) -> None:
    async with desk.guardrail(), desk.guardrail(group="guarded.zombie"):
        for n in range(12):
            await desk.ask(f"c{n}", ("find_order", {"order_id": "A"}), ("refund", {"order_id": "A", "amount": n}))
        for n in range(12):
            await desk.becomes(f"c{n}", "granted", "granted")
    report = await desk.verify()
    assert report.breaks == []
    assert report.checkpoints >= 2


async def test_the_chain_goes_on_over_a_restart_and_after_the_store_is_lost(desk: Desk) -> None:
    for n in range(3):
        if n == 2:
            desk.store = DictStore()
        async with desk.guardrail():
            for k in range(4):
                await desk.ask(f"c{n}{k}", ("find_order", {"order_id": "A"}))
                await desk.becomes(f"c{n}{k}", "granted")
    report = await desk.verify()
    assert report.breaks == []
    assert report.warnings == []
    assert report.records == 3 * 4 * 4
    assert report.checkpoints >= 6


async def test_a_record_changed_in_the_log_is_found(desk: Desk) -> None:
    async with desk.guardrail():
        for k in range(8):
            await desk.ask(f"c{k}", ("find_order", {"order_id": "A"}))
            await desk.becomes(f"c{k}", "granted")

    class Changed:
        """The same log, with one value changed on its way to the reader."""

        offsets = staticmethod(desk.bus.offsets)

        @staticmethod
        async def read(topic: str, partition: int, start: int, *, records_max: int = 500) -> Any:
            batch = await desk.bus.read(topic, partition, start, records_max=records_max)
            if topic != TOPICS.conversations or partition != 0:
                return batch
            records = [each._replace(value=(each.value or b"") + b" ") if each.offset == 3 else each for each in batch.records]
            return replace(batch, records=records)

    report = await verify(cast(Any, Changed), TOPICS.conversations, audit_topic=TOPICS.audit, keyring=desk.keyring)
    assert report.first is not None
    assert (report.first.code, report.first.partition) == ("audit.changed", 0)
    assert report.first.offset <= 3 <= report.first.until


async def test_a_verdict_that_a_worker_forges_does_not_count(desk: Desk) -> None:
    await desk.ask("c1", ("refund", {"order_id": "A", "amount": 500}))
    forged = ev.CallJudged("c1:t1:s1:c0", 1, 1, "c1", "desk", "refund", "main", False, "allow", "0" * 64)
    await desk.write("c1", forged, "c1:t1:s1:c0:j1")

    async with desk.guardrail() as engine:
        async def denied() -> bool:
            return any(state.turn is not None and state.turn.denials == ("policy.within",) for state in engine.states())

        await until(denied)
        assert engine.rejected == 1
