"""A member of a group.

aiokafka's task only takes notes here; the user's callbacks run from within `poll`, for as long as they like.

    join ──claim()──▶ what is owned, or being loaded        (aiokafka's task)
    sync ──given()──▶ noted, and poll is woken              (aiokafka's task, one step)
    poll ──▶ revoked(what is gone) ──▶ join again, so that it is free ──▶ assigned(what is new) ──▶ read on from there

What stays with this member is read on in between.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from crewline.bus.base import Assigned, Revoked
from crewline.bus.kafka.feed import Feed
from crewline.bus.kafka.membership import Membership
from crewline.bus.kafka.reader import Reader
from crewline.bus.kafka.sharing import Claim
from crewline.bus.kafka.wire import Wire
from crewline.errors import BusError, UsageError

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
        feed: Feed,
        forget: Callable[[Any], None],
    ) -> None:
        super().__init__(topic, wire, feed, forget)
        self.group = group
        self._member = member
        self._assigned_callback = assigned
        self._revoked_callback = revoked
        self._membership = self._join()
        self._parting: set[asyncio.Task[None]] = set()
        self._given: frozenset[int] = frozenset()
        self._loading: frozenset[int] = frozenset()  # with `assigned`: claimed, not yet read
        self._going: frozenset[int] = frozenset()  # with `revoked`: not ours any more, to be committed at most
        self._lost: set[int] = set()  # owned as a member that the group no longer knows
        self._rebalancing = False
        self._due = False

    def assignment(self) -> frozenset[int]:
        """Return the partitions owned now, as of the last poll."""
        return frozenset(self._positions)

    async def commit(self, offsets: Mapping[int, int]) -> None:
        """Note how far the group has read. A failure is only logged: nothing but lag is computed from it."""
        mine = {number: offset for number, offset in offsets.items() if number in self._positions or number in self._going}
        try:
            await self._membership.commit(mine)
        except Exception as error:  # of many kinds, aiokafka's and others: none of them matters
            log.info("group %s: offsets of %s were not noted: %s", self.group, self.topic, error or type(error).__name__)

    # --- the membership ------------------------------------------------------------------------

    def _join(self) -> Membership:
        membership = Membership(
            self.topic,
            self.group,
            self._member,
            self._options,
            claim=lambda generation: self._claim(membership, generation),
            given=lambda partitions: self._take_up(membership, partitions),
            rebalancing=self._rebalance_begins,
        )
        membership.when_started(self.wake)
        return membership

    async def start(self, wait_s: float) -> None:
        """Join; wait up to `wait_s` for it. Raises: BusError if it failed by then."""
        await self._membership.started(wait_s)

    def _join_anew(self) -> None:
        """Leave a membership that is dead behind; what was owned may be somebody else's by now."""
        log.warning("group %s on %s: joining anew", self.group, self.topic)
        parting = asyncio.ensure_future(self._membership.close())
        self._parting.add(parting)
        parting.add_done_callback(self._parting.discard)
        self._lost |= self._positions.keys()
        self._given = frozenset()
        self._rebalancing = False
        self._due = bool(self._lost)
        self._membership = self._join()

    # --- in aiokafka's task --------------------------------------------------------------------

    def _claim(self, membership: Membership, generation: int) -> Claim:
        """Return what to say in a join."""
        if membership is not self._membership:
            return Claim()
        held = self._positions.keys() | self._loading
        if generation < 1:
            self._lost |= held
        still = held - self._lost
        self._due = self._due or bool(self._lost)
        return Claim(generation, tuple(sorted(still)))

    def _rebalance_begins(self) -> None:
        self._rebalancing = True
        self.wake()

    def _take_up(self, membership: Membership, partitions: Sequence[int]) -> None:
        """Note this member's share. No `await` in here, nor between aiokafka's taking it up and this."""
        if membership is not self._membership:
            return
        self._given = frozenset(partitions)
        self._rebalancing = False
        self._due = self._due or self._given != self._positions.keys() or bool(self._lost)
        self.wake()

    # --- in poll -------------------------------------------------------------------------------

    async def _prepare(self, left_s: float) -> bool:
        membership = self._membership
        try:
            if not await membership.started(0.0):
                return False
        except BusError:
            self._join_anew()
            raise
        if membership.is_dead():
            self._join_anew()
            return False
        membership.polled()
        while self._due and not self._closed:
            self._due = False
            try:
                await self._follow()
            except BaseException:
                self._due = True
                raise
        return True

    async def _follow(self) -> None:
        """Bring the callbacks into line with what was given."""
        lost, self._lost = self._lost, set()
        given = self._given
        going = [number for number in sorted(self._positions) if number in lost or number not in given]
        if going:
            await self._let_go(going)
            if not set(going) <= lost:
                self._membership.join_again()  # now they are free
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
            # One lost meanwhile is let go at the next look; at the next poll `assigned` is asked again for the wrong ones.
            problem = self._check_starts({number: starts[number] for number in coming}, begins, ends)
            if problem is not None:
                raise problem
        finally:
            self._loading = frozenset()

    def _left_out(self, partition: int) -> None:
        self._due = True  # still given: `assigned` is asked where to go on

    async def _part(self) -> None:
        owned = sorted(self._positions)
        for number in owned:
            self._drop(number)
        self._going = frozenset(owned)
        try:
            if owned:
                await self._revoked_callback(owned)
        finally:
            self._going = frozenset()
            await self._membership.close()
            await asyncio.gather(*self._parting)
