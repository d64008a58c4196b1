"""KafkaBus: what `Bus` promises, on Apache Kafka."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping, Sequence
from types import TracebackType

from crewline.bus.base import Assigned, Batch, GroupLag, Message, Position, Revoked, TopicInfo
from crewline.bus.kafka.admin import Admin
from crewline.bus.kafka.consumer import KafkaConsumer
from crewline.bus.kafka.feed import Feed
from crewline.bus.kafka.options import PREFIX, KafkaOptions
from crewline.bus.kafka.producer import Producer
from crewline.bus.kafka.reader import KafkaTail, Reader
from crewline.bus.kafka.wire import Wire
from crewline.errors import BusUnavailable, UnknownTopic
from crewline.topics import TopicSpec

log = logging.getLogger(__name__)


class KafkaBus:
    """The bus on Kafka. Made by `open_bus`; belongs to the event loop that opened it."""

    def __init__(self, options: KafkaOptions) -> None:
        self.options = options
        self._wire = Wire(options)
        self._admin = Admin(self._wire)
        self._producer = Producer(self._wire)
        self._feed = Feed(self._wire)
        self._readers: set[Reader] = set()
        self._closing: asyncio.Task[None] | None = None
        self._wire.when_changed.append(self._wake_readers)

    def _wake_readers(self) -> None:
        for reader in self._readers:
            reader.wake()

    async def open(self) -> None:
        """Connect. Raises: BusUnavailable."""
        await self._wire.open()

    async def __aenter__(self) -> KafkaBus:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def address(self) -> str:
        return PREFIX + ",".join(self.options.servers)

    # --- topics --------------------------------------------------------------------------------

    async def create_topics(self, specs: Sequence[TopicSpec]) -> None:
        await self._admin.create_topics(specs)

    async def topics(self) -> dict[str, TopicInfo]:
        return await self._admin.topics()

    async def partitions(self, topic: str) -> int:
        return await self._wire.partitions(topic)

    async def offsets(self, topic: str) -> tuple[Mapping[int, int], Mapping[int, int]]:
        return await self._wire.offsets(topic)

    # --- records -------------------------------------------------------------------------------

    def append(self, messages: Sequence[Message]) -> Awaitable[list[Position]]:
        return self._producer.append(messages)

    async def read(self, topic: str, partition: int, start: int, *, records_max: int = 500) -> Batch:
        return await self._wire.read(topic, partition, start, max(1, records_max))

    # --- readers -------------------------------------------------------------------------------

    async def consumer(
        self, topic: str, group: str, *, assigned: Assigned, revoked: Revoked, member: str = ""
    ) -> KafkaConsumer:
        await self._wire.partitions(topic)
        consumer = KafkaConsumer(
            topic,
            group,
            assigned=assigned,
            revoked=revoked,
            member=member,
            wire=self._wire,
            feed=self._feed,
            forget=self._readers.discard,
        )
        await self._started(consumer, self.options.join_s_max)
        return consumer

    async def tail(self, topic: str, starts: Mapping[int, int] | None = None) -> KafkaTail:
        count = await self._wire.partitions(topic)
        wrong = [] if starts is None else [number for number in starts if not 0 <= number < count]
        if wrong:
            raise UnknownTopic(f"topic {topic!r} has no partition {wrong[0]}; it has 0 to {count - 1}")
        if starts is None:
            _, starts = await self._wire.offsets(topic)
        tail = KafkaTail(topic, starts, self._wire, self._feed, self._readers.discard)
        await self._started(tail, self.options.request_s_max)
        return tail

    async def _started(self, reader: Reader, wait_s: float) -> None:
        if self._closing is not None:
            raise BusUnavailable(f"the bus at {self.address} is closed")
        self._readers.add(reader)
        try:
            await reader.start(wait_s)
        except BaseException:
            await reader.close()
            raise

    async def lags(self) -> list[GroupLag]:
        return await self._admin.lags()

    # --- the end -------------------------------------------------------------------------------

    async def close(self) -> None:
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        for closed in await asyncio.gather(*(reader.close() for reader in list(self._readers)), return_exceptions=True):
            if isinstance(closed, BaseException):
                log.error("closing a reader", exc_info=closed)
        await self._feed.close()
        await self._producer.close()
        await self._wire.close()
