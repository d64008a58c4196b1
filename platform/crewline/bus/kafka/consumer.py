"""A member of a group.

aiokafka calls its listener from a task of its own, and sends no heartbeats meanwhile. Here nothing is done
in that task but noting what was given (pause first, then seek: records can arrive before it ends); the
user's callbacks run from within `poll`, for as long as they like.

    join ──claim()──▶ what is owned, or being loaded        (aiokafka's task)
    sync ──given()──▶ noted: pause, seek, wake              (aiokafka's task, one step)
    poll ──▶ revoked(what is gone) ──▶ join again, so that it is free ──▶ assigned(what is new) ──▶ seek, resume
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

from aiokafka import ConsumerRebalanceListener
from aiokafka.structs import TopicPartition

from crewline.bus.base import Assigned, Revoked
from crewline.bus.kafka.options import ms
from crewline.bus.kafka.reader import Reader, new_client
from crewline.bus.kafka.sharing import Assignor, Claim
from crewline.bus.kafka.wire import Wire, in_our_words, out_of_range
from crewline.errors import OffsetOutOfRange, UsageError

log = logging.getLogger(__name__)


class KafkaConsumer(Reader):
    """A member of a group; see `crewline.bus.base.Consumer`. What it owns is what `_positions` has."""

    def __init__(
        self,
        topic: str,
        group: str,
        *,
        assigned: Assigned,
        revoked: Revoked,
        member: str,
        wire: Wire,
        forget: Callable[[Any], None],
    ) -> None:
        super().__init__(topic, wire, forget)
        self.group = group
        self._member = member
        self._assigned_callback = assigned
        self._revoked_callback = revoked
        self._given: frozenset[int] = frozenset()
        self._loading: frozenset[int] = frozenset()  # with `assigned`: claimed, not yet read
        self._going: frozenset[int] = frozenset()  # with `revoked`: not ours any more, to be committed at most
        self._lost: set[int] = set()  # owned as a member that the group no longer knows
        self._due = False

    def assignment(self) -> frozenset[int]:
        """Return the partitions owned now, as of the last poll."""
        return frozenset(self._positions)

    async def commit(self, offsets: Mapping[int, int]) -> None:
        """Note how far the group has read. A failure is only logged: nothing but lag is computed from it."""
        mine = {
            TopicPartition(self.topic, number): offset
            for number, offset in offsets.items()
            if (number in self._positions or number in self._going) and self._state(number) is not None
        }
        if not mine:
            return
        try:
            async with asyncio.timeout(self._options.commit_s_max):
                await self._client.commit(mine)
        except Exception as error:
            log.info("group %s: offsets of %s were not noted: %s", self.group, self.topic, error or type(error).__name__)

    # --- in aiokafka's task --------------------------------------------------------------------

    def _open_client(self) -> Awaitable[None]:
        options = self._options
        assignor = Assignor(self._claim, self._take_up)
        self._client = new_client(
            options,
            client_id=self._member or options.client_id,
            group_id=self.group,
            partition_assignment_strategy=(assignor,),
            session_timeout_ms=ms(options.session_s),
            heartbeat_interval_ms=ms(options.heartbeat_s),
            rebalance_timeout_ms=ms(options.rebalance_s_max),
            max_poll_interval_ms=ms(options.poll_gap_s_max),
        )
        self._client.subscribe([self.topic], listener=_Listener(self))
        starting: Awaitable[None] = self._client.start()
        return starting

    def _claim(self) -> Claim:
        """Return what to say in a join. A generation below 1 means that the group does not know us (any more)."""
        coordinator = self._client._coordinator
        generation = coordinator.generation if coordinator is not None else -1
        held = self._positions.keys() | self._loading
        if generation < 1:
            self._lost |= held
        still = held - self._lost
        self._due = self._due or bool(self._lost)
        return Claim(generation, tuple(sorted(still)))

    def rebalance_begins(self) -> None:
        """Hear that aiokafka stops handing out records."""
        self._rebalancing = True
        self._wake.set()

    def _take_up(self, partitions: Sequence[int]) -> None:
        """Note this member's share. No `await` in here, nor between aiokafka's taking it up and this."""
        self._given = frozenset(partitions)
        self._rebalancing = False
        self._forget_fetched()
        for number in partitions:
            tp = TopicPartition(self.topic, number)
            ours = number in self._positions and number not in self._lost
            if not ours:
                self._client.pause(tp)
            self._client._subscription.seek(tp, self._positions[number] if ours else 0)
        self._due = self._due or self._given != self._positions.keys() or bool(self._lost)
        self._wake.set()

    # --- in poll -------------------------------------------------------------------------------

    async def _prepare(self) -> None:
        if self._dead():
            self._replace_client()
            raise in_our_words(ConnectionError("its client died"), self._options, f"group {self.group} on {self.topic}")
        while self._due and not self._closed:
            self._due = False
            try:
                await self._follow()
            except BaseException:
                self._due = True
                raise

    async def _follow(self) -> None:
        """Bring the callbacks into line with what was given."""
        lost, self._lost = self._lost, set()
        given = self._given
        going = [number for number in sorted(self._positions) if number in lost or number not in given]
        if going:
            await self._let_go(going)
            if not set(going) <= lost:
                self._client._coordinator.request_rejoin()  # now they are free
        coming = sorted(self._given - self._positions.keys())
        if coming and not self._closed and not self._rebalancing:
            await self._start_reading(coming)

    async def _let_go(self, going: Collection[int]) -> None:
        for number in going:
            self._drop(number)
        self._going = frozenset(going)
        try:
            await self._revoked_callback(sorted(going))
        finally:
            self._going = frozenset()

    async def _start_reading(self, coming: Sequence[int]) -> None:
        self._loading = frozenset(coming)
        try:
            starts = await self._assigned_callback(coming)
            missing = [number for number in coming if number not in starts]
            if missing:
                raise UsageError(f"`assigned` gave no start offset for partitions {missing} of {self.topic}")
            begins, ends = await self._wire.offsets(self.topic)
            problem: OffsetOutOfRange | None = None
            for number in coming:
                start = starts[number]
                if begins[number] <= start <= ends[number]:
                    self._ends[number] = ends[number]
                    self._seek(number, start)  # one lost meanwhile is let go at the next look
                else:
                    problem = out_of_range(self.topic, number, start, begins[number], ends[number])
            if problem is not None:
                raise problem  # at the next poll `assigned` is asked again for those
        finally:
            self._loading = frozenset()

    def _left_out(self, partition: int) -> None:
        self._due = True  # still given: `assigned` is asked where to go on

    def _lost_client(self) -> None:
        self._lost |= self._positions.keys()
        self._given = frozenset()
        self._rebalancing = False
        self._due = bool(self._lost)

    async def _part(self) -> None:
        owned = sorted(self._positions)
        self._positions.clear()
        self._going = frozenset(owned)
        try:
            if owned:
                await self._revoked_callback(owned)
        finally:
            self._going = frozenset()
            await self._stop_client(self._client)


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """What aiokafka calls in a rebalance. The assignor hears of a new share earlier than `on_partitions_assigned`."""

    def __init__(self, consumer: KafkaConsumer) -> None:
        self._consumer = consumer

    def on_partitions_revoked(self, revoked: Any) -> None:
        self._consumer.rebalance_begins()

    def on_partitions_assigned(self, assigned: Any) -> None:
        """Nothing is left to do."""


