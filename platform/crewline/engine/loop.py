"""The loop: poll, fold, derive effects, run them, keep timers."""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from types import CoroutineType
from typing import Any

from crewline_memory.base import MemoryStore

from crewline.bus.base import Batch, Bus, Consumer, Message
from crewline.crashpoints import reach
from crewline.engine import collector
from crewline.engine.base import Effect, EngineOptions, Role, S
from crewline.engine.outbox import Outbox
from crewline.engine.ownership import Key, Part, tried_again
from crewline.errors import BusError, StoreError
from crewline.records import Reader

log = logging.getLogger("crewline.engine")

JOIN_POLL_S = 0.02  # how long the first poll waits while not everything owned is folded; then ever longer
_TIMERS_MIN = 1_024  # below that, dead timers are left where they are


class Engine(Outbox[S]):
    """One member of a role's group. `run` until `stop`; then everything it owned is handed over.

    Args:
        role: the view, and how its effects are run.
        group: the consumer group; members of it share the partitions.
        clock_ms: wall clock in Unix ms, for due times.
    """

    def __init__(
        self,
        role: Role[S],
        *,
        bus: Bus,
        store: MemoryStore,
        reader: Reader,
        group: str,
        clock_ms: Callable[[], int],
        options: EngineOptions = EngineOptions(),
        member: str = "",
    ) -> None:
        super().__init__(role, bus=bus, store=store, reader=reader, options=options)
        self._group = group
        self._member = member
        self._clock_ms = clock_ms
        self._timers: list[tuple[int, int, Part[S], bytes, Effect]] = []
        self._timers_max = _TIMERS_MIN
        self._timer_handle: asyncio.TimerHandle | None = None
        self._sequence = 0
        self._slots = options.slots
        self._waiting: deque[tuple[Part[S], bytes, Effect]] = deque()
        self._polling: asyncio.Task[Any] | None = None
        self._join_poll_s = JOIN_POLL_S
        self._ready = asyncio.Event()
        self._wake_at = 0.0
        self._drain_s = 0.0

    # --- life ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Join the group and work until `stop`. Raises BusError only if the topic is not there."""
        collector.calm()
        self._consumer = consumer = await self._bus.consumer(
            self.role.topic, self._group, assigned=self._assigned, revoked=self._revoked, member=self._member
        )
        self._last_snapshot = asyncio.get_running_loop().time()
        try:
            while not self._stopping.is_set():
                try:
                    batches = await self._poll(consumer)
                    for batch in batches:
                        if not await self._take(batch):
                            break
                    self._derive()
                    self._checkpoint()
                    self._send()
                    await self._snapshot_if_due()
                    if self._parts and all(part.caught_up for part in self._parts.values()):
                        self._ready.set()
                except (BusError, StoreError) as error:
                    self._note_failed(error)
                    tried_again.warning("%s: %s; trying again", self.role.name, error)
                    await self._pause(self._options.retry_s_max / 10)
            await self._drain()
        finally:
            await consumer.close()
            for send in list(self._sends):
                send.cancel()
            if self._timer_handle:
                self._timer_handle.cancel()

    async def _poll(self, consumer: Consumer) -> Sequence[Batch]:
        """Wait for records; not for long while this owner is not ready, and not at all once it is to stop."""
        poll_s = self._options.poll_s
        if not self._ready.is_set():
            poll_s = min(poll_s, self._join_poll_s)
            self._join_poll_s *= 2  # a member may wait for its share for long
        self._polling = asyncio.current_task()
        try:
            return await consumer.poll(poll_s, records_max=self._options.records_max)
        except asyncio.CancelledError:
            if not self._stopping.is_set() or self._polling is None or self._polling.uncancel() > 0:
                raise
            return ()
        finally:
            self._polling = None

    def stop(self, *, drain_s: float = 0.0) -> None:
        """Ask `run` to end: it begins nothing more, snapshots, hands its partitions over and returns.

        What was begun has `drain_s` seconds to come to its end, so that no reply that is under way is paid for
        again; what takes longer is the next owner's to begin anew.
        """
        self._drain_s = drain_s
        if not self._stopping.is_set() and self._polling is not None:
            self._polling.cancel()
        self._stopping.set()

    async def _drain(self) -> None:
        """Let what was begun end, and get into the log. Nothing is folded meanwhile: the next owner does that."""
        loop = asyncio.get_running_loop()
        until = loop.time() + self._drain_s
        while (begun := self._begun()) and (left_s := until - loop.time()) > 0:
            await asyncio.wait(begun, timeout=left_s)

    def _begun(self) -> set[asyncio.Future[Any]]:
        """Return the effects that run, and the appends they have led to."""
        self._send()
        running = (task for part in self._parts.values() for held in part.keys.values() for task in held.tasks.values())
        return {task for task in (*running, *self._sends) if not task.done()}

    async def ready(self) -> None:
        """Wait until every partition owned is folded to the end it had when it was assigned."""
        await self._ready.wait()

    def states(self) -> list[S]:
        """Return the states held in memory (open ones, and recent others)."""
        return [held.state for part in self._parts.values() for held in part.keys.values()]

    def in_flight(self) -> int:
        """Return how many effects run now."""
        return self._options.slots - self._slots + len(self._waiting)

    def reconsider(self) -> None:
        """Derive the effects of every open state again: something outside the log has changed."""
        for part in self._parts.values():
            for raw, held in part.keys.items():
                if held.pending:
                    part.dirty[raw] = None
        self._derive()
        self._send()

    # --- ownership -----------------------------------------------------------------------------

    async def _assigned(self, partitions: Sequence[int]) -> Mapping[int, int]:
        failures = 0
        while True:
            try:
                starts = await self._load_all(partitions)
                self._ready.clear()
                self._join_poll_s = JOIN_POLL_S
                return starts
            except (BusError, StoreError) as error:
                if self._stopping.is_set():
                    raise
                failures += 1
                self._note_failed(error)
                tried_again.warning("%s: partitions %s cannot be loaded: %s; trying again", self.role.name, partitions, error)
                await self._pause(self._backoff(failures))

    async def _revoked(self, partitions: Sequence[int]) -> None:
        for partition in partitions:
            part = self._parts.pop(partition, None)
            if part is None:
                continue
            for held in part.keys.values():
                for task in held.tasks.values():
                    task.cancel()
            self._waiting = deque(item for item in self._waiting if item[0] is not part)
            try:
                await self._write_snapshot(part)
            except (BusError, StoreError) as error:
                self._note_failed(error)
                log.warning("%s: no snapshot at hand-over: %s; the next owner folds more", self.role.name, error)

    # --- after each poll ------------------------------------------------------------------------

    def _checkpoint(self) -> None:
        """Ask for what is to be said of each partition: after every poll, since quiet ones are due as well."""
        for part in self._parts.values():
            messages = self.role.checkpoint(part.partition, part.next_offset, part.carry)
            if messages:
                self._append([(None, b"", None, messages)])

    # --- effects -------------------------------------------------------------------------------

    def _derive(self) -> None:
        for part in self._parts.values():
            if not part.caught_up or not part.dirty:
                continue
            dirty, part.dirty = part.dirty, {}
            for raw in dirty:
                held = part.keys.get(raw)
                if held is not None:
                    self._derive_key(part, raw, held)

    def _derive_key(self, part: Part[S], raw: bytes, held: Key[S]) -> None:
        effects = () if held.frozen_at is not None else self.role.pending(held.state)
        held.pending = False
        if held.begun or held.acked:
            self._end_others(held, {effect.id for effect in effects})
        elif not effects:
            held.failures = 0
            return
        for effect in effects:
            if effect.id in held.acked:
                continue
            held.pending = True
            offset = held.begun.get(effect.id)
            if offset is None:
                self._begin(part, raw, held, effect)
            elif 0 <= offset < part.next_offset:
                # Its record stands in the log, and yet the effect is open: it did not count. Try again, slowly.
                held.begun[effect.id] = -1
                held.failures += 1
                self._later(part, raw, effect, self._backoff(held.failures))
        if not held.begun:
            held.failures = 0

    def _end_others(self, held: Key[S], open_ids: set[str]) -> None:
        """End what the state does not ask for any more."""
        for gone in [id for id in held.begun if id not in open_ids]:
            del held.begun[gone]
            if (task := held.tasks.pop(gone, None)) is not None:
                task.cancel()
        if held.acked:
            held.acked.intersection_update(open_ids)

    def _begin(self, part: Part[S], raw: bytes, held: Key[S], effect: Effect) -> None:
        held.begun[effect.id] = -1
        if effect.due_ms is not None and effect.due_ms > self._clock_ms():
            self._at(effect.due_ms, part, raw, effect)
        elif effect.slot and self._slots <= 0:
            self._waiting.append((part, raw, effect))
        else:
            self._act(part, raw, held, effect)

    def _act(self, part: Part[S], raw: bytes, held: Key[S], effect: Effect) -> None:
        if self._stopping.is_set():
            return  # the next owner's
        context = None if self.observer is None else self.observer.context(effect, held.state)
        act = self.role.act
        try:
            acted = act(effect, held.state) if context is None else context.run(act, effect, held.state)
        except Exception:  # a bug of the role: said, and tried again; other effects go on
            log.exception("%s: effect %s failed; trying again", self.role.name, effect.id)
            held.failures += 1
            self._later(part, raw, effect, self._backoff(held.failures))
            return
        if type(acted) is CoroutineType or isinstance(acted, Coroutine):
            if effect.slot:
                self._slots -= 1
            task = asyncio.create_task(acted, name=effect.id, context=context)
            # Not within the task: one that is cancelled before it began never gets anywhere.
            task.add_done_callback(lambda task: self._ended(part, raw, held, effect, acted, task))
            held.tasks[effect.id] = task
        else:
            self._outbox.append((part, raw, effect, acted))

    def _ended(
        self, part: Part[S], raw: bytes, held: Key[S], effect: Effect, work: Coroutine[Any, Any, Sequence[Message]],
        task: asyncio.Task[Sequence[Message]],
    ) -> None:
        """Send what an effect led to; have it tried again if it failed."""
        work.close()
        if held.tasks.get(effect.id) is task:
            del held.tasks[effect.id]
        if not task.cancelled():
            error = task.exception()
            if error is not None:  # a bug of the role: said, and tried again; other effects go on
                log.error("%s: effect %s failed; trying again", self.role.name, effect.id, exc_info=error)
                held.failures += 1
                self._later(part, raw, effect, self._backoff(held.failures))
            else:
                reach(f"{self.role.name}.after_act")
                if self._parts.get(part.partition) is part and effect.id in held.begun:
                    self._outbox.append((part, raw, effect, task.result()))
                    self._send_soon()
        if effect.slot:
            self._slots += 1
            if self._waiting:
                self._fill_slots()

    def _fill_slots(self) -> None:
        while self._waiting and self._slots > 0:
            part, raw, effect = self._waiting.popleft()
            held = part.keys.get(raw)
            if held is not None and self._parts.get(part.partition) is part and effect.id in held.begun:
                self._act(part, raw, held, effect)
        self._send_soon()

    # --- timers --------------------------------------------------------------------------------

    def _later(self, part: Part[S], raw: bytes, effect: Effect, seconds: float) -> None:
        self._at(self._clock_ms() + int(seconds * 1000), part, raw, effect)

    def _at(self, due_ms: int, part: Part[S], raw: bytes, effect: Effect) -> None:
        if len(self._timers) >= self._timers_max:
            self._drop_dead_timers()
        self._sequence += 1
        heapq.heappush(self._timers, (due_ms, self._sequence, part, raw, effect))
        if self._timer_handle is None or self._timers[0][1] == self._sequence:
            self._arm()

    def _drop_dead_timers(self) -> None:
        """Most timers never ring: what they waited for came. They go when they outnumber the rest."""
        self._timers = [timer for timer in self._timers if self._is_live(*timer[2:])]
        heapq.heapify(self._timers)
        self._timers_max = max(_TIMERS_MIN, 2 * len(self._timers))

    def _is_live(self, part: Part[S], raw: bytes, effect: Effect) -> bool:
        held = part.keys.get(raw) if self._parts.get(part.partition) is part else None
        # Its task may not have ended yet: one that failed sets its timer as its last act.
        return held is not None and held.begun.get(effect.id) == -1

    def _arm(self) -> None:
        """Set the one loop timer to the earliest due time; looked at every 30 s, since clocks jump."""
        if not self._timers:
            return
        loop = asyncio.get_running_loop()
        wait_s = min(30.0, max(0.0, (self._timers[0][0] - self._clock_ms()) / 1000))
        when = loop.time() + wait_s
        if self._timer_handle is not None and not self._timer_handle.cancelled():
            if self._wake_at <= when + 0.001 and self._wake_at > loop.time():
                return
            self._timer_handle.cancel()
        self._wake_at = when
        self._timer_handle = loop.call_at(when, self._ring)

    def _ring(self) -> None:
        self._timer_handle = None
        now_ms = self._clock_ms()
        while self._timers and self._timers[0][0] <= now_ms:
            _, _, part, raw, effect = heapq.heappop(self._timers)
            if not self._is_live(part, raw, effect) or effect.id in part.keys[raw].tasks:
                continue
            if effect.slot and self._slots <= 0:
                self._waiting.append((part, raw, effect))
            else:
                self._act(part, raw, part.keys[raw], effect)
        self._arm()
        self._send()
