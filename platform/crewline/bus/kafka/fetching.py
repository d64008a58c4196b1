"""One fetch request and its answer, by hand.

aiokafka's own classes name every partition in each request and decode every field of each answer in Python: with
12 partitions that is most of a lone turn's CPU. Here a *session* (KIP-227) is used: the broker remembers what was
asked for, a request names what has changed, and an answer has only the partitions with something new.

    request v11   replica:i32 wait_ms:i32 min_bytes:i32 max_bytes:i32 isolation:i8 session:i32 epoch:i32
                  [topic:str [partition:i32 leader_epoch:i32 offset:i64 log_start:i64 max_bytes:i32]]
                  [forgotten topic:str [partition:i32]] rack:str
    answer v11    throttle_ms:i32 error:i16 session:i32
                  [topic:str [partition:i32 error:i16 highwater:i64 stable_end:i64 begin:i64
                              [aborted producer:i64 first:i64] replica:i32 records:bytes]]
"""

from __future__ import annotations

import struct
from collections import defaultdict
from collections.abc import Iterable, Mapping
from io import BytesIO
from typing import Any, NamedTuple

from aiokafka import errors as kafka
from aiokafka.consumer.fetcher import READ_COMMITTED, PartitionRecords
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition

from crewline.bus.base import Record

API_KEY, API_VERSION = 1, 11
MIN_BYTES = 1
ANY_LEADER_EPOCH = NO_LOG_START = -1

_header = struct.Struct(">hhi")
_request = struct.Struct(">iiiibii")
_wanted = struct.Struct(">iiqqi")
_answer = struct.Struct(">ihi")
_partition = struct.Struct(">ihqqqi")
_i16 = struct.Struct(">h")
_i32 = struct.Struct(">i")
_aborted = struct.Struct(">qq")

Place = tuple[str, int]  # topic, partition


class Found(NamedTuple):
    """What an answer says of one partition. `raw` holds whole batches: the first may begin before what was asked for."""

    place: Place
    error: int
    end: int  # of what is readable: the last stable offset
    begin: int
    aborted: tuple[tuple[int, int], ...]
    raw: bytes


class Answer(NamedTuple):
    """An answer to a fetch. `error` is about the session; without one of its own the broker says session 0."""

    error: int
    session: int
    found: list[Found]


class Session:
    """What the broker of one connection was asked for last, and what it must be told next."""

    def __init__(self, *, once: bool = False) -> None:
        self.id = 0
        self._epoch = -1 if once else 0  # -1: the broker need not remember anything
        self._known: dict[Place, int] = {}

    def reset(self) -> None:
        """Begin anew: the next request names everything."""
        self.id = self._epoch = 0
        self._known = {}

    def renew(self) -> None:
        """Name everything in the next request, which ends this session and begins another."""
        self._epoch = 0
        self._known = {}

    def request(self, wanted: Mapping[Place, int], *, wait_ms: int, bytes_max: int, partition_bytes_max: int) -> Fetch:
        """Return the request for `wanted` (offset by place) that tells the broker what it does not know yet."""
        changed = {place: offset for place, offset in wanted.items() if self._known.get(place) != offset}
        forgotten = [place for place in self._known if place not in wanted]
        self._known = dict(wanted)
        parts = [
            _request.pack(-1, wait_ms, MIN_BYTES, bytes_max, READ_COMMITTED, self.id, self._epoch),
            _array(
                (topic, [_wanted.pack(number, ANY_LEADER_EPOCH, offset, NO_LOG_START, partition_bytes_max) for number, offset in each])
                for topic, each in _by_topic((topic, (number, offset)) for (topic, number), offset in changed.items())
            ),
            _array(
                (topic, [_i32.pack(number) for number in each]) for topic, each in _by_topic(forgotten)
            ),
            _i16.pack(0),  # no rack
        ]  # fmt: skip
        return Fetch(b"".join(parts))

    def answered(self, answer: Answer) -> None:
        """Take note of the session that the broker keeps, if it keeps one."""
        if answer.error or not answer.session:
            self.reset()
            return
        self.id = answer.session
        self._epoch = self._epoch % 0x7FFFFFFF + 1


def _by_topic(pairs: Iterable[tuple[str, Any]]) -> Iterable[tuple[str, list[Any]]]:
    topics: dict[str, list[Any]] = defaultdict(list)
    for topic, each in pairs:
        topics[topic].append(each)
    return topics.items()


def _array(topics: Iterable[tuple[str, list[bytes]]]) -> bytes:
    parts = []
    for topic, each in topics:
        name = topic.encode()
        parts.append(b"".join((_i16.pack(len(name)), name, _i32.pack(len(each)), *each)))
    return _i32.pack(len(parts)) + b"".join(parts)


class Fetch:
    """What aiokafka's connection asks of a request: to be prepared, to be encoded, to know its answer."""

    API_KEY = API_KEY
    API_VERSION = API_VERSION

    def __init__(self, body: bytes) -> None:
        self._body = body
        self._head = b""

    def prepare(self, versions: Mapping[int, tuple[int, int]]) -> Fetch:
        least, most = versions[API_KEY]
        if not least <= API_VERSION <= most:
            raise kafka.IncompatibleBrokerVersion(f"the broker takes fetches of versions {least} to {most}, not {API_VERSION}")
        return self

    def build_request_header(self, correlation_id: int, client_id: str) -> Fetch._Header:
        name = client_id.encode()
        return self._Header(_header.pack(API_KEY, API_VERSION, correlation_id) + _i16.pack(len(name)) + name)

    def encode(self) -> bytes:
        return self._body

    def parse_response_header(self, data: BytesIO) -> Fetch._Correlation:
        return self._Correlation(*_i32.unpack(data.read(4)))

    class _Header(NamedTuple):
        encoded: bytes

        def encode(self) -> bytes:
            return self.encoded

    class _Correlation(NamedTuple):
        correlation_id: int

    class RESPONSE_TYPE:
        @staticmethod
        def decode(data: BytesIO) -> Answer:
            return decode(data.read())


def decode(data: bytes) -> Answer:
    """Return what an answer says."""
    _, error, session = _answer.unpack_from(data)
    at = _answer.size
    (topics,) = _i32.unpack_from(data, at)
    at += 4
    found = []
    for _ in range(topics):
        (size,) = _i16.unpack_from(data, at)
        topic = data[at + 2 : at + 2 + size].decode()
        (partitions,) = _i32.unpack_from(data, at + 2 + size)
        at += 6 + size
        for _ in range(partitions):
            number, code, _, end, begin, aborts = _partition.unpack_from(data, at)
            at += _partition.size
            aborted = tuple(_aborted.unpack_from(data, at + index * _aborted.size) for index in range(max(0, aborts)))
            at += len(aborted) * _aborted.size + 4  # the replica to read from: we name no rack
            (size,) = _i32.unpack_from(data, at)
            at += 4
            size = max(0, size)
            found.append(Found((topic, number), code, end, begin, aborted, data[at : at + size]))
            at += size
    return Answer(error, session, found)


def records_of(found: Found, start: int) -> tuple[list[Record], int]:
    """Return the records from `start` on, and the offset after the last batch: what follows a record there may be gone.

    Raises: CorruptRecordException of aiokafka.
    """
    topic, number = found.place
    records: list[Record] = []
    after = start
    batches = MemoryRecords(found.raw)
    while batches.has_next():
        batch = batches.next_batch()
        if batch.is_transactional or batch.is_control_batch:
            return _with_transactions(found, start)
        if not batch.validate_crc():
            raise kafka.CorruptRecordException(f"{topic} partition {number}: a batch does not match its checksum")
        for raw in batch:
            if raw.offset >= start:
                records.append(Record(topic, number, raw.offset, raw.timestamp, raw.key or b"", raw.value, _headers(raw.headers)))
        after = max(after, batch.next_offset)
    return records, after


def _with_transactions(found: Found, start: int) -> tuple[list[Record], int]:
    """Return the same where somebody else writes in transactions: what was aborted is left out."""
    topic, number = found.place
    raws = PartitionRecords(
        TopicPartition(topic, number), MemoryRecords(found.raw), found.aborted, start, None, None, True, READ_COMMITTED
    )
    records = [Record(topic, number, raw.offset, raw.timestamp, raw.key or b"", raw.value, _headers(raw.headers)) for raw in raws]
    return records, max(start, raws.next_fetch_offset)


def _headers(headers: Iterable[tuple[str, bytes | None]]) -> tuple[tuple[str, bytes], ...]:
    """Return headers as ours. Others may write one without a value."""
    pairs = tuple(headers)
    for _, value in pairs:
        if value is None:
            return tuple((name, value or b"") for name, value in pairs)
    return pairs  # type: ignore[return-value]  # no value is None
