"""The embedded store when its file is damaged, lacks a key, or comes from a newer crewline."""

from __future__ import annotations

import logging
from pathlib import Path

import apsw
import pytest
from crewline.errors import StoreError
from crewline_memory import Mark, Snapshot, open_store

STATE = Snapshot(b"s" * 10_000, pending=True)


async def written(directory: Path) -> None:
    store = await open_store(directory, "demo")
    await store.write("worker", 0, Mark(5, "id"), {b"a": STATE, b"b": STATE})
    await store.close()


@pytest.mark.parametrize("keep", [0, 4_096])
async def test_a_damaged_file_is_put_aside_and_begun_anew(
    tmp_path: Path, keep: int, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "store.db"
    for number in (1, 2):
        await written(tmp_path)
        whole = path.read_bytes()
        path.write_bytes(whole[:keep] + b"\xa5" * (len(whole) - keep))
        with caplog.at_level(logging.WARNING):
            store = await open_store(tmp_path, "demo")
            assert await store.mark("worker", 0) is None
            assert await store.write("worker", 0, Mark(1), {b"a": STATE})
            await store.close()

        assert (tmp_path / f"store.db.damaged-{number}").exists()
        assert f"put aside as store.db.damaged-{number}" in caplog.text
        path.unlink()


async def test_two_processes_that_meet_the_damage_put_it_aside_once(tmp_path: Path) -> None:
    await written(tmp_path)
    stores = [await open_store(tmp_path, "demo") for _ in range(2)]
    raw = apsw.Connection(str(tmp_path / "store.db"))
    raw.pragma("wal_checkpoint")
    raw.close()
    size = (tmp_path / "store.db").stat().st_size
    with open(tmp_path / "store.db", "r+b") as file:  # noqa: ASYNC230
        file.seek(4_096)
        file.write(b"\xa5" * (size - 4_096))
    for store in stores:
        assert await store.pending("worker", 0) == {}
    assert await stores[0].write("worker", 0, Mark(1), {b"a": STATE})
    assert await stores[0].mark("worker", 0) == await stores[1].mark("worker", 0) == Mark(1, "", 1)
    for store in stores:
        await store.close()

    assert (tmp_path / "store.db.damaged-1").exists()
    assert not (tmp_path / "store.db.damaged-2").exists()


async def test_a_key_that_is_missing_makes_the_mark_none(tmp_path: Path) -> None:
    await written(tmp_path)
    raw = apsw.Connection(str(tmp_path / "store.db"))
    raw.execute("DELETE FROM snapshots WHERE key = ?", (b"a",))
    raw.close()

    store = await open_store(tmp_path, "demo")
    assert await store.mark("worker", 0) is None
    await store.close()


async def test_a_newer_file_is_refused_with_the_remedy(tmp_path: Path) -> None:
    await written(tmp_path)
    raw = apsw.Connection(str(tmp_path / "store.db"))
    raw.pragma("user_version", 99)
    raw.close()

    with pytest.raises(StoreError, match="format 99, this crewline knows 1: upgrade crewline, or remove"):
        await open_store(tmp_path, "demo")


async def test_a_full_disk_writes_nothing_and_says_so(tmp_path: Path) -> None:
    store = await open_store(tmp_path, "demo")
    await store._run(lambda connection: connection.pragma("max_page_count", connection.pragma("page_count") + 2))
    with pytest.raises(StoreError, match=r"store\.db: disk is full"):
        await store.write("worker", 0, Mark(1), {b"%d" % number: STATE for number in range(10)})

    assert await store.mark("worker", 0) is None
    await store._run(lambda connection: connection.pragma("max_page_count", 1 << 30))
    assert await store.write("worker", 0, Mark(1), {b"a": STATE})
    await store.close()
