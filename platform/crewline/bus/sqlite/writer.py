"""The one thread of a process that writes the log, many appends to a commit.

    event loop                           writer's thread
    append() ─ Call ─┐
    append() ─ Call ─┼─ once per turn ─▶ BEGIN IMMEDIATE · offsets · INSERT · COMMIT (synced)
    run(job) ─ Job ──┘  of the loop             │
        futures resolved, cache filled ◀────────┴─▶ other processes' bells
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import apsw

from crewline.bus.base import Message, Position, Record
from crewline.bus.bell import Bell
from crewline.bus.sqlite.catalog import RECORD_OVERHEAD_BYTES, Catalog, Partition, Topic, look_at_ends
from crewline.bus.sqlite.file import (
    ROWS_MAX,
    advance_sql,
    encode_headers,
    fetch_one,
    in_our_words,
    insert_sql,
)
from crewline.crashpoints import reach
from crewline.errors import BusError, BusUnavailable, UnknownTopic
from crewline.topics import partition_of

BATCH_RECORDS_MAX = 2_000
BATCH_BYTES_MAX = 16 << 20
CHECKPOINT_BYTES = 4 << 20  # written by this process, until the WAL is copied into the file
PAGE_BYTES = 4_096
# A busy loop adds to a batch pass by pass, and 160 records in one commit cost a third of what they cost in four.
LINGER_RECORDS = 8  # fewer are handed over at once: whoever is alone must not wait
LINGER_RECORDS_MAX = 512
LINGER_PASSES_MAX = 4

T = TypeVar("T")
SQLiteValue = int | bytes | None


class Call:
    """One `append`: its rows (or, if a topic is not known yet, its messages), and who awaits it."""

    __slots__ = ("future", "messages", "positions", "rows", "size")

    def __init__(self, future: asyncio.Future[list[Position]], messages: Sequence[Message]) -> None:
        self.future = future
        self.messages = messages
        self.rows: list[tuple[Partition, Message]] | None = None
        self.positions: list[Position] = []
        self.size = 0


class Offsets:
    """A group's commit of what it has read: written along with the next appends."""

    __slots__ = ("future", "group_id", "offsets")

    def __init__(self, future: asyncio.Future[None], group_id: int, offsets: Mapping[int, int]) -> None:
        self.future = future
        self.group_id = group_id
        self.offsets = offsets


class Job:
    """A transaction of its own."""

    __slots__ = ("future", "run")

    def __init__(self, future: asyncio.Future[Any], run: Callable[[apsw.Connection], Any]) -> None:
        self.future = future
        self.run = run


Item = Call | Offsets | Job


def route(catalog: Catalog, messages: Sequence[Message]) -> list[tuple[Partition, Message]]:
    """Return the partition of each message. Raises: UnknownTopic."""
    rows = []
    topics = catalog.topics
    for message in messages:
        topic = topics.get(message.topic)
        if topic is None:
            known = ", ".join(sorted(topics)) or "none"
            raise UnknownTopic(f"there is no topic {message.topic!r}; create it (`crewline up` does). Topics: {known}")
        number = message.partition
        if number is None:
            number = partition_of(message.key, topic.spec.partitions)
        elif not 0 <= number < topic.spec.partitions:
            raise UnknownTopic(
                f"topic {message.topic!r} has no partition {number}; it has 0 to {topic.spec.partitions - 1}"
            )
        rows.append((topic.partitions[number], message))
    return rows


class Writer:
    """Owns the writing connection and its thread.

    `committed(topics)` is called on the loop after each commit, before the callers hear of it.
    """

    def __init__(
        self,
        path: Path,
        connection: apsw.Connection,
        catalog: Catalog,
        bell: Bell,
        clock_ms: Callable[[], int],
        committed: Callable[[set[Topic]], None],
    ) -> None:
        self._path = path
        self._connection = connection
        self._catalog = catalog
        self._bell = bell
        self._clock_ms = clock_ms
        self._committed = committed
        self._loop = asyncio.get_running_loop()
        self._staged: list[Item] = []
        self._staged_records = 0
        self._lingered_records = 0
        self._lingered_passes = 0
        self._queue: queue.SimpleQueue[list[Item] | None] = queue.SimpleQueue()
        self._seen_version = -1
        self._uncopied_bytes = 0
        self._closed = False
        self._ended = self._loop.create_future()
        self._thread = threading.Thread(target=self._work, name="crewline-log", daemon=True)
        self._thread.start()

    # --- on the loop ---------------------------------------------------------------------------

    def put(self, item: Item) -> None:
        """Queue `item`. What one turn of the loop queues is handed over together; while many do, what a few queue.

        Raises: BusUnavailable after `close`.
        """
        if self._closed:
            raise BusUnavailable(f"the bus on {self._path} is closed")
        if not self._staged:
            self._loop.call_soon(self._hand_over)
        self._staged.append(item)
        self._staged_records += len(item.messages) if isinstance(item, Call) else LINGER_RECORDS_MAX

    def _hand_over(self) -> None:
        """Hand over what was queued, unless the loop is busy and goes on adding to it."""
        before, records = self._lingered_records, self._staged_records
        if max(before, LINGER_RECORDS - 1) < records < LINGER_RECORDS_MAX and self._lingered_passes < LINGER_PASSES_MAX:
            self._lingered_records = records
            self._lingered_passes += 1
            self._loop.call_soon(self._hand_over)
        else:
            self._flush()

    def _flush(self) -> None:
        self._lingered_records = self._lingered_passes = self._staged_records = 0
        if self._staged:
            staged, self._staged = self._staged, []
            self._queue.put(staged)

    async def run(self, job: Callable[[apsw.Connection], T]) -> T:
        """Run `job` as one transaction, in order with the appends; return what it returns."""
        future: asyncio.Future[T] = self._loop.create_future()
        self.put(Job(future, job))
        return await future

    async def close(self) -> None:
        """Write what is queued, then end the thread."""
        self._closed = True
        self._flush()
        self._queue.put(None)
        await self._ended
        self._thread.join()

    def _settle(
        self, items: Sequence[Call | Offsets], touched: dict[Partition, tuple[list[Record], int]]
    ) -> None:
        topics = set()
        keep = self._catalog.keep
        for partition, (records, size) in touched.items():
            keep(partition, records, size)
            partition.end = max(partition.end, records[-1].offset + 1)
            topics.add(partition.topic)
        self._committed(topics)
        for item in items:
            if not item.future.done():
                item.future.set_result(item.positions if isinstance(item, Call) else None)  # type: ignore[arg-type]

    def _post(self, function: Callable[..., object], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(function, *args)

    # --- in the thread -------------------------------------------------------------------------

    def _work(self) -> None:
        ending = False
        while not ending:
            taken = self._queue.get()
            items: list[Item] = []
            while True:
                if taken is None:
                    ending = True
                else:
                    items += taken
                try:
                    taken = self._queue.get_nowait()
                except queue.Empty:
                    break
            self._do(items)
        with contextlib.suppress(apsw.Error):  # what was acknowledged is in the WAL
            self._connection.close()
        self._post(_resolve, self._ended, None)

    def _do(self, items: list[Item]) -> None:
        """Commit `items` in order: appends together, up to the bounds; each job alone."""
        batch: list[Call | Offsets] = []
        count = size = 0
        for item in items:
            if isinstance(item, Job):
                self._commit(batch)
                self._run(item)
                batch, count, size = [], 0, 0
                continue
            batch.append(item)
            if isinstance(item, Call):
                count += len(item.messages)
                size += item.size
                if count >= BATCH_RECORDS_MAX or size >= BATCH_BYTES_MAX:
                    self._commit(batch)
                    batch, count, size = [], 0, 0
        self._commit(batch)

    def _run(self, job: Job) -> None:
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            result = job.run(self._connection)
            self._connection.execute("COMMIT")
        except Exception as error:
            self._roll_back()
            self._post(_fail, [job], self._named(error))
            return
        self._seen_version = -1  # a job may have moved offsets or made topics
        self._post(_resolve, job.future, result)
        self._after(PAGE_BYTES * 4)

    def _commit(self, batch: list[Call | Offsets]) -> None:
        if not batch:
            return
        asked = batch
        touched: dict[Partition, tuple[list[Record], int]] = {}
        try:
            self._connection.execute("BEGIN IMMEDIATE")
            self._refresh()
            batch, failed = self._resolve_topics(batch)
            connection = self._connection
            advance: list[int] = []
            for partition, (records, binds, size) in self._assign(batch).items():
                for start in range(0, len(binds), ROWS_MAX * 5):
                    few = binds[start : start + ROWS_MAX * 5]
                    connection.execute(insert_sql(partition.id, len(few) // 5), few)
                    reach("bus.in_group_commit")
                advance += (partition.id, partition.next_offset, partition.last_ms, size)
                touched[partition] = (records, size + len(records) * RECORD_OVERHEAD_BYTES)
            for start in range(0, len(advance), 256 * 4):
                moved = advance[start : start + 256 * 4]
                connection.execute(advance_sql(len(moved) // 4), moved)
            for item in batch:
                if isinstance(item, Offsets):
                    _note_offsets(connection, item)
            reach("bus.before_commit")
            connection.execute("COMMIT")
        except Exception as error:
            self._roll_back()
            self._post(_fail, asked, self._named(error))
            return
        reach("bus.after_commit")
        self._post(self._settle, batch, touched)
        for item, refusal in failed:
            self._post(_fail, [item], refusal)
        self._after(sum(size for _, size in touched.values()))

    def _refresh(self) -> None:
        """Within a transaction: learn where partitions end, if another connection has written."""
        version = fetch_one(self._connection, "PRAGMA data_version")
        if version == self._seen_version:
            return
        by_id = self._catalog.partitions
        ends = look_at_ends(self._connection)
        if len(ends) != len(by_id):
            self._catalog.load(self._connection)
        for id_, end, last_ms in ends:
            partition = by_id[id_]
            partition.next_offset, partition.last_ms = end, last_ms
        self._seen_version = version

    def _resolve_topics(
        self, batch: list[Call | Offsets]
    ) -> tuple[list[Call | Offsets], list[tuple[Call, BusError]]]:
        """Route calls whose topic this process had not heard of; set apart those nobody has."""
        failed: list[tuple[Call, BusError]] = []
        for item in batch:
            if isinstance(item, Call) and item.rows is None:
                try:
                    item.rows = route(self._catalog, item.messages)
                except BusError as error:
                    failed.append((item, error))
        if not failed:
            return batch, failed
        bad = {item for item, _ in failed}
        return [item for item in batch if item not in bad], failed

    def _assign(
        self, batch: list[Call | Offsets]
    ) -> dict[Partition, tuple[list[Record], list[SQLiteValue], int]]:
        """Give every record its offset and time; return records, what to bind, and value bytes by partition.

        The hot loop of the bus: tuples are made without the calls that NamedTuple puts around them.
        """
        now_ms = self._clock_ms()
        touched: dict[Partition, tuple[list[Record], list[SQLiteValue]]] = {}
        new = tuple.__new__
        for call in batch:
            if not isinstance(call, Call) or call.rows is None:
                continue
            positions = call.positions
            for partition, message in call.rows:
                lists = touched.get(partition)
                if lists is None:
                    lists = touched[partition] = ([], [])
                    partition.last_ms = max(partition.last_ms, now_ms)  # never back, whatever the clock does
                records, binds = lists
                offset, ms = partition.next_offset, partition.last_ms
                partition.next_offset = offset + 1
                key, value, headers = message.key, message.value, message.headers
                topic, number = message.topic, partition.number
                binds += (offset, ms, key, value, encode_headers(headers))
                records.append(new(Record, (topic, number, offset, ms, key, value, headers)))
                positions.append(new(Position, (topic, number, offset)))
        return {
            partition: (records, binds, sum([len(record.value) for record in records if record.value is not None]))
            for partition, (records, binds) in touched.items()
        }

    def _after(self, written_bytes: int) -> None:
        """What need not be waited for: the others' bells, and copying the WAL into the file."""
        self._bell.ring()
        self._uncopied_bytes += written_bytes + 2 * PAGE_BYTES
        if self._uncopied_bytes > CHECKPOINT_BYTES:
            self._uncopied_bytes = 0
            # An error: later again; the WAL has everything. A full disk is reported by the next append.
            with contextlib.suppress(apsw.Error):
                self._connection.wal_checkpoint(mode=apsw.SQLITE_CHECKPOINT_PASSIVE)

    def _roll_back(self) -> None:
        self._seen_version = -1  # offsets given out in vain
        if self._connection.in_transaction:
            with contextlib.suppress(apsw.Error):  # SQLite has rolled back itself
                self._connection.execute("ROLLBACK")

    def _named(self, error: Exception) -> Exception:
        return in_our_words(error, self._path) if isinstance(error, apsw.Error) else error


def _note_offsets(connection: apsw.Connection, item: Offsets) -> None:
    for partition, offset in item.offsets.items():
        connection.execute(
            "INSERT INTO commits VALUES (?,?,?) ON CONFLICT DO UPDATE SET next_offset = excluded.next_offset",
            (item.group_id, partition, offset),
        )


def _resolve(future: asyncio.Future[Any], result: object) -> None:
    if not future.done():
        future.set_result(result)


def _fail(items: Sequence[Item], error: Exception) -> None:
    for item in items:
        if not item.future.done():
            # One each: a traceback grows on an exception that several tasks raise.
            own = type(error)(str(error)) if isinstance(error, BusError) else error
            item.future.set_exception(own)
