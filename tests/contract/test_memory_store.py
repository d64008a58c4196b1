"""What every memory store promises. Add a store by adding it to `opened`'s parameters; nothing else knows which it is."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from crewline.errors import StoreError
from crewline_memory import Mark, MemoryStore, Snapshot, open_store

Open = Callable[[str], Awaitable[MemoryStore]]


@pytest.fixture(params=["sqlite", pytest.param("redis", marks=pytest.mark.servers)])
async def opened(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Open]:
    """Opens a store of a namespace; all of them share what is stored."""
    stores: list[MemoryStore] = []
    ours = secrets.token_hex(4)  # the Redis serves other tests too

    async def opener(namespace: str) -> MemoryStore:
        if request.param == "redis":
            from crewline_memory.redis import open_store as open_redis

            stores.append(await open_redis(request.getfixturevalue("redis_url"), f"{ours}.{namespace}"))
        else:
            stores.append(await open_store(tmp_path, namespace))
        return stores[-1]

    yield opener
    for store in stores:
        await store.close()


@pytest.fixture
async def store(opened: Open) -> MemoryStore:
    return await opened("demo")


IDLE = Snapshot(b"\x00idle\xff", pending=False)
OPEN = Snapshot(b"open", pending=True, acked=("a:1", "b:ü"), frozen_at=None)
FROZEN = Snapshot(b"", pending=False, frozen_at=0)


async def test_nothing_stored_is_none_and_empty(store: MemoryStore) -> None:
    assert await store.mark("worker", 0) is None
    assert await store.pending("worker", 0) == {}
    assert await store.snapshots("worker", 0, [b"k"]) == {}
    assert await store.snapshots("worker", 0, []) == {}


async def test_what_is_written_comes_back(store: MemoryStore) -> None:
    written = await store.write(
        "worker", 3, Mark(7, "id-6", carry=b"\x00\x01"), {b"a": IDLE, b"\xff": OPEN, b"": FROZEN}
    )

    assert written
    assert await store.mark("worker", 3) == Mark(7, "id-6", 3, b"\x00\x01")
    assert await store.snapshots("worker", 3, [b"a", b"\xff", b"", b"none"]) == {b"a": IDLE, b"\xff": OPEN, b"": FROZEN}


async def test_pending_gives_open_and_frozen_keys_only(store: MemoryStore) -> None:
    await store.write("worker", 0, Mark(1), {b"idle": IDLE, b"open": OPEN, b"frozen": FROZEN})

    assert await store.pending("worker", 0) == {b"open": OPEN, b"frozen": FROZEN}


async def test_a_later_write_replaces_keys_and_keeps_the_others(store: MemoryStore) -> None:
    await store.write("worker", 0, Mark(1), {b"a": OPEN, b"b": IDLE})
    await store.write("worker", 0, Mark(2), {b"a": IDLE, b"c": IDLE})

    assert await store.pending("worker", 0) == {}
    assert await store.mark("worker", 0) == Mark(2, "", 3)
    assert (await store.snapshots("worker", 0, [b"b"]))[b"b"] == IDLE


@pytest.mark.parametrize("offset", [4, 5])
async def test_a_mark_that_is_not_newer_is_refused_with_all_it_carries(store: MemoryStore, offset: int) -> None:
    await store.write("worker", 0, Mark(5, "first"), {b"a": IDLE})

    assert not await store.write("worker", 0, Mark(offset, "zombie"), {b"a": OPEN, b"b": OPEN})
    assert await store.mark("worker", 0) == Mark(5, "first", 1)
    assert await store.snapshots("worker", 0, [b"a", b"b"]) == {b"a": IDLE}


async def test_roles_partitions_and_namespaces_do_not_meet(opened: Open) -> None:
    one, other = await opened("one"), await opened("other")
    await one.write("worker", 0, Mark(5), {b"a": OPEN})

    assert await other.mark("worker", 0) is None
    assert await one.mark("worker", 1) is None
    assert await one.mark("guardrail", 0) is None
    assert await one.write("guardrail", 0, Mark(1), {})
    assert await other.write("worker", 0, Mark(1), {b"a": IDLE})
    assert (await one.snapshots("worker", 0, [b"a"]))[b"a"] == OPEN


async def test_dropping_forgets_one_role_and_partition(store: MemoryStore) -> None:
    await store.write("worker", 0, Mark(5), {b"a": OPEN})
    await store.write("worker", 1, Mark(5), {b"a": OPEN})
    await store.drop("worker", 0)
    await store.drop("worker", 0)

    assert await store.mark("worker", 0) is None
    assert await store.pending("worker", 0) == {}
    assert await store.mark("worker", 1) == Mark(5, "", 1)
    assert await store.write("worker", 0, Mark(1), {b"b": IDLE}), "after a drop any mark is newer"
    assert await store.mark("worker", 0) == Mark(1, "", 1)


async def test_many_keys_are_written_and_read_in_one_go(store: MemoryStore) -> None:
    many = {b"k%d" % number: Snapshot(b"s%d" % number, pending=number % 2 == 0) for number in range(1_001)}
    await store.write("worker", 0, Mark(1), many)
    await store.write("worker", 0, Mark(2), many)

    assert await store.snapshots("worker", 0, list(many)) == many
    assert len(await store.pending("worker", 0)) == 501
    assert await store.mark("worker", 0) == Mark(2, "", 1_001)


async def test_another_store_on_the_same_place_sees_what_was_written(opened: Open) -> None:
    one, other = await opened("demo"), await opened("demo")
    await one.write("worker", 0, Mark(1), {b"a": OPEN})

    assert await other.pending("worker", 0) == {b"a": OPEN}
    assert not await other.write("worker", 0, Mark(1), {})


async def test_a_closed_store_says_so(store: MemoryStore) -> None:
    await store.close()
    await store.close()

    with pytest.raises(StoreError, match="closed"):
        await store.mark("worker", 0)


async def test_a_write_that_relies_on_what_is_not_there_any_more_is_refused(store: MemoryStore) -> None:
    await store.write("worker", 0, Mark(5, "id-4"), {b"a": IDLE})

    assert not await store.write("worker", 0, Mark(9, "id-8"), {b"b": OPEN}, after=7), "an old copy was put back"
    assert await store.mark("worker", 0) == Mark(5, "id-4", 1)
    assert await store.snapshots("worker", 0, [b"b"]) == {}
    assert await store.write("worker", 0, Mark(9, "id-8"), {b"b": OPEN}, after=5)
    assert not await store.write("guardrail", 0, Mark(3), {b"a": IDLE}, after=1), "all of it is gone"


async def test_of_writers_that_meet_one_wins_whole(opened: Open) -> None:
    stores = [await opened("demo") for _ in range(4)]
    many = [{b"k%d" % key: Snapshot(b"writer %d" % number, pending=True) for key in range(300)} for number in range(4)]

    written = await asyncio.gather(*(
        store.write("worker", 0, Mark(9, f"writer {number}"), many[number]) for number, store in enumerate(stores)
    ))

    [winner] = [number for number, won in enumerate(written) if won]
    assert await stores[0].mark("worker", 0) == Mark(9, f"writer {winner}", 300)
    assert await stores[0].pending("worker", 0) == many[winner]


async def test_a_reader_sees_a_write_whole_or_not_at_all(opened: Open) -> None:
    writer, reader = await opened("demo"), await opened("demo")
    keys = [b"k%d" % key for key in range(700)]
    await writer.write("worker", 0, Mark(1), dict.fromkeys(keys, Snapshot(b"0", pending=True)))
    seen = set()

    async def read() -> None:
        for number in range(8):
            found = await (reader.pending("worker", 0) if number % 2 else reader.snapshots("worker", 0, keys))
            assert len(found) == 700
            seen.add(frozenset(snapshot.state for snapshot in found.values()))

    async def write() -> None:
        for number in range(2, 8):
            await writer.write("worker", 0, Mark(number), dict.fromkeys(keys, Snapshot(b"%d" % number, pending=True)))

    await asyncio.gather(read(), write())

    assert {len(states) for states in seen} == {1}, "no page is of another write than the next"
