"""Single requests to the brokers, and aiokafka's errors in our words.

One client for all of a bus's questions. It is not a consumer's: a broker answers the requests of one
connection in turn, and a consumer's fetch may be held for 100 ms.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

from aiokafka import errors as kafka
from aiokafka.consumer.fetcher import READ_COMMITTED
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.offset import OffsetRequest
from aiokafka.structs import TopicPartition

from crewline.bus.base import Batch
from crewline.bus.kafka.connections import BrokerClient
from crewline.bus.kafka.fetching import Answer, Session, records_of
from crewline.bus.kafka.options import KafkaOptions
from crewline.bus.kafka.refusals import NOT_ALLOWED as NOT_ALLOWED
from crewline.bus.kafka.refusals import not_allowed
from crewline.errors import (
    BusError,
    BusUnavailable,
    OffsetOutOfRange,
    RecordTooLarge,
    TopicMismatch,
    UnknownTopic,
)

T = TypeVar("T")
log = logging.getLogger(__name__)
END, BEGIN = -1, -2  # ListOffsets' names for them


def in_our_words(error: BaseException, options: KafkaOptions, doing: str) -> BusError:
    """Return what became of `doing` as one of our errors."""
    where = f"Kafka at {', '.join(options.servers)} ({options.tried})"
    if isinstance(error, BusError):
        return error
    if isinstance(error, kafka.UnknownTopicOrPartitionError):
        return UnknownTopic(f"{doing}: {where} has no such topic or partition")
    if isinstance(error, kafka.MessageSizeTooLargeError):
        return RecordTooLarge(f"{doing}: the broker takes no record of that size (`max.message.bytes` of the topic)")
    if isinstance(error, NOT_ALLOWED):
        return not_allowed(error, options, doing)
    if isinstance(error, TimeoutError):
        return BusUnavailable(f"{doing}: no answer in time from {where}")
    return BusUnavailable(f"{doing}: {where}: {str(error) or type(error).__name__}")


def out_of_range(topic: str, partition: int, start: int, begin: int, end: int) -> OffsetOutOfRange:
    """Return the error that says which offsets there are."""
    return OffsetOutOfRange(
        f"{topic} partition {partition} has offsets {begin} to {end}, not {start}: "
        + ("older records are gone (retention)" if start < begin else "is this the log that was read before?")
    )


class Wire:
    """Asks the brokers, again after what passes, until `request_s_max`."""

    def __init__(self, options: KafkaOptions) -> None:
        self.options = options
        self.client = BrokerClient(options)
        self._refreshing: asyncio.Task[bool] | None = None
        self._counts: dict[str, int] = {}  # of partitions, of topics in use: fixed when first seen
        self._changed: dict[str, int] = {}  # what they are now, where that is another number
        self.when_changed: list[Callable[[], None]] = []
        self.client.cluster.add_listener(self._look_at_counts)

    @property
    def cluster(self) -> Any:
        return self.client.cluster

    async def open(self) -> None:
        """Connect. Raises: BusUnavailable."""
        await self.retrying("connecting", self.client.bootstrap)

    async def close(self) -> None:
        if self._refreshing is not None:
            self._refreshing.cancel()
            await asyncio.gather(self._refreshing, return_exceptions=True)
        try:
            async with asyncio.timeout(self.options.stop_s_max):
                await self.client.close()
        except TimeoutError:
            return

    async def retrying(self, doing: str, ask: Callable[[], Awaitable[T]]) -> T:
        """Return what `ask` returns; ask again after errors that pass. Raises: BusError."""
        try:
            async with asyncio.timeout(self.options.request_s_max):
                while True:
                    try:
                        return await ask()
                    except kafka.KafkaError as error:
                        if not error.retriable:
                            raise in_our_words(error, self.options, doing) from error
                    await self.refresh()
                    await asyncio.sleep(self.options.retry_s)
        except TimeoutError as error:
            raise in_our_words(error, self.options, doing) from error

    async def refresh(self) -> bool:
        """Learn anew which topics there are and who leads them. Return whether a broker answered."""
        return await asyncio.shield(self.refresh_soon())

    def refresh_soon(self) -> asyncio.Task[bool]:
        """See to it that `refresh` happens."""
        if self._refreshing is None:
            self._refreshing = asyncio.create_task(self._refresh())
            self._refreshing.add_done_callback(self._refreshed)
        return self._refreshing

    async def _refresh(self) -> bool:
        client = self.client
        if client._sync_task is not None and client._sync_task.done():  # it would never answer again
            client._sync_task = asyncio.create_task(client._md_synchronizer())
        try:
            async with asyncio.timeout(self.options.request_s_max):
                return bool(await client.force_metadata_update())
        except TimeoutError:
            return False

    def _refreshed(self, task: asyncio.Task[bool]) -> None:
        self._refreshing = None
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("asking for the brokers and topics of Kafka", exc_info=error)

    # --- topics --------------------------------------------------------------------------------

    def known_partitions(self, topic: str) -> int | None:
        """Return the number of partitions as far as it is known here."""
        found = self.cluster.partitions_for_topic(topic)
        return len(found) if found else None

    async def partitions(self, topic: str) -> int:
        """Return the number of partitions, asking if it is not known. Raises: UnknownTopic, TopicMismatch, BusUnavailable."""
        if topic not in self._counts:
            self.client.follow([topic])
        count = self.known_partitions(topic)
        for _ in range(2):  # the first may join an update that was asked for before the topic was made
            if count is None:
                await self._look_for(topic)
                count = self.known_partitions(topic)
        if count is None:
            if topic not in self._counts:
                self.client.unfollow([topic])
            doing = f"looking for topic {topic!r}"
            await self.retrying(doing, partial(self._may_see, topic))
            known = ", ".join(await self.retrying(doing, self.client.all_topics)) or "none"
            raise UnknownTopic(f"there is no topic {topic!r}; create it (`crewline up` does). Topics: {known}")
        self.check_count(topic, count)
        return count

    @asynccontextmanager
    async def following(self, topics: Collection[str]) -> AsyncIterator[None]:
        """Know about `topics`, as far as they are there, within this context."""
        self.client.follow(topics)
        try:
            for _ in range(2):
                if any(self.known_partitions(topic) is None for topic in topics):
                    await self.refresh()
            yield
        finally:
            self.client.unfollow(topics)

    def check_count(self, topic: str, count: int) -> None:
        """Raise TopicMismatch if `topic` had another number of partitions when this bus first used it."""
        before = self._counts.setdefault(topic, count)
        if count != before:
            raise TopicMismatch(
                f"topic {topic!r} has {count} partitions now, it had {before}: keys would go to other partitions than their records so far",
                hint="the number is fixed at creation: make a topic with the right number under another `bus.topic_prefix`",
            )

    def refuse_changed(self, topic: str) -> None:
        """Raise TopicMismatch if the number of partitions of a topic in use has changed."""
        if topic in self._changed:
            self.check_count(topic, self._changed[topic])

    def forget_count(self, topic: str) -> None:
        """Hear that `topic` is made anew."""
        self._counts.pop(topic, None)

    def _look_at_counts(self, _: object) -> None:
        for topic, before in self._counts.items():
            count = self.known_partitions(topic)
            if count is None or count == before:
                self._changed.pop(topic, None)
            elif topic not in self._changed:
                self._changed[topic] = count
                log.error("topic %s has %d partitions now, it had %d: nothing is read or appended", topic, count, before)
                for wake in self.when_changed:
                    wake()

    async def _may_see(self, topic: str) -> None:
        """Raise if `topic` is hidden from us: among all topics a broker leaves out those without the right to see them."""
        request = MetadataRequest([topic], allow_auto_topic_creation=False)
        answer = await self.client.send(self.client.get_random_node(), request)
        for code, *_ in answer.topics:
            if code == kafka.TopicAuthorizationFailedError.errno:
                _raise(code)

    async def _look_for(self, topic: str) -> None:
        doing = f"looking for topic {topic!r}"
        try:
            async with asyncio.timeout(self.options.request_s_max):
                if not await self.refresh():
                    raise in_our_words(ConnectionError("no broker answers"), self.options, doing)
        except TimeoutError as error:
            raise in_our_words(error, self.options, doing) from error

    # --- offsets -------------------------------------------------------------------------------

    async def offsets(self, topic: str) -> tuple[dict[int, int], dict[int, int]]:
        """Return (beginning, end) by partition. Raises: UnknownTopic, BusUnavailable."""
        count = await self.partitions(topic)
        wanted = [TopicPartition(topic, number) for number in range(count)]
        begins, ends = await self.offsets_of(wanted)
        return {tp.partition: begins[tp] for tp in wanted}, {tp.partition: ends[tp] for tp in wanted}

    async def offsets_of(self, wanted: Collection[Any]) -> tuple[Mapping[Any, int], Mapping[Any, int]]:
        """Return (beginning, end) of each of `wanted`, any topics."""

        async def ask() -> tuple[Mapping[Any, int], Mapping[Any, int]]:
            begins, ends = await asyncio.gather(self._list_offsets(wanted, BEGIN), self._list_offsets(wanted, END))
            return begins, ends

        return await self.retrying("asking for offsets", ask)

    async def _list_offsets(self, wanted: Iterable[Any], which: int) -> dict[Any, int]:
        by_node: dict[int, dict[str, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
        for tp in wanted:
            by_node[self._leader(tp)][tp.topic].append((tp.partition, which))
        answers = await asyncio.gather(
            *(self.client.send(node, OffsetRequest(-1, READ_COMMITTED, list(topics.items())))
              for node, topics in by_node.items())
        )  # fmt: skip
        found = {}
        for answer in answers:
            for topic, partitions in answer.topics:
                for number, code, *_, offset in partitions:
                    _raise(code)
                    found[TopicPartition(topic, number)] = offset
        return found

    def _leader(self, tp: Any) -> int:
        node = self.cluster.leader_for_partition(tp)
        if node is None or node == -1:
            raise kafka.LeaderNotAvailableError(tp)
        return int(node)

    # --- records -------------------------------------------------------------------------------

    async def read(self, topic: str, partition: int, start: int, records_max: int) -> Batch:
        """Return records from `start` on, without waiting. Raises: UnknownTopic, OffsetOutOfRange, BusUnavailable."""
        count = await self.partitions(topic)
        if not 0 <= partition < count:
            raise UnknownTopic(f"topic {topic!r} has no partition {partition}; it has 0 to {count - 1}")
        return await self.look(topic, partition, start, records_max)

    async def look(self, topic: str, partition: int, start: int, records_max: int) -> Batch:
        """Do the same for a topic of whose partitions enough is known. Raises: OffsetOutOfRange, BusUnavailable."""
        at = start
        doing = f"reading {topic} partition {partition}"
        while True:
            try:
                batch = await self.retrying(doing, partial(self._fetch, topic, partition, at, records_max))
            except _OutOfRange:
                place = TopicPartition(topic, partition)
                begins, ends = await self.offsets_of([place])
                raise out_of_range(topic, partition, start, begins[place], ends[place]) from None
            if batch.records or batch.next_offset >= batch.end or batch.next_offset == at:
                return batch
            at = batch.next_offset  # markers, or records that compaction took away

    async def _fetch(self, topic: str, partition: int, start: int, records_max: int) -> Batch:
        if start < 0:
            raise _OutOfRange
        # One record's batch comes whole, whatever the limit.
        bytes_max = self.options.partition_bytes_max if records_max > 1 else 16 << 10
        request = Session(once=True).request(
            {(topic, partition): start}, wait_ms=0, bytes_max=bytes_max, partition_bytes_max=bytes_max
        )
        answer: Answer = await self.client.send(self._leader(TopicPartition(topic, partition)), request)
        _raise(answer.error)
        [found] = answer.found
        if found.error == kafka.OffsetOutOfRangeError.errno:
            raise _OutOfRange
        _raise(found.error)
        records, after = records_of(found, start)
        if len(records) > records_max:
            del records[records_max:]
            after = records[-1].offset + 1
        # `after` lies past the last record: what follows it in its batch may be gone.
        return Batch(topic, partition, records, after, max(found.end, after))


class _OutOfRange(Exception):
    """The broker has no such offset."""


def _raise(code: int) -> None:
    error = kafka.for_code(code)
    if error is not kafka.NoError:
        raise error()
