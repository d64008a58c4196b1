"""Sending what the lanes hold: one request at a time to a broker, with the batch at the head of each lane it leads.

    lanes ──pump──▶ a request to each broker that has none ──▶ the records stand, or what went wrong decides:

    what went wrong                                 what becomes of the batch
    no answer, no leader, too few replicas …        the very same bytes again: the broker knows their number, takes them once
    too large                                       in halves; a single record fails its call
    number out of order, producer unknown           again as another producer: may then stand twice, and the fold takes the first
    not allowed, or whatever is not worth a retry   fails its calls

The producer's part of Kafka's idempotence is here, not in aiokafka: there one failure leaves a partition refusing
everything for ever, without a word, and with the broker away it hangs.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable

from aiokafka import errors as kafka
from aiokafka.protocol.produce import ProduceRequest
from aiokafka.protocol.transaction import InitProducerIdRequest
from aiokafka.structs import TopicPartition

from crewline.bus.kafka.lanes import Ids, Lane
from crewline.bus.kafka.options import ms
from crewline.bus.kafka.refusals import NOT_ALLOWED
from crewline.bus.kafka.wire import Wire, in_our_words
from crewline.crashpoints import reach
from crewline.errors import BusError, UnknownTopic

log = logging.getLogger(__name__)

CONNECTIONS = "produce"  # own ones: nothing else waits for the replicas
ALL_REPLICAS = -1
TOO_LARGE = {kafka.MessageSizeTooLargeError.errno, kafka.RecordListTooLargeError.errno}
OTHER_IDS = {
    kafka.OutOfOrderSequenceNumber.errno, kafka.DuplicateSequenceNumber.errno, kafka.InvalidProducerEpoch.errno,
    kafka.InvalidProducerIdMapping.errno, 59,
}  # fmt: skip  # 59: UNKNOWN_PRODUCER_ID, which aiokafka does not name


class Sender:
    """Sends for one bus.

    Args:
        refused: is called when nobody may append anything at all.
        acknowledged: is called with each answer that took something.
    """

    def __init__(self, wire: Wire, *, refused: Callable[[BusError], None], acknowledged: Callable[[], None]) -> None:
        self._wire = wire
        self._options = wire.options
        self._loop = asyncio.get_running_loop()
        self._refused = refused
        self._acknowledged = acknowledged
        self._waiting: dict[Lane, None] = {}  # lanes with something to send, in order of arrival
        self._in_flight: set[int] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._ids: Ids | None = None
        self._asking: asyncio.Task[None] | None = None
        self._pumping: asyncio.Handle | None = None
        self._closed = False
        self.resent = 0

    # --- what goes -----------------------------------------------------------------------------

    def ready(self, lane: Lane) -> None:
        """Hear that `lane` has something to send. What comes in the same step of the loop goes along."""
        if not lane.busy:
            self._waiting[lane] = None
            self._soon()

    def _soon(self) -> None:
        if isinstance(self._pumping, asyncio.TimerHandle):
            self._pumping.cancel()
            self._pumping = None
        if self._pumping is None and not self._closed:
            self._pumping = self._loop.call_soon(self._pump)

    def _pump(self) -> None:
        self._pumping = None
        now = self._loop.time()
        later = False
        requests: dict[int, list[Lane]] = defaultdict(list)
        for lane in list(self._waiting):
            if lane.batch is not None and lane.batch.abandoned:
                self._as_another(lane)
            if lane.not_before > now:
                later = True
                continue
            node = self._leader(lane)
            if node is None:
                self._leaderless(lane, now)
                later = True
            elif node not in self._in_flight and self._has_batch(lane):
                del self._waiting[lane]
                lane.busy = True
                requests[node].append(lane)
        for node, lanes in requests.items():
            self._in_flight.add(node)
            task = self._loop.create_task(self._send(node, lanes))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        if later and self._pumping is None:
            self._pumping = self._loop.call_later(self._options.retry_s, self._pump)

    def _leader(self, lane: Lane) -> int | None:
        node = self._wire.cluster.leader_for_partition(TopicPartition(lane.topic, lane.partition))
        return None if node is None or node < 0 else int(node)

    def _has_batch(self, lane: Lane) -> bool:
        if lane.batch is None:
            if not lane.has_more():
                del self._waiting[lane]
                return False
            if lane.ids is None:
                lane.ids, lane.sequence = self._ids, 0
            if lane.ids is None:
                self._ask_for_ids()
                return False
            lane.fill(self._options)
        return True

    def _leaderless(self, lane: Lane, now: float) -> None:
        lane.not_before = now + self._options.retry_s
        self._wire.refresh_soon()
        if self._wire.known_partitions(lane.topic) is not None or not self._wire.client.knows_topics:
            lane.unknown_since = None
        elif lane.unknown_since is None:
            lane.unknown_since = now
        elif now - lane.unknown_since > self._options.connect_s_max:
            self._fail(lane, UnknownTopic(f"there is no topic {lane.topic!r} any more"), everything=True)

    # --- one request ---------------------------------------------------------------------------

    async def _send(self, node: int, lanes: list[Lane]) -> None:
        topics: dict[str, list[tuple[int, bytes]]] = defaultdict(list)
        for lane in lanes:
            assert lane.batch is not None
            topics[lane.topic].append((lane.partition, lane.batch.data))
        request = ProduceRequest(None, ALL_REPLICAS, ms(self._options.request_s_max), list(topics.items()))
        unanswered = {(lane.topic, lane.partition): lane for lane in lanes}
        error: BaseException = kafka.KafkaConnectionError("the broker's answer left it out")
        reach("bus.before_commit")
        try:
            answer = await self._wire.client.send(node, request, group=CONNECTIONS)
            for topic, partitions in answer.topics:
                for number, code, offset, *_ in partitions:
                    self._answered(unanswered[topic, number], code, offset)
                    del unanswered[topic, number]
                    reach("bus.in_group_commit")
            reach("bus.after_commit")
        except (kafka.KafkaError, OSError, TimeoutError) as failure:
            error = failure
        except Exception as failure:  # a bug of ours or of aiokafka's must not leave a lane standing: said, and tried again
            log.exception("appending at broker %s", node)
            error = failure
        finally:
            for lane in unanswered.values():
                self._again(lane, error)
            for lane in lanes:
                lane.busy = False
                if lane.batch is not None or lane.queue:
                    self._waiting[lane] = None
            self._in_flight.discard(node)
            if self._waiting:
                self._soon()

    def _answered(self, lane: Lane, code: int, offset: int) -> None:
        if offset >= 0 and code in (0, kafka.DuplicateSequenceNumber.errno):
            lane.stood(offset)
            self._acknowledged()
            return
        error = kafka.for_code(code)(f"{lane.topic} partition {lane.partition}")
        assert lane.batch is not None
        if code in TOO_LARGE:
            count = len(lane.batch.entries)
            lane.records_max = max(1, count // 2)
            if count > 1:
                lane.not_written()
            else:
                self._fail(lane, in_our_words(error, self._options, self._doing(lane)))
        elif code in OTHER_IDS:
            log.warning("%s: %s; again as another producer", self._doing(lane), type(error).__name__)
            self._as_another(lane)
        elif isinstance(error, NOT_ALLOWED) or not error.retriable:
            self._fail(lane, in_our_words(error, self._options, self._doing(lane)))
        else:
            self._again(lane, error)

    def _doing(self, lane: Lane) -> str:
        return f"appending to {lane.topic} partition {lane.partition}"

    def _again(self, lane: Lane, error: BaseException) -> None:
        """Send the batch at the head of `lane` again after a moment: the same bytes, so that they are taken once."""
        self.resent += 1
        log.warning("%s: %s; it is sent again", self._doing(lane), str(error) or type(error).__name__)
        lane.not_before = self._loop.time() + self._options.retry_s
        self._wire.refresh_soon()
        if lane.batch is not None and lane.batch.abandoned:
            self._as_another(lane)

    def _as_another(self, lane: Lane) -> None:
        if self._ids is lane.ids:
            self._ids = None
        lane.fate_unknown()

    def _fail(self, lane: Lane, error: BusError, *, everything: bool = False) -> None:
        """Fail the calls of the batch at the head of `lane` (or all), which the broker has not taken."""
        entries = lane.batch.entries if lane.batch is not None else []
        if lane.batch is not None:
            lane.not_written()
        for call, _ in list(lane.queue) if everything else entries:
            call.fail(error)

    # --- who appends ---------------------------------------------------------------------------

    def _ask_for_ids(self) -> None:
        if self._asking is None and not self._closed:
            self._asking = self._loop.create_task(self._get_ids())

    async def _get_ids(self) -> None:
        try:
            self._ids = await self._new_ids()
        except NOT_ALLOWED as error:  # no right to append anywhere: nobody need wait for that
            self._refused(in_our_words(error, self._options, "appending"))
            await asyncio.sleep(self._options.retry_s)
        except (kafka.KafkaError, OSError, TimeoutError) as error:
            log.warning("no producer's id, trying on: %s", in_our_words(error, self._options, "asking for it"))
            self._wire.refresh_soon()
            await asyncio.sleep(self._options.retry_s)
        finally:
            self._asking = None
            self._soon()

    async def _new_ids(self) -> Ids:
        answer = await self._wire.client.send(
            self._wire.client.get_random_node(), InitProducerIdRequest(None, ms(self._options.request_s_max)), group=CONNECTIONS
        )
        error = kafka.for_code(answer.error_code)
        if error is not kafka.NoError:
            raise error()
        return Ids(answer.producer_id, answer.producer_epoch)

    # --- the end -------------------------------------------------------------------------------

    async def close(self) -> None:
        """End. What is under way is not waited for."""
        self._closed = True
        if self._pumping is not None:
            self._pumping.cancel()
        tasks = [*self._tasks, *([self._asking] if self._asking is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
