"""A fetch by hand: what a session tells the broker, what an answer says, and the window that holds it."""

from __future__ import annotations

import asyncio
import struct
from io import BytesIO

import pytest
from aiokafka.errors import CorruptRecordException, IncompatibleBrokerVersion
from aiokafka.protocol.fetch import FetchRequest, FetchRequest_v11, FetchResponse_v11
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from crewline.bus import Record
from crewline.bus.kafka.feed import AHEAD_BYTES_MAX, WINDOW_BYTES_MAX, Feed, Window
from crewline.bus.kafka.fetching import Answer, Fetch, Found, Place, Session, decode, records_of
from crewline.bus.kafka.options import KafkaOptions

A, B = ("demo.a", 0), ("demo.b", 3)


def said(request: Fetch) -> FetchRequest_v11:
    """Read a request with aiokafka's own description of it."""
    return FetchRequest_v11.decode(BytesIO(request.encode()))


def ask(session: Session, wanted: dict[Place, int]) -> FetchRequest_v11:
    return said(session.request(wanted, wait_ms=100, bytes_max=8_000, partition_bytes_max=1_000))


def batch(*values: bytes, base: int = 0, headers: list[tuple[str, bytes | None]] | None = None) -> bytes:
    builder = DefaultRecordBatchBuilder(2, 0, 0, -1, -1, 0, 1 << 20)
    for number, value in enumerate(values):
        builder.append(number, 7, key=b"k", value=value, headers=headers or [])
    built = bytearray(builder.build())
    built[:8] = struct.pack(">q", base)  # a broker sets it; the checksum leaves it out
    return bytes(built)


# --- sessions ----------------------------------------------------------------------------------


def test_the_first_request_names_everything_and_the_next_only_what_has_changed() -> None:
    session = Session()
    first = ask(session, {A: 5, B: 0})
    assert (first.session_id, first.session_epoch) == (0, 0)
    assert first.topics == [("demo.a", [(0, -1, 5, -1, 1_000)]), ("demo.b", [(3, -1, 0, -1, 1_000)])]
    assert (first.max_wait_time, first.min_bytes, first.max_bytes, first.isolation_level) == (100, 1, 8_000, 1)

    session.answered(Answer(0, 77, []))
    second = ask(session, {A: 6, B: 0})
    assert (second.session_id, second.session_epoch) == (77, 1)
    assert second.topics == [("demo.a", [(0, -1, 6, -1, 1_000)])]
    session.answered(Answer(0, 77, []))
    third = ask(session, {A: 6})
    assert (third.session_epoch, third.topics, third.forgotten_topics_data) == (2, [], [("demo.b", [3])])


@pytest.mark.parametrize("answer", [Answer(70, 0, []), Answer(71, 0, []), Answer(0, 0, [])])
def test_without_a_session_everything_is_named_again(answer: Answer) -> None:
    session = Session()
    ask(session, {A: 5})
    session.answered(answer)
    again = ask(session, {A: 5})
    assert (again.session_id, again.session_epoch) == (0, 0)
    assert again.topics == [("demo.a", [(0, -1, 5, -1, 1_000)])]


def test_a_renewed_session_ends_the_one_before() -> None:
    session = Session()
    ask(session, {A: 5})
    session.answered(Answer(0, 77, []))
    session.renew()
    renewed = ask(session, {A: 5})
    assert (renewed.session_id, renewed.session_epoch, len(renewed.topics)) == (77, 0, 1)


def test_a_single_look_asks_for_no_session() -> None:
    assert ask(Session(once=True), {A: 5}).session_epoch == -1


def test_a_broker_without_this_version_is_named() -> None:
    fetch = Session().request({A: 1}, wait_ms=0, bytes_max=1, partition_bytes_max=1)
    assert fetch.prepare({FetchRequest.API_KEY: (4, 17)}) is fetch
    with pytest.raises(IncompatibleBrokerVersion, match="0 to 10, not 11"):
        fetch.prepare({FetchRequest.API_KEY: (0, 10)})


# --- answers -----------------------------------------------------------------------------------


def test_an_answer_is_read_as_aiokafka_writes_it() -> None:
    partitions = [(3, 0, 9, 8, 2, [(11, 4), (12, 5)], -1, b"raw"), (4, 1, -1, -1, -1, None, -1, None)]
    answer = FetchResponse_v11(0, 0, 77, [("demo.b", partitions), ("demo.a", [(0, 0, 1, 1, 0, [], -1, b"")])])

    assert decode(answer.encode()) == Answer(
        0,
        77,
        [
            Found(("demo.b", 3), 0, 8, 2, ((11, 4), (12, 5)), b"raw"),
            Found(("demo.b", 4), 1, -1, -1, (), b""),
            Found(("demo.a", 0), 0, 1, 0, (), b""),
        ],
    )


def test_records_before_the_offset_asked_for_are_left_out_and_the_last_batch_says_where_to_go_on() -> None:
    raw = batch(b"0", b"1", b"2", base=10) + batch(b"3", base=13, headers=[("a", None), ("b", b"x")])
    records, after = records_of(Found(A, 0, 20, 0, (), raw), 11)

    assert [(record.offset, record.value) for record in records] == [(11, b"1"), (12, b"2"), (13, b"3")]
    assert records[-1] == Record("demo.a", 0, 13, 7, b"k", b"3", (("a", b""), ("b", b"x")))
    assert after == 14


def test_a_batch_cut_short_is_left_for_the_next_fetch() -> None:
    raw = batch(b"0", base=10) + batch(b"1", base=11)[:-3]
    records, after = records_of(Found(A, 0, 20, 0, (), raw), 10)
    assert ([record.offset for record in records], after) == ([10], 11)


def test_a_damaged_batch_is_an_error() -> None:
    raw = bytearray(batch(b"value", base=10))
    raw[-3] ^= 1
    with pytest.raises(CorruptRecordException, match=r"demo\.a partition 0"):
        records_of(Found(A, 0, 20, 0, (), bytes(raw)), 10)


# --- windows -----------------------------------------------------------------------------------


class At:
    """A reader at an offset."""

    def __init__(self, position: int) -> None:
        self.position = position
        self.woken = asyncio.Event()

    def wake(self) -> None:
        self.woken.set()

    def position_of(self, place: Place) -> int:
        return self.position


def records(*offsets: int, size: int = 1) -> list[Record]:
    return [Record("demo.a", 0, offset, 7, b"k", b"x" * size, ()) for offset in offsets]


def window(*readers: At, start: int = 0) -> Window:
    made = Window(A, start)
    made.readers += readers
    return made


def test_readers_take_at_their_own_pace_across_holes() -> None:
    held = window(At(0))
    held.add(records(0, 1, 5, 6), 9)

    taken, after = held.take(0, 3)
    assert ([record.offset for record in taken], after) == ([0, 1, 5], 6)
    assert held.take(6, 3) == (records(6), 9)
    assert held.take(2, 1) == (records(5), 6)
    assert held.take(9, 3) == ([], 9)
    assert held.take(7, 3) == ([], 9)


def test_what_every_reader_has_had_goes_and_a_straggler_is_left_behind() -> None:
    fast, slow = At(0), At(0)
    held = window(fast, slow)
    held.add(records(0, 1, 2), 3)
    fast.position, slow.position = 3, 1
    held.add(records(3), 4)
    assert (held.base, [record.offset for record in held.records]) == (1, [1, 2, 3])

    held.add(records(4, 5, size=WINDOW_BYTES_MAX), 6)
    assert held.base == 5
    assert not held.holds(slow.position)
    fast.position = 6
    held.add([], 7)
    assert (held.base, held.records, held.bytes) == (6, [], 0)
    assert held.take(6, 1) == ([], 7)


def test_a_window_is_full_when_its_foremost_reader_has_enough() -> None:
    fast, slow = At(0), At(0)
    held = window(fast, slow)
    held.add(records(0, 1, size=AHEAD_BYTES_MAX), 2)
    assert held.is_full()
    fast.position = 2
    assert not held.is_full()


# --- the feed ----------------------------------------------------------------------------------


class Broker:
    """One broker that leads everything: gives the answers it is told to, then says nothing."""

    def __init__(self, *answers: Answer) -> None:
        self.options = KafkaOptions()
        self.client = self.cluster = self
        self.asked: list[FetchRequest_v11] = []
        self._answers = list(answers)

    def add_listener(self, listener: object) -> None: ...

    def remove_listener(self, listener: object) -> None: ...

    def leader_for_partition(self, place: object) -> int:
        return 1

    async def ask(self, node: int, request: Fetch, **other: object) -> Answer:
        self.asked.append(said(request))
        if not self._answers:
            await asyncio.Event().wait()
        return self._answers.pop(0)


async def test_a_damaged_partition_is_said_to_its_readers_and_does_not_hold_up_the_others() -> None:
    damaged = bytearray(batch(b"value"))
    damaged[-3] ^= 1
    broker = Broker(Answer(0, 5, [Found(A, 0, 1, 0, (), bytes(damaged)), Found(B, 0, 1, 0, (), batch(b"fine"))]))
    feed = Feed(broker)  # type: ignore[arg-type]  # no wire, but what a feed asks of one
    one, other = At(0), At(0)
    bad, good = feed.follow(A, one, 0), feed.follow(B, other, 0)
    await asyncio.gather(one.woken.wait(), other.woken.wait())

    assert [record.value for record in good.records] == [b"fine"]
    assert (bad.end, bad.suspect) == (0, False)
    assert "does not match its checksum" in str(bad.refused)
    await feed.close()


async def test_two_readers_of_a_partition_share_a_fetch_and_one_ahead_takes_the_window_along() -> None:
    broker = Broker(Answer(0, 5, [Found(A, 0, 9, 0, (), batch(b"0", b"1"))]))
    feed = Feed(broker)  # type: ignore[arg-type]
    first, second, third = At(0), At(0), At(7)
    window = feed.follow(A, first, 0)
    assert feed.follow(A, second, 0) is window
    await asyncio.gather(first.woken.wait(), second.woken.wait())
    assert window.take(0, 10)[0][1] is window.take(1, 10)[0][0]

    assert feed.follow(A, third, 7) is window
    assert (window.base, window.end) == (7, 7)
    assert not window.holds(first.position)
    await feed.close()
    assert broker.asked[0].topics == [("demo.a", [(0, -1, 0, -1, 1 << 20)])]
