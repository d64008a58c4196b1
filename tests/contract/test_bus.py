"""What every bus promises. Add a bus by adding it to `opened`'s parameters; nothing here knows which it is."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from pathlib import Path

import pytest
from crewline.bus import RECORD_BYTES_MAX, Bus, Consumer, Message, Position, Record, Tail
from crewline.errors import OffsetOutOfRange, RecordTooLarge, TopicMismatch, UnknownTopic
from crewline.topics import TopicSpec, partition_of

TOPIC = GROUP = ""  # each test's own: a broker keeps what other tests have written
PARTITIONS = 4
WAIT_S = 10.0

Open = Callable[[], Awaitable[Bus]]


@pytest.fixture(autouse=True)
def own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    own = f"contract.{uuid.uuid4().hex[:8]}"
    monkeypatch.setitem(globals(), "TOPIC", f"{own}.conversations")
    monkeypatch.setitem(globals(), "GROUP", f"{own}.workers")


@pytest.fixture(params=["sqlite", pytest.param("kafka", marks=pytest.mark.servers)])
async def opened(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Open]:
    """Opens the same bus again and again, as several processes would."""
    buses: list[Bus] = []
    address = request.getfixturevalue("kafka_address") if request.param == "kafka" else None

    async def opener() -> Bus:
        if address is None:
            from crewline.bus.sqlite import open_bus

            buses.append(await open_bus(tmp_path))
        else:
            from crewline.bus.kafka import open_bus as open_kafka

            buses.append(await open_kafka(address))
        return buses[-1]

    yield opener
    for bus in buses:
        await bus.close()
    if address is not None:
        await delete_topics(address)


async def delete_topics(address: str) -> None:
    """Leave the broker as it was."""
    from aiokafka.admin import AIOKafkaAdminClient

    admin = AIOKafkaAdminClient(bootstrap_servers=address.removeprefix("kafka://"))
    await admin.start()
    try:
        await admin.delete_topics([topic for topic in await admin.list_topics() if topic.startswith(TOPIC)])
    finally:
        await admin.close()


@pytest.fixture
async def bus(opened: Open) -> Bus:
    bus = await opened()
    await bus.create_topics([TopicSpec(TOPIC, PARTITIONS)])
    return bus


class Member:
    """A member of a group that notes what its callbacks were told, and where it starts."""

    def __init__(self, starts: Mapping[int, int] | None = None) -> None:
        self.starts = starts or {}
        self.told: list[tuple[str, tuple[int, ...]]] = []
        self.records: list[Record] = []
        self.consumer: Consumer

    async def join(self, bus: Bus, group: str = "") -> Member:
        self.consumer = await bus.consumer(TOPIC, group or GROUP, assigned=self.assigned, revoked=self.revoked)
        return self

    async def assigned(self, partitions: Sequence[int]) -> Mapping[int, int]:
        self.told.append(("assigned", tuple(partitions)))
        return {partition: self.starts.get(partition, 0) for partition in partitions}

    async def revoked(self, partitions: Sequence[int]) -> None:
        self.told.append(("revoked", tuple(partitions)))

    async def poll(self, timeout_s: float = 0.05) -> None:
        for batch in await self.consumer.poll(timeout_s):
            self.records += batch.records

    @property
    def owned(self) -> frozenset[int]:
        return self.consumer.assignment()


async def poll_until(condition: Callable[[], bool], *members: Member) -> None:
    """Poll all `members` side by side until `condition` holds."""
    async with asyncio.timeout(WAIT_S):
        while not condition():
            await asyncio.gather(*(member.poll() for member in members))


def everything_is_owned(*members: Member) -> bool:
    owned = [partition for member in members for partition in member.owned]
    return sorted(owned) == list(range(PARTITIONS))


def balanced(*members: Member) -> bool:
    sizes = [len(member.owned) for member in members]
    return everything_is_owned(*members) and max(sizes) - min(sizes) <= 1


async def take(count: int, reader: Tail | Consumer) -> list[Record]:
    """Return the next `count` records."""
    records: list[Record] = []
    async with asyncio.timeout(WAIT_S):
        while len(records) < count:
            for batch in await reader.poll(0.05):
                records += batch.records
    return records


async def read_all(bus: Bus, partition: int) -> list[Record]:
    """Return every record of a partition: a batch may be shorter than what there is."""
    records: list[Record] = []
    batch = await bus.read(TOPIC, partition, 0)
    while batch.records:
        records += batch.records
        batch = await bus.read(TOPIC, partition, batch.next_offset)
    return records


def message(text: str, key: bytes = b"c1", **other: int) -> Message:
    return Message(TOPIC, key, text.encode(), (("ce_id", text.encode()),), **other)


# --- topics ------------------------------------------------------------------------------------


async def test_creating_topics_again_with_the_same_settings_changes_nothing(bus: Bus) -> None:
    await bus.append([message("one")])
    await bus.create_topics([TopicSpec(TOPIC, PARTITIONS)])

    info = (await bus.topics())[TOPIC]
    assert info.spec == TopicSpec(TOPIC, PARTITIONS)
    assert sum(info.ends.values()) == 1
    assert info.bytes >= len("one")  # a broker tells what is on its disk, envelopes included
    assert await bus.partitions(TOPIC) == PARTITIONS


async def test_a_topic_with_other_settings_is_refused_and_every_difference_named(bus: Bus) -> None:
    with pytest.raises(TopicMismatch) as refused:
        await bus.create_topics([TopicSpec(f"{TOPIC}.new", 1), TopicSpec(TOPIC, 7, compacted=True)])

    assert "partitions" in str(refused.value)
    assert "compacted" in str(refused.value)


async def test_a_topic_made_elsewhere_is_known_at_once(bus: Bus, opened: Open) -> None:
    other, late = await opened(), f"{TOPIC}.late"
    await bus.create_topics([TopicSpec(late, 2)])

    [position] = await other.append([Message(late, b"k", b"v", partition=1)])
    assert position == Position(late, 1, 0)
    assert await other.partitions(late) == 2


async def test_an_unknown_topic_is_named_by_every_call(bus: Bus) -> None:
    async def nothing(partitions: Sequence[int]) -> Mapping[int, int]:
        return {}

    async def revoked(partitions: Sequence[int]) -> None: ...

    for call in (
        lambda: bus.append([Message("nope", b"k", b"v")]),
        lambda: bus.append([Message(TOPIC, b"k", b"v", partition=PARTITIONS)]),
        lambda: bus.read("nope", 0, 0),
        lambda: bus.offsets("nope"),
        lambda: bus.partitions("nope"),
        lambda: bus.tail("nope"),
        lambda: bus.consumer("nope", "g", assigned=nothing, revoked=revoked),
    ):
        with pytest.raises(UnknownTopic, match=f"nope|{TOPIC}"):
            await call()


# --- append and read ---------------------------------------------------------------------------


async def test_a_record_comes_back_as_it_was_given(bus: Bus) -> None:
    given = Message(TOPIC, b"\x00key\xff", b"\x00value\xff", (("a", b""), ("a", b"\x00"), ("ü", b"2")))
    [position] = await bus.append([given])

    [record] = (await bus.read(*position)).records
    assert (record.topic, record.partition, record.offset) == position
    assert (record.key, record.value, record.headers) == (given.key, given.value, given.headers)
    assert position.partition == partition_of(given.key, PARTITIONS)


@pytest.mark.parametrize("value", [None, b"", b"x" * RECORD_BYTES_MAX])
async def test_values_from_nothing_to_the_largest(bus: Bus, opened: Open, value: bytes | None) -> None:
    [position] = await bus.append([Message(TOPIC, b"", value)])

    for reader in (bus, await opened()):
        [record] = (await reader.read(*position)).records
        assert record.value == value
        assert (record.key, record.headers) == (b"", ())


async def test_records_of_one_key_come_back_in_append_order(bus: Bus, opened: Open) -> None:
    calls = [bus.append([message(f"{call}.{number}") for number in range(3)]) for call in range(50)]
    stood = [position for call in calls for position in await call]

    assert [position.offset for position in stood] == list(range(150))
    partition = stood[0].partition
    sent = [f"{call}.{number}".encode() for call in range(50) for number in range(3)]
    for reader in (bus, await opened()):
        batch = await reader.read(TOPIC, partition, 0)
        assert [record.value for record in batch.records] == sent
        assert batch.next_offset == batch.end == 150
        assert [record.offset for record in batch.records] == list(range(150))


async def test_the_order_is_that_of_the_calls_not_of_the_awaits(bus: Bus) -> None:
    first, second = bus.append([message("first")]), bus.append([message("second")])

    [late], [early] = await second, await first
    assert early.offset < late.offset


async def test_a_call_over_several_partitions_says_where_each_record_stands(bus: Bus) -> None:
    positions = await bus.append([message(str(number), partition=number % 2) for number in range(4)])

    assert positions == [
        Position(TOPIC, 0, 0), Position(TOPIC, 1, 0), Position(TOPIC, 0, 1), Position(TOPIC, 1, 1),
    ]  # fmt: skip


async def test_an_empty_call_writes_nothing(bus: Bus) -> None:
    assert await bus.append([]) == []


async def test_a_bad_call_is_refused_whole_and_its_neighbours_are_written(bus: Bus) -> None:
    before = bus.append([message("before")])
    unknown = bus.append([message("with unknown"), Message("nope", b"k", b"v")])
    large = bus.append([message("with large"), Message(TOPIC, b"k", b"x" * (RECORD_BYTES_MAX + 1))])
    after = bus.append([message("after")])

    with pytest.raises(UnknownTopic):
        await unknown
    with pytest.raises(RecordTooLarge, match="900,001"):
        await large
    [position], _ = await before, await after
    batch = await bus.read(TOPIC, position.partition, 0)
    assert [record.value for record in batch.records] == [b"before", b"after"]


async def test_time_stamps_of_a_partition_never_go_back(bus: Bus) -> None:
    for number in range(5):
        await bus.append([message(str(number))])

    times = [record.timestamp_ms for record in (await bus.read(TOPIC, partition_of(b"c1", PARTITIONS), 0)).records]
    assert times == sorted(times)


async def test_reading_in_pieces_goes_on_where_it_ended(bus: Bus, opened: Open) -> None:
    await bus.append([message(str(number)) for number in range(10)])
    partition = partition_of(b"c1", PARTITIONS)

    for reader in (bus, await opened()):
        seen, at = [], 0
        while at < 10:
            batch = await reader.read(TOPIC, partition, at, records_max=3)
            seen += [record.value for record in batch.records]
            assert batch.end == 10
            at = batch.next_offset
        assert seen == [str(number).encode() for number in range(10)]


async def test_reading_at_the_end_gives_nothing_and_beyond_it_is_an_error(bus: Bus, opened: Open) -> None:
    [position] = await bus.append([message("one")])

    for reader in (bus, await opened()):
        batch = await reader.read(TOPIC, position.partition, 1)
        assert (list(batch.records), batch.next_offset, batch.end) == ([], 1, 1)
        for start in (2, -1):
            with pytest.raises(OffsetOutOfRange, match=rf"offsets 0 to 1, not {start}"):
                await reader.read(TOPIC, position.partition, start)


async def test_offsets_are_as_of_now_whoever_wrote(bus: Bus, opened: Open) -> None:
    other = await opened()
    for number in range(1, 4):
        await bus.append([message("x", partition=2)])
        begins, ends = await other.offsets(TOPIC)
        assert begins == dict.fromkeys(range(PARTITIONS), 0)
        assert ends == {0: 0, 1: 0, 2: number, 3: 0}


async def test_two_writers_share_a_partition_without_gap_or_repeat(bus: Bus, opened: Open) -> None:
    other = await opened()
    calls = [writer.append([message(f"{name}{number}")]) for number in range(100) for name, writer in (("a", bus), ("b", other))]
    offsets = sorted([(await call)[0].offset for call in calls])

    assert offsets == list(range(200))
    for reader in (bus, other):
        values = [record.value or b"" for record in await read_all(reader, partition_of(b"c1", PARTITIONS))]
        for name in (b"a", b"b"):
            assert [value for value in values if value.startswith(name)] == [name + b"%d" % n for n in range(100)]


# --- tails -------------------------------------------------------------------------------------


async def test_a_tail_starts_at_the_end_and_hears_what_comes(bus: Bus, opened: Open) -> None:
    other = await opened()
    await bus.append([message("old")])
    tails = [await bus.tail(TOPIC), await other.tail(TOPIC)]
    waiting = [asyncio.ensure_future(tail.poll(WAIT_S)) for tail in tails]
    await bus.append([message("new")])

    for poll in waiting:
        [batch] = await poll
        assert [record.value for record in batch.records] == [b"new"]


async def test_a_tail_from_given_offsets_reads_only_those_partitions(bus: Bus) -> None:
    await bus.append([message(str(number), partition=number % PARTITIONS) for number in range(12)])
    tail = await bus.tail(TOPIC, {1: 1, 2: 3})

    assert [record.value for record in await take(2, tail)] == [b"5", b"9"]
    assert await tail.poll(0) == []


async def test_a_tail_beyond_the_log_says_so(bus: Bus) -> None:
    tail = await bus.tail(TOPIC, {0: 5})
    with pytest.raises(OffsetOutOfRange):
        await tail.poll(0)


async def test_a_poll_is_bounded_and_shared_out_over_partitions(bus: Bus) -> None:
    await bus.append([message(str(n), partition=p) for p in range(PARTITIONS) for n in range(100)])
    tail = await bus.tail(TOPIC, dict.fromkeys(range(PARTITIONS), 0))

    left = dict.fromkeys(range(PARTITIONS), 100)
    while any(left.values()):
        parts = {batch.partition: len(batch.records) for batch in await tail.poll(WAIT_S, records_max=40)}
        assert 0 < sum(parts.values()) <= 40
        for partition, part in parts.items():
            left[partition] -= part
            assert part >= max(parts.values()) - 1 or left[partition] == 0


async def test_a_partition_with_much_to_read_does_not_hold_up_another(bus: Bus) -> None:
    for _ in range(4):
        await bus.append([message(str(number), partition=0) for number in range(1_000)])
    tail = await bus.tail(TOPIC, {0: 0, 1: 0})
    assert {batch.partition for batch in await tail.poll(WAIT_S, records_max=10)} == {0}

    await bus.append([message("at once", partition=1)])
    seen = 10
    while (batches := await tail.poll(WAIT_S, records_max=10)) and all(batch.partition == 0 for batch in batches):
        seen += sum(len(batch.records) for batch in batches)
        await bus.offsets(TOPIC)  # a round trip: as long as an engine takes for a few records, at least
    assert seen < 4_000


async def test_closing_a_reader_ends_its_poll(bus: Bus) -> None:
    tail = await bus.tail(TOPIC)
    member = await Member().join(bus)
    await poll_until(lambda: everything_is_owned(member), member)
    polls = [asyncio.ensure_future(tail.poll(WAIT_S)), asyncio.ensure_future(member.consumer.poll(WAIT_S))]
    await asyncio.sleep(0)

    await tail.close()
    await member.consumer.close()
    assert [await poll for poll in polls] == [[], []]
    assert await member.consumer.poll(WAIT_S) == []


# --- groups ------------------------------------------------------------------------------------


async def test_one_member_gets_every_partition_and_its_starts_count(bus: Bus) -> None:
    await bus.append([message(str(number), partition=0) for number in range(5)])
    member = await Member({0: 3}).join(bus)
    await poll_until(lambda: len(member.records) == 2, member)

    assert member.told == [("assigned", tuple(range(PARTITIONS)))]
    assert [record.value for record in member.records] == [b"3", b"4"]


async def test_a_second_member_gets_its_share_and_kept_partitions_go_on(bus: Bus, opened: Open) -> None:
    first = await Member().join(bus)
    await poll_until(lambda: everything_is_owned(first), first)
    second = await Member().join(await opened())
    await poll_until(lambda: balanced(first, second), first, second)
    kept = first.owned

    await bus.append([message(str(partition), partition=partition) for partition in range(PARTITIONS)])
    await poll_until(lambda: len(first.records) + len(second.records) == PARTITIONS, first, second)
    assert {record.partition for record in first.records} == kept
    given = [told for told in first.told if told[0] == "assigned"]
    assert len(given) == 1, "kept partitions are not assigned again"


async def test_a_partition_is_given_only_after_its_owner_has_let_go(bus: Bus, opened: Open) -> None:
    order: list[tuple[str, str, int]] = []

    class Noting(Member):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        async def assigned(self, partitions: Sequence[int]) -> Mapping[int, int]:
            order.extend(("take", self.name, partition) for partition in partitions)
            return await super().assigned(partitions)

        async def revoked(self, partitions: Sequence[int]) -> None:
            await asyncio.sleep(0)
            order.extend(("give", self.name, partition) for partition in partitions)

    members = [await Noting("a").join(bus)]
    await poll_until(lambda: everything_is_owned(*members), *members)
    for name in ("b", "c"):
        members.append(await Noting(name).join(await opened()))
        await poll_until(lambda: balanced(*members), *members)
    await members[0].consumer.close()
    await poll_until(lambda: balanced(*members[1:]), *members[1:])

    owner: dict[int, str] = {}
    for what, name, partition in order:
        if what == "take":
            assert partition not in owner
            owner[partition] = name
        else:
            assert owner.pop(partition) == name


async def test_closing_revokes_and_others_take_over(bus: Bus, opened: Open) -> None:
    first, second = await Member().join(bus), await Member().join(await opened())
    await poll_until(lambda: balanced(first, second), first, second)
    owned = tuple(sorted(first.owned))
    await first.consumer.close()

    assert first.told[-1] == ("revoked", owned)
    await poll_until(lambda: everything_is_owned(second), second)


async def test_more_members_than_partitions_leaves_some_waiting(bus: Bus) -> None:
    members = [await Member().join(bus) for _ in range(PARTITIONS + 2)]
    await poll_until(lambda: balanced(*members), *members)

    assert sorted(len(member.owned) for member in members) == [0, 0] + [1] * PARTITIONS


async def test_groups_do_not_share(bus: Bus) -> None:
    one, other = await Member().join(bus, f"{GROUP}.one"), await Member().join(bus, f"{GROUP}.other")
    await bus.append([message("x")])
    await poll_until(lambda: len(one.records) == len(other.records) == 1, one, other)


async def test_a_start_outside_the_log_is_an_error_and_assigned_is_asked_again(bus: Bus) -> None:
    await bus.append([message("0", partition=0)])
    member = Member({0: 9})
    await member.join(bus)
    with pytest.raises(OffsetOutOfRange, match="offsets 0 to 1, not 9"):
        await poll_until(lambda: everything_is_owned(member), member)

    member.starts = {0: 0}
    await poll_until(lambda: len(member.records) == 1, member)
    assert member.owned == frozenset(range(PARTITIONS))


async def test_lag_is_what_was_not_committed(bus: Bus) -> None:
    await bus.append([message(str(number), partition=0) for number in range(5)])
    member = await Member().join(bus)
    await poll_until(lambda: len(member.records) == 5, member)
    await member.consumer.commit({0: 3})

    lag = {lag.partition: lag for lag in await bus.lags() if lag.group == GROUP}[0]
    assert (lag.topic, lag.committed, lag.end, lag.lag) == (TOPIC, 3, 5, 2)
    assert lag.lag_s >= 0.0
    await member.consumer.commit({0: 5})
    lag = {lag.partition: lag for lag in await bus.lags() if lag.group == GROUP}[0]
    assert (lag.lag, lag.lag_s) == (0, 0.0)


async def test_whoever_opens_the_log_sees_how_far_a_group_is(bus: Bus, opened: Open) -> None:
    await bus.append([message(str(number), partition=0) for number in range(5)])
    member = await Member().join(bus)
    await poll_until(lambda: len(member.records) == 5, member)
    await member.consumer.commit({0: 3})

    lags = {lag.partition: lag for lag in await (await opened()).lags() if lag.group == GROUP}
    assert lags.keys() == set(range(PARTITIONS))
    assert (lags[0].topic, lags[0].committed, lags[0].end) == (TOPIC, 3, 5)


async def test_callbacks_may_append_and_ask_for_offsets(bus: Bus) -> None:
    class Busy(Member):
        async def assigned(self, partitions: Sequence[int]) -> Mapping[int, int]:
            await bus.append([message("from assigned", partition=0)])
            begins, _ = await bus.offsets(TOPIC)
            return {partition: begins[partition] for partition in partitions}

        async def revoked(self, partitions: Sequence[int]) -> None:
            await bus.append([message("from revoked", partition=0)])

    member = await Busy().join(bus)
    await poll_until(lambda: len(member.records) == 1, member)
    await bus.close()
    assert [record.value for record in member.records] == [b"from assigned"]


async def test_closing_waits_for_what_was_queued(bus: Bus, opened: Open) -> None:
    calls = [bus.append([message(str(number))]) for number in range(100)]
    await bus.close()
    await bus.close()

    assert [(await call)[0].offset for call in calls] == list(range(100))
    _, ends = await (await opened()).offsets(TOPIC)
    assert sum(ends.values()) == 100
