"""What this process knows of the log: topics, where partitions begin and end, and their newest records.

The writer's thread uses `next_offset` and `last_ms` of a partition, the event loop everything else.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import NamedTuple, Protocol

import apsw
import msgspec

from crewline.bus.base import Record
from crewline.bus.sqlite.file import fetch, fetch_one
from crewline.topics import TopicSpec

CACHE_BYTES_MAX = 4 << 20
RECORD_OVERHEAD_BYTES = 400  # of a cached record beside its value: tuple, key, headers


class Watcher(Protocol):
    """Who wants to hear that a topic has grown."""

    def wake(self) -> None: ...


class Partition:
    """One partition. `records` are the newest, without holes, the first of them at offset `base`."""

    __slots__ = ("base", "begin", "end", "id", "last_ms", "next_offset", "number", "records", "topic")

    def __init__(self, id_: int, topic: Topic, number: int) -> None:
        self.id = id_
        self.topic = topic
        self.number = number
        self.begin = self.end = 0
        self.next_offset = self.last_ms = 0
        self.base = 0
        self.records: list[Record] = []

    def cached(self, start: int, records_max: int) -> list[Record]:
        """Return records from `start` on, or [] if the one at `start` is not in memory."""
        index = start - self.base
        if 0 <= index < len(self.records):
            return self.records[index : index + records_max]
        return []


class Topic:
    """One topic and who follows it in this process."""

    __slots__ = ("id", "name", "partitions", "spec", "watchers")

    def __init__(self, id_: int, spec: TopicSpec) -> None:
        self.id = id_
        self.name = spec.name
        self.spec = spec
        self.partitions: list[Partition] = []
        self.watchers: set[Watcher] = set()


class Member(NamedTuple):
    """A member of a group, as `members` has it."""

    id: str
    name: str
    group_id: int
    home: str
    pid: int
    started: int
    lease_until_ms: int
    session_ms: int


class View(NamedTuple):
    """What `look` saw: offsets (begin, end) by partition id, group versions by id, members."""

    offsets: list[tuple[int, int, int]]
    groups: list[tuple[int, int]]
    members: list[Member]


_view = msgspec.json.Decoder(View)


def look(connection: apsw.Connection) -> View:
    """Return offsets, groups and members as they are now.

    One row of JSON: every step of a statement lets go of the interpreter lock, and getting it back from
    a busy event loop takes up to 5 ms.
    """
    row = fetch_one(
        connection,
        "SELECT json_array("
        "json((SELECT json_group_array(json_array(id, begin_offset, end_offset)) FROM partitions)),"
        "json((SELECT json_group_array(json_array(id, version)) FROM groups)),"
        "json((SELECT json_group_array(json_array(id, name, group_id, home, pid, started, lease_until_ms, session_ms))"
        " FROM members)))",
    )
    return _view.decode(row)


_ends = msgspec.json.Decoder(list[tuple[int, int, int]])


def look_at_ends(connection: apsw.Connection) -> list[tuple[int, int, int]]:
    """Return (id, end, last_ms) of every partition: what a writer must know before it appends."""
    return _ends.decode(
        fetch_one(connection, "SELECT json_group_array(json_array(id, end_offset, last_ms)) FROM partitions")
    )


class Catalog:
    """All topics, and the cache of their newest records (at most `CACHE_BYTES_MAX` in all)."""

    def __init__(self) -> None:
        self.topics: dict[str, Topic] = {}
        self.partitions: dict[int, Partition] = {}
        self._chunks: deque[tuple[Partition, int, int, int]] = deque()  # partition, first offset, count, bytes
        self._bytes = 0
        self._lock = threading.Lock()

    def load(self, connection: apsw.Connection) -> None:
        """Learn topics that are new. Called in either thread, within a transaction; topics never change."""
        rows = fetch(
            connection,
            "SELECT t.id, name, t.partitions, compacted, retention_s, retention_bytes, "
            "(SELECT json_group_array(json_array(p.partition, p.id)) FROM partitions p WHERE p.topic_id = t.id) "
            "FROM topics t",
        )
        with self._lock:
            for id_, name, count, compacted, seconds, size, partitions in rows:
                if name in self.topics:
                    continue
                topic = Topic(id_, TopicSpec(name, count, bool(compacted), seconds, size))
                for number, partition_id in sorted(msgspec.json.decode(partitions, type=list[tuple[int, int]])):
                    partition = self.partitions[partition_id] = Partition(partition_id, topic, number)
                    topic.partitions.append(partition)
                self.topics[name] = topic

    def keep(self, partition: Partition, records: list[Record], size: int) -> None:
        """Take in records that this process has committed, and forget the oldest beyond the bound."""
        first = records[0].offset
        if partition.base + len(partition.records) == first:
            partition.records += records
        else:  # another process has written in between
            partition.base, partition.records = first, list(records)
        self._chunks.append((partition, first, len(records), size))
        self._bytes += size
        while self._bytes > CACHE_BYTES_MAX:
            old, offset, count, size = self._chunks.popleft()
            self._bytes -= size
            if old.base == offset:
                del old.records[:count]
                old.base += count

    def forget(self, partition: Partition) -> None:
        """Drop the cached records: the log was compacted under them."""
        partition.base, partition.records = partition.end, []
