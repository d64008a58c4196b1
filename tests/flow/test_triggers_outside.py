"""Outside topics that change: more partitions, records removed, made anew; and processes with stores of their own."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from crewline.errors import UnknownTopic
from crewline.seal import make_keys
from crewline.testing import until
from crewline.triggers import WindowRule
from flow_bench import PlannedBrain, say
from trigger_bench import BURST, World, has_finished, intents, pay, role_of, rule_for, settled


@pytest.fixture
async def world(kafka_address: str, tmp_path: Path) -> AsyncIterator[World]:
    own = f"out-{uuid.uuid4().hex[:8]}"
    world = World(kafka_address, tmp_path / "state", own, f"{own}.outside")
    world.state.mkdir()
    await world.make_topic(1)
    yield world
    await world.close()


@pytest.fixture
async def admin(kafka_address: str) -> AsyncIterator[Any]:
    client = AIOKafkaAdminClient(bootstrap_servers=kafka_address.removeprefix("kafka://"))
    await client.start()
    yield client
    await client.close()


async def test_partitions_that_are_added_are_read_as_well(world: World, admin: Any) -> None:
    async with world.up(world.crew({"desk": PlannedBrain(say("done"))}, rule_for(world, **BURST))) as running:
        await world.send(pay("c-1", 0), pay("c-1", 1))
        await settled(running)
        await admin.create_partitions({world.outside: NewPartitions(4)})
        await world.close()
        await world.send(*[pay("c-1", 2 + n) for n in range(3)], key=b"elsewhere")

        async def fired() -> bool:
            with suppress(UnknownTopic):
                await running.bus.partitions(f"{world.outside}.none")  # asks for metadata, which otherwise takes 30 s
            return bool(await intents(running))

        await until(fired, seconds=40)
        await has_finished(running, 1)
        ((intent,),) = (await intents(running)).values()

    assert intent.input["n"] == 3


async def test_records_removed_before_they_were_taken_are_counted_and_the_rest_goes_on(world: World, admin: Any) -> None:
    crew = world.crew({"desk": PlannedBrain(say("done"))}, rule_for(world, **BURST))
    async with world.up(crew) as running:
        await world.send(pay("c-1", 0))
        await settled(running)
    await world.send(*[pay("c-1", n) for n in (1, 2, 3)])
    await admin.delete_records({TopicPartition(world.outside, 0): RecordsToDelete(before_offset=2)})
    async with world.up(crew) as running:
        await has_finished(running, 1)
        ((intent,),) = (await intents(running)).values()
        gap = running.intakes[0].counts["gap"]

    assert gap == 1
    assert (intent.input["n"], intent.input["total"]) == (3, 300.0)


async def test_a_topic_made_anew_is_read_from_its_beginning(world: World, admin: Any) -> None:
    crew = world.crew({"desk": PlannedBrain(say("done"))}, rule_for(world, **BURST))
    async with world.up(crew) as running:
        await world.send(pay("c-1", 0), pay("c-1", 1), pay("c-2", 0))
        await settled(running)
    await admin.delete_topics([world.outside])

    async def is_gone() -> bool:
        return world.outside not in await admin.list_topics()

    await until(is_gone)
    await admin.create_topics([NewTopic(world.outside, 1, 1)])
    await world.close()
    await until(lambda: sends(world))
    async with world.up(crew) as running:
        await has_finished(running, 1)
        ((intent,),) = (await intents(running)).values()

    assert (intent.input["card"], intent.input["n"]) == ("c-1", 3), "what the old topic said still counts"


async def sends(world: World) -> bool:
    """Send one event; return whether the new topic took it."""
    try:
        await world.send(pay("c-1", 2))
    except UnknownTopic:
        return False
    return True


async def test_two_processes_with_stores_of_their_own_share_a_trigger(world: World, tmp_path: Path) -> None:
    """Silence is known of partitions that the other one takes: from what the group has committed."""
    rule = rule_for(world, window=WindowRule("session", gap_ms=500), aggregates={"n": "count()"}, input={"card": "event.card", "n": "n"})
    crew = world.crew({"desk": PlannedBrain(say("done"))}, rule)
    make_keys(world.state / "keys")
    cards = [f"c-{n}" for n in range(8)]
    async with world.up(crew, store=f"sqlite:{tmp_path}") as one, world.up(crew) as other:
        await until(lambda: all(each.engines["triggers"].positions() for each in (one, other)), seconds=40)
        await world.send(*[pay(card, n) for n in range(2) for card in cards])
        await has_finished(one, len(cards))
        published = await intents(one)

    assert sorted((intent.input["card"], intent.input["n"]) for intent, *_ in published.values()) == [(card, 2) for card in cards]
    assert role_of(one).view.counts == role_of(other).view.counts == {}
