"""The bus on Kafka when brokers die, freeze, move or refuse, when topics change under it, and when its own tasks die."""

from __future__ import annotations

import asyncio
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from aiokafka.structs import TopicPartition
from crewline.bus import Batch, Message, Record
from crewline.bus.kafka.bus import KafkaBus
from crewline.bus.kafka.consumer import KafkaConsumer
from crewline.errors import BusUnavailable, OffsetOutOfRange, RecordTooLarge, TopicMismatch, UnknownTopic
from crewline.testing import until
from crewline.topics import TopicSpec
from kafka_lab import PARTITIONS, Cluster, Load
from servers import KafkaServer, free_port

pytestmark = pytest.mark.servers


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    server = KafkaServer(tmp_path_factory.mktemp("three"), brokers=3)
    cluster = Cluster(server.start())
    yield cluster
    cluster.thaw()
    server.stop()


@pytest.fixture
def topic() -> str:
    return f"faults.{uuid.uuid4().hex[:8]}"


@pytest.fixture
async def bus(three: Cluster, topic: str) -> AsyncIterator[KafkaBus]:
    """A bus on the three brokers, with `topic`."""
    bus = await three.open()
    await bus.create_topics([TopicSpec(topic, PARTITIONS)])
    yield bus
    three.thaw()
    await bus.close()


@pytest.fixture
async def admin(three: Cluster) -> AsyncIterator[Any]:
    admin = AIOKafkaAdminClient(bootstrap_servers=three.address.removeprefix("kafka://"))
    await admin.start()
    yield admin
    await admin.close()


@pytest.fixture
async def load(three: Cluster, bus: KafkaBus, topic: str) -> AsyncIterator[Load]:
    reading = await three.open()
    load = Load(bus, reading, topic)
    try:
        await load.start()
        await load.goes_on()
        yield load
    finally:
        three.thaw()
        await load.close()
        await reading.close()


class Member:
    """A member of a group that starts at each partition's beginning, and notes what it was asked."""

    def __init__(self, bus: KafkaBus, topic: str) -> None:
        self._bus = bus
        self._topic = topic
        self.asked: list[tuple[int, ...]] = []
        self.records: list[Record] = []

    async def join(self) -> Member:
        self.consumer = await self._bus.consumer(
            self._topic, f"{self._topic}.group", assigned=self._assigned, revoked=self._revoked
        )
        return self

    async def _assigned(self, partitions: Sequence[int]) -> Mapping[int, int]:
        self.asked.append(tuple(partitions))
        begins, _ = await self._bus.offsets(self._topic)
        return {partition: begins[partition] for partition in partitions}

    async def _revoked(self, partitions: Sequence[int]) -> None: ...

    async def read(self, count: int) -> list[bytes | None]:
        """Return the values of the next `count` records."""
        self.records = []
        async with asyncio.timeout(20):
            while len(self.records) < count:
                for batch in await self.consumer.poll(1.0):
                    self.records += batch.records
        return [record.value for record in self.records]


# --- brokers -----------------------------------------------------------------------------------


async def test_the_only_broker_is_killed_and_comes_back_elsewhere(
    tmp_path_factory: pytest.TempPathFactory, topic: str, caplog: pytest.LogCaptureFixture
) -> None:
    server = KafkaServer(tmp_path_factory.mktemp("one"))
    one = Cluster(server.start())
    elsewhere = free_port()
    try:
        server.address += f",127.0.0.1:{elsewhere}"
        bus, reading = await one.open(), await one.open()
        await bus.create_topics([TopicSpec(topic, PARTITIONS)])
        load = Load(bus, reading, topic)
        await load.start()
        await load.goes_on()

        one.kill(1)
        await until(lambda: load.failed)
        await one.start(port=elsewhere)
        await load.goes_on()
        assert "broker 1 is there again" in caplog.messages, "whoever read that it is away reads this too"
        await load.finish()
        await bus.close()
        await reading.close()
    finally:
        server.stop()


async def test_a_broker_is_frozen_and_the_others_go_on(three: Cluster, load: Load) -> None:
    three.freeze(2)
    await load.goes_on()
    three.thaw()
    await load.goes_on()
    await load.finish()


async def test_every_broker_is_frozen_and_whoever_appends_is_told(three: Cluster, bus: KafkaBus, topic: str) -> None:
    tail = await bus.tail(topic, dict.fromkeys(range(PARTITIONS), 0))
    await bus.append([Message(topic, b"k", b"before", partition=0)])
    assert [batch.records[0].value for batch in await tail.poll(20)] == [b"before"]

    three.freeze(1, 2, 3)
    before = [bus.append([Message(topic, b"k", b"%d" % number, partition=0)]) for number in range(3)]
    told = await asyncio.gather(*before, return_exceptions=True)
    assert all(isinstance(each, BusUnavailable) and "127.0.0.1" in str(each) for each in told), told
    assert await tail.poll(0) == []

    three.thaw()
    async with asyncio.timeout(40):
        while True:
            try:
                await bus.append([Message(topic, b"k", b"after", partition=0)])
                break
            except BusUnavailable:
                continue
        values: list[bytes | None] = []
        while values[-1:] != [b"after"]:
            values += [record.value for batch in await tail.poll(1.0) for record in batch.records]
    # What was given up may stand or not; what stands is in order, and once: the last ones may be repeated by us.
    assert values == sorted(set(values), key=values.index)


async def test_a_full_buffer_refuses_what_would_not_fit_and_takes_on_when_there_is_room(three: Cluster, topic: str, bus: KafkaBus) -> None:
    small = await three.open(waiting_bytes_max=1_000_000)
    three.freeze(1, 2, 3)
    waiting = [small.append([Message(topic, b"k", b"x" * 400_000, partition=0)]) for _ in range(2)]
    with pytest.raises(BusUnavailable, match=r"801,000 bytes wait for Kafka"):
        await small.append([Message(topic, b"k", b"x" * 400_000, partition=0)])

    three.thaw()
    await asyncio.gather(*waiting, return_exceptions=True)
    async with asyncio.timeout(40):
        while True:
            try:
                await small.append([Message(topic, b"k", b"x" * 400_000, partition=0)])
                break
            except BusUnavailable:
                continue
    await small.close()


async def test_members_come_and_go_and_every_record_is_read_in_order(three: Cluster, bus: KafkaBus, topic: str) -> None:
    positions = dict.fromkeys(range(PARTITIONS), 0)  # as a store keeps them: the next offset by partition

    enough = asyncio.Event()

    async def append() -> None:
        while not enough.is_set():
            await bus.append([Message(topic, b"k", b"x", partition=partition) for partition in range(PARTITIONS)])

    async def assigned(partitions: Sequence[int]) -> Mapping[int, int]:
        return {partition: positions[partition] for partition in partitions}

    async def revoked(partitions: Sequence[int]) -> None: ...

    async def read(consumer: KafkaConsumer) -> None:
        while batches := await consumer.poll(60.0):
            for record in [record for batch in batches for record in batch.records]:
                # One that lost its partition without knowing repeats what its successor has read; nobody skips.
                assert record.offset <= positions[record.partition]
                positions[record.partition] = max(positions[record.partition], record.offset + 1)

    async with await three.open() as second, await three.open() as third, asyncio.TaskGroup() as tasks:
        appending = tasks.create_task(append())
        members: list[KafkaConsumer] = []
        for number in range(7):
            opened = (bus, second, third)[number % 3]
            members.append(await opened.consumer(topic, f"{topic}.group", assigned=assigned, revoked=revoked))
            tasks.create_task(read(members[-1]))
            await until(lambda: members[-1].assignment(), seconds=60)
            if len(members) == 3:
                await members.pop(0).close()  # its reading ends with it

        enough.set()
        await appending
        _, ends = await bus.offsets(topic)
        await until(lambda: positions == ends, seconds=60)
        for member in members:
            await member.close()


# --- topics that change ------------------------------------------------------------------------


async def test_a_topic_made_again_is_another_log_for_tail_and_member(bus: KafkaBus, admin: Any, topic: str) -> None:
    await bus.append([Message(topic, b"k", b"old %d" % number, partition=0) for number in range(3)])
    tail = await bus.tail(topic, {0: 0})
    member = await Member(bus, topic).join()
    assert await member.read(3) == [b"old 0", b"old 1", b"old 2"]
    assert [len(batch.records) for batch in await tail.poll(20)] == [3]

    await admin.delete_topics([topic])
    await until(lambda: not_there(admin, topic))
    await admin.create_topics([NewTopic(topic, PARTITIONS, 3)])
    new = [Message(topic, b"k", b"new %d" % number, partition=0) for number in range(9)]
    await appended(bus, new)

    for poll in (lambda: tail.poll(1.0), lambda: member.consumer.poll(1.0)):
        with pytest.raises(OffsetOutOfRange, match="partition 0"):
            await until(lambda poll=poll: gives_records(poll))
    assert await member.read(9) == [message.value for message in new]
    assert member.asked[-1] == (0,)


async def gives_records(poll: Callable[[], Awaitable[list[Batch]]]) -> bool:
    """Poll a topic that may be away for the moment."""
    try:
        return any(batch.records for batch in await poll())
    except UnknownTopic:
        return False


async def not_there(admin: Any, topic: str) -> bool:
    return topic not in await admin.list_topics()


async def appended(bus: KafkaBus, messages: list[Message]) -> None:
    """Append to a topic that may not be there yet."""
    async with asyncio.timeout(20):
        while True:
            try:
                await bus.append(messages)
                return
            except UnknownTopic:
                continue


async def test_partitions_added_to_a_topic_in_use_are_refused_by_whoever_reads_or_appends(
    bus: KafkaBus, admin: Any, topic: str
) -> None:
    tail = await bus.tail(topic)
    await bus.append([Message(topic, b"k", b"before")])
    await admin.create_partitions({topic: NewPartitions(PARTITIONS + 2)})
    await until(lambda: seen_by(bus, topic, PARTITIONS + 2))

    said = rf"{topic}' has {PARTITIONS + 2} partitions now, it had {PARTITIONS}"
    with pytest.raises(TopicMismatch, match=said):
        await tail.poll(1.0)
    with pytest.raises(TopicMismatch, match=said):
        await bus.append([Message(topic, b"k", b"after")])
    with pytest.raises(TopicMismatch, match=said):
        await bus.consumer(topic, "g", assigned=Member(bus, topic)._assigned, revoked=Member(bus, topic)._revoked)


async def seen_by(bus: KafkaBus, topic: str, partitions: int) -> bool:
    return (await bus.topics())[topic].spec.partitions == partitions


async def test_records_cut_off_behind_a_reader_are_said_and_a_member_is_asked_where_to_go_on(
    bus: KafkaBus, admin: Any, topic: str
) -> None:
    await bus.append([Message(topic, b"k", b"%d" % number, partition=1) for number in range(5)])
    await admin.delete_records({TopicPartition(topic, 1): RecordsToDelete(before_offset=3)})
    tail = await bus.tail(topic, {1: 3})
    assert [record.value for batch in await tail.poll(20) for record in batch.records] == [b"3", b"4"]

    behind = await bus.tail(topic, {1: 1})
    with pytest.raises(OffsetOutOfRange, match=r"offsets 3 to 5, not 1: older records are gone"):
        await behind.poll(1.0)
    member = await Member(bus, topic).join()
    assert await member.read(2) == [b"3", b"4"]


async def test_a_record_larger_than_its_topic_takes_fails_alone(bus: KafkaBus, admin: Any, topic: str) -> None:
    await admin.create_topics([NewTopic(f"{topic}.small", 1, 3, topic_configs={"max.message.bytes": "20000"})])
    await until(lambda: bus_knows(bus, f"{topic}.small"))

    def message(size: int) -> Message:
        return Message(f"{topic}.small", b"k", os.urandom(size))

    few = [bus.append([message(3_000)]) for _ in range(20)]  # a batch that is too large goes in halves
    large = bus.append([message(30_000)])
    after = bus.append([message(3_000)])
    assert [(await each)[0].offset for each in few] == list(range(20))
    with pytest.raises(RecordTooLarge, match=r"max\.message\.bytes"):
        await large
    assert [position.offset for position in await after] == [20]


async def bus_knows(bus: KafkaBus, topic: str) -> bool:
    try:
        return bool(await bus.partitions(topic))
    except UnknownTopic:
        return False


async def test_what_others_wrote_in_a_transaction_is_read_once_it_is_committed(
    three: Cluster, bus: KafkaBus, topic: str
) -> None:
    producer = AIOKafkaProducer(bootstrap_servers=three.address.removeprefix("kafka://"), transactional_id=topic)
    await producer.start()
    tail = await bus.tail(topic, {0: 0})
    for value, end in ((b"aborted", producer.abort_transaction), (b"committed", producer.commit_transaction)):
        await producer.begin_transaction()
        await (await producer.send(topic, value, b"k", partition=0))
        await end()
    await producer.stop()
    await bus.append([Message(topic, b"k", b"ours", partition=0)])

    seen: list[tuple[int, bytes | None]] = []
    async with asyncio.timeout(20):
        while len(seen) < 2:
            seen += [(record.offset, record.value) for batch in await tail.poll(1.0) for record in batch.records]
    assert seen == [(2, b"committed"), (4, b"ours")]  # 1 and 3 are the markers
    batch = await bus.read(topic, 0, 0)
    assert [(record.offset, record.value) for record in batch.records] == seen
    assert (batch.next_offset, batch.end) == (5, 5)


# --- its own tasks, connections and numbers ------------------------------------------------------


async def test_a_dead_task_or_connection_is_replaced(bus: KafkaBus, topic: str, load: Load) -> None:
    reader = next(iter(load.reading._readers))  # type: ignore[attr-defined]  # no promise of the bus: we break it from inside
    before = reader._membership
    before._client._coordinator._coordination_task.cancel()
    await until(lambda: reader._membership is not before and len(reader.assignment()) == PARTITIONS)
    await load.goes_on()

    for each in (bus, load.reading):
        wire = each._wire  # type: ignore[attr-defined]
        wire.client._sync_task.cancel()
        for connection in list(wire.client._conns.values()):
            connection.close()
        await load.goes_on()
    assert load.failed == 0
    await load.finish()


async def test_numbers_that_the_broker_does_not_expect_cost_no_record(bus: KafkaBus, topic: str) -> None:
    await bus.append([Message(topic, b"k", b"first", partition=0)])
    bus._producer._lanes[topic, 0].sequence += 7

    [position] = await bus.append([Message(topic, b"k", b"second", partition=0)])
    [again] = await bus.append([Message(topic, b"k", b"third", partition=0)])
    assert (position.offset, again.offset) == (1, 2)


async def test_a_batch_sent_twice_stands_once(bus: KafkaBus, topic: str) -> None:
    lane_free = asyncio.Event()
    send = bus._wire.client.send

    async def losing_the_first_answer(node: int, request: Any, **other: Any) -> Any:
        answer = await send(node, request, **other)
        if other.get("group") == "produce" and not lane_free.is_set() and hasattr(answer, "topics"):
            lane_free.set()
            raise TimeoutError
        return answer

    bus._wire.client.send = losing_the_first_answer
    positions = await bus.append([Message(topic, b"k", b"%d" % number, partition=0) for number in range(3)])

    assert bus._producer.resent == 1
    assert [position.offset for position in positions] == [0, 1, 2]
    _, ends = await bus.offsets(topic)
    assert ends[0] == 3


# --- last, since the broker stays dead -----------------------------------------------------------


async def test_a_leader_is_killed_and_another_broker_takes_over(three: Cluster, load: Load) -> None:
    three.kill(1)
    await load.goes_on()
    assert load.failed == 0, "no append fails: a leader is found within the deadline"
    await load.finish()
