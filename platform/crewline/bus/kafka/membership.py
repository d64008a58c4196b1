"""A membership in a group, by aiokafka's consumer: it joins, sends heartbeats and commits. It reads nothing.

aiokafka calls its listener and its assignor from a task of its own, and sends no heartbeats meanwhile: what is
called there must only take note. Its tasks can die without a word: `is_dead` is asked before each poll, and a
dead membership is left behind for a new one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener
from aiokafka import errors as kafka
from aiokafka.structs import TopicPartition

from crewline.bus.kafka.connections import BrokerClient
from crewline.bus.kafka.options import KafkaOptions, ms
from crewline.bus.kafka.sharing import Assignor, Claim
from crewline.bus.kafka.wire import in_our_words

log = logging.getLogger(__name__)


class Membership:
    """One client's membership of `group`, from its first join to its end.

    Args:
        claim: is asked at each join what this member owns; it is given the group's generation, below 1 if the
            group does not know us.
        given: is told this member's share, in the same step of the loop in which aiokafka takes it up.
        rebalancing: is told that a new share will come.
    """

    def __init__(
        self,
        topic: str,
        group: str,
        member: str,
        options: KafkaOptions,
        *,
        claim: Callable[[int], Claim],
        given: Callable[[Sequence[int]], None],
        rebalancing: Callable[[], None],
    ) -> None:
        self.topic = topic
        self.group = group
        self._options = options
        self._claim = claim
        self._given = given
        assignor = Assignor(lambda: claim(self.generation), self._take_up)
        self._client = AIOKafkaConsumer(
            **options.client() | {"client_id": member or options.client_id},
            group_id=group,
            partition_assignment_strategy=(assignor,),
            session_timeout_ms=ms(options.session_s),
            heartbeat_interval_ms=ms(options.heartbeat_s),
            rebalance_timeout_ms=ms(options.rebalance_s_max),
            max_poll_interval_ms=ms(options.poll_gap_s_max),
            auto_offset_reset="none",
            enable_auto_commit=False,
        )
        # aiokafka offers no other way to have it use a client of ours; its own was not connected yet.
        self._client._client = BrokerClient(options, client_id=member, request_s_max=options.member_request_s_max)
        self._client.subscribe([topic], listener=_Listener(rebalancing))
        self._starting: asyncio.Future[None] = asyncio.ensure_future(self._start())
        self._heard = False

    async def _start(self) -> None:
        await self._client.start()
        self._client._coordinator._do_commit_offsets = retrieved(self._client._coordinator._do_commit_offsets)
        await self._client._fetcher.close()  # it would only look, five times a second, for something to do

    # --- is it up? -----------------------------------------------------------------------------

    async def started(self, timeout_s: float) -> bool:
        """Return whether it is a member, waiting up to `timeout_s`. Raises: BusError if it cannot become one."""
        if self._heard:
            return True
        if not self._starting.done():
            if timeout_s <= 0:
                await asyncio.sleep(0)
            else:
                await asyncio.wait({self._starting}, timeout=timeout_s)
            if not self._starting.done():
                return False
        try:
            self._starting.result()
        except Exception as error:
            raise in_our_words(error, self._options, f"joining group {self.group} on {self.topic}") from error
        self._heard = True
        return True

    def when_started(self, wake: Callable[[], None]) -> None:
        """Call `wake` once `started` has something to say."""
        self._starting.add_done_callback(lambda _: wake())

    def is_dead(self) -> bool:
        """Return whether a task of the client has ended."""
        tasks = (getattr(self._client._coordinator, "_coordination_task", None), self._client._client._sync_task)
        return any(task is not None and task.done() for task in tasks)

    def polled(self) -> None:
        """Note that the member is at work: aiokafka leaves the group of one that does not fetch for minutes."""
        self._client._subscription._last_fetch_ended = time.monotonic()

    # --- the group -----------------------------------------------------------------------------

    @property
    def generation(self) -> int:
        """Return the group's generation as this member knows it; below 1: it is no member."""
        coordinator = self._client._coordinator
        return coordinator.generation if coordinator is not None else -1

    def _take_up(self, partitions: Sequence[int], more: bool) -> None:
        # A heartbeat is how one hears of the next round; until that, what moves is nobody's.
        self._client._coordinator._heartbeat_interval_ms = ms(self._options.retry_s if more else self._options.heartbeat_s)
        for number in partitions:
            tp = TopicPartition(self.topic, number)
            self._client.pause(tp)  # until it is closed, its own fetcher has nothing to do
            self._client._subscription.seek(tp, 0)  # nor to look for offsets that the group committed
        self._given(partitions)

    def join_again(self) -> None:
        """Ask for a new share: what this member has let go of is free now."""
        self._client._coordinator.request_rejoin()

    async def commit(self, offsets: Mapping[int, int]) -> None:
        """Note how far the group has read, for partitions that are this member's. Raises: whatever goes wrong."""
        subscription = self._client._subscription.subscription
        assignment = subscription.assignment if subscription is not None else None
        places = {TopicPartition(self.topic, number): offset for number, offset in offsets.items()}
        mine = {tp: offset for tp, offset in places.items() if assignment is not None and tp in assignment.tps}
        if mine:
            async with asyncio.timeout(self._options.commit_s_max):
                await self._client.commit(mine)

    # --- the end -------------------------------------------------------------------------------

    async def close(self) -> None:
        """Leave the group, by force if that does not end by itself. Never raises."""
        self._starting.cancel()
        await asyncio.gather(self._starting, return_exceptions=True)
        stop = asyncio.ensure_future(self._client.stop())
        await asyncio.wait({stop}, timeout=self._options.stop_s_max)
        if stop.done():
            if not stop.cancelled() and (error := stop.exception()) is not None:
                log.warning("leaving group %s: %s", self.group, error)
            else:
                return
        stop.cancel()
        await asyncio.gather(stop, return_exceptions=True)
        rest = asyncio.ensure_future(self._force())
        await asyncio.wait({rest}, timeout=self._options.stop_s_max)
        rest.cancel()
        await asyncio.gather(rest, return_exceptions=True)

    async def _force(self) -> None:
        coordinator = self._client._coordinator
        leave = getattr(coordinator, "_maybe_leave_group", None)
        if leave is not None:
            for task in (coordinator._coordination_task, coordinator._heartbeat_task):
                if task is not None:
                    task.cancel()
            with contextlib.suppress(kafka.KafkaError, TimeoutError):
                async with asyncio.timeout(1.0):
                    await leave()
        if self._client._fetcher is not None:
            self._client._fetcher._fetch_task.cancel()
        await self._client._client.close()


def retrieved(commit: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., asyncio.Task[None]]:
    """Return `commit` as a task whose failure somebody has seen.

    aiokafka shields its commits: of one that fails after `commit` has given up nobody would hear but the loop,
    which says so at length.
    """

    def start(*args: Any) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(commit(*args))
        task.add_done_callback(lambda task: task.cancelled() or task.exception())
        return task

    return start


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]  # aiokafka has no types
    """What aiokafka calls in a rebalance. The assignor hears of a new share earlier than `on_partitions_assigned`."""

    def __init__(self, rebalancing: Callable[[], None]) -> None:
        self._rebalancing = rebalancing

    def on_partitions_revoked(self, revoked: Any) -> None:
        self._rebalancing()

    def on_partitions_assigned(self, assigned: Any) -> None:
        """Nothing is left to do."""
