"""Reading on and on: what is fetched is buffered and shared out fairly. A tail; and the ground a group's member stands on.

    aiokafka's fetcher ──getmany──▶ buffer by partition ──poll, an equal part of each──▶ batches

Positions are kept here, not in aiokafka, which forgets its own in a rebalance. Three offsets of a partition:
`positions` (next to hand out) ≤ what the buffer holds ≤ aiokafka's position (next to fetch).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka import errors as kafka
from aiokafka.structs import TopicPartition

from crewline.bus.base import Batch
from crewline.bus.kafka.options import KafkaOptions, ms
from crewline.bus.kafka.wire import NOT_ALLOWED, Wire, in_our_words, out_of_range, record_of

log = logging.getLogger(__name__)


def new_client(options: KafkaOptions, **other: Any) -> Any:
    """Return an aiokafka consumer that neither commits nor resets by itself."""
    own = {
        "request_timeout_ms": ms(options.fetch_request_s_max),
        "fetch_max_wait_ms": ms(options.fetch_wait_s_max),
        "fetch_max_bytes": options.fetch_bytes_max,
        "max_partition_fetch_bytes": options.partition_bytes_max,
        "auto_offset_reset": "none",
        "enable_auto_commit": False,
        "isolation_level": "read_committed",
    }
    return AIOKafkaConsumer(**(options.client() | own | other))


class Reader(ABC):
    """Reads partitions of one topic from `positions` on. Once started, it looks after its client and replaces a dead one."""

    def __init__(self, topic: str, wire: Wire, forget: Callable[[Any], None]) -> None:
        self.topic = topic
        self._wire = wire
        self._options = wire.options
        self._forget = forget
        self._positions: dict[int, int] = {}
        self._ends: dict[int, int] = {}
        self._buffer: dict[int, deque[Any]] = {}
        self._turn = 0
        self._wake = asyncio.Event()
        self._fetch: asyncio.Task[Any] | None = None
        self._rebalancing = False
        self._lock = asyncio.Lock()
        self._polling: asyncio.Task[Any] | None = None
        self._closed = False
        self._client: Any = None
        self._starting: asyncio.Future[None] | None = None
        self._stopping: set[asyncio.Task[None]] = set()

    # --- for subclasses ------------------------------------------------------------------------

    @abstractmethod
    def _open_client(self) -> Awaitable[None]:
        """Make `_client`; return what is awaited until it can be polled."""

    @abstractmethod
    async def _prepare(self) -> None:
        """Be ready to read: members of a group look at their assignment first."""

    async def _part(self) -> None:
        """Leave."""
        await self._stop_client(self._client)

    @abstractmethod
    def _left_out(self, partition: int) -> None:
        """Hear that reading `partition` has ended: its position is out of range."""

    @abstractmethod
    def _lost_client(self) -> None:
        """Hear that the client died, before it is replaced."""

    # --- life ----------------------------------------------------------------------------------

    async def start(self, wait_s: float) -> None:
        """Open the client and wait up to `wait_s`; `poll` waits on. Raises: BusError if it failed by then."""
        self._start()
        assert self._starting is not None
        await asyncio.wait({self._starting}, timeout=wait_s)
        if self._starting.done():
            await self._started(0)

    def _start(self) -> None:
        self._starting = asyncio.ensure_future(self._open_client())

    async def _started(self, timeout_s: float) -> bool:
        """Return whether the client is up, waiting up to `timeout_s`. Raises: BusError; the next call starts anew."""
        if self._starting is None:
            return True
        if not self._starting.done():
            waker = asyncio.ensure_future(self._wake.wait())
            both: set[asyncio.Future[Any]] = {self._starting, waker}
            await asyncio.wait(both, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            waker.cancel()
            if not self._starting.done():
                return False
        starting, self._starting = self._starting, None
        try:
            starting.result()
        except Exception as error:
            self._replace_client()
            raise in_our_words(error, self._options, f"opening a reader of {self.topic}") from error
        return True

    async def close(self) -> None:
        """Stop reading. Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._wake.set()
        self._forget(self)
        if self._polling is not None and self._polling is asyncio.current_task():
            await self._part()  # closed from within a callback of its own poll
            return
        async with self._lock:
            await self._part()
        await asyncio.gather(*self._stopping)

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
        looked = False
        while not self._closed:
            self._wake.clear()
            left_s = max(0.0, until - loop.time())
            if not await self._started(left_s):
                if looked or loop.time() >= until:
                    return []
                continue
            await self._prepare()
            if self._closed:
                return []
            await self._take_fetched()
            batches = self._hand_out(records_max)
            left_s = until - loop.time()
            if batches:
                await asyncio.sleep(0)  # what is buffered is taken without waiting: let others run
                return [] if self._closed else batches
            if left_s <= 0:
                return self._moved()
            looked = True
            await self._wait(left_s)
        return []

    async def _take_fetched(self) -> None:
        """Fill the buffer with what aiokafka has fetched, without waiting. Raises: OffsetOutOfRange, BusError."""
        if self._fetch is not None:
            if not self._fetch.done():
                return
            fetch, self._fetch = self._fetch, None
            await self._absorb(fetch)
            return
        if self._rebalancing:
            return  # getmany would wait for its end, whatever its time-out
        # Whoever has nothing buffered is asked for, however much others have: at most one fetch of each is held.
        hungry = [TopicPartition(self.topic, number) for number in self._positions if number not in self._buffer]
        if hungry or not self._positions:  # without partitions too: aiokafka leaves the group of who does not ask
            await self._absorb(self._client.getmany(*hungry, timeout_ms=0))

    async def _wait(self, seconds: float) -> None:
        if self._fetch is None and not self._rebalancing and self._positions:
            self._fetch = asyncio.ensure_future(self._client.getmany(timeout_ms=ms(min(seconds, 30.0)) + 1))
            self._fetch.add_done_callback(self._woken)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    def _woken(self, _: object) -> None:
        self._wake.set()

    async def _absorb(self, fetching: Awaitable[Mapping[Any, list[Any]]]) -> None:
        try:
            fetched = await fetching
        except kafka.OffsetOutOfRangeError as error:
            await self._say_out_of_range(error.args[0])
            return
        except (kafka.NoOffsetForPartitionError, kafka.ConsumerStoppedError):
            return  # asked for before `seek`, or closed
        except NOT_ALLOWED as error:
            raise in_our_words(error, self._options, f"reading {self.topic}") from error
        except Exception as error:
            if self._closed:
                return
            self._replace_client()
            raise in_our_words(error, self._options, f"reading {self.topic}") from error
        for tp, records in fetched.items():
            number = tp.partition
            position = self._positions.get(number)
            if position is None:
                continue
            end = self._client.last_stable_offset(tp) or self._client.highwater(tp) or 0
            self._ends[number] = max(end, records[-1].offset + 1)
            if records[0].offset < position:  # after a seek, at most
                records = [record for record in records if record.offset >= position]
            if records:
                self._buffer.setdefault(number, deque()).extend(records)

    async def _say_out_of_range(self, offsets: Mapping[Any, int]) -> None:
        begins, ends = await self._wire.offsets(self.topic)
        for tp, offset in offsets.items():
            number = tp.partition
            if self._positions.get(number) == offset:
                if begins[number] <= offset <= ends[number]:
                    self._seek(number, offset)  # by now it is there: a new leader was a moment behind
                    continue
                self._drop(number)
                self._left_out(number)
                raise out_of_range(self.topic, number, offset, begins[number], ends[number])

    def _hand_out(self, records_max: int) -> list[Batch]:
        """Return up to `records_max` buffered records, an equal part of each partition."""
        ready = list(self._buffer)
        if not ready:
            return []
        self._turn += 1
        first = self._turn % len(ready)
        batches = []
        left = records_max
        for index, number in enumerate(ready[first:] + ready[:first]):
            part = max(1, left // (len(ready) - index)) if left else 0
            if not part:
                break
            buffered = self._buffer[number]
            records = [record_of(buffered.popleft()) for _ in range(min(part, len(buffered)))]
            if not buffered:
                del self._buffer[number]
            left -= len(records)
            position = self._positions[number] = records[-1].offset + 1
            batches.append(Batch(self.topic, number, records, position, max(position, self._ends[number])))
        return batches

    def _moved(self) -> list[Batch]:
        """Return empty batches where aiokafka went on without a record: markers, compaction, aborted transactions."""
        if self._rebalancing or (self._fetch is not None and self._fetch.done()):
            return []  # its records come first
        batches = []
        for number, position in self._positions.items():
            state = self._state(number)
            if number in self._buffer or state is None or state.paused or not state.has_valid_position:
                continue
            if state.position > position:
                self._positions[number] = state.position
                end = max(state.position, self._ends.get(number, 0))
                batches.append(Batch(self.topic, number, (), state.position, end))
        return batches

    # --- positions -----------------------------------------------------------------------------

    def _state(self, number: int) -> Any:
        """Return aiokafka's state of a partition, None if it does not hold it now."""
        subscription = self._client._subscription.subscription
        assignment = subscription.assignment if subscription is not None else None
        return assignment.state_value(TopicPartition(self.topic, number)) if assignment is not None else None

    def _seek(self, number: int, offset: int) -> None:
        """Read `number` from `offset` on."""
        self._positions[number] = offset
        self._buffer.pop(number, None)
        if self._state(number) is not None:
            tp = TopicPartition(self.topic, number)
            self._client.seek(tp, offset)
            self._client.resume(tp)

    def _drop(self, number: int) -> None:
        """Stop reading `number`."""
        self._positions.pop(number, None)
        self._buffer.pop(number, None)
        state = self._state(number)
        if state is not None:
            self._client.pause(TopicPartition(self.topic, number))

    def _forget_fetched(self) -> None:
        """Throw away what was fetched and not handed out: it is fetched again from `positions`."""
        self._buffer.clear()
        if self._fetch is not None and self._fetch.done():
            fetch, self._fetch = self._fetch, None
            if not fetch.cancelled():
                fetch.exception()

    # --- the client ----------------------------------------------------------------------------

    def _dead(self) -> bool:
        """Return whether a task of the client has ended: it says nothing itself, and reads nothing any more."""
        fetcher, coordinator = self._client._fetcher, self._client._coordinator
        task = getattr(coordinator, "_coordination_task", None)
        return (fetcher is not None and fetcher._fetch_task.done()) or (task is not None and task.done())

    def _replace_client(self) -> None:
        log.warning("the reader of %s starts anew", self.topic)
        old = self._client
        self._cancel_fetch()
        self._buffer.clear()
        self._lost_client()
        stopping = asyncio.ensure_future(self._stop_client(old))
        self._stopping.add(stopping)
        stopping.add_done_callback(self._stopping.discard)
        self._start()

    def _cancel_fetch(self) -> None:
        if self._fetch is not None:
            self._fetch.cancel()
            self._fetch.add_done_callback(lambda task: task.cancelled() or task.exception())
            self._fetch = None

    async def _stop_client(self, client: Any) -> None:
        """Close `client`, by force if it does not end by itself. Never raises."""
        if client is self._client:
            self._cancel_fetch()
        if self._starting is not None and client is self._client:
            self._starting.cancel()
            await asyncio.gather(self._starting, return_exceptions=True)
            self._starting = None
        stop = asyncio.ensure_future(client.stop())
        await asyncio.wait({stop}, timeout=self._options.stop_s_max)
        if stop.done():
            if not stop.cancelled() and (error := stop.exception()) is not None:
                log.warning("closing a reader of %s: %s", self.topic, error)
            else:
                return
        stop.cancel()
        await asyncio.gather(stop, return_exceptions=True)
        rest = asyncio.ensure_future(self._force(client))
        await asyncio.wait({rest}, timeout=self._options.stop_s_max)
        rest.cancel()
        await asyncio.gather(rest, return_exceptions=True)

    async def _force(self, client: Any) -> None:
        leave = getattr(client._coordinator, "_maybe_leave_group", None)
        if leave is not None:
            for task in (client._coordinator._coordination_task, client._coordinator._heartbeat_task):
                if task is not None:
                    task.cancel()
            with contextlib.suppress(kafka.KafkaError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await leave()
        if client._fetcher is not None:
            client._fetcher._fetch_task.cancel()
        await client._client.close()


class KafkaTail(Reader):
    """A reader without a group."""

    def __init__(self, topic: str, starts: Mapping[int, int], wire: Wire, forget: Callable[[Any], None]) -> None:
        super().__init__(topic, wire, forget)
        self._positions.update(starts)
        self._unchecked = True

    def _open_client(self) -> Awaitable[None]:
        self._client = new_client(self._options)
        self._client.assign([TopicPartition(self.topic, number) for number in self._positions])
        for number, offset in self._positions.items():
            self._client._subscription.seek(TopicPartition(self.topic, number), offset)
        starting: Awaitable[None] = self._client.start()
        return starting

    def _left_out(self, partition: int) -> None:
        """The others are read on."""

    def _lost_client(self) -> None:
        """The next one goes on from the same positions."""

    async def _prepare(self) -> None:
        if self._dead():
            self._replace_client()
            raise in_our_words(ConnectionError("its client died"), self._options, f"reading {self.topic}")
        if self._unchecked:
            await self._check()

    async def _check(self) -> None:
        """Raise OffsetOutOfRange for a start that is outside the log: the broker would say so only after a while."""
        begins, ends = await self._wire.offsets(self.topic)
        for number, start in list(self._positions.items()):
            if not begins[number] <= start <= ends[number]:
                self._drop(number)
                raise out_of_range(self.topic, number, start, begins[number], ends[number])
        self._unchecked = False


