"""`crewline topics lag`: every group, in records and seconds, on both buses; once, or again and again."""

from __future__ import annotations

import json
import signal
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from cli_kit import crewline, lines_of, start
from crewline.bus.base import Bus, Message
from crewline.bus.opening import open_address
from crewline.topics import TopicSpec
from flow_bench import until

PARTITIONS = 2


@dataclass(frozen=True)
class Lagging:
    """A log with a group that has read two of the five records of partition 0, and all of partition 1."""

    folder: Path
    place: Sequence[str]
    bus: Bus
    topic: str
    group: str


@pytest.fixture(params=["embedded", "kafka"])
async def lagging(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Lagging]:
    kafka = request.getfixturevalue("kafka_address") if request.param == "kafka" else None
    place = ("--bus", kafka) if kafka else ("--state", "state")
    bus = await open_address(kafka or f"embedded:{tmp_path / 'state'}")
    name = f"lag-{uuid.uuid4().hex[:8]}"
    topic, group = f"{name}.conversations", f"{name}.readers"
    try:
        await bus.create_topics([TopicSpec(topic, PARTITIONS)])
        await bus.append([Message(topic, b"k", b"{}", partition=number) for number in (0, 0, 0, 0, 0, 1)])

        async def assigned(partitions: Sequence[int]) -> dict[int, int]:
            return dict.fromkeys(partitions, 0)

        async def revoked(_: Sequence[int]) -> None:
            return None

        consumer = await bus.consumer(topic, group, assigned=assigned, revoked=revoked, member="m-1")
        try:
            read = 0
            while read < 6:
                read += sum(len(batch.records) for batch in await consumer.poll(1.0))
            await consumer.commit({0: 2, 1: 1})
            yield Lagging(tmp_path, place, bus, topic, group)
        finally:
            await consumer.close()
    finally:
        await bus.close()


@pytest.mark.servers
async def test_lag_is_told_in_records_and_seconds(lagging: Lagging) -> None:
    shown = crewline(lagging.folder, *lagging.place, "--json", "topics", "lag", "--group", lagging.group)

    assert shown.returncode == 0, shown.stderr
    (group,) = json.loads(shown.stdout)["groups"]
    assert (group["group"], group["topic"], group["records"]) == (lagging.group, lagging.topic, 3)
    assert group["partitions"] == {"0": 3, "1": 0}
    assert group["seconds"] == group["partition_seconds"]["0"] > 0
    assert group["partition_seconds"]["1"] == 0
    assert len(group["members"]) == 1


@pytest.mark.servers
async def test_every_group_is_shown_and_each_partition_for_itself_if_asked(lagging: Lagging) -> None:
    every = crewline(lagging.folder, *lagging.place, "topics", "lag")
    each = crewline(lagging.folder, *lagging.place, "topics", "lag", "--partitions", "--group", lagging.group[:7] + "*")

    assert every.returncode == 0, every.stderr
    assert [line.split()[1:3] for line in every.stdout.splitlines() if line.startswith(lagging.group)] == [[lagging.topic, "3"]]
    rows = [line.split()[1:4] for line in each.stdout.splitlines() if line.startswith(lagging.group)]
    assert rows == [[lagging.topic, "0", "3"], [lagging.topic, "1", "0"]]


@pytest.mark.servers
async def test_watching_looks_again_until_it_is_stopped(lagging: Lagging) -> None:
    watching = start(lagging.folder, *lagging.place, "--json", "topics", "lag", "--watch", "--every", "50ms",
                     "--group", lagging.group)
    assert watching.stdout is not None
    try:
        first = lines_of(watching.stdout.readline())[0]["groups"][0]["records"]
        await lagging.bus.append([Message(lagging.topic, b"k", b"{}", partition=1)])
        await until(lambda: lines_of(watching.stdout.readline())[0]["groups"][0]["records"] == first + 1)  # type: ignore[union-attr]
    finally:
        watching.send_signal(signal.SIGINT)
        _, said = watching.communicate(timeout=20)
    assert watching.returncode == 130, said
