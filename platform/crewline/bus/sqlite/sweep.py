"""Forgetting: retention by time and size, compaction by key. In steps of at most `STEP_RECORDS` records,

each a transaction of its own between those of appends. The newest record of a compacted partition always
stays, so that reading up to the end ends with a record.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import apsw

from crewline.bus.sqlite.catalog import Catalog, Partition
from crewline.bus.sqlite.file import fetch, fetch_one

STEP_RECORDS = 500
KEYS_MAX = 20_000  # held in memory by one pass of compaction
TOMBSTONE_S = 86_400.0
SWEEP_S = 60.0

T = TypeVar("T")


class Change(Protocol):
    """Runs one transaction."""

    def __call__(self, job: Callable[[apsw.Connection], T], /) -> Awaitable[T]: ...


async def sweep(catalog: Catalog, change: Change, now_ms: int, *, tombstone_s: float, eager: bool) -> None:
    """Apply every topic's retention and compaction once.

    `eager` False: compact a partition only when half of it is new, so that the work is in proportion to
    what was appended.
    """
    for topic in list(catalog.topics.values()):
        spec = topic.spec
        for partition in topic.partitions:
            if spec.retention_s is not None or spec.retention_bytes is not None:
                while await change(lambda connection, p=partition: _retain_step(connection, p, now_ms)):  # type: ignore[misc]
                    pass
            if spec.compacted:
                await _compact(change, partition, now_ms - int(tombstone_s * 1000), eager=eager)
                catalog.forget(partition)


async def claim(change: Change, now_ms: int) -> bool:
    """Return whether this process is the one to sweep now: one does in `SWEEP_S`."""

    def job(connection: apsw.Connection) -> bool:
        next_ms = now_ms + int(SWEEP_S * 1000)
        due_ms = fetch_one(connection, "SELECT due_ms FROM chores WHERE name = 'sweep'")
        if due_ms is not None and now_ms < due_ms <= next_ms:  # further ahead: the clock was set back
            return False
        connection.execute("INSERT OR REPLACE INTO chores VALUES ('sweep', ?)", (next_ms,))
        return True

    return await change(job)


def _retain_step(connection: apsw.Connection, partition: Partition, now_ms: int) -> bool:
    """Delete the oldest records beyond time or size; return whether there may be more."""
    spec = partition.topic.spec
    begin, end, size = fetch(
        connection, "SELECT begin_offset, end_offset, value_bytes FROM partitions WHERE id = ?", (partition.id,)
    )[0]
    oldest = fetch(
        connection,
        f"SELECT offset, ms, ifnull(length(value), 0) FROM records_{partition.id} WHERE offset >= ? AND offset < ? ORDER BY offset LIMIT ?",
        (begin, end, STEP_RECORDS),
    )
    cut = freed = 0
    for at, ms, length in oldest:
        too_old = spec.retention_s is not None and ms < now_ms - spec.retention_s * 1000
        too_many = spec.retention_bytes is not None and size - freed > spec.retention_bytes
        if not (too_old or too_many):
            break
        cut = at + 1
        freed += length
    if not cut:
        return False
    connection.execute(f"DELETE FROM records_{partition.id} WHERE offset >= ? AND offset < ?", (begin, cut))
    connection.execute(
        "UPDATE partitions SET begin_offset = ?, value_bytes = value_bytes - ? WHERE id = ?",
        (cut, freed, partition.id),
    )
    return len(oldest) == STEP_RECORDS and cut == oldest[-1][0] + 1


async def _compact(change: Change, partition: Partition, grave_ms: int, *, eager: bool) -> None:
    """Keep the newest record of each key, and drop tombstones older than `grave_ms`.

    As Kafka's cleaner does: note the newest offset of the keys since the last pass, then go through all
    older records once.
    """

    def dirty(connection: apsw.Connection) -> tuple[dict[bytes, int], int] | None:
        begin, end, done = fetch(
            connection, "SELECT begin_offset, end_offset, compacted_to FROM partitions WHERE id = ?", (partition.id,)
        )[0]
        done = max(begin, done)
        if not eager:
            kept = fetch_one(
                connection, f"SELECT count(*) FROM records_{partition.id} WHERE offset >= ? AND offset < ?",
                (begin, done),
            )
            if end - done <= kept // 2:
                return None
        rows = fetch(
            connection,
            f"SELECT key, offset FROM records_{partition.id} WHERE offset >= ? AND offset < ? ORDER BY offset LIMIT ?",
            (done, end, KEYS_MAX),
        )
        newest = dict(rows)
        return newest, rows[-1][1] + 1 if rows else end

    swept = False
    while (found := await change(dirty)) is not None:
        newest, until = found
        if swept and not newest:
            return
        at = 0
        while at < until:
            at = await change(lambda c, a=at, n=newest, u=until: _compact_step(c, partition, a, u, n, grave_ms))  # type: ignore[misc]

        def done(connection: apsw.Connection, until: int = until) -> None:
            connection.execute("UPDATE partitions SET compacted_to = ? WHERE id = ?", (until, partition.id))

        await change(done)
        eager = swept = True  # go on until the end that is there by now


def _compact_step(
    connection: apsw.Connection, partition: Partition, start: int, until: int, newest: dict[bytes, int], grave_ms: int
) -> int:
    """Go through `STEP_RECORDS` records from `start`; return where the next step goes on."""
    rows = fetch(
        connection,
        f"SELECT offset, ms, key, value IS NULL, ifnull(length(value), 0) FROM records_{partition.id}"
        " WHERE offset >= ? AND offset < ? ORDER BY offset LIMIT ?",
        (start, until, STEP_RECORDS),
    )
    last = fetch_one(connection, "SELECT end_offset FROM partitions WHERE id = ?", (partition.id,)) - 1
    gone = [
        (at, length)
        for at, ms, key, tombstone, length in rows
        if at != last and (newest.get(key, at) > at or (tombstone and ms < grave_ms))
    ]
    if gone:
        connection.executemany(f"DELETE FROM records_{partition.id} WHERE offset = ?", [(at,) for at, _ in gone])
        connection.execute(
            "UPDATE partitions SET value_bytes = value_bytes - ? WHERE id = ?",
            (sum(length for _, length in gone), partition.id),
        )
    return rows[-1][0] + 1 if len(rows) == STEP_RECORDS else until

