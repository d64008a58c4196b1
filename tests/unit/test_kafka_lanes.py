"""What waits for a partition: batches, their numbers, calls that were given up."""

from __future__ import annotations

import asyncio
import os

import pytest
from aiokafka.record.memory_records import MemoryRecords
from crewline.bus import Message, Position
from crewline.bus.kafka.lanes import Call, Ids, Lane
from crewline.bus.kafka.options import KafkaOptions
from crewline.errors import BusUnavailable

OPTIONS = KafkaOptions(batch_bytes_max=10_000)


class Waiting:
    """Calls on one lane, and the bytes that are released when they end."""

    def __init__(self) -> None:
        self.lane = Lane("demo.t", 2)
        self.lane.ids, self.lane.sequence = Ids(7, 1), 0
        self.released = 0

    def _release(self, size: int) -> None:
        self.released += size

    def call(self, *values: bytes) -> Call:
        messages = [Message("demo.t", b"k", value, (("ce_id", value[:5]),)) for value in values]
        future: asyncio.Future[list[Position]] = asyncio.get_running_loop().create_future()
        made = Call(future, messages, 0.0, 10, self._release)
        self.lane.queue.extend((made, index) for index in range(len(values)))
        return made

    def fill(self) -> tuple[int, int, list[bytes | None]]:
        """Fill a batch; return its compression, its first number, its values."""
        self.lane.fill(OPTIONS)
        assert self.lane.batch is not None
        batch = MemoryRecords(self.lane.batch.data).next_batch()
        assert (batch.producer_id, batch.producer_epoch) == self.lane.ids
        assert batch.validate_crc()
        return batch.compression_type, batch.base_sequence, [record.value for record in batch]


async def test_calls_share_a_batch_and_each_hears_where_its_records_stand() -> None:
    waiting = Waiting()
    one, two = waiting.call(b"a", b"b"), waiting.call(b"c")
    assert waiting.fill() == (0, 0, [b"a", b"b", b"c"])

    waiting.lane.stood(40)
    assert await one.future == [Position("demo.t", 2, 40), Position("demo.t", 2, 41)]
    assert await two.future == [Position("demo.t", 2, 42)]
    assert waiting.released == 20
    waiting.call(b"d")
    assert waiting.fill() == (0, 3, [b"d"])


async def test_what_does_not_fit_waits_for_the_next_batch_in_order() -> None:
    waiting = Waiting()
    values = [os.urandom(4_000) for _ in range(3)]
    waiting.call(*values)
    compression, _, first = waiting.fill()
    assert compression == 3  # lz4
    waiting.lane.stood(0)
    assert first + waiting.fill()[2] == values


async def test_a_large_record_goes_alone() -> None:
    waiting = Waiting()
    waiting.call(b"x" * 50_000, b"y")
    assert waiting.fill()[2] == [b"x" * 50_000]


async def test_calls_given_up_before_they_were_sent_are_left_out() -> None:
    waiting = Waiting()
    calls = [waiting.call(value) for value in (b"a", b"b", b"c", b"d")]
    error = BusUnavailable("no answer", hint="look")
    for given_up in (calls[0], calls[2]):
        given_up.fail(error)
        given_up.fail(error)

    with pytest.raises(BusUnavailable, match="no answer"):
        await calls[0].future
    assert waiting.released == 20
    assert waiting.lane.has_more()
    assert waiting.fill()[2] == [b"b"]
    waiting.lane.stood(0)
    assert waiting.lane.has_more()
    assert waiting.fill() == (0, 1, [b"d"])
    calls[2].future.exception()


async def test_a_batch_that_was_refused_goes_again_with_its_numbers_and_one_of_unknown_fate_as_another_producer() -> None:
    waiting = Waiting()
    calls = [waiting.call(value) for value in (b"a", b"b", b"c")]
    waiting.lane.records_max = 2
    assert waiting.fill() == (0, 0, [b"a", b"b"])
    waiting.lane.not_written()
    assert waiting.fill() == (0, 0, [b"a", b"b"])

    assert waiting.lane.batch is not None
    calls[0].fail(BusUnavailable("no answer"))
    assert not waiting.lane.batch.abandoned
    calls[1].fail(BusUnavailable("no answer"))
    assert waiting.lane.batch.abandoned
    waiting.lane.fate_unknown()
    assert waiting.lane.ids is None
    assert waiting.lane.has_more()
    waiting.lane.ids, waiting.lane.sequence = Ids(8, 0), 0
    assert waiting.fill() == (0, 0, [b"c"])
    for call in calls[:2]:
        call.future.exception()


async def test_numbers_begin_again_after_the_last() -> None:
    waiting = Waiting()
    waiting.lane.sequence = (1 << 31) - 1
    waiting.call(b"a", b"b")
    assert waiting.fill()[1] == (1 << 31) - 1
    waiting.lane.stood(0)
    assert waiting.lane.sequence == 1
