"""Triggers, end to end on both buses: events of an outside topic become intents, and answers come back."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from crewline import events as ev
from crewline.bus import Message
from crewline.cli.runs import runs_of
from crewline.errors import UsageError
from crewline.roster import Roster
from crewline.testing import until
from crewline.triggers import Gathering, TriggerRule, WindowRule
from flow_bench import Bench, PlannedBrain, say
from trigger_bench import (
    BURST,
    MINUTE,
    START_MS,
    World,
    everything,
    has_finished,
    intents,
    letters,
    pay,
    role_of,
    rule_for,
    settled,
)


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.servers)])
async def world(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[World]:
    own = f"trig-{uuid.uuid4().hex[:8]}"
    state = tmp_path / "state"
    state.mkdir()
    address = request.getfixturevalue("kafka_address") if request.param == "kafka" else f"embedded:{state}"
    world = World(address, state, own, f"{own}.outside")
    await world.make_topic()
    yield world
    await world.close()


# --- events that become intents ------------------------------------------------------------------


async def test_an_event_asks_for_a_capability_with_what_it_says(world: World) -> None:
    rule = rule_for(world, when='event.channel != "spam"', input={"message": "event.text"}, user="event.by", conversation="event.card")
    brain = PlannedBrain(say("done"))
    async with world.up(world.crew({"desk": brain}, rule)) as running:
        await world.send({"card": "t-1", "channel": "mail", "text": "Where is it?", "by": "u-7"},
                         {"card": "t-2", "channel": "spam", "text": "Buy!", "by": "u-8"})
        (ended,) = await has_finished(running, 1)
        await settled(running)
        published = await intents(running)

    ((intent,),) = published.values()
    assert (intent.capability, intent.input, intent.user) == ("desk.do", {"message": "Where is it?"}, "u-7")
    assert intent.origin == ev.Origin("trigger", crew=world.name, trigger="burst", topic=world.outside)
    assert ended.status == "done"
    assert brain.asked[0].conversation == "t-1"


async def test_a_window_fires_once_however_many_events_follow(world: World) -> None:
    async with world.up(world.crew({"desk": PlannedBrain(say("done"))}, rule_for(world, **BURST))) as running:
        await world.send(*[pay("c-1", n * 0.5) for n in range(8)], pay("c-2", 1))
        await has_finished(running, 1)
        await settled(running)
        published = await intents(running)

    ((intent,),) = published.values()
    assert intent.input == {"card": "c-1", "n": 3, "total": 300.0, "from": "2026-11-25T10:00:00.000Z"}


async def test_events_of_one_key_count_together_whatever_partition_they_are_on(world: World) -> None:
    """The outside topic is keyed by something else: its keys are not the trigger's."""
    async with world.up(world.crew({"desk": PlannedBrain(say("done"))}, rule_for(world, **BURST))) as running:
        for n, key in enumerate((b"a", b"b", b"c", b"d", b"")):
            await world.send(pay("c-1", n), key=key)
        await has_finished(running, 1)
        await settled(running)
        spread = {record.partition for record in await everything(running.bus, world.outside)}

    assert len(spread) == 2


async def test_within_the_cooldown_a_key_fires_once(world: World) -> None:
    rule = rule_for(world, **BURST, cooldown_ms=30 * MINUTE)
    async with world.up(world.crew({"desk": PlannedBrain(say("done"))}, rule)) as running:
        await world.send(*[pay("c-1", minute) for minute in (1, 2, 3, 11, 12, 13, 21, 22, 23, 41, 42, 43)])
        await has_finished(running, 2)
        await settled(running)
        published = await intents(running)

    assert sorted(intent.input["from"][11:16] for (intent,) in published.values()) == ["10:00", "10:40"]


async def test_a_session_ends_when_nothing_came_for_its_gap(world: World) -> None:
    """By the time that passes, not by a later event: there is none."""
    rule = rule_for(world, window=WindowRule("session", gap_ms=700), aggregates={"n": "count()", "seen": "last(event.at)"},
                    input={"n": "n", "seen": "seen"})
    async with world.up(world.crew({"desk": PlannedBrain(say("done"))}, rule)) as running:
        await world.send(pay("c-1", 0), pay("c-1", 1))
        await has_finished(running, 1)
        ((intent,),) = (await intents(running)).values()

    assert intent.input == {"n": 2, "seen": START_MS + MINUTE}


async def test_what_came_while_the_crew_was_down_is_no_silence(world: World) -> None:
    """Closing waits until the outside topic is read: the next event may lie there already."""
    rule = rule_for(world, window=WindowRule("session", gap_ms=60_000), aggregates={"n": "count()"}, time="event.at")
    crew = world.crew({"desk": PlannedBrain(say("done"))}, rule)
    async with world.up(crew) as running:
        await world.send(pay("c-1", 0))
        await settled(running)
    await world.send(*[pay("c-1", n * 0.9) for n in range(1, 6)], pay("c-1", 30))
    async with world.up(crew) as running:
        await has_finished(running, 1)
        ((intent,),) = (await intents(running)).values()

    assert intent.input["n"] == 6


# --- what is no event ----------------------------------------------------------------------------


async def test_what_cannot_be_used_is_a_dead_letter_and_the_rest_goes_on(world: World) -> None:
    rule = rule_for(world, **BURST)
    async with world.up(world.crew({"desk": PlannedBrain(say("done"))}, rule)) as running:
        bad = [b"{no json", None, b"[" * 5_000, json.dumps({"amount": 1, "at": START_MS}).encode(),
               json.dumps(pay("c-1", 0) | {"amount": "ten"}).encode(), json.dumps(pay("c-1", 0) | {"at": "tomorrow"}).encode(),
               json.dumps(pay("c-1", 0) | {"x": "y" * 300_000}).encode()]
        await running.bus.append([Message(world.outside, b"\xff\x00", value) for value in bad])
        await world.send(*[pay("c-1", n) for n in (0, 1, 2)])
        await has_finished(running, 1)
        await settled(running)
        dead = await letters(running)

    assert len(dead) == len(bad)
    assert {letter["crewline-trigger"] for letter in dead} == {"burst"}
    assert {letter["crewline-topic"] for letter in dead} == {world.outside}
    reasons = sorted(letter["crewline-reason"][:24] for letter in dead)
    assert reasons == sorted([
        "the value is not JSON: J", "the record has no value ", "the value is nested too ", "there is no 'card': even",
        "sum() takes numbers, not", "'time' gives 'tomorrow',", "the record has 300,062 b",
    ])  # fmt: skip


async def test_an_event_after_its_windows_grace_is_dropped_visibly(world: World) -> None:
    rule = rule_for(world, **{**BURST, "window": WindowRule("tumbling", 10 * MINUTE, 10 * MINUTE, grace_ms=MINUTE)})
    async with world.up(world.crew({"desk": PlannedBrain(say("done"))}, rule)) as running:
        await world.send(pay("c-1", 1), pay("c-1", 10.5), pay("c-1", 9), pay("c-1", 11.5), pay("c-1", 9.5), pay("c-1", 9.9))
        await until(lambda: letters(running), seconds=20.0)
        await settled(running)
        dead = await letters(running)
        counted = role_of(running).view.counts["burst", "late"]
        published = await intents(running)

    assert [json.loads(letter["value"])["at"] for letter in dead] == [START_MS + int(minute * MINUTE) for minute in (9.5, 9.9)]
    assert all(letter["crewline-reason"].startswith("late: ") for letter in dead)
    assert (counted, published) == (2, {})


async def test_with_on_error_stop_nothing_after_the_record_is_taken(world: World) -> None:
    rule = rule_for(world, **BURST, on_error="stop")
    async with world.up(world.crew({"desk": PlannedBrain(say("done"))}, rule)) as running:
        await running.bus.append([Message(world.outside, b"k", b"{no json")])
        await world.send(*[pay("c-1", n) for n in (0, 1, 2)], key=b"k")
        (intake,) = running.intakes
        await until(lambda: intake.stopped_by, seconds=20.0)
        taken = await everything(running.bus, running.roster.topics.triggers)
        published = await intents(running)

    assert "not JSON" in (intake.stopped_by or "")
    assert (taken, published) == ([], {})


# --- how many at once, and many for one ------------------------------------------------------------


class Slow(PlannedBrain):
    """Answers when it is let; notes how many it thinks about at once."""

    def __init__(self) -> None:
        super().__init__(self._wait)
        self.open = self.most = 0
        self.go = asyncio.Event()

    async def _wait(self, request: Any) -> Any:
        self.open += 1
        self.most = max(self.most, self.open)
        await self.go.wait()
        self.open -= 1
        return say("done")


async def test_no_more_runs_are_open_at_once_than_the_trigger_says(world: World) -> None:
    brain = Slow()
    rule = rule_for(world, concurrency=2)
    async with world.up(world.crew({"desk": brain}, rule)) as running:
        await world.send(*[pay(f"c-{n}", 0) for n in range(6)])
        gate = role_of(running).gates["burst"]
        await until(lambda: brain.open == 2 and gate.waiting == 4, seconds=20.0)
        assert len(await intents(running)) == 2
        brain.go.set()
        await has_finished(running, 6)
        await settled(running)

    assert brain.most == 2
    assert (gate.inside, gate.waiting) == (0, 0)


def scatter_rule(world: World, wait_for: Any, timeout_ms: int = 60_000) -> TriggerRule:
    return rule_for(world, asks=["fraud.do", "trend.do", "law.do"], gather=Gathering("desk.do", wait_for, timeout_ms),
                    input={"card": "event.card"}, conversation="event.card")


async def test_a_scatters_answers_come_together_in_one_intent(world: World) -> None:
    officer = PlannedBrain(say("blocked"))
    others = {name: PlannedBrain(say(f"{name} found it")) for name in ("fraud", "trend", "law")}
    async with world.up(world.crew({"desk": officer, **others}, scatter_rule(world, "all"))) as running:
        await world.send(pay("c-1", 0))
        await until(lambda: officer.asked, seconds=30.0)
        await settled(running)
        published = await intents(running)
        runs = runs_of(await running.client.projection())

    (gathered,) = [intent for (intent,) in published.values() if intent.capability == "desk.do"]
    assert gathered.input == {
        "card": "c-1",
        "findings": {f"{name}.do": {"status": "done", "answer": f"{name} found it"} for name in others},
    }
    assert [each.capability for each in gathered.gathered] == ["fraud.do", "trend.do", "law.do"]
    assert officer.asked[0].conversation == "c-1"
    (run,) = runs
    assert (run["status"], sorted(run["agents"])) == ("done", ["desk", "fraud", "law", "trend"]), "a firing is one run"


@pytest.mark.parametrize(("wait_for", "found"), [("any", 1), ("majority", 2)])
async def test_a_gather_goes_on_with_enough_of_the_answers(world: World, wait_for: str, found: int) -> None:
    officer, slow = PlannedBrain(say("watched")), Slow()
    brains = {"desk": officer, "fraud": PlannedBrain(say("fraud")), "trend": PlannedBrain(say("trend")), "law": slow}
    if wait_for == "any":
        brains["trend"] = slow
    async with world.up(world.crew(brains, scatter_rule(world, wait_for))) as running:
        await world.send(pay("c-1", 0))
        await until(lambda: officer.asked, seconds=30.0)
        await settled(running)
        slow.go.set()
        published = await intents(running)

    (gathered,) = [intent for (intent,) in published.values() if intent.capability == "desk.do"]
    assert len(gathered.gathered) == found
    assert gathered.input["findings"]["law.do"]["status"] == "missing"


async def test_a_gather_that_timed_out_goes_on_with_what_has_arrived(world: World) -> None:
    officer, slow = PlannedBrain(say("watched")), Slow()
    brains = {"desk": officer, "fraud": PlannedBrain(say("fraud")), "trend": PlannedBrain(say("trend")), "law": slow}
    async with world.up(world.crew(brains, scatter_rule(world, "all", timeout_ms=1_500))) as running:
        await world.send(pay("c-1", 0))
        await until(lambda: officer.asked, seconds=30.0)
        await settled(running)
        slow.go.set()
        published = await intents(running)

    (gathered,) = [intent for (intent,) in published.values() if intent.capability == "desk.do"]
    assert sorted(gathered.input["findings"]) == ["fraud.do", "law.do", "trend.do"]
    assert gathered.input["findings"]["law.do"]["status"] == "missing"


# --- topics that are not ours --------------------------------------------------------------------


async def test_on_kafka_a_topic_that_is_not_there_is_refused(tmp_path: Path, kafka_address: str) -> None:
    own = f"trig-{uuid.uuid4().hex[:8]}"
    world = World(kafka_address, tmp_path / "state", own, f"{own}.missing")
    world.state.mkdir()
    with pytest.raises(UsageError, match=rf"trigger 'burst' reads topic '{own}.missing', which .* does not have"):
        async with world.up(world.crew({"desk": PlannedBrain(say("done"))}, rule_for(world, **BURST))):
            pass


async def test_on_the_embedded_log_the_outside_topic_is_made(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    world = World(f"embedded:{state}", state, "demo", "cards.paid")
    async with world.up(world.crew({"desk": PlannedBrain(say("done"))}, rule_for(world))) as running:
        assert await running.bus.partitions("cards.paid") == 3
        await world.send(pay("c-1", 0))
        await has_finished(running, 1)
    await world.close()


async def test_a_store_that_was_lost_loses_and_doubles_nothing(world: World) -> None:
    rule = rule_for(world, **BURST)
    crew = world.crew({"desk": PlannedBrain(say("done"))}, rule)
    async with world.up(crew) as running:
        await world.send(*[pay("c-1", n) for n in (0, 1, 2)], pay("c-2", 0), pay("c-2", 1))
        await has_finished(running, 1)
        await settled(running)
    for file in world.state.glob("store.db*"):
        file.unlink()
    await world.send(pay("c-2", 2), pay("c-1", 3))
    async with world.up(crew) as running:
        await has_finished(running, 2)
        await settled(running)
        published = await intents(running)
        taken = await everything(running.bus, running.roster.topics.triggers)

    assert sorted((intent.input["card"], intent.input["n"]) for intent, *_ in published.values()) == [("c-1", 3), ("c-2", 3)]
    ids = [ev.header(record.headers, "ce_id") for record in taken if ev.header(record.headers, "ce_type") == "event.taken"]
    assert len(ids) == len(set(ids)) == 7, "what was taken is known from the log, not read again"


def test_a_crew_without_triggers_has_no_such_role(bench: Bench) -> None:
    crew = bench.crew({"desk": PlannedBrain(say("done"))})
    with pytest.raises(UsageError, match="there is no role 'triggers'"):
        crew.up(state=bench.state, only=["triggers"])
    assert isinstance(crew.roster, Roster)


