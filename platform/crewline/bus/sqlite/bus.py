"""SQLiteBus: the embedded log, put together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import apsw

from crewline.bus.base import (
    RECORD_BYTES_MAX,
    Assigned,
    Batch,
    GroupLag,
    Message,
    Position,
    Revoked,
    TopicInfo,
)
from crewline.bus.bell import Bell
from crewline.bus.sqlite import groups
from crewline.bus.sqlite.catalog import Catalog, Topic, View, look
from crewline.bus.sqlite.consumer import Reader, SQLiteConsumer, SQLiteTail
from crewline.bus.sqlite.file import FILE, connect, fetch, fetch_one, in_our_words, records_sql
from crewline.bus.sqlite.reader import Wanted, read_batches
from crewline.bus.sqlite.sweep import SWEEP_S, TOMBSTONE_S, claim, sweep
from crewline.bus.sqlite.writer import Call, Offsets, Writer, route
from crewline.errors import BusError, BusUnavailable, RecordTooLarge, TopicMismatch, UnknownTopic, UsageError
from crewline.topics import TopicSpec

log = logging.getLogger(__name__)

TICK_S = 0.5  # looking whether members have died; every other time also at the file
T = TypeVar("T")


def wall_clock_ms() -> int:
    """Return Unix time in ms."""
    return time.time_ns() // 1_000_000


async def open_bus(
    directory: Path,
    *,
    clock_ms: Callable[[], int] = wall_clock_ms,
    session_s: float = 10.0,
    tombstone_s: float = TOMBSTONE_S,
) -> SQLiteBus:
    """Open the log in `directory`, creating both if they are not there.

    Args:
        clock_ms: Unix time in ms, for the time stamps of records; read once per commit.
        session_s: how long a member may be silent (stopped, not dead: the dead are noticed in 1 s).
        tombstone_s: how long compaction keeps a tombstone.

    Raises: UsageError, LogDamaged, BusUnavailable, each naming the file and what to do.
    """
    loop = asyncio.get_running_loop()
    path = directory / FILE
    reading = ThreadPoolExecutor(1, thread_name_prefix="crewline-read")
    try:
        connection = await loop.run_in_executor(reading, connect, path)
        reader = await loop.run_in_executor(reading, connect, path)
        catalog = Catalog()
        await loop.run_in_executor(reading, catalog.load, reader)
        return SQLiteBus(
            directory,
            connection,
            reader,
            reading,
            catalog,
            clock_ms=clock_ms,
            session_s=session_s,
            tombstone_s=tombstone_s,
        )
    except apsw.Error as error:
        reading.shutdown(wait=False)
        raise in_our_words(error, path) from error
    except BaseException:
        reading.shutdown(wait=False)
        raise


class SQLiteBus:
    """The bus on one SQLite file. Made by `open_bus`; belongs to the event loop that opened it."""

    def __init__(
        self,
        directory: Path,
        connection: apsw.Connection,
        reader: apsw.Connection,
        reading: ThreadPoolExecutor,
        catalog: Catalog,
        *,
        clock_ms: Callable[[], int],
        session_s: float,
        tombstone_s: float,
    ) -> None:
        self.directory = directory
        self.path = directory / FILE
        self._loop = asyncio.get_running_loop()
        self._reader = reader
        self._reading = reading
        self._clock_ms = clock_ms
        self._session_s = session_s
        self._tombstone_s = tombstone_s
        self._catalog = catalog
        self._bell = Bell(directory)
        self._writer = Writer(self.path, connection, self._catalog, self._bell, clock_ms, _wake_followers)
        self._readers: set[Reader] = set()
        self._view = View([], [], [])
        self._file_version = -1
        self._refreshing: asyncio.Task[None] | None = None
        self._again = False
        self._ticking: asyncio.Task[None] | None = None
        self._sweeping = self._loop.create_task(self._sweep_now_and_then())
        self._ticked_at = time.monotonic()
        self._closed = False
        self._closing: asyncio.Task[None] | None = None

    async def __aenter__(self) -> SQLiteBus:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def address(self) -> str:
        return f"embedded:{self.directory}"

    # --- topics --------------------------------------------------------------------------------

    async def create_topics(self, specs: Sequence[TopicSpec]) -> None:
        for spec in specs:
            if not spec.name or spec.partitions < 1:
                raise UsageError(f"a topic needs a name and at least one partition: {spec}")

        def job(connection: apsw.Connection) -> None:
            self._catalog.load(connection)
            _refuse_mismatches(specs, self._catalog)
            for spec in specs:
                _create_topic(connection, spec)

        await self.change(job)
        await self.refresh()

    async def topics(self) -> dict[str, TopicInfo]:
        await self.refresh()

        def sizes(connection: apsw.Connection) -> dict[int, int]:
            return dict(fetch(connection, "SELECT topic_id, sum(value_bytes) FROM partitions GROUP BY topic_id"))

        size = await self.look_in_file(sizes)
        return {
            name: TopicInfo(topic.spec, *_offsets(topic), size.get(topic.id, 0))
            for name, topic in sorted(self._catalog.topics.items())
        }

    async def partitions(self, topic: str) -> int:
        return (await self._topic(topic)).spec.partitions

    async def offsets(self, topic: str) -> tuple[Mapping[int, int], Mapping[int, int]]:
        found = await self._topic(topic)
        await self.refresh()
        return _offsets(found)

    async def _topic(self, name: str) -> Topic:
        if name not in self._catalog.topics:
            await self.refresh()
        try:
            return self._catalog.topics[name]
        except KeyError:
            known = ", ".join(sorted(self._catalog.topics)) or "none"
            raise UnknownTopic(f"there is no topic {name!r} in {self.path}. Topics: {known}") from None

    # --- records -------------------------------------------------------------------------------

    def append(self, messages: Sequence[Message]) -> Awaitable[list[Position]]:
        future: asyncio.Future[list[Position]] = self._loop.create_future()
        call = Call(future, messages)
        try:
            for message in messages:
                if message.value is not None:
                    if len(message.value) > RECORD_BYTES_MAX:
                        raise RecordTooLarge(
                            f"a record for {message.topic!r} has {len(message.value):,} bytes; "
                            f"at most {RECORD_BYTES_MAX:,} are taken"
                        )
                    call.size += len(message.value)
            with contextlib.suppress(UnknownTopic):  # another process may have made it: the writer looks
                call.rows = route(self._catalog, messages)
            self._writer.put(call)
        except BusError as error:
            future.set_exception(error)
        return future

    async def read(self, topic: str, partition: int, start: int, *, records_max: int = 500) -> Batch:
        found = await self._topic(topic)
        if not 0 <= partition < found.spec.partitions:
            raise UnknownTopic(f"topic {topic!r} has no partition {partition}; it has 0 to {found.spec.partitions - 1}")
        part = found.partitions[partition]
        records = part.cached(start, records_max) if start >= part.begin else []
        if records:
            return Batch(topic, partition, records, start + len(records), part.end)
        wanted = [Wanted(part, start, max(1, records_max))]
        (batch,) = await self.look_in_file(lambda connection: read_batches(connection, wanted))
        return batch

    # --- readers -------------------------------------------------------------------------------

    async def consumer(
        self, topic: str, group: str, *, assigned: Assigned, revoked: Revoked, member: str = ""
    ) -> SQLiteConsumer:
        found = await self._topic(topic)
        group_id = await self.change(lambda connection: groups.group_id(connection, found.id, group))
        await self._start_ticking()
        consumer = SQLiteConsumer(
            self,
            found,
            group,
            group_id,
            assigned=assigned,
            revoked=revoked,
            name=member,
            session_s=self._session_s,
        )
        self._readers.add(consumer)
        # Joined now, so that others make room; what is free is taken at the first poll.
        await self.change(lambda connection: groups.join(connection, consumer.me))
        return consumer

    async def tail(self, topic: str, starts: Mapping[int, int] | None = None) -> SQLiteTail:
        found = await self._topic(topic)
        await self._start_ticking()
        await self.refresh()
        wrong = [] if starts is None else [number for number in starts if not 0 <= number < found.spec.partitions]
        if wrong:
            raise UnknownTopic(f"topic {topic!r} has no partition {wrong[0]}; it has 0 to {found.spec.partitions - 1}")
        tail = SQLiteTail(self, found, _offsets(found)[1] if starts is None else starts)
        self._readers.add(tail)
        return tail

    async def lags(self) -> list[GroupLag]:
        await self.refresh()
        now_ms = self._clock_ms()
        return await self.look_in_file(lambda connection: groups.lags(connection, self._catalog, now_ms))

    # --- what readers need (sqlite_consumer.Log) -----------------------------------------------

    async def look_in_file(self, job: Callable[[apsw.Connection], T]) -> T:
        if self._closed:
            raise BusUnavailable(f"the bus on {self.path} is closed")
        try:
            return await self._loop.run_in_executor(self._reading, job, self._reader)
        except apsw.Error as error:
            raise in_our_words(error, self.path) from error

    async def change(self, job: Callable[[apsw.Connection], T]) -> T:
        result = await self._writer.run(job)
        self._refresh_soon()
        return result

    def note_offsets(self, group_id: int, offsets: Mapping[int, int]) -> Awaitable[None]:
        future: asyncio.Future[None] = self._loop.create_future()
        self._writer.put(Offsets(future, group_id, dict(offsets)))
        return future

    def forget(self, reader: Reader) -> None:
        self._readers.discard(reader)

    def may_judge(self) -> bool:
        return time.monotonic() - self._ticked_at < self._session_s / 2

    async def refresh(self) -> None:
        """Learn what has been written, by anybody: offsets, topics, groups."""
        view = await self.look_in_file(self._look)
        self._apply(view)

    def _look(self, connection: apsw.Connection) -> View:
        view = look(connection)
        if any(id_ not in self._catalog.partitions for id_, *_ in view.offsets):
            self._catalog.load(connection)
        return view

    def _apply(self, view: View) -> None:
        self._view = view
        grown: set[Topic] = set()
        for id_, begin, end in view.offsets:
            partition = self._catalog.partitions[id_]
            partition.begin = max(partition.begin, begin)
            if end > partition.end:
                partition.end = end
                grown.add(partition.topic)
        versions = dict(view.groups)
        for consumer in self._consumers():
            if versions.get(consumer.me.group_id, -1) > consumer.version:
                consumer.due = True
                consumer.wake()
        _wake_followers(grown)

    def _refresh_soon(self) -> None:
        """Refresh without waiting for it; once more if asked again meanwhile."""
        self._again = True
        if (self._refreshing is None or self._refreshing.done()) and self._closing is None:
            self._refreshing = self._loop.create_task(self._refresh_until_calm())

    async def _refresh_until_calm(self) -> None:
        while self._again:
            self._again = False
            try:
                await self.refresh()
            except BusError as error:
                log.warning("%s", error)

    def _consumers(self) -> Iterable[SQLiteConsumer]:
        return [reader for reader in self._readers if isinstance(reader, SQLiteConsumer)]

    # --- now and then --------------------------------------------------------------------------

    async def _start_ticking(self) -> None:
        if self._ticking is None:
            self._bell.listen(self._loop, self._refresh_soon)
            self._ticked_at = time.monotonic()
            self._ticking = self._loop.create_task(self._tick_for_ever())

    async def _tick_for_ever(self) -> None:
        turn = 0
        while True:
            await asyncio.sleep(min(TICK_S, self._session_s / 8))
            turn += 1
            try:
                await self._tick(look_at_file=turn % 2 == 0)
            except BusError as error:
                log.warning("%s", error)
            self._ticked_at = time.monotonic()

    async def _tick(self, *, look_at_file: bool) -> None:
        """Renew leases that are due, look for the dead, and for changes whose bell was lost."""
        now = time.monotonic()
        renewing = {
            consumer: me for consumer in self._consumers() if (me := consumer.lease_to_renew(now)) is not None
        }
        if renewing:
            alive = await self._writer.run(
                lambda connection: {me.id: groups.renew(connection, me) for me in renewing.values()}
            )
            for consumer, me in renewing.items():
                consumer.renewed(now, still_member=alive[me.id])
        if look_at_file and await self.look_in_file(_data_version) != self._file_version:
            self._file_version = await self.look_in_file(_data_version)
            await self.refresh()
        may_judge = self.may_judge()
        own = {consumer.me.id for consumer in self._consumers()}
        dead = {
            member.group_id
            for member in self._view.members
            if member.id not in own and groups.is_dead(member, may_judge=may_judge)
        }
        for consumer in self._consumers():
            if consumer.me.group_id in dead:
                consumer.due = True
                consumer.wake()

    async def sweep(self, *, eager: bool = True) -> None:
        """Apply retention and compaction now. `eager` False: compact only where half is new."""
        await sweep(self._catalog, self.change, self._clock_ms(), tombstone_s=self._tombstone_s, eager=eager)
        await self.refresh()

    async def _sweep_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                if self._swept_topics() and await claim(self.change, self._clock_ms()):
                    await self.sweep(eager=False)
            except BusError as error:
                log.warning("%s", error)

    def _swept_topics(self) -> bool:
        specs = [topic.spec for topic in self._catalog.topics.values()]
        return any(s.compacted or s.retention_s is not None or s.retention_bytes is not None for s in specs)

    # --- the end -------------------------------------------------------------------------------

    async def close(self) -> None:
        if self._closing is None:
            self._closing = self._loop.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        for reader in list(self._readers):
            try:
                await reader.close()
            except Exception:  # its callbacks are the caller's code; the others are closed all the same
                log.exception("closing a reader of %s", reader.topic.name)
        background = [task for task in (self._sweeping, self._ticking, self._refreshing) if task is not None]
        for task in background:
            task.cancel()
        await asyncio.gather(*background, return_exceptions=True)
        await self._writer.close()
        self._closed = True
        await self._loop.run_in_executor(self._reading, self._reader.close)
        self._reading.shutdown()
        self._bell.close(self._loop)


def _wake_followers(topics: Iterable[Topic]) -> None:
    for topic in topics:
        for watcher in topic.watchers:
            watcher.wake()


def _offsets(topic: Topic) -> tuple[dict[int, int], dict[int, int]]:
    return (
        {partition.number: partition.begin for partition in topic.partitions},
        {partition.number: partition.end for partition in topic.partitions},
    )


def _data_version(connection: apsw.Connection) -> Any:
    return fetch_one(connection, "PRAGMA data_version")


def _refuse_mismatches(specs: Sequence[TopicSpec], catalog: Catalog) -> None:
    problems = []
    for spec in specs:
        topic = catalog.topics.get(spec.name)
        if topic is None:
            continue
        for field in ("partitions", "compacted", "retention_s", "retention_bytes"):
            has, asked = getattr(topic.spec, field), getattr(spec, field)
            if has != asked:
                problems.append(f"{spec.name}: {field} is {has}, not {asked}")
    if problems:
        raise TopicMismatch("topics exist with other settings: " + "; ".join(problems))


def _create_topic(connection: apsw.Connection, spec: TopicSpec) -> None:
    connection.execute(
        "INSERT OR IGNORE INTO topics(name, partitions, compacted, retention_s, retention_bytes) VALUES (?,?,?,?,?)",
        (spec.name, spec.partitions, spec.compacted, spec.retention_s, spec.retention_bytes),
    )
    if connection.changes():
        topic_id = connection.last_insert_rowid()
        for number in range(spec.partitions):
            connection.execute("INSERT INTO partitions(topic_id, partition) VALUES (?,?)", (topic_id, number))
            connection.execute(records_sql(connection.last_insert_rowid()))
