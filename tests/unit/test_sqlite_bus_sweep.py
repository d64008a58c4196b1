"""What the embedded log forgets, and how it shares partitions out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from crewline.bus.base import Message
from crewline.bus.sqlite import SQLiteBus, open_bus
from crewline.bus.sqlite.groups import quota
from crewline.bus.sqlite.sweep import STEP_RECORDS, SWEEP_S, claim
from crewline.errors import OffsetOutOfRange
from crewline.topics import TopicSpec


class Clock:
    """A clock that goes where it is told."""

    def __init__(self) -> None:
        self.now_ms = 1_000_000_000

    def __call__(self) -> int:
        return self.now_ms


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def bus(tmp_path: Path, clock: Clock) -> AsyncIterator[SQLiteBus]:
    async with await open_bus(tmp_path, clock_ms=clock, tombstone_s=100.0) as bus:
        await bus.create_topics(
            [
                TopicSpec("old", 2, retention_s=10.0),
                TopicSpec("large", 1, retention_bytes=100),
                TopicSpec("items", 1, compacted=True),
                TopicSpec("whole", 1),
            ]
        )
        yield bus


async def values(bus: SQLiteBus, topic: str) -> list[tuple[int, bytes | None]]:
    """Return offset and value of all that is left of partition 0, reading in small pieces."""
    begins, ends = await bus.offsets(topic)
    at, found = begins[0], []
    while at < ends[0]:
        batch = await bus.read(topic, 0, at, records_max=2)
        found += [(record.offset, record.value) for record in batch.records]
        at = batch.next_offset
    return found


async def test_time_stamps_stand_still_while_the_clock_goes_back(bus: SQLiteBus, clock: Clock) -> None:
    for now_ms in (5_000, 4_000, 6_000):
        clock.now_ms = now_ms
        await bus.append([Message("whole", b"k", b"v")])

    assert [record.timestamp_ms for record in (await bus.read("whole", 0, 0)).records] == [5_000, 5_000, 6_000]


async def test_records_older_than_the_retention_go_and_the_begin_moves(bus: SQLiteBus, clock: Clock) -> None:
    many = STEP_RECORDS * 2 + 7
    await bus.append([Message("old", b"k", b"x", partition=0) for _ in range(many)])
    clock.now_ms += 10_000
    await bus.append([Message("old", b"k", b"new", partition=0)])
    await bus.sweep()
    assert (await bus.offsets("old"))[0][0] == 0, "exactly as old as the retention: kept"

    clock.now_ms += 1
    await bus.sweep()
    begins, ends = await bus.offsets("old")
    assert (begins, ends) == ({0: many, 1: 0}, {0: many + 1, 1: 0})
    assert await values(bus, "old") == [(many, b"new")]
    with pytest.raises(OffsetOutOfRange, match=f"offsets {many} to {many + 1}, not 0: older records are gone"):
        await bus.read("old", 0, 0)
    tail = await bus.tail("old", {0: 0})
    with pytest.raises(OffsetOutOfRange):
        await tail.poll(0)


async def test_a_log_that_forgot_everything_goes_on_counting(bus: SQLiteBus, clock: Clock, tmp_path: Path) -> None:
    await bus.append([Message("old", b"k", b"x", partition=0)] * 3)
    clock.now_ms += 60_000
    await bus.sweep()
    assert (await bus.topics())["old"].bytes == 0
    await bus.close()

    async with await open_bus(tmp_path, clock_ms=clock) as again:
        [position] = await again.append([Message("old", b"k", b"x", partition=0)])
        assert position.offset == 3


async def test_the_oldest_go_until_the_size_is_kept(bus: SQLiteBus) -> None:
    await bus.append([Message("large", b"k", b"x" * 40) for _ in range(5)])
    await bus.sweep()

    assert [offset for offset, _ in await values(bus, "large")] == [3, 4]
    assert (await bus.topics())["large"].bytes == 80


async def test_compaction_keeps_the_newest_of_each_key_at_its_offset(bus: SQLiteBus) -> None:
    sent = [(b"a", b"1"), (b"b", b"1"), (b"a", b"2"), (b"c", b"1"), (b"b", b"2"), (b"a", b"3")]
    for _ in range(2):
        await bus.append([Message("items", key, value) for key, value in sent])
        await bus.sweep()

    assert await values(bus, "items") == [(9, b"1"), (10, b"2"), (11, b"3")]
    batch = await bus.read("items", 0, 0)
    assert [record.offset for record in batch.records] == [9, 10, 11]
    assert batch.next_offset == batch.end == 12
    assert (await bus.topics())["items"].bytes == 3


async def test_compaction_in_many_steps(bus: SQLiteBus) -> None:
    keys = STEP_RECORDS + 100
    for text in (b"old", b"mid", b"new"):
        await bus.append([Message("items", b"k%d" % number, text) for number in range(keys)])
    await bus.sweep()

    left = await values(bus, "items")
    assert [offset for offset, _ in left] == list(range(2 * keys, 3 * keys))
    assert {value for _, value in left} == {b"new"}


async def test_a_tombstone_goes_after_its_grace_but_never_as_the_last_record(bus: SQLiteBus, clock: Clock) -> None:
    await bus.append([Message("items", b"a", b"1"), Message("items", b"a", None)])
    await bus.sweep()
    assert await values(bus, "items") == [(1, None)]

    clock.now_ms += 100_001
    await bus.sweep()
    assert await values(bus, "items") == [(1, None)], "reading up to the end ends with a record"
    await bus.append([Message("items", b"b", b"1")])
    await bus.sweep()
    assert await values(bus, "items") == [(2, b"1")]


async def test_topics_kept_whole_are_kept_whole(bus: SQLiteBus, clock: Clock) -> None:
    await bus.append([Message("whole", b"k", b"x")] * 3)
    clock.now_ms += 10**12
    await bus.sweep()

    assert len(await values(bus, "whole")) == 3


async def test_one_process_sweeps_in_a_minute_also_after_the_clock_was_set_back(bus: SQLiteBus) -> None:
    step_ms = int(SWEEP_S * 1000)
    claims = [await claim(bus.change, now) for now in (10**9, 10**9 + 1, 10**9 + step_ms, 5, 6)]

    assert claims == [True, False, True, True, False]


def test_quotas_add_up_and_move_as_little_as_possible() -> None:
    for partitions in range(1, 14):
        for count in range(1, 8):
            owned = {f"m{number}": (number * 5) % (partitions + 1) for number in range(count)}
            quotas = {member: quota(member, owned, partitions) for member in owned}
            assert sum(quotas.values()) == partitions
            assert max(quotas.values()) - min(quotas.values()) <= 1

    assert [quota(member, {"a": 3, "b": 3, "c": 3, "d": 3, "e": 0}, 12) for member in "abcde"] == [3, 3, 2, 2, 2]
    assert quota("late", {"early": 0, "late": 0}, 1) == 0
