"""Reading on and on, each partition getting an equal part of every poll. A tail; and what a group's member stands on.

    windows of the feed (new records, shared) ─┐
                                               ├──poll──▶ batches
    what is fetched for this reader alone ─────┘  (while it is behind the window)

Positions are kept here and nowhere else: they are those of what was handed out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Any

from crewline.bus.base import Batch, Record
from crewline.bus.kafka.feed import AHEAD_BYTES_MAX, Feed, Window
from crewline.bus.kafka.fetching import Place
from crewline.bus.kafka.wire import Wire, out_of_range
from crewline.errors import BusError, OffsetOutOfRange

log = logging.getLogger(__name__)


class Behind:
    """What was fetched for one reader alone, of a partition whose window is further on."""

    __slots__ = ("after", "end", "error", "fetching", "records")

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.after = self.end = -1
        self.error: BusError | None = None
        self.fetching: asyncio.Task[None] | None = None


class Reader:
    """Reads partitions of one topic from `positions` on."""

    def __init__(self, topic: str, wire: Wire, feed: Feed, forget: Callable[[Any], None]) -> None:
        self.topic = topic
        self._wire = wire
        self._feed = feed
        self._options = wire.options
        self._forget = forget
        self._positions: dict[int, int] = {}
        self._windows: dict[int, Window] = {}
        self._behind: dict[int, Behind] = {}
        self._turn = 0
        self._waiter: asyncio.Future[None] | None = None
        self._woken = False
        self._lock = asyncio.Lock()
        self._polling: asyncio.Task[Any] | None = None
        self._closed = False

    # --- for subclasses ------------------------------------------------------------------------

    async def start(self, wait_s: float) -> None:
        """Begin, and wait up to `wait_s` until that has worked; `poll` waits on. Raises: BusError."""

    async def _prepare(self, left_s: float) -> bool:
        """Be ready to read; return False if that must be waited for: members of a group look at their share first."""
        return True

    async def _part(self) -> None:
        """Leave."""

    def _left_out(self, partition: int) -> None:
        """Hear that reading `partition` has ended: its position is not in the log."""

    # --- life ----------------------------------------------------------------------------------

    def wake(self) -> None:
        """Hear that there may be something new."""
        self._woken = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def close(self) -> None:
        """Stop reading. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self.wake()
        self._forget(self)
        try:
            if self._polling is not None and self._polling is asyncio.current_task():
                await self._part()  # closed from within a callback of its own poll
            else:
                async with self._lock:
                    await self._part()
        finally:
            for number in list(self._positions):
                self._drop(number)

    # --- polling -------------------------------------------------------------------------------

    async def poll(self, timeout_s: float, *, records_max: int = 500) -> list[Batch]:
        """Return what is there, waiting up to `timeout_s`; see `Consumer.poll`."""
        async with self._lock:
            self._polling = asyncio.current_task()
            try:
                return await self._poll(asyncio.get_running_loop().time() + timeout_s, max(1, records_max))
            finally:
                self._polling = None

    async def _poll(self, until: float, records_max: int) -> list[Batch]:
        loop = asyncio.get_running_loop()
        while not self._closed:
            self._woken = False
            self._wire.refuse_changed(self.topic)
            ready = await self._prepare(max(0.0, until - loop.time()))
            if self._closed:
                break
            batches = await self._take(records_max) if ready else []
            left_s = until - loop.time()
            if batches or left_s <= 0:
                await asyncio.sleep(0)  # what is in memory is taken without waiting: let others run
                return [] if self._closed else batches
            if not self._woken:
                await self._wait(left_s)
        await asyncio.sleep(0)  # whoever polls on and on must not keep the loop to itself
        return []

    async def _wait(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        waiter = self._waiter = loop.create_future()
        timer = loop.call_later(seconds, self.wake)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiter = None

    async def _take(self, records_max: int) -> list[Batch]:
        """Return up to `records_max` records of what is in memory, an equal part of each partition."""
        ready = []
        for number, position in list(self._positions.items()):
            window = self._windows[number]
            if window.holds(position):
                self._behind.pop(number, None)
                if position < window.end:
                    ready.append(number)
                elif window.lost or window.refused is not None:
                    await self._stopped(number, window)
            elif self._take_behind(number, window, position):
                ready.append(number)
        if not ready:
            return []
        self._turn += 1
        first = self._turn % len(ready)
        batches: list[Batch] = []
        left = records_max
        for index, number in enumerate(ready[first:] + ready[:first]):
            part = max(1, left // (len(ready) - index)) if left else 0
            if not part:
                break
            batches.append(self._batch(number, part))
            left -= len(batches[-1].records)
        return batches

    def _batch(self, number: int, records_max: int) -> Batch:
        window, behind = self._windows[number], self._behind.get(number)
        if behind is None:
            was_full = window.bytes > AHEAD_BYTES_MAX
            records, after = window.take(self._positions[number], records_max)
            end = window.log_end
            self._positions[number] = after
            if was_full:
                self._feed.wanted()
        else:
            records, rest = behind.records[:records_max], behind.records[records_max:]
            behind.records = rest
            after = records[-1].offset + 1 if rest else behind.after
            end = behind.end
            self._positions[number] = after
        return Batch(self.topic, number, records, after, max(end, after))

    # --- behind the window ---------------------------------------------------------------------

    def _take_behind(self, number: int, window: Window, position: int) -> bool:
        """Return whether something of a partition that is behind its window is in memory; see to it that it will be."""
        behind = self._behind.get(number)
        if behind is None:
            behind = self._behind[number] = Behind()
        if behind.error is not None:
            error, behind.error = behind.error, None
            if isinstance(error, OffsetOutOfRange):
                self._drop(number)
                self._left_out(number)
            raise error
        if behind.records or behind.after > position:
            return True
        if behind.fetching is None:
            behind.fetching = asyncio.get_running_loop().create_task(self._fetch(number, behind, position))
        return False

    async def _fetch(self, number: int, behind: Behind, position: int) -> None:
        try:
            batch = await self._wire.read(self.topic, number, position, records_max=1 << 20)
            behind.records, behind.after, behind.end = list(batch.records), batch.next_offset, batch.end
            if batch.next_offset == position:  # the end of the log lies before the window: it is another one, or becomes so
                await asyncio.sleep(self._options.retry_s)
        except BusError as error:
            behind.error = error
        finally:
            behind.fetching = None
            self.wake()

    # --- positions -----------------------------------------------------------------------------

    def position_of(self, place: Place) -> int:
        """Return the offset that is read next."""
        return self._positions[place[1]]

    def _seek(self, number: int, offset: int) -> None:
        """Read `number` from `offset` on."""
        self._drop(number)
        self._positions[number] = offset
        self._windows[number] = self._feed.follow((self.topic, number), self, offset)

    def _drop(self, number: int) -> None:
        """Stop reading `number`."""
        behind = self._behind.pop(number, None)
        if behind is not None and behind.fetching is not None:
            behind.fetching.cancel()
        if self._windows.pop(number, None) is not None:
            self._feed.leave((self.topic, number), self)
        self._positions.pop(number, None)

    async def _stopped(self, number: int, window: Window) -> None:
        """Say why nothing more can be read from here. Raises: OffsetOutOfRange, BusError."""
        if window.refused is not None and not window.lost:
            error, window.refused = window.refused, None  # said once; it is tried again
            raise type(error)(error.message, hint=error.hint)
        begins, ends = await self._wire.offsets(self.topic)
        position = self._positions[number]
        if not window.replaced and begins[number] <= position <= ends[number]:
            self._seek(number, position)  # by now it is there: a new leader was a moment behind
            return
        self._drop(number)
        self._left_out(number)
        if window.replaced:
            raise OffsetOutOfRange(
                f"{self.topic} partition {number} is not the log that was read up to offset {position}: "
                "the topic was deleted and made again, or a broker has lost what it had acknowledged"
            )
        raise out_of_range(self.topic, number, position, begins[number], ends[number])

    def _check_starts(self, starts: Mapping[int, int], begins: Mapping[int, int], ends: Mapping[int, int]) -> OffsetOutOfRange | None:
        """Read what of `starts` lies in the log; return what is to be said of one that does not."""
        problem: OffsetOutOfRange | None = None
        for number, start in starts.items():
            if begins[number] <= start <= ends[number]:
                self._seek(number, start)
            else:
                problem = out_of_range(self.topic, number, start, begins[number], ends[number])
        return problem


class KafkaTail(Reader):
    """A reader without a group."""

    def __init__(self, topic: str, starts: Mapping[int, int], wire: Wire, feed: Feed, forget: Callable[[Any], None]) -> None:
        super().__init__(topic, wire, feed, forget)
        self._starts: Mapping[int, int] | None = starts

    async def _prepare(self, left_s: float) -> bool:
        if self._starts is not None:
            begins, ends = await self._wire.offsets(self.topic)
            starts, self._starts = self._starts, None
            problem = self._check_starts(starts, begins, ends)
            if problem is not None:
                raise problem
        return True
