"""Takes an outside topic into the log of triggers: one event for each record that counts, under its trigger's key.

The outside topic is not ours: any keys, any values, no seals, any number of partitions, any retention. Its
records are grouped anew here by what the trigger calls their key, so that all of a key's events are in one
partition, in one order.

What was taken is known by a mark in the store for each outside partition. It is written after the events stand,
so a kill repeats some: the fold knows them by partition and offset. A partition's events are appended in order,
each batch after the one before stands; that is what makes the highest offset taken enough to know a repeat.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass

from crewline_memory.base import Mark, MemoryStore

from crewline.bus.base import Batch, Bus, Consumer, Message, Record
from crewline.crashpoints import reach
from crewline.errors import (
    BusError,
    OffsetOutOfRange,
    RecordInvalid,
    RecordTooLarge,
    StoreError,
    TopicMismatch,
)
from crewline.records import Reader, Scribe
from crewline.topics import CrewTopics
from crewline.triggers.letters import letter_of_record
from crewline.triggers.rules import TriggerRule
from crewline.triggers.taken import group_of, taken_before
from crewline.triggers.taking import NotTaken, take

log = logging.getLogger("crewline.triggers")

POLL_S = 1.0
MARK_S = 0.5  # how often marks are written: what a kill repeats at most, in seconds
RETRY_S = 0.5
WAITING_MAX = 500  # firings that wait for a place, beyond which nothing more is read


@dataclass(slots=True)
class _Part:
    """One outside partition. `marked` is what the store has."""

    next_offset: int
    epoch: int
    marked: int
    print: str = ""  # of the record before `next_offset`


class Intake:
    """One trigger's member of the group that reads its outside topic. `run` until `stop`.

    Args:
        reader: checks records of `<ns>.triggers`, for when the store has lost how far they were taken.
        waiting: how many firings of a trigger wait for a place in this process.
        open_bus: opens the bus once more. A bus refuses a topic whose number of partitions has changed, since keys
            move; here they may, so a new one is opened to read the outside topic with.
    """

    def __init__(
        self, rule: TriggerRule, *, bus: Bus, store: MemoryStore, scribe: Scribe, reader: Reader, topics: CrewTopics,
        clock_ms: Callable[[], int], waiting: Callable[[str], int], open_bus: Callable[[], Awaitable[Bus]], member: str = "",
    ) -> None:
        self.rule = rule
        self.name = rule.intake
        self.counts: Counter[str] = Counter()  # taken, left_out, dead, gap: of this process
        self.stopped_by: str | None = None  # the error that ended it, with `on_error: stop`
        self.outside = bus  # the outside topic is read with it
        self._bus = bus
        self._open_bus = open_bus
        self._store = store
        self._scribe = scribe
        self._reader = reader
        self._topics = topics
        self._clock_ms = clock_ms
        self._waiting = waiting
        self._member = member
        self._parts: dict[int, _Part] = {}
        self._stopping = asyncio.Event()
        self._marked_at = 0.0

    # --- life ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Join the group and take events until `stop`."""
        while not self._stopping.is_set():
            try:
                await self._session()
            except TopicMismatch as error:
                log.warning("trigger %s: %s; its records are grouped anew here in any case", self.rule.name, error.message)
                await self._read_anew()
            except OffsetOutOfRange as error:
                # Retention cut what was not taken yet; joining again finds where the topic begins now.
                log.warning("trigger %s: %s", self.rule.name, error.message)
            except (BusError, StoreError) as error:
                log.warning("trigger %s: %s; trying again", self.rule.name, error.message)
                await self._pause(RETRY_S)
        await self._close_outside()

    async def _read_anew(self) -> None:
        """Open a bus that learns the outside topic as it is now."""
        await self._close_outside()
        try:
            self.outside = await self._open_bus()
        except BusError as error:
            log.warning("trigger %s: %s; trying again", self.rule.name, error.message)
            await self._pause(RETRY_S)

    async def _close_outside(self) -> None:
        outside, self.outside = self.outside, self._bus
        if outside is not self._bus:
            await outside.close()

    def stop(self) -> None:
        """Ask `run` to end."""
        self._stopping.set()

    async def _session(self) -> None:
        consumer = await self.outside.consumer(
            self.rule.topic, group_of(self._topics.namespace, self.rule),
            assigned=self._assigned, revoked=self._revoked, member=self._member,
        )
        try:
            while not self._stopping.is_set() and self.stopped_by is None:
                while self._waiting(self.rule.name) >= WAITING_MAX and not self._stopping.is_set():
                    await self._pause(0.1)  # the topic keeps what cannot be worked on yet
                for batch in await self._poll(consumer):
                    await self._take(batch)
                await self._mark(consumer)
            await self._mark(consumer, now=True)
        finally:
            await consumer.close()
        if self.stopped_by is not None:
            await self._stopping.wait()

    async def _poll(self, consumer: Consumer) -> Sequence[Batch]:
        """Wait for records, but not once this is to stop, and not long while events are not marked yet."""
        poll = asyncio.ensure_future(consumer.poll(MARK_S if self._unmarked() else POLL_S))
        stopping = asyncio.ensure_future(self._stopping.wait())
        try:
            await asyncio.wait({poll, stopping}, return_when=asyncio.FIRST_COMPLETED)
            return poll.result() if poll.done() else ()
        finally:
            stopping.cancel()
            if not poll.done():
                poll.cancel()
                await asyncio.gather(poll, return_exceptions=True)

    # --- ownership -----------------------------------------------------------------------------

    async def _assigned(self, partitions: Sequence[int]) -> Mapping[int, int]:
        while True:
            try:
                begins, ends = await self.outside.offsets(self.rule.topic)
                lost: Mapping[int, tuple[int, int]] | None = None
                for partition in partitions:
                    mark = await self._store.mark(self.name, partition)
                    if mark is None and lost is None:
                        lost = await taken_before(self._bus, self._topics.triggers, self._reader, self.rule)
                    self._parts[partition] = await self._start(partition, begins[partition], ends[partition], mark, lost or {})
                return {partition: self._parts[partition].next_offset for partition in partitions}
            except (BusError, StoreError) as error:
                if self._stopping.is_set():
                    raise
                log.warning("trigger %s: %s; trying again", self.rule.name, error.message)
                await self._pause(RETRY_S)

    async def _start(
        self, partition: int, begin: int, end: int, mark: Mark | None, lost: Mapping[int, tuple[int, int]]
    ) -> _Part:
        """Go on at the mark; or after what `<ns>.triggers` holds; or at the beginning of the topic."""
        if mark is not None:
            epoch, offset = int.from_bytes(mark.carry, "big"), mark.next_offset
        else:
            epoch, offset = lost.get(partition, (0, begin))
        if offset > end or (mark is not None and await self._is_another(partition, begin, mark)):
            log.warning("trigger %s: topic %s was made anew; its partition %d is taken from the beginning",
                        self.rule.name, self.rule.topic, partition)
            await self._store.drop(self.name, partition)
            return _Part(begin, max(self._clock_ms(), epoch + 1), 0)
        if offset < begin:
            self.counts["gap"] += begin - offset
            log.error("trigger %s: records %d to %d of %s partition %d were removed before they were taken; going on "
                      "with what is there", self.rule.name, offset, begin - 1, self.rule.topic, partition)
            offset = begin
        return _Part(offset, epoch, mark.next_offset if mark is not None else 0)

    async def _is_another(self, partition: int, begin: int, mark: Mark) -> bool:
        """Whether the record before the mark is not the one that stood there."""
        if mark.next_offset <= begin or not mark.id_before:
            return False
        before = await self.outside.read(self.rule.topic, partition, mark.next_offset - 1, records_max=1)
        record = next(iter(before.records), None)
        return record is not None and record.offset == mark.next_offset - 1 and _print(record) != mark.id_before

    async def _revoked(self, partitions: Sequence[int]) -> None:
        try:
            await self._write_marks(partitions)
        except StoreError as error:
            log.warning("trigger %s: no mark at hand-over: %s; the next owner repeats some", self.rule.name, error.message)
        for partition in partitions:
            self._parts.pop(partition, None)

    # --- taking --------------------------------------------------------------------------------

    async def _take(self, batch: Batch) -> None:
        part = self._parts.get(batch.partition)
        if part is None:
            return
        messages: list[Message] = []
        next_offset = batch.next_offset
        for record in batch.records:
            if record.offset < part.next_offset:
                continue
            try:
                messages += self._messages(record, part.epoch)
            except NotTaken as error:
                if self.rule.on_error == "stop":
                    self._stop_at(record, error)
                    next_offset = record.offset
                    break
                messages += self._not_taken(record, error)
            part.print = _print(record)
        if messages and not await self._append(messages):
            return  # this process stops; nothing is marked
        reach("triggers.after_take")
        part.next_offset = max(part.next_offset, next_offset)

    def _messages(self, record: Record, epoch: int) -> list[Message]:
        """Return the event in `record` as a message; none if it is left out. Raises: NotTaken."""
        fresh = take(record, self.rule, epoch=epoch, now_ms=self._clock_ms())
        if fresh is None:
            self.counts["left_out"] += 1
            return []
        id = f"{self.rule.name}:{record.topic}:{epoch}:{record.partition}:{record.offset}"
        try:
            message = self._scribe.message(self._topics.triggers, fresh.key, fresh.event, id=id, run=fresh.key)
        except (RecordInvalid, RecordTooLarge) as error:  # integers beyond 64 bits, too many levels
            raise NotTaken(error.message) from None
        self.counts["taken"] += 1
        return [message]

    def _not_taken(self, record: Record, error: NotTaken) -> list[Message]:
        self.counts["dead"] += 1
        if self.rule.on_error == "skip":
            log.info("trigger %s: %s partition %d offset %d skipped: %s", self.rule.name, record.topic,
                     record.partition, record.offset, error.message)
            return []
        log.warning("trigger %s: %s partition %d offset %d is a dead letter: %s", self.rule.name, record.topic,
                    record.partition, record.offset, error.message)
        return [letter_of_record(self._topics.dead_letters, record, self.rule.name, error.message)]

    def _stop_at(self, record: Record, error: NotTaken) -> None:
        self.stopped_by = error.message
        log.critical("trigger %s stopped at %s partition %d offset %d (on_error: stop): %s", self.rule.name,
                     record.topic, record.partition, record.offset, error.message)

    async def _append(self, messages: Sequence[Message]) -> bool:
        """Append until it stands; return False if this is to stop first."""
        while True:
            try:
                await self._bus.append(messages)
                return True
            except BusError as error:
                log.warning("trigger %s: append failed: %s; trying again", self.rule.name, error.message)
                await self._pause(RETRY_S)
                if self._stopping.is_set():
                    return False

    # --- marks ---------------------------------------------------------------------------------

    def _unmarked(self) -> bool:
        return any(part.next_offset != part.marked for part in self._parts.values())

    async def _mark(self, consumer: Consumer, *, now: bool = False) -> None:
        clock = asyncio.get_running_loop().time()
        if not self._unmarked() or (not now and clock - self._marked_at < MARK_S):
            return
        self._marked_at = clock
        await self._write_marks(tuple(self._parts))
        try:
            await consumer.commit({partition: part.next_offset for partition, part in self._parts.items()})
        except BusError as error:
            log.debug("trigger %s: the group's offset was not noted (only lag is computed from it): %s", self.rule.name, error)

    async def _write_marks(self, partitions: Sequence[int]) -> None:
        for partition in partitions:
            part = self._parts.get(partition)
            if part is None or part.next_offset == part.marked:
                continue
            mark = Mark(part.next_offset, part.print, 0, part.epoch.to_bytes(8, "big"))
            await self._store.write(self.name, partition, mark, {})
            part.marked = part.next_offset
            reach("triggers.after_mark")

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return


def _print(record: Record) -> str:
    """Return what tells a record from another one at its place."""
    return f"{record.timestamp_ms}:{zlib.crc32(record.value or b''):x}"
