"""What is new in the log, fetched once for all readers of a bus.

    broker ──one long fetch at a time──▶ window of a partition ──▶ each reader, at its own pace
                                              │
                                              └─ whoever is behind its window reads on its own (`Wire.read`)

Several roles of a process read the same topics: what one of them has fetched and decoded, the others get as the very
same records. A window holds the newest records that some reader has not had yet, up to `WINDOW_BYTES_MAX`; it
follows the foremost reader. One task a broker; the answer to its request is what makes it ask again, so it
cannot fall silent: a request that is not answered in time fails, and is made again on a new connection.
"""

from __future__ import annotations

import asyncio
import logging
from bisect import bisect_left
from collections.abc import Mapping
from typing import Protocol

from aiokafka import errors as kafka
from aiokafka.structs import TopicPartition

from crewline.bus.base import Record
from crewline.bus.kafka.fetching import Answer, Found, Place, Session, records_of
from crewline.bus.kafka.options import KafkaOptions, ms
from crewline.bus.kafka.wire import NOT_ALLOWED, Wire, in_our_words
from crewline.errors import BusError, TopicMismatch, UnknownTopic

log = logging.getLogger(__name__)

CONNECTIONS = "fetch"  # own ones: a broker answers the requests of one connection in turn, and holds a fetch
WINDOW_BYTES_MAX = 4 << 20
AHEAD_BYTES_MAX = 1 << 20  # fetched before anybody has read it
RECORD_OVERHEAD_BYTES = 400  # of a record in memory beside its value: tuple, key, headers
RENEW_S = 30.0  # a broker is asked for everything anew so often, whatever it believes to have told


class Subscriber(Protocol):
    """Who reads a partition."""

    def wake(self) -> None:
        """Hear that there may be something new."""
        ...

    def position_of(self, place: Place) -> int:
        """Return the offset that is read next."""
        ...


class Window:
    """The newest records of a partition: offsets `base` to `end`, maybe with holes.

    `log_end` is the log's end as told last. `out_of_range`: the broker has no `end`. `refused`: why nothing can be read.
    `suspect`: something failed, so that `last`, the last record fetched, must be seen to stand there still. If it does
    not, the log is another one: `replaced`.
    """

    __slots__ = (
        "base", "bytes", "end", "last", "log_end", "node", "not_before", "out_of_range", "place", "readers", "records",
        "refused", "replaced", "suspect",
    )  # fmt: skip

    def __init__(self, place: Place, start: int) -> None:
        self.place = place
        self.readers: list[Subscriber] = []
        self.node: int | None = None  # the broker that leads the partition
        self.not_before = 0.0
        self.move(start)

    def move(self, start: int) -> None:
        """Hold nothing, and go on from `start`."""
        self.base = self.end = self.log_end = start
        self.records: list[Record] = []
        self.bytes = 0
        self.last: Record | None = None
        self.out_of_range = self.replaced = self.suspect = False
        self.refused: BusError | None = None

    @property
    def lost(self) -> bool:
        """Return whether the log does not go on from here."""
        return self.out_of_range or self.replaced

    def holds(self, position: int) -> bool:
        """Return whether whoever is at `position` reads from this window."""
        return self.base <= position <= self.end

    def index_of(self, position: int) -> int:
        index = position - self.base
        if index < len(self.records) and self.records[index].offset == position:
            return index  # no holes so far
        return bisect_left(self.records, position, key=lambda record: record.offset)

    def take(self, position: int, records_max: int) -> tuple[list[Record], int]:
        """Return up to `records_max` records from `position` on, and the offset after them."""
        if position == self.end:
            return [], position
        index = self.index_of(position)
        records = self.records[index : index + records_max]
        return records, self.end if index + len(records) == len(self.records) else records[-1].offset + 1

    def is_full(self) -> bool:
        """Return whether the foremost reader has enough to read."""
        if self.bytes <= AHEAD_BYTES_MAX:
            return False
        foremost = max((reader.position_of(self.place) for reader in self.readers), default=self.end)
        unread = len(self.records) - self.index_of(foremost) if foremost < self.end else 0
        return self.bytes * unread > AHEAD_BYTES_MAX * len(self.records)

    def add(self, records: list[Record], after: int) -> None:
        """Put `records` at the end, and let go of what every reader of this window has had."""
        if records:
            self.records += records
            self.last = records[-1]
        self.bytes += sum(map(_bytes, records))
        self.end = after
        self.trim()

    def trim(self) -> None:
        """Let go of what every reader has had; of more if one of them is too far behind: it reads on its own then."""
        held = [position for position in (reader.position_of(self.place) for reader in self.readers) if position >= self.base]
        keep_from = min(held, default=self.end)
        index = self.index_of(keep_from) if keep_from < self.end else len(self.records)
        left = self.bytes - sum(map(_bytes, self.records[:index]))
        while left > WINDOW_BYTES_MAX and index < len(self.records) - 1:
            left -= _bytes(self.records[index])
            index += 1
            keep_from = self.records[index].offset
        del self.records[:index]
        self.bytes = left
        self.base = keep_from


def _bytes(record: Record) -> int:
    return len(record.value or b"") + RECORD_OVERHEAD_BYTES


class Feed:
    """Keeps the windows of a bus's readers filled."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._options: KafkaOptions = wire.options
        self._loop = asyncio.get_running_loop()
        self._windows: dict[Place, Window] = {}
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._changed: dict[int, asyncio.Event] = {}
        self._checks: dict[Place, asyncio.Task[None]] = {}
        self._closed = False
        wire.cluster.add_listener(self._metadata_came)

    # --- readers -------------------------------------------------------------------------------

    def follow(self, place: Place, reader: Subscriber, start: int) -> Window:
        """Let `reader` read `place` from `start` on. A window that it is ahead of comes along."""
        window = self._windows.get(place)
        if window is None:
            window = self._windows[place] = Window(place, start)
            window.node = self._leader(place)
        elif start > window.end or window.lost:
            window.move(start)
        if reader not in window.readers:
            window.readers.append(reader)
        self.wanted()
        return window

    def leave(self, place: Place, reader: Subscriber) -> None:
        """Hear that `reader` does not read `place` any more."""
        window = self._windows.get(place)
        if window is None or reader not in window.readers:
            return
        window.readers.remove(reader)
        if not window.readers:
            del self._windows[place]

    def wanted(self) -> None:
        """Hear that there may be something to ask for: a window, or room in one."""
        for node in {window.node for window in self._windows.values()}:
            if node is not None and not self._closed and node not in self._tasks:
                self._changed[node] = asyncio.Event()
                self._tasks[node] = self._loop.create_task(self._run(node))
        for changed in self._changed.values():
            changed.set()

    def _metadata_came(self, _: object) -> None:
        for window in self._windows.values():
            window.node = self._leader(window.place)
        self.wanted()
        if any(window.node is None for window in self._windows.values()) and not self._closed:
            self._loop.call_later(self._options.retry_s, self._look_for_leaders)

    def _look_for_leaders(self) -> None:
        if any(window.node is None for window in self._windows.values()) and not self._closed:
            self._wire.refresh_soon()

    def _leader(self, place: Place) -> int | None:
        node = self._wire.cluster.leader_for_partition(TopicPartition(*place))
        return None if node is None or node < 0 else int(node)

    # --- asking a broker -----------------------------------------------------------------------

    async def _run(self, node: int) -> None:
        session = Session()
        renew_at = self._loop.time() + RENEW_S
        changed = self._changed[node]
        while not self._closed:
            changed.clear()
            now = self._loop.time()
            if now > renew_at:
                session.renew()
                renew_at = now + RENEW_S
            wanted, later = self._wanted_of(node, now)
            try:
                if wanted:
                    await self._ask(node, session, wanted)
                else:
                    await self._rest(changed, later)
            except (kafka.KafkaError, OSError, TimeoutError) as error:
                log.warning("fetching from broker %s: %s", node, str(error) or type(error).__name__)
                self._suspect(session, wanted)
                await self._wire.refresh()
                await asyncio.sleep(self._options.retry_s)
            except Exception:  # a bug of ours or of aiokafka's must not silence every reader: said, and tried again
                log.exception("fetching from broker %s", node)
                self._suspect(session, wanted)
                await asyncio.sleep(self._options.retry_s)

    def _suspect(self, session: Session, wanted: Mapping[Place, int]) -> None:
        session.reset()
        for place in wanted:
            if place in self._windows:
                self._windows[place].suspect = True

    def _wanted_of(self, node: int, now: float) -> tuple[Mapping[Place, int], bool]:
        """Return what to ask `node` for (offset by place), and whether there is more that must wait a little."""
        wanted, later = {}, False
        for place, window in self._windows.items():
            if window.node != node or window.lost:
                continue
            if window.not_before > now:
                later = True
            elif window.suspect:
                self._check(window)
            elif not window.is_full():
                wanted[place] = window.end
        return wanted, later

    async def _rest(self, changed: asyncio.Event, later: bool) -> None:
        try:
            async with asyncio.timeout(self._options.retry_s if later else None):
                await changed.wait()
        except TimeoutError:
            return

    async def _ask(self, node: int, session: Session, wanted: Mapping[Place, int]) -> None:
        request = session.request(
            wanted,
            wait_ms=ms(self._options.fetch_wait_s_max),
            bytes_max=self._options.fetch_bytes_max,
            partition_bytes_max=self._options.partition_bytes_max,
        )
        answer: Answer = await self._wire.client.ask(
            node, request, group=CONNECTIONS, within_s=self._options.fetch_wait_s_max + self._options.silent_s_max
        )
        session.answered(answer)
        if answer.error in (70, 71):  # the broker knows no such session (it was restarted, or has too many)
            return
        if answer.error:
            raise kafka.for_code(answer.error)()
        for found in answer.found:
            window = self._windows.get(found.place)
            if window is not None and window.end == wanted.get(found.place):
                self._take(window, found)

    def _take(self, window: Window, found: Found) -> None:
        if found.error:
            self._failed(window, found.error)
        else:
            try:
                records, after = records_of(found, window.end) if found.raw else ([], window.end)
            except kafka.CorruptRecordException as error:
                self._refuse(window, error)
            else:
                window.log_end = max(found.end, after)
                if after == window.end:
                    return
                window.add(records, after)
        for reader in window.readers:
            reader.wake()

    def _failed(self, window: Window, code: int) -> None:
        error = kafka.for_code(code)
        if error is kafka.OffsetOutOfRangeError:
            window.out_of_range = True  # its readers look, and seek or say so
            return
        if error in NOT_ALLOWED:
            self._refuse(window, error())
            return
        log.info("fetching %s partition %s: %s", *window.place, error.__name__)
        window.suspect = True
        self._wait_with(window)
        self._wire.refresh_soon()

    def _refuse(self, window: Window, error: kafka.KafkaError) -> None:
        """Have the readers of `window` told, and try it again."""
        window.refused = in_our_words(error, self._options, "reading {} partition {}".format(*window.place))
        self._wait_with(window)

    def _wait_with(self, window: Window) -> None:
        window.not_before = self._loop.time() + self._options.retry_s

    # --- is it still the same log? ---------------------------------------------------------------

    def _check(self, window: Window) -> None:
        if window.place not in self._checks:
            check = self._checks[window.place] = self._loop.create_task(self._look(window))
            check.add_done_callback(lambda _: self._checks.pop(window.place, None))

    async def _look(self, window: Window) -> None:
        """See whether the record fetched last stands where it stood; after a failure a topic may be another one."""
        end = window.end
        same: bool | None = None
        try:
            async with asyncio.timeout(self._options.silent_s_max):  # then its leader may be another one
                same = window.last is None or await self._stands(window.last)
        except (BusError, TimeoutError) as error:
            if isinstance(error, UnknownTopic | TopicMismatch):
                window.refused = error
            self._wait_with(window)
            self._wire.refresh_soon()
        if window.end == end and same is not None:
            window.suspect, window.refused = False, None
            window.replaced = not same
        for reader in window.readers:
            reader.wake()
        self.wanted()

    async def _stands(self, record: Record) -> bool:
        await self._wire.partitions(record.topic)  # or it says why there are none
        place = TopicPartition(record.topic, record.partition)
        begins, ends = await self._wire.offsets_of([place])
        if record.offset < begins[place]:
            return True  # retention took it
        if record.offset >= ends[place]:
            return False
        found = (await self._wire.read(record.topic, record.partition, record.offset, 1)).records
        return not found or found[0] == record or found[0].offset > record.offset  # compaction took it

    async def close(self) -> None:
        self._closed = True
        self._wire.cluster.remove_listener(self._metadata_came)
        tasks = [*self._tasks.values(), *self._checks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


