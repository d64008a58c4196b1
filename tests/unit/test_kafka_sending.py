"""What becomes of a batch, whatever a broker answers: against one that answers as it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka import errors as kafka
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.record.memory_records import MemoryRecords
from crewline.bus import Message, Position
from crewline.bus.kafka.options import KafkaOptions
from crewline.bus.kafka.producer import Producer
from crewline.errors import BusError, BusUnavailable, RecordTooLarge, UnknownTopic
from crewline.testing import until

OPTIONS = KafkaOptions(servers=("broker:9092",), retry_s=0.001)
Said = int | Exception  # an error code, 0, or what the connection does


class Broker:
    """Leads every partition of every topic but `gone`. Answers with what it was told to say, then takes everything."""

    def __init__(self, *says: Said) -> None:
        self.options = OPTIONS
        self.client = self.cluster = self
        self.heard_at = 0.0
        self.gone: set[str] = set()
        self.leaderless = False
        self.knows_topics = True
        self.leaves = False  # as it fails
        self.says = list(says)
        self.taken: dict[tuple[int, int], list[bytes | None]] = {}  # by producer and first number
        self.log: list[bytes | None] = []
        self.refreshed = 0
        self._producers = 0

    def leader_for_partition(self, place: Any) -> int | None:
        return None if self.leaderless or place.topic in self.gone else 1

    def known_partitions(self, topic: str) -> int | None:
        return None if topic in self.gone else 4

    async def partitions(self, topic: str) -> int:
        return 4

    def refuse_changed(self, topic: str) -> None: ...

    def refresh_soon(self) -> None:
        self.refreshed += 1

    def get_random_node(self) -> int:
        return 1

    async def send(self, node: int, request: Any, *, group: str) -> Any:
        await asyncio.sleep(0)
        if not isinstance(request, ProduceRequest):
            self._producers += 1
            return SimpleNamespace(error_code=0, producer_id=self._producers, producer_epoch=0)
        says = self.says.pop(0) if self.says else 0
        if isinstance(says, Exception):
            self.leaderless = self.leaves
            raise says
        [(topic, [(partition, data)])] = request._topics
        return SimpleNamespace(topics=[(topic, [(partition, says, self._take(data) if says == 0 else -1)])])

    def _take(self, data: bytes) -> int:
        batch = MemoryRecords(data).next_batch()
        who = (batch.producer_id, batch.base_sequence)
        if who not in self.taken:
            self.taken[who] = [record.value for record in batch]
            self.log += self.taken[who]
        return self.log.index(self.taken[who][0])


@pytest.fixture
async def producers() -> AsyncIterator[list[Producer]]:
    made: list[Producer] = []
    yield made
    for producer in made:
        await producer.close()


def producer_on(broker: Broker, producers: list[Producer]) -> Producer:
    producers.append(Producer(broker))  # type: ignore[arg-type]  # no wire, but what a producer asks of one
    return producers[-1]


def message(value: bytes) -> Message:
    return Message("demo.t", b"k", value, partition=0)


@pytest.mark.parametrize(
    "says",
    [
        kafka.RequestTimedOutError(), kafka.KafkaConnectionError(), OSError("gone"), ValueError("a bug"),
        kafka.NotLeaderForPartitionError.errno, kafka.NotEnoughReplicasError.errno,
        kafka.NotEnoughReplicasAfterAppendError.errno, kafka.UnknownTopicOrPartitionError.errno,
    ],
)  # fmt: skip
async def test_what_passes_is_sent_again_as_the_same_bytes(says: Said, producers: list[Producer]) -> None:
    broker = Broker(says, says)
    producer = producer_on(broker, producers)
    first, second = producer.append([message(b"a"), message(b"b")]), producer.append([message(b"c")])

    assert await first == [Position("demo.t", 0, 0), Position("demo.t", 0, 1)]
    assert await second == [Position("demo.t", 0, 2)]
    assert broker.taken == {(1, 0): [b"a", b"b", b"c"]}
    assert producer.resent == 2
    assert broker.refreshed >= 2


@pytest.mark.parametrize(
    "code", [kafka.OutOfOrderSequenceNumber.errno, kafka.InvalidProducerEpoch.errno, kafka.DuplicateSequenceNumber.errno, 59]
)
async def test_numbers_that_are_not_taken_are_replaced_by_another_producers(code: int, producers: list[Producer]) -> None:
    broker = Broker(0, code)
    producer = producer_on(broker, producers)
    await producer.append([message(b"a")])
    assert await producer.append([message(b"b")]) == [Position("demo.t", 0, 1)]
    assert broker.taken == {(1, 0): [b"a"], (2, 0): [b"b"]}


async def test_a_batch_that_is_too_large_goes_in_halves_and_a_record_that_is_fails_alone(producers: list[Producer]) -> None:
    large = kafka.MessageSizeTooLargeError.errno
    broker = Broker(large, large)  # four, then two; one is taken
    producer = producer_on(broker, producers)
    calls = [producer.append([message(b"%d" % number)]) for number in range(4)]
    assert [(await call)[0].offset for call in calls] == [0, 1, 2, 3]

    broker.says = [large]
    with pytest.raises(RecordTooLarge, match=r"max\.message\.bytes"):
        await producer.append([message(b"too large")])
    assert await producer.append([message(b"after")]) == [Position("demo.t", 0, 4)]


@pytest.mark.parametrize("code", [kafka.TopicAuthorizationFailedError.errno, kafka.InvalidTopicError.errno])
async def test_what_is_not_worth_a_retry_fails_its_calls_alone(code: int, producers: list[Producer]) -> None:
    broker = Broker(code)
    producer = producer_on(broker, producers)
    with pytest.raises(BusError):
        await producer.append([message(b"a")])
    assert await producer.append([message(b"b")]) == [Position("demo.t", 0, 0)]


async def test_a_topic_that_is_gone_is_said_after_a_while(producers: list[Producer]) -> None:
    broker = Broker()
    broker.options = replace(OPTIONS, connect_s_max=0.01)
    producer = producer_on(broker, producers)
    await producer.append([message(b"a")])
    broker.gone.add("demo.t")
    with pytest.raises(UnknownTopic, match=r"demo\.t' any more"):
        await producer.append([message(b"b")])


async def test_no_topic_is_said_to_be_gone_while_no_broker_tells_of_topics(producers: list[Producer]) -> None:
    broker = Broker()
    broker.options = replace(OPTIONS, connect_s_max=0.001)
    producer = producer_on(broker, producers)
    await producer.append([message(b"a")])
    broker.gone.add("demo.t")
    broker.knows_topics = False
    call = producer.append([message(b"b")])
    asked = broker.refreshed
    await until(lambda: broker.refreshed > asked + 20)  # far longer than a topic may be unknown

    broker.gone.clear()
    assert await call == [Position("demo.t", 0, 1)]


async def test_a_batch_that_nobody_waits_for_is_not_sent_again(producers: list[Producer]) -> None:
    broker = Broker(kafka.RequestTimedOutError())
    broker.leaves = True
    producer = producer_on(broker, producers)
    call = producer.append([message(b"given up")])
    await until(lambda: broker.leaderless)
    producer._give_up(float("inf"), BusUnavailable("no broker"))
    with pytest.raises(BusUnavailable, match="no broker"):
        await call

    broker.leaderless = False
    assert await producer.append([message(b"after")]) == [Position("demo.t", 0, 0)]
    assert broker.taken == {(2, 0): [b"after"]}
