"""Appending: in the order of the calls, acknowledged by every in-sync replica, again after any failure.

    append() ──▶ lane of the partition ──▶ one batch at a time ──▶ aiokafka ──▶ positions
                      ▲                             │
                      └── the same records again ◀──┴─ any failure: a new producer

One batch of a partition is under way at a time; meanwhile the next one grows. An idempotent producer of
aiokafka that has failed once is poisoned without saying so, and with the broker away it hangs for ever: so any
failure throws it away, and every call has a deadline of its own. Records may stand twice then; the fold
takes the first.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Sequence
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka import errors as kafka

from crewline.bus.base import RECORD_BYTES_MAX, Message, Position
from crewline.bus.kafka.options import KafkaOptions, ms
from crewline.bus.kafka.probe import probe
from crewline.bus.kafka.refusals import NOT_ALLOWED
from crewline.bus.kafka.wire import Wire, in_our_words
from crewline.crashpoints import reach
from crewline.errors import BusError, BusUnavailable, RecordTooLarge, UnknownTopic
from crewline.topics import partition_of

log = logging.getLogger(__name__)

LOOK_S = 0.2  # how often deadlines are looked at while something is under way
SLOW_S = 0.2  # an append that takes longer has us ask whether there is a broker
PROBE_GAP_S = 0.5


class Call:
    """One `append`: who awaits it, until when, and where its records stand."""

    __slots__ = ("future", "given_up", "left", "messages", "positions", "since")

    def __init__(self, future: asyncio.Future[list[Position]], messages: Sequence[Message], since: float) -> None:
        self.future = future
        self.messages = messages
        self.since = since
        self.left = len(messages)
        self.positions: list[Position | None] = [None] * len(messages)
        self.given_up = False

    def stands(self, index: int, position: Position) -> None:
        """Note where message `index` stands."""
        self.positions[index] = position
        self.left -= 1
        if not self.left and not self.future.done():
            self.future.set_result([each for each in self.positions if each is not None])

    def fail(self, error: BusError) -> None:
        """Give up: what of it is not in the log yet will not be sent again."""
        self.given_up = True
        if not self.future.done():
            self.future.set_exception(type(error)(str(error), hint=error.hint))  # its own: tracebacks grow


class Lane:
    """What is to be written to one partition, in order."""

    __slots__ = ("partition", "queue", "records_max", "running", "topic", "waiter")

    def __init__(self, topic: str, partition: int) -> None:
        self.topic = topic
        self.partition = partition
        self.queue: deque[tuple[Call, int]] = deque()
        self.running: asyncio.Task[None] | None = None
        self.waiter: asyncio.Future[Any] | None = None
        self.records_max = 10_000


class Producer:
    """Appends for one bus. Belongs to the event loop it was made in."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._options: KafkaOptions = wire.options
        self._loop = asyncio.get_running_loop()
        self._lanes: dict[tuple[str, int], Lane] = {}
        self._counts: dict[str, int] = {}
        self._unrouted: deque[Call] = deque()  # behind one whose topic must be asked for
        self._routing: asyncio.Task[None] | None = None
        self._calls: deque[Call] = deque()  # under way, oldest first
        self._client: Any = None
        self._up = asyncio.Event()
        self._building: asyncio.Task[None] | None = None
        self._discarding: set[asyncio.Task[None]] = set()
        self._look: asyncio.TimerHandle | None = None
        self._probing: asyncio.Task[None] | None = None
        self._probed_at = self._acknowledged_at = 0.0
        self._away: BusError | None = None  # what the last probe said, if nobody answered
        self._closed = False
        self.rebuilt = 0

    # --- the call ------------------------------------------------------------------------------

    def append(self, messages: Sequence[Message]) -> asyncio.Future[list[Position]]:
        """Queue all of `messages`; see `Bus.append`."""
        future: asyncio.Future[list[Position]] = self._loop.create_future()
        call = Call(future, messages, self._loop.time())
        try:
            if self._closed:
                raise BusUnavailable(f"the bus on Kafka at {', '.join(self._options.servers)} is closed")
            for message in messages:
                if message.value is not None and len(message.value) > RECORD_BYTES_MAX:
                    raise RecordTooLarge(
                        f"a record for {message.topic!r} has {len(message.value):,} bytes; "
                        f"at most {RECORD_BYTES_MAX:,} are taken"
                    )
        except BusError as error:
            future.set_exception(error)
            return future
        if not messages:
            future.set_result([])
            return future
        if self._client is None and self._building is None:
            self.build()
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
            if lane.running is None:
                lane.running = self._loop.create_task(self._run(lane))

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

    # --- a lane --------------------------------------------------------------------------------

    async def _run(self, lane: Lane) -> None:
        try:
            while lane.queue:
                await self._up.wait()
                client = self._client
                if client is None:
                    continue
                builder, count = self._fill(lane, client)
                if not count:
                    continue
                reach("bus.before_commit")
                try:
                    base = await self._send(lane, client, builder)
                except Exception as error:
                    await self._failed(lane, client, count, error)
                    continue
                reach("bus.after_commit")
                lane.records_max = 10_000
                self._acknowledged_at, self._away = self._loop.time(), None
                for offset in range(base, base + count):
                    call, index = lane.queue.popleft()
                    call.stands(index, Position(lane.topic, lane.partition, offset))
        finally:
            lane.running = None
            if lane.queue and not self._closed:  # cancelled, or a bug: not to be left standing
                lane.running = self._loop.create_task(self._run(lane))

    def _fill(self, lane: Lane, client: Any) -> tuple[Any, int]:
        """Return a batch of the records at the head of `lane`, and how many there are."""
        while lane.queue and lane.queue[0][0].given_up:
            lane.queue.popleft()
        builder = client.create_batch()
        count = 0
        for call, index in lane.queue:
            if call.given_up or count >= lane.records_max:
                break
            message = call.messages[index]
            taken = builder.append(timestamp=None, key=message.key, value=message.value, headers=list(message.headers))
            if taken is None:
                break
            count += 1
        builder.close()
        return builder, count

    async def _send(self, lane: Lane, client: Any, builder: Any) -> int:
        """Return the offset of the batch's first record. Raises: whatever goes wrong."""
        async with asyncio.timeout(self._options.request_s_max):
            sent = await client.send_batch(builder, lane.topic, partition=lane.partition)
        reach("bus.in_group_commit")
        if client is not self._client:
            sent.add_done_callback(_heard)
            raise kafka.ProducerClosed
        waiter: asyncio.Future[Any] = self._loop.create_future()
        lane.waiter = waiter
        sent.add_done_callback(lambda done: _copy(done, waiter))
        try:
            async with asyncio.timeout(self._options.batch_s_max):
                stood = await waiter
        finally:
            lane.waiter = None
        if stood.offset < 0:  # written in an earlier attempt: the broker does not say where
            raise kafka.DuplicateSequenceNumber
        return int(stood.offset)

    async def _failed(self, lane: Lane, client: Any, count: int, error: Exception) -> None:
        """Decide what becomes of the batch at the head of `lane`; the producer goes in any case."""
        doing = f"appending to {lane.topic} partition {lane.partition}"
        if isinstance(error, kafka.MessageSizeTooLargeError):
            lane.records_max = max(1, count // 2)
        if isinstance(error, NOT_ALLOWED) or (isinstance(error, kafka.MessageSizeTooLargeError) and count == 1):
            for call, _ in [lane.queue[index] for index in range(count)]:
                call.fail(in_our_words(error, self._options, doing))
        elif isinstance(error, kafka.UnknownTopicOrPartitionError):
            self._counts.pop(lane.topic, None)
        if client is self._client:
            log.warning("%s: %s; a new producer appends again", doing, error or type(error).__name__)
            self.rebuild()
            await asyncio.sleep(self._options.retry_s)

    # --- the producer --------------------------------------------------------------------------

    def build(self) -> None:
        """Make a producer; what is queued waits for it."""
        if self._building is None and not self._closed:
            self._building = self._loop.create_task(self._build())

    def rebuild(self) -> None:
        """Throw the producer away and make another; batches under way are sent again by the new one."""
        old, self._client = self._client, None
        self._up.clear()
        self.rebuilt += 1
        if old is not None:
            self._discard(old)
        for lane in self._lanes.values():
            if lane.waiter is not None and not lane.waiter.done():
                lane.waiter.set_exception(kafka.ProducerClosed())
        self.build()

    async def _build(self) -> None:
        failures = 0
        try:
            while self._client is None:
                client = self._new_client()
                try:
                    async with asyncio.timeout(self._options.request_s_max / 2):
                        await client.start()
                except (kafka.KafkaError, OSError, TimeoutError) as error:
                    self._discard(client)
                    failures += 1
                    level = logging.WARNING if failures == 1 else logging.DEBUG
                    log.log(level, "no producer, trying on: %s", in_our_words(error, self._options, "connecting"))
                    if isinstance(error, NOT_ALLOWED):  # no right to write anywhere: nobody need wait for that
                        self._give_up(self._loop.time(), in_our_words(error, self._options, "appending"))
                    await asyncio.sleep(min(2.0, self._options.retry_s * 2**failures))
                except BaseException:
                    self._discard(client)
                    raise
                else:
                    if failures:
                        log.warning("Kafka at %s answers again", ", ".join(self._options.servers))
                    self._client = client
                    self._watch(client)
                    self._up.set()
        finally:
            self._building = None

    def _watch(self, client: Any) -> None:
        """Replace `client` when the task that sends for it has died: it would not say so until the next `send`."""
        sender = client._sender.sender_task
        sender.remove_done_callback(client._sender._fail_all)  # it fails itself without a transaction (0.14)
        sender.add_done_callback(lambda task: self._sender_died(client, task))

    def _sender_died(self, client: Any, task: asyncio.Task[None]) -> None:
        error = None if task.cancelled() else task.exception()
        if client is self._client and not self._closed:
            log.warning("the producer's sender ended (%s); a new producer appends again", error)
            self.rebuild()

    def _new_client(self) -> Any:
        options = self._options
        return AIOKafkaProducer(
            **options.client(),
            acks="all",
            enable_idempotence=True,
            linger_ms=0,
            max_batch_size=options.batch_bytes_max,
            max_request_size=RECORD_BYTES_MAX,
            compression_type=None if options.compression == "none" else options.compression,
            request_timeout_ms=ms(options.request_s_max),
        )

    def _discard(self, client: Any) -> None:
        task = self._loop.create_task(_force_close(client, self._options.stop_s_max))
        self._discarding.add(task)
        task.add_done_callback(self._discarding.discard)

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
            if self._acknowledged_at < began:  # else it is only slow, or we are
                self._away = error
        finally:
            self._probed_at = self._loop.time()
            self._probing = None

    def _give_up(self, since: float, error: BusError) -> None:
        """Fail calls made before `since`. What of them is under way may still be written: before anything appended later."""
        for call in self._calls:
            if call.since < since and not call.future.done():
                call.fail(error)

    # --- the end -------------------------------------------------------------------------------

    async def close(self) -> None:
        """Wait for what is queued (each call has its deadline), then end."""
        self._closed = True
        await asyncio.gather(*(call.future for call in self._calls), return_exceptions=True)
        tasks = [self._building, self._probing, self._routing, *(lane.running for lane in self._lanes.values())]
        running = [task for task in tasks if task is not None]
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        if self._look is not None:
            self._look.cancel()
        client, self._client = self._client, None
        if client is not None:
            stop = asyncio.ensure_future(client.stop())
            await asyncio.wait({stop}, timeout=self._options.stop_s_max)
            if not stop.done():
                stop.cancel()
                self._discard(client)
            await asyncio.gather(stop, return_exceptions=True)
        await asyncio.gather(*self._discarding, return_exceptions=True)


async def _force_close(client: Any, seconds: float) -> None:
    """End a producer that may hang: what it still holds is not sent."""
    client._closed = True
    net, sender = client.client, client._sender.sender_task
    net._maybe_wait_metadata = _at_once  # the task that would bring the metadata ends here
    closing = asyncio.ensure_future(net.close())
    await asyncio.wait({closing}, timeout=seconds)
    closing.cancel()
    await asyncio.gather(closing, return_exceptions=True)
    if net._md_update_fut is not None and not net._md_update_fut.done():
        net._md_update_fut.set_result(False)
    if sender is not None:
        sender.cancel()
        await asyncio.wait({sender}, timeout=seconds)


async def _at_once() -> None:
    """Do not wait."""


def _heard(done: asyncio.Future[Any]) -> None:
    """Take note of an error that nobody waits for."""
    if not done.cancelled():
        done.exception()


def _copy(done: asyncio.Future[Any], waiter: asyncio.Future[Any]) -> None:
    error = None if done.cancelled() else done.exception()
    if waiter.done():
        return
    if done.cancelled():
        waiter.set_exception(kafka.ProducerClosed())
    elif error is not None:
        waiter.set_exception(error)
    else:
        waiter.set_result(done.result())


