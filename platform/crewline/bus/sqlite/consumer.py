"""Who reads: a tail, and a member of a group."""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol, TypeVar

import apsw

from crewline.bus.base import Assigned, Batch, Revoked
from crewline.bus.sqlite import groups
from crewline.bus.sqlite.catalog import Member, Partition, Topic
from crewline.bus.sqlite.reader import Wanted, out_of_range, read_batches
from crewline.errors import BusError, OffsetOutOfRange, UsageError

POLL_GAP_S_MAX = 300.0  # a member that does not poll for longer gives its partitions up, as on Kafka

T = TypeVar("T")
log = logging.getLogger(__name__)


class Log(Protocol):
    """What readers need of the bus."""

    def look_in_file(self, job: Callable[[apsw.Connection], T]) -> Awaitable[T]:
        """Run `job` on the reading connection, off the loop."""
        ...

    def change(self, job: Callable[[apsw.Connection], T]) -> Awaitable[T]:
        """Run `job` as one transaction of the writer, off the loop."""
        ...

    async def refresh(self) -> None:
        """Learn what other processes have written."""
        ...

    def note_offsets(self, group_id: int, offsets: Mapping[int, int]) -> Awaitable[None]:
        """Write a group's offsets along with the next appends."""
        ...

    def forget(self, reader: Reader) -> None:
        """Take `reader` off the list."""
        ...

    def may_judge(self) -> bool:
        """Return whether this process itself has been running without a pause."""
        ...


class Reader:
    """Reads partitions of one topic from `positions` on, each getting an equal part of every poll."""

    def __init__(self, log: Log, topic: Topic) -> None:
        self._log = log
        self.topic = topic
        self._positions: dict[int, int] = {}
        self._turn = 0
        self._waiter: asyncio.Future[None] | None = None
        self._until = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False
        topic.watchers.add(self)

    def wake(self) -> None:
        """Say that there may be something new."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def poll(self, timeout_s: float, *, records_max: int = 500) -> list[Batch]:
        """Return what is there, waiting up to `timeout_s`. Raises: OffsetOutOfRange."""
        loop = asyncio.get_running_loop()
        until = loop.time() + timeout_s
        waited = False
        while not self._closed:
            await self._prepare()
            batches = await self._take(max(1, records_max))
            left_s = until - loop.time()
            if batches or self._closed or left_s <= 0:
                if not waited:  # records in memory are taken without waiting: let others run in between
                    await asyncio.sleep(0)
                return [] if self._closed else batches
            if not self._has_work():
                await self._wait(until)
                waited = True
        await asyncio.sleep(0)  # whoever polls on and on must not keep the loop to itself
        return []

    async def _prepare(self) -> None:
        """Be ready to read: members of a group look at their assignment first."""

    def _has_work(self) -> bool:
        return False

    async def _wait(self, until: float) -> None:
        self._until = until
        if self._timer is None or self._timer.when() > until:
            self._arm()
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _arm(self) -> None:
        """Set the timer, which is left running from wait to wait: most end long before it rings."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(self._until, self._ring)

    def _ring(self) -> None:
        self._timer = None
        if self._waiter is None:
            return
        if asyncio.get_running_loop().time() >= self._until:
            self.wake()
        else:
            self._arm()

    async def _take(self, records_max: int) -> list[Batch]:
        ready: list[tuple[Partition, int]] = []
        for number, position in list(self._positions.items()):
            partition = self.topic.partitions[number]
            if position < partition.begin or position > partition.end:
                await self._check(partition, position)
            if position < partition.end:
                ready.append((partition, position))
        if not ready:
            return []
        self._turn += 1
        first = self._turn % len(ready)
        batches: list[Batch] = []
        cold: list[Wanted] = []
        left = records_max
        for index, (partition, position) in enumerate(ready[first:] + ready[:first]):
            share = max(1, left // (len(ready) - index)) if left else 0
            if not share:
                break
            records = partition.cached(position, share)
            if records:
                after = position + len(records)
                batches.append(Batch(self.topic.name, partition.number, records, after, partition.end))
                left -= len(records)
            else:
                cold.append(Wanted(partition, position, share))
                left -= min(share, partition.end - position)
        if cold:
            batches += await self._log.look_in_file(lambda connection: read_batches(connection, cold))
        for batch in batches:
            if batch.partition in self._positions:
                self._positions[batch.partition] = batch.next_offset
        return batches

    async def _check(self, partition: Partition, position: int) -> None:
        """Raise OffsetOutOfRange if `position` is outside the log, also after a look at the file."""
        await self._log.refresh()
        if not partition.begin <= position <= partition.end:
            self._positions.pop(partition.number, None)
            raise out_of_range(partition, position, partition.begin, partition.end)

    async def close(self) -> None:
        """Stop reading. Idempotent."""
        if not self._closed:
            self._closed = True
            self.topic.watchers.discard(self)
            self._log.forget(self)
            if self._timer is not None:
                self._timer.cancel()
            self.wake()


class SQLiteTail(Reader):
    """A reader without a group."""

    def __init__(self, log: Log, topic: Topic, starts: Mapping[int, int]) -> None:
        super().__init__(log, topic)
        self._positions.update(starts)


class SQLiteConsumer(Reader):
    """A member of a group. What it owns is what the tables say; `poll` brings the callbacks into line.

    `due` is set by the bus when the group's version has moved, a member has died, or the lease is gone.
    """

    def __init__(
        self,
        log: Log,
        topic: Topic,
        group: str,
        group_id: int,
        *,
        assigned: Assigned,
        revoked: Revoked,
        name: str,
        session_s: float,
    ) -> None:
        super().__init__(log, topic)
        self.group = group
        self.due = True
        self.version = -1
        id_ = f"{name or 'member'}-{uuid.uuid4().hex[:12]}"
        pid = os.getpid()
        self.me = Member(
            id_, name or id_, group_id, groups.home(), pid, groups.started_at(pid), 0, int(session_s * 1000)
        )
        self._assigned_callback = assigned
        self._revoked_callback = revoked
        self._polled_at = self._renewed_at = time.monotonic()
        self._lock = asyncio.Lock()
        self._polling: asyncio.Task[object] | None = None

    def assignment(self) -> frozenset[int]:
        """Return the partitions owned now, as of the last poll."""
        return frozenset(self._positions)

    async def poll(self, timeout_s: float, *, records_max: int = 500) -> list[Batch]:
        """Return what is there; see `Consumer.poll`."""
        async with self._lock:
            self._polling = asyncio.current_task()
            try:
                return await super().poll(timeout_s, records_max=records_max)
            finally:
                self._polling = None
                self._polled_at = time.monotonic()

    async def commit(self, offsets: Mapping[int, int]) -> None:
        """Note how far the group has read, for partitions still owned."""
        mine = {number: offset for number, offset in offsets.items() if number in self._positions}
        if mine and not self._closed:
            await self._log.note_offsets(self.me.group_id, mine)

    async def close(self) -> None:
        """Revoke what is owned and leave the group."""
        if self._closed:
            return
        await super().close()
        if self._polling is not None and self._polling is asyncio.current_task():
            await self._part()  # closed from within a callback of its own poll
            return
        async with self._lock:
            await self._part()

    async def _part(self) -> None:
        owned = sorted(self._positions)
        self._positions.clear()
        try:
            if owned:
                await self._revoked_callback(owned)
        finally:
            try:
                await self._log.change(lambda connection: groups.leave(connection, self.me))
            except BusError as error:  # its lease will end
                log.warning("leaving group %s: %s", self.group, error)

    def lease_to_renew(self, now: float) -> Member | None:
        """Return the membership to renew now, or None if this member has not polled for too long."""
        session_s = self.me.session_ms / 1000
        idle = self._polling is None and now - self._polled_at > POLL_GAP_S_MAX
        return None if self._closed or idle or now - self._renewed_at < session_s / 4 else self.me

    def renewed(self, now: float, *, still_member: bool) -> None:
        """Hear how the renewal went."""
        self._renewed_at = now
        if not still_member:
            self.due = True
            self.wake()

    async def _prepare(self) -> None:
        now = self._polled_at = time.monotonic()
        # A process that was stopped finds its lease run out: others may own its partitions by now.
        if self.due or now - self._renewed_at > self.me.session_ms / 1000:
            await self._review()

    def _has_work(self) -> bool:
        return self.due

    async def _review(self) -> None:
        self.due = False
        try:
            await self._follow_tables()
        except BaseException:
            self.due = True
            raise

    async def _follow_tables(self) -> None:
        partitions, may_judge = len(self.topic.partitions), self._log.may_judge()
        share = await self._log.change(
            lambda connection: groups.review(connection, self.me, partitions, may_judge=may_judge)
        )
        self._renewed_at = time.monotonic()
        self.version = max(self.version, share.version)
        going = sorted(number for number in self._positions if number not in share.owned - share.surplus)
        for number in going:
            del self._positions[number]
        if going:
            await self._revoked_callback(going)
        if share.surplus:
            await self._log.change(lambda connection: groups.release(connection, self.me, share.surplus))
        coming = sorted(share.owned - share.surplus - self._positions.keys())
        if coming and not self._closed:
            await self._start(coming)

    async def _start(self, coming: Sequence[int]) -> None:
        starts = await self._assigned_callback(coming)
        missing = [number for number in coming if number not in starts]
        if missing:
            raise UsageError(f"`assigned` gave no start offset for partitions {missing} of {self.topic.name}")
        await self._log.refresh()
        problem: OffsetOutOfRange | None = None
        for number in coming:
            partition, start = self.topic.partitions[number], starts[number]
            if partition.begin <= start <= partition.end:
                self._positions[number] = start
            else:
                problem = out_of_range(partition, start, partition.begin, partition.end)
        if problem is not None:
            raise problem  # at the next poll `assigned` is asked again for those

    async def _check(self, partition: Partition, position: int) -> None:
        try:
            await super()._check(partition, position)
        except OffsetOutOfRange:
            self.due = True  # the partition is still owned: `assigned` is asked where to go on
            raise
