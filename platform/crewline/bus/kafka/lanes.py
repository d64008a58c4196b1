"""What is to be appended, in order: calls, the lane of each partition, the batch at its head."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import NamedTuple

from aiokafka.record.default_records import DefaultRecordBatchBuilder

from crewline.bus.base import Message, Position
from crewline.bus.kafka.options import KafkaOptions
from crewline.errors import BusError

MAGIC = 2
NOT_TRANSACTIONAL = 0
RECORDS_MAX = 10_000
COMPRESS_FROM_BYTES = 4 << 10  # less is sent as it is: no byte saved is worth the CPU at both ends
CODECS = {"none": 0, "lz4": 3}
SEQUENCES = 1 << 31  # sequence numbers wrap there


class Call:
    """One `append`: who awaits it, since when, and where its records stand."""

    __slots__ = ("bytes", "future", "given_up", "left", "messages", "positions", "release", "since")

    def __init__(
        self,
        future: asyncio.Future[list[Position]],
        messages: Sequence[Message],
        since: float,
        size: int,
        release: Callable[[int], None],
    ) -> None:
        self.future = future
        self.messages = messages
        self.since = since
        self.bytes = size
        self.release = release
        self.left = len(messages)
        self.positions: list[Position | None] = [None] * len(messages)
        self.given_up = False

    def stands(self, index: int, position: Position) -> None:
        """Note where message `index` stands."""
        self.positions[index] = position
        self.left -= 1
        if not self.left and not self.given_up:
            self.release(self.bytes)
            if not self.future.done():
                self.future.set_result([each for each in self.positions if each is not None])

    def fail(self, error: BusError) -> None:
        """Give up: what of it was not sent yet will not be."""
        if self.given_up:
            return
        self.given_up = True
        self.release(self.bytes)
        if not self.future.done():
            self.future.set_exception(type(error)(error.message, hint=error.hint))  # its own: tracebacks grow


class Ids(NamedTuple):
    """Who appends, for the broker: it takes each sequence number of a producer once a partition."""

    producer: int
    epoch: int


class Batch(NamedTuple):
    """Records as they are sent, the very bytes again and again until the broker has answered."""

    data: bytes
    entries: list[tuple[Call, int]]

    @property
    def abandoned(self) -> bool:
        """Return whether nobody waits for it any more."""
        return all(call.given_up for call, _ in self.entries)


class Lane:
    """What is to be written to one partition. One batch at a time is under way; meanwhile the next one grows."""

    __slots__ = ("batch", "busy", "ids", "not_before", "partition", "queue", "records_max", "sequence", "topic", "unknown_since")

    def __init__(self, topic: str, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        self.queue: deque[tuple[Call, int]] = deque()
        self.batch: Batch | None = None  # sent, and of unknown fate, if not busy
        self.busy = False
        self.ids: Ids | None = None
        self.sequence = 0
        self.records_max = RECORDS_MAX
        self.not_before = 0.0
        self.unknown_since: float | None = None

    def has_more(self) -> bool:
        """Return whether somebody waits for a record of the queue."""
        while self.queue and self.queue[0][0].given_up:
            self.queue.popleft()
        return bool(self.queue)

    def fill(self, options: KafkaOptions) -> None:
        """Put the records at the head of the queue into a batch."""
        queue = self.queue
        assert queue and self.ids is not None and self.batch is None
        codec = CODECS[options.compression] if self._is_large() else CODECS["none"]
        builder = DefaultRecordBatchBuilder(
            MAGIC, codec, NOT_TRANSACTIONAL, self.ids.producer, self.ids.epoch, self.sequence, options.batch_bytes_max
        )
        entries: list[tuple[Call, int]] = []
        while queue and len(entries) < self.records_max and not queue[0][0].given_up:
            call, index = queue[0]
            message = call.messages[index]
            taken = builder.append(len(entries), None, key=message.key, value=message.value, headers=list(message.headers))
            if taken is None:
                break
            entries.append(queue.popleft())
        self.batch = Batch(bytes(builder.build()), entries)

    def _is_large(self) -> bool:
        size = 0
        for call, index in self.queue:
            size += len(call.messages[index].value or b"")
            if size >= COMPRESS_FROM_BYTES:
                return True
        return False

    def stood(self, base: int) -> None:
        """Hear that the batch stands from offset `base` on."""
        assert self.batch is not None
        entries = self.batch.entries
        self.batch = None
        self.sequence = (self.sequence + len(entries)) % SEQUENCES
        self.records_max = RECORDS_MAX
        self.unknown_since = None
        for number, (call, index) in enumerate(entries):
            call.stands(index, Position(self.topic, self.partition, base + number))

    def not_written(self) -> None:
        """Hear that the broker did not take the batch, and never will: its records are first in the queue again."""
        assert self.batch is not None
        self.queue.extendleft(reversed(self.batch.entries))
        self.batch = None

    def fate_unknown(self) -> None:
        """Go on without knowing what became of the batch: as another producer, for which no number is taken."""
        self.not_written()
        self.ids = None
