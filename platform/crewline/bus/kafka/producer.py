"""Appending: in the order of the calls, acknowledged by every in-sync replica, each call with a deadline of its own.

    append() ──▶ lane of the partition ──▶ one batch at a time ──▶ broker ──▶ positions
                                                   └── the same bytes again until it has answered

While somebody waits for a record it is sent again and again, and stands once. Whoever has waited for
`append_s_max` is told so; nobody can say then whether the record will stand. Within 3 s whoever appends hears that
there is no broker: one that does not answer for a moment is looked for on a new connection.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from crewline.bus.base import RECORD_BYTES_MAX, Message, Position
from crewline.bus.kafka.lanes import Call, Lane
from crewline.bus.kafka.options import KafkaOptions
from crewline.bus.kafka.probe import probe
from crewline.bus.kafka.sending import Sender
from crewline.bus.kafka.wire import Wire, in_our_words
from crewline.errors import BusError, BusUnavailable, RecordTooLarge, UnknownTopic
from crewline.topics import partition_of

LOOK_S = 0.2  # how often deadlines are looked at while something is under way
SLOW_S = 0.2  # an append that takes longer has us ask whether there is a broker
PROBE_GAP_S = 0.5
RECORD_OVERHEAD_BYTES = 500  # of a waiting record beside its value: key, headers, call


class Producer:
    """Appends for one bus. Belongs to the event loop it was made in."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._options: KafkaOptions = wire.options
        self._loop = asyncio.get_running_loop()
        self._sender = Sender(wire, refused=self._refused, acknowledged=self._acknowledged)
        self._lanes: dict[tuple[str, int], Lane] = {}
        self._counts: dict[str, int] = {}
        self._unrouted: deque[Call] = deque()  # behind one whose topic must be asked for
        self._routing: asyncio.Task[None] | None = None
        self._calls: deque[Call] = deque()  # under way, oldest first
        self._bytes = 0  # of them
        self._look: asyncio.TimerHandle | None = None
        self._probing: asyncio.Task[None] | None = None
        self._probed_at = 0.0
        self._away: BusError | None = None  # what the last probe said, if nobody answered
        self._closed = False

    @property
    def resent(self) -> int:
        """Return how often a batch was sent again."""
        return self._sender.resent

    # --- the call ------------------------------------------------------------------------------

    def append(self, messages: Sequence[Message]) -> asyncio.Future[list[Position]]:
        """Queue all of `messages`; see `Bus.append`."""
        future: asyncio.Future[list[Position]] = self._loop.create_future()
        if not messages:
            future.set_result([])
            return future
        try:
            size = self._admit(messages)
        except BusError as error:
            future.set_exception(error)
            return future
        call = Call(future, messages, self._loop.time(), size, self._release)
        self._bytes += size
        self._calls.append(call)
        if self._look is None:
            self._look = self._loop.call_later(LOOK_S, self._look_at_deadlines)
        if self._unrouted or any([message.topic not in self._counts for message in messages]):
            self._unrouted.append(call)
            if self._routing is None:
                self._routing = self._loop.create_task(self._route_all())
        else:
            self._route(call)
        return future

    def _admit(self, messages: Sequence[Message]) -> int:
        """Return how many bytes wait with `messages`. Raises: BusError if they cannot be taken."""
        if self._closed:
            raise BusUnavailable(f"the bus on Kafka at {', '.join(self._options.servers)} is closed")
        size = 0
        for message in messages:
            self._wire.refuse_changed(message.topic)
            length = len(message.value or b"")
            if length > RECORD_BYTES_MAX:
                raise RecordTooLarge(
                    f"a record for {message.topic!r} has {length:,} bytes; at most {RECORD_BYTES_MAX:,} are taken"
                )
            size += length + RECORD_OVERHEAD_BYTES
        if self._bytes and self._bytes + size > self._options.waiting_bytes_max:
            raise BusUnavailable(
                f"{self._bytes:,} bytes wait for Kafka at {', '.join(self._options.servers)} already: it takes them too slowly",
                hint="nothing of this call was written; append less at a time, or look at the broker's load",
            )
        return size

    def _release(self, size: int) -> None:
        self._bytes -= size

    def _route(self, call: Call) -> None:
        """Put each message in its lane, or fail the call, whole."""
        lanes = []
        for message in call.messages:
            count = self._counts[message.topic]
            number = partition_of(message.key, count) if message.partition is None else message.partition
            if not 0 <= number < count:
                call.fail(UnknownTopic(f"topic {message.topic!r} has no partition {number}; it has 0 to {count - 1}"))
                return
            lane = self._lanes.get((message.topic, number))
            if lane is None:
                lane = self._lanes[message.topic, number] = Lane(message.topic, number)
            lanes.append(lane)
        for index, lane in enumerate(lanes):
            lane.queue.append((call, index))
            self._sender.ready(lane)

    async def _route_all(self) -> None:
        try:
            while self._unrouted:
                call = self._unrouted[0]
                try:
                    for topic in {message.topic for message in call.messages} - self._counts.keys():
                        self._counts[topic] = await self._wire.partitions(topic)
                except BusError as error:
                    call.fail(error)
                if not call.given_up:
                    self._route(call)
                self._unrouted.popleft()
        finally:
            self._routing = None

    # --- deadlines -----------------------------------------------------------------------------

    def _look_at_deadlines(self) -> None:
        """Fail calls that have waited for too long; ask whether there is a broker if one waits for long."""
        self._look = None
        calls = self._calls
        while calls and calls[0].future.done():
            calls.popleft()
        if not calls:
            return
        now = self._loop.time()
        if now - calls[0].since > self._options.append_s_max:
            self._give_up(now - self._options.append_s_max, in_our_words(TimeoutError(), self._options, "appending"))
        elif self._away is not None:  # said within 3 s; meanwhile it may come back
            self._give_up(now - self._options.connect_s_max, self._away)
        if now - calls[0].since > SLOW_S and self._probing is None and now - self._probed_at > PROBE_GAP_S:
            self._probing = self._loop.create_task(self._probe())
        self._look = self._loop.call_later(LOOK_S, self._look_at_deadlines)

    async def _probe(self) -> None:
        began = self._loop.time()
        try:
            await probe(self._options)
            self._away = None
        except BusError as error:
            if self._wire.client.heard_at < began:  # else it is only slow, or we are
                self._away = error
        finally:
            self._probed_at = self._loop.time()
            self._probing = None

    def _acknowledged(self) -> None:
        self._away = None

    def _refused(self, error: BusError) -> None:
        self._give_up(self._loop.time(), error)

    def _give_up(self, since: float, error: BusError) -> None:
        """Fail calls made before `since`. What of them is under way may still be written."""
        for call in self._calls:
            if call.since < since and not call.future.done():
                call.fail(error)

    # --- the end -------------------------------------------------------------------------------

    async def close(self) -> None:
        """Wait for what is queued (each call has its deadline), then end."""
        self._closed = True
        await asyncio.gather(*(call.future for call in self._calls), return_exceptions=True)
        running = [task for task in (self._probing, self._routing) if task is not None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        if self._look is not None:
            self._look.cancel()
        await self._sender.close()
