"""What every bus promises. The suite that holds it to that: tests/contract/test_bus.py."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from crewline.events import Headers
from crewline.topics import TopicSpec

RECORD_BYTES_MAX = 900_000


class Position(NamedTuple):
    """Where a record stands."""

    topic: str
    partition: int
    offset: int


class Message(NamedTuple):
    """A record to be appended.

    `value` None is a tombstone. `partition` None means the partition of the key (murmur2).
    """

    topic: str
    key: bytes
    value: bytes | None
    headers: Headers = ()
    partition: int | None = None


class Record(NamedTuple):
    """A record as it stands in the log. `timestamp_ms` is the broker's time of the append."""

    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes
    value: bytes | None
    headers: Headers


@dataclass(frozen=True, slots=True)
class Batch:
    """Records of one partition, in offset order.

    `end` is the partition's end offset (that of the next record to be written) as known when the
    batch was read; `next_offset` is where reading goes on. Offsets may have holes (compaction).
    """

    topic: str
    partition: int
    records: Sequence[Record]
    next_offset: int
    end: int


class Assigned(Protocol):
    """Called when partitions are given to this member, before any of their records is polled."""

    async def __call__(self, partitions: Sequence[int]) -> Mapping[int, int]:
        """Return the offset to start reading at, for each of `partitions`."""
        ...


Revoked = Callable[[Sequence[int]], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class GroupLag:
    """How far a group is behind on one partition: records, and seconds since the oldest unread."""

    group: str
    topic: str
    partition: int
    committed: int
    end: int
    lag_s: float
    member: str | None = None

    @property
    def lag(self) -> int:
        return max(0, self.end - self.committed)


@dataclass(frozen=True, slots=True)
class TopicInfo:
    """A topic as it stands: `begins` and `ends` are offsets by partition.

    `bytes` is what it holds: on the embedded log the sizes of its values, exactly; on Kafka what lies on a leader's
    disk, envelopes and compression included (0 where we may not ask).
    """

    spec: TopicSpec
    begins: Mapping[int, int] = field(default_factory=dict)
    ends: Mapping[int, int] = field(default_factory=dict)
    bytes: int = 0


class Consumer(Protocol):
    """One member of a group: it owns some partitions of one topic at a time.

    A member whose process is stopped for longer than the session, or that does not poll for minutes, loses
    its partitions to others, and learns of it at its next `poll`. The bus renews its membership meanwhile. Until then it may go on appending: no
    bus fences a zombie.
    """

    async def poll(self, timeout_s: float, *, records_max: int = 500) -> list[Batch]:
        """Return what is there, waiting up to `timeout_s` for something; [] if nothing came.

        `assigned` and `revoked` are called from within `poll`. A closed consumer returns []. So does one whose
        broker is away: it goes on by itself when the broker is back. A batch may be without records where the log
        has none that can be read (compaction, transactions of others): only its `next_offset` counts then.

        Raises:
            OffsetOutOfRange: a position lies below the log's start or above its end, or the log is not the one that
                was read so far; `assigned` is asked again for that partition.
            UnknownTopic, TopicMismatch: the topic is gone, or has another number of partitions now.
            BusUnavailable: we may not read it, or whatever `assigned` asked for gave no answer.
        """
        ...

    def assignment(self) -> frozenset[int]:
        """Return the partitions owned now, as of the last poll."""
        ...

    async def commit(self, offsets: Mapping[int, int]) -> None:
        """Note how far the group has read (next offset by partition). Only lag is computed from it."""
        ...

    async def close(self) -> None:
        """Call `revoked` for what is owned, leave the group, so that others take over at once."""
        ...


class Tail(Protocol):
    """A reader without a group: every partition of a topic, or some, from given offsets on."""

    async def poll(self, timeout_s: float, *, records_max: int = 500) -> list[Batch]:
        """Return what is there, waiting up to `timeout_s`; see `Consumer.poll`.

        After an OffsetOutOfRange the partition it names is left out; the others are read on.
        """
        ...

    async def close(self) -> None: ...


class Bus(Protocol):
    """An ordered, partitioned log: topics, partitions, offsets, keys, headers, groups."""

    @property
    def address(self) -> str:
        """Return what `open_bus` was given: `embedded:DIR` or `kafka://HOST:PORT`."""
        ...

    async def create_topics(self, specs: Sequence[TopicSpec]) -> None:
        """Create what is missing.

        Raises: TopicMismatch if a topic exists with another number of partitions or other settings;
        the message names every difference.
        """
        ...

    async def topics(self) -> dict[str, TopicInfo]:
        """Return every topic with its settings, beginnings and ends."""
        ...

    async def partitions(self, topic: str) -> int:
        """Return the number of partitions. Raises: UnknownTopic."""
        ...

    async def offsets(self, topic: str) -> tuple[Mapping[int, int], Mapping[int, int]]:
        """Return (beginning, end) offset by partition. Raises: UnknownTopic."""
        ...

    def append(self, messages: Sequence[Message]) -> Awaitable[list[Position]]:
        """Append all of `messages`; await where they stand. Durable when the await returns.

        Order: of calls made one after the other by one process, records of one partition stand in
        that order; records of one call that share a topic stand together in order, atomically with
        the whole call on the embedded bus, not on Kafka. The call itself (before the await) only
        queues, so order is that of the calls.

        Raises:
            UnknownTopic, TopicMismatch, RecordTooLarge: nothing of this call was written; except on Kafka that
                records for other partitions may have been, if only the broker knew (a topic with a limit of its own).
            BusUnavailable: no answer in time. Records may or may not be in the log, and may still appear in it
                later, even after what is appended next: read, then decide. Only while the call waits is each of its
                records sure to stand at most once.
        """
        ...

    async def read(
        self, topic: str, partition: int, start: int, *, records_max: int = 500
    ) -> Batch:
        """Return records from `start` on, without waiting. Raises: UnknownTopic, OffsetOutOfRange."""
        ...

    async def consumer(
        self, topic: str, group: str, *, assigned: Assigned, revoked: Revoked, member: str = ""
    ) -> Consumer:
        """Join `group` on `topic`. Partitions arrive by later polls. Raises: UnknownTopic."""
        ...

    async def tail(self, topic: str, starts: Mapping[int, int] | None = None) -> Tail:
        """Follow `topic` from `starts` (offset by partition; None: every partition from its end).

        Raises: UnknownTopic.
        """
        ...

    async def lags(self) -> list[GroupLag]:
        """Return the lag of every group."""
        ...

    async def close(self) -> None:
        """Stop; wait for what was queued. Idempotent."""
        ...
