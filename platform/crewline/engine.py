"""The loop that every role runs: own partitions, fold, snapshot, run pending effects, keep timers.

    records ──fold──▶ state ──pending──▶ effects ──act──▶ messages ──append──▶ records

The engine alone appends what effects lead to, and an append changes nothing by itself: a record counts
when it is the next one to fold. Three rules carry the rest:

* Effects are derived after the whole batch at hand is folded, and only once the partition has been
  folded to the end it had when it was assigned. Until then a state may be one long gone.
* Folding never waits for an effect. A coroutine effect runs as a task of its own; a waiting one
  (a timer, a person) is no task at all.
* An effect is over when the fold no longer returns it. An owed one (a record for another topic) is
  over for this owner when the bus has acknowledged it; that is remembered with the snapshot.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

from crewline_memory.base import Mark, MemoryStore, Snapshot

from crewline.bus.base import Batch, Bus, Consumer, Message, Record
from crewline.crashpoints import reach
from crewline.errors import (
    BusError,
    OffsetOutOfRange,
    RecordInvalid,
    RecordTooLarge,
    StoreError,
    UnknownEvent,
    UnknownTopic,
)
from crewline.events import header
from crewline.records import Entry, Reader, held_key

log = logging.getLogger("crewline.engine")

S = TypeVar("S")

# In a mark's carry, before the role's own: how many keys there must be. The store counts what it has.
_COUNT_BYTES = 8
JOIN_POLL_S = 0.02  # how long the first poll waits while not everything owned is folded; then ever longer
_TIMERS_MIN = 1_024  # below that, dead timers are left where they are


class Effect(NamedTuple):
    """Something the world must do before a conversation can go on.

    `id` is deterministic. `kind` says what, `ref` about which part of the state (a call's id). `due_ms`
    is when (Unix ms; None: now). `slot`: it takes one of the owner's places while it runs. `owed`: it
    is a record for another topic, over when the bus has acknowledged it.
    """

    id: str
    kind: str
    ref: str = ""
    due_ms: int | None = None
    slot: bool = False
    owed: bool = False


Acted = Sequence[Message] | Coroutine[Any, Any, Sequence[Message]]


class View(Protocol[S]):
    """How records become state: pure, total, versioned. `version` changes when a snapshot's form does."""

    version: int

    def initial(self, key: str) -> S:
        """Return the state of a key without records."""
        ...

    def fold(self, state: S, entry: Entry) -> S:
        """Return the state after `entry`. Raises: UnknownEvent to freeze this key until a newer process."""
        ...

    def reject(self, state: S, record: Record, code: str, say: str, *, parks: bool) -> S:
        """Return the state after a record that counts as absent; `parks`: nothing after it can be folded."""
        ...

    def encode(self, state: S) -> bytes: ...

    def decode(self, data: bytes) -> S: ...


class Role(Protocol[S]):
    """What is done with the state: which effects are this role's, and how each is run."""

    name: str
    topic: str
    view: View[S]

    def pending(self, state: S) -> Sequence[Effect]:
        """Return this role's open effects. Pure: reads only `state`."""
        ...

    def act(self, effect: Effect, state: S) -> Acted:
        """Run an effect; return the messages it leads to, at once or as a coroutine.

        The coroutine is cancelled when the effect is over or the partition is lost. What it returns is
        appended, again and again with the same ids, until the bus acknowledges it. An exception means:
        try again later.
        """
        ...

    def observe(self, carry: bytes, record: Record) -> bytes:
        """Return the partition's running value after `record`, whatever it is (the hash chain); or `carry`."""
        ...

    def checkpoint(self, partition: int, next_offset: int, carry: bytes) -> Sequence[Message]:
        """Return records about the partition as a whole, after a batch was folded; usually none."""
        ...


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """`slots` bounds effects that run at once; `snapshot_records` and `snapshot_s` how often the store is
    written; `states_max` how many idle states stay in memory; `retry_s_min` to `retry_s_max` the pause
    before a failed effect or append is tried again."""

    slots: int = 64
    snapshot_records: int = 1_000
    snapshot_s: float = 5.0
    states_max: int = 2_000
    poll_s: float = 1.0
    records_max: int = 500
    retry_s_min: float = 0.05
    retry_s_max: float = 10.0


@dataclass(slots=True)
class _Key(Generic[S]):
    """One conversation as its owner holds it."""

    state: S
    pending: bool = False
    acked: set[str] = field(default_factory=set)
    frozen_at: int | None = None
    # Effects under way or appended: id -> offset of the appended record (-1: still under way).
    begun: dict[str, int] = field(default_factory=dict)
    tasks: dict[str, asyncio.Task[None]] = field(default_factory=dict)
    failures: int = 0


@dataclass(slots=True)
class _Part(Generic[S]):
    """One partition as its owner holds it."""

    partition: int
    next_offset: int
    caught_up_at: int
    begin: int
    id_before: str = ""
    carry: bytes = b""
    marked: int = 0
    # What this owner knows to be in the store: everything before that offset; 0: nothing.
    stored: int = 0
    # How many keys have records before `next_offset`, and whether all of them are in memory.
    known: int = 0
    whole: bool = True
    keys: OrderedDict[bytes, _Key[S]] = field(default_factory=OrderedDict)
    changed: dict[bytes, None] = field(default_factory=dict)
    dirty: dict[bytes, None] = field(default_factory=dict)

    @property
    def caught_up(self) -> bool:
        return self.next_offset >= self.caught_up_at


class Engine(Generic[S]):
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
        self.role = role
        self._bus = bus
        self._store = store
        self._reader = reader
        self._group = group
        self._member = member
        self._clock_ms = clock_ms
        self._options = options
        self._parts: dict[int, _Part[S]] = {}
        self._timers: list[tuple[int, int, _Part[S], bytes, Effect]] = []
        self._timers_max = _TIMERS_MIN
        self._timer_handle: asyncio.TimerHandle | None = None
        self._sequence = 0
        self._slots = options.slots
        self._waiting: deque[tuple[_Part[S], bytes, Effect]] = deque()
        self._outbox: list[tuple[_Part[S], bytes, Effect, Sequence[Message]]] = []
        self._sends: set[asyncio.Task[None]] = set()
        self._stopping = asyncio.Event()
        self._polling: asyncio.Task[Any] | None = None
        self._join_poll_s = JOIN_POLL_S
        self._ready = asyncio.Event()
        self._wake_at = 0.0
        self._last_snapshot = 0.0
        self._consumer: Consumer | None = None
        self.folded = 0
        self.rejected = 0

    # --- life ----------------------------------------------------------------------------------

    async def run(self) -> None:
        """Join the group and work until `stop`. Raises BusError only if the topic is not there."""
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
                    log.warning("%s: %s; trying again", self.role.name, error)
                    await self._pause(self._options.retry_s_max / 10)
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

    def stop(self) -> None:
        """Ask `run` to end: it snapshots, hands its partitions over and returns."""
        if not self._stopping.is_set() and self._polling is not None:
            self._polling.cancel()
        self._stopping.set()

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

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return

    # --- ownership -----------------------------------------------------------------------------

    async def _assigned(self, partitions: Sequence[int]) -> Mapping[int, int]:
        failures = 0
        while True:
            try:
                return await self._load_all(partitions)
            except (BusError, StoreError) as error:
                if self._stopping.is_set():
                    raise
                failures += 1
                log.warning("%s: partitions %s cannot be loaded: %s; trying again", self.role.name, partitions, error)
                await self._pause(self._backoff(failures))

    async def _load_all(self, partitions: Sequence[int]) -> Mapping[int, int]:
        begins, ends = await self._bus.offsets(self.role.topic)
        starts = {}
        for partition in partitions:
            part = await self._load(partition, begins[partition], ends[partition])
            self._parts[partition] = part
            starts[partition] = part.next_offset
        self._ready.clear()
        self._join_poll_s = JOIN_POLL_S
        return starts

    async def _load(self, partition: int, begin: int, end: int) -> _Part[S]:
        """Restart from the store's mark if it belongs to this log, else from the log's start."""
        mark = await self._store.mark(self.role.name, partition)
        if mark is not None and not await self._belongs(mark, partition, begin, end):
            log.warning("%s: the store's part for partition %d belongs to another log or lacks a key; "
                        "rebuilding it from the log", self.role.name, partition)
            mark = None
        if mark is None:
            await self._store.drop(self.role.name, partition)
            return _Part(partition, begin, end, begin)
        stored = await self._store.pending(self.role.name, partition)
        if await self._store.mark(self.role.name, partition) != mark:
            return await self._load(partition, begin, end)  # the owner before us has just written: all of it, or nothing
        part: _Part[S] = _Part(
            partition, mark.next_offset, end, begin, mark.id_before, mark.carry[_COUNT_BYTES:], mark.next_offset,
            mark.next_offset, mark.snapshots, whole=False,
        )
        for raw, snapshot in stored.items():
            held = self._restore(part, raw, snapshot)
            if held is None:
                await self._store.drop(self.role.name, partition)
                return _Part(partition, begin, end, begin)
            if held.frozen_at is not None:
                await self._thaw(part, raw, held)
        if part.next_offset < begin:
            self._park_for_gap(part, begin)
        return part

    async def _belongs(self, mark: Mark, partition: int, begin: int, end: int) -> bool:
        if mark.next_offset > end or not _is_whole(mark):
            return False
        if mark.next_offset <= begin or mark.next_offset == 0:
            return True  # nothing of the log is left to compare with: a gap, parked loudly
        try:
            before = await self._bus.read(self.role.topic, partition, mark.next_offset - 1, records_max=1)
        except OffsetOutOfRange:
            return False
        return bool(before.records) and (header(before.records[0].headers, "ce_id") or "") == mark.id_before

    def _restore(self, part: _Part[S], raw: bytes, snapshot: Snapshot) -> _Key[S] | None:
        version = int.from_bytes(snapshot.state[:2], "big")
        if version != self.role.view.version:
            return None
        try:
            state = self.role.view.decode(snapshot.state[2:])
        except Exception as error:  # written by another version, or damaged: the log has it
            log.warning("%s: the snapshot of %r cannot be read: %s", self.role.name, raw, error)
            return None
        held = _Key(state, snapshot.pending, set(snapshot.acked), snapshot.frozen_at)
        part.keys[raw] = held
        part.dirty[raw] = None
        return held

    async def _thaw(self, part: _Part[S], raw: bytes, held: _Key[S]) -> None:
        """Fold a frozen conversation's records again from where it froze: this process may know them."""
        offset = held.frozen_at or 0
        held.frozen_at = None
        while offset < part.next_offset and held.frozen_at is None:
            batch = await self._bus.read(self.role.topic, part.partition, offset)
            for record in batch.records:
                if record.key == raw and record.offset < part.next_offset:
                    self._fold_one(part, held, record)
            offset = batch.next_offset
        part.changed[raw] = None

    def _park_for_gap(self, part: _Part[S], begin: int) -> None:
        log.error("%s: %s partition %d: records %d to %d are gone; its open conversations are parked (log.gap)",
                  self.role.name, self.role.topic, part.partition, part.next_offset, begin - 1)
        for raw, held in part.keys.items():
            missing = Record(self.role.topic, part.partition, part.next_offset, 0, raw, None, ())
            say = f"records {part.next_offset} to {begin - 1} of partition {part.partition} are gone from the log"
            held.state = self.role.view.reject(held.state, missing, "log.gap", say, parks=True)
            part.changed[raw] = None
        part.next_offset = begin
        part.id_before = ""

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
                log.warning("%s: no snapshot at hand-over: %s; the next owner folds more", self.role.name, error)

    # --- folding -------------------------------------------------------------------------------

    async def _take(self, batch: Batch) -> bool:
        """Fold a batch; return False, having folded nothing of it, if the engine is to stop first."""
        part = self._parts.get(batch.partition)
        if part is None:
            return True
        missing = [raw for raw in {held_key(record.key): None for record in batch.records} if raw not in part.keys]
        failures = 0
        while missing and not part.whole:
            try:
                await self._bring(part, missing)
                break
            except (BusError, StoreError) as error:
                # The batch waits: the consumer does not hand it out twice, and no record may be left out.
                failures += 1
                log.warning("%s: %s; trying again", self.role.name, error)
                await self._pause(self._backoff(failures))
                if self._stopping.is_set():
                    return False
        for record in batch.records:
            if record.offset >= part.next_offset:
                self._fold_record(part, record)
        part.next_offset = max(part.next_offset, batch.next_offset)
        reach(f"{self.role.name}.after_fold")
        return True

    def _checkpoint(self) -> None:
        """Ask for what is to be said of each partition: after every poll, since quiet ones are due as well."""
        for part in self._parts.values():
            messages = self.role.checkpoint(part.partition, part.next_offset, part.carry)
            if messages:
                self._spawn_send(list(messages))

    async def _bring(self, part: _Part[S], keys: Sequence[bytes]) -> None:
        """Get states that are not in memory: from the store if it stands where this owner left it, else from the log.

        Another mark there is another owner's, or an old copy's: its states are not of this offset.
        """
        found = await self._store.snapshots(self.role.name, part.partition, keys)
        mark = await self._store.mark(self.role.name, part.partition)
        in_step = mark is not None and mark.next_offset == part.stored and _is_whole(mark)
        if not in_step or any(self._restore(part, raw, snapshot) is None for raw, snapshot in found.items()):
            await self._rebuild(part)

    async def _rebuild(self, part: _Part[S]) -> None:
        """Fold from the log every key that is not in memory, and have all of them written again."""
        log.warning("%s: the store lacks part of partition %d; reading the log again", self.role.name, part.partition)
        keys: dict[bytes, _Key[S]] = {}
        offset = part.begin
        while offset < part.next_offset:
            batch = await self._bus.read(self.role.topic, part.partition, offset)
            for record in batch.records:
                raw = held_key(record.key)
                if raw not in part.keys and record.offset < part.next_offset:
                    held = keys.get(raw)
                    if held is None:
                        held = keys[raw] = _Key(self.role.view.initial(raw.decode()))
                    if held.frozen_at is None:
                        self._fold_one(part, held, record)
            offset = batch.next_offset
        part.keys.update(keys)
        part.dirty |= dict.fromkeys(keys)
        part.changed |= dict.fromkeys(part.keys)
        part.whole = True
        part.known = len(part.keys)
        part.marked = part.stored = 0

    def _fold_record(self, part: _Part[S], record: Record) -> None:
        part.carry = self.role.observe(part.carry, record)
        raw = held_key(record.key)
        held = part.keys.get(raw)
        if held is None:
            held = part.keys[raw] = _Key(self.role.view.initial(raw.decode()))
            part.known += 1
        else:
            part.keys.move_to_end(raw)
        if held.frozen_at is None:
            self._fold_one(part, held, record)
        part.next_offset = record.offset + 1
        part.id_before = header(record.headers, "ce_id") or ""
        part.changed[raw] = None
        part.dirty[raw] = None
        self.folded += 1

    def _fold_one(self, part: _Part[S], held: _Key[S], record: Record) -> None:
        view = self.role.view
        try:
            held.state = view.fold(held.state, self._reader.read(record))
        except UnknownEvent as error:
            held.frozen_at = record.offset
            log.warning("%s: %s@%d: %s; this conversation waits for it", self.role.name, record.topic, record.offset, error)
        except RecordInvalid as error:
            self.rejected += 1
            held.state = view.reject(held.state, record, error.code, error.message, parks=False)
        except Exception as error:
            # Only a bug of the fold itself comes here; going on would be guessing, so the conversation ends.
            log.exception("%s: the fold failed on %s partition %d offset %d", self.role.name, record.topic,
                          record.partition, record.offset)
            held.state = view.reject(held.state, record, "fold.failed", f"{type(error).__name__}: {error}", parks=True)

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

    def _derive_key(self, part: _Part[S], raw: bytes, held: _Key[S]) -> None:
        effects = () if held.frozen_at is not None else self.role.pending(held.state)
        held.pending = False
        if held.begun or held.acked:
            self._end_others(held, {effect.id for effect in effects})
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

    def _end_others(self, held: _Key[S], open_ids: set[str]) -> None:
        """End what the state does not ask for any more."""
        for gone in [id for id in held.begun if id not in open_ids]:
            del held.begun[gone]
            if (task := held.tasks.pop(gone, None)) is not None:
                task.cancel()
        held.acked &= open_ids

    def _begin(self, part: _Part[S], raw: bytes, held: _Key[S], effect: Effect) -> None:
        held.begun[effect.id] = -1
        if effect.due_ms is not None and effect.due_ms > self._clock_ms():
            self._at(effect.due_ms, part, raw, effect)
        elif effect.slot and self._slots <= 0:
            self._waiting.append((part, raw, effect))
        else:
            self._act(part, raw, held, effect)

    def _act(self, part: _Part[S], raw: bytes, held: _Key[S], effect: Effect) -> None:
        try:
            acted = self.role.act(effect, held.state)
        except Exception:
            log.exception("%s: effect %s failed; trying again", self.role.name, effect.id)
            held.failures += 1
            self._later(part, raw, effect, self._backoff(held.failures))
            return
        if isinstance(acted, Coroutine):
            if effect.slot:
                self._slots -= 1
            task = asyncio.create_task(self._await(part, raw, held, effect, acted), name=effect.id)
            # Not in a `finally` of the task's own: one that is cancelled before it began never gets there.
            task.add_done_callback(lambda task: self._ended(held, effect, acted, task))
            held.tasks[effect.id] = task
        else:
            self._outbox.append((part, raw, effect, acted))

    def _ended(
        self, held: _Key[S], effect: Effect, work: Coroutine[Any, Any, Sequence[Message]], task: asyncio.Task[None]
    ) -> None:
        work.close()
        if held.tasks.get(effect.id) is task:
            del held.tasks[effect.id]
        if effect.slot:
            self._slots += 1
            self._fill_slots()

    async def _await(
        self, part: _Part[S], raw: bytes, held: _Key[S], effect: Effect, work: Coroutine[Any, Any, Sequence[Message]]
    ) -> None:
        try:
            messages = await work
        except asyncio.CancelledError:
            raise
        except Exception:
            log.exception("%s: effect %s failed; trying again", self.role.name, effect.id)
            held.failures += 1
            self._later(part, raw, effect, self._backoff(held.failures))
            return
        reach(f"{self.role.name}.after_act")
        if self._parts.get(part.partition) is part and effect.id in held.begun:
            self._outbox.append((part, raw, effect, messages))
            self._send()

    def _fill_slots(self) -> None:
        while self._waiting and self._slots > 0:
            part, raw, effect = self._waiting.popleft()
            held = part.keys.get(raw)
            if held is not None and self._parts.get(part.partition) is part and effect.id in held.begun:
                self._act(part, raw, held, effect)
        self._send()

    def _backoff(self, failures: int) -> float:
        return min(self._options.retry_s_max, self._options.retry_s_min * 2.0 ** min(failures, 16))

    # --- timers --------------------------------------------------------------------------------

    def _later(self, part: _Part[S], raw: bytes, effect: Effect, seconds: float) -> None:
        self._at(self._clock_ms() + int(seconds * 1000), part, raw, effect)

    def _at(self, due_ms: int, part: _Part[S], raw: bytes, effect: Effect) -> None:
        if len(self._timers) >= self._timers_max:
            self._drop_dead_timers()
        self._sequence += 1
        heapq.heappush(self._timers, (due_ms, self._sequence, part, raw, effect))
        self._arm()

    def _drop_dead_timers(self) -> None:
        """Most timers never ring: what they waited for came. They go when they outnumber the rest."""
        self._timers = [timer for timer in self._timers if self._is_live(*timer[2:])]
        heapq.heapify(self._timers)
        self._timers_max = max(_TIMERS_MIN, 2 * len(self._timers))

    def _is_live(self, part: _Part[S], raw: bytes, effect: Effect) -> bool:
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

    # --- appending -----------------------------------------------------------------------------

    def _send(self) -> None:
        if not self._outbox:
            return
        outbox, self._outbox = self._outbox, []
        task = asyncio.create_task(self._append(outbox))
        self._sends.add(task)
        task.add_done_callback(self._sends.discard)

    def _spawn_send(self, messages: list[Message]) -> None:
        task = asyncio.create_task(self._append_until_acked(messages))
        self._sends.add(task)
        task.add_done_callback(self._sends.discard)

    async def _append_until_acked(self, messages: list[Message]) -> None:
        await self._append([(None, b"", None, messages)])

    async def _append(
        self, outbox: Sequence[tuple[_Part[S] | None, bytes, Effect | None, Sequence[Message]]]
    ) -> None:
        """Append what effects led to, the same records again until acknowledged; then note where they stand."""
        failures = 0
        while messages := [message for *_, acted in outbox for message in acted]:
            try:
                positions = await self._bus.append(messages)
                break
            except (UnknownTopic, RecordTooLarge) as error:
                if len(outbox) > 1:  # nothing was written; only the one at fault may wait
                    await asyncio.gather(*(self._append([item]) for item in outbox))
                    return
                failures += 1
                log.error("%s: %s", self.role.name, error)
                await asyncio.sleep(self._backoff(failures))
                outbox = [item for item in outbox if self._is_wanted(*item[:3])]
            except BusError as error:
                failures += 1
                log.warning("%s: append failed: %s; trying again", self.role.name, error)
                await asyncio.sleep(self._backoff(failures))
        else:
            positions = []
        reach(f"{self.role.name}.after_append")
        index = 0
        for part, raw, effect, acted in outbox:
            stood = positions[index : index + len(acted)]
            index += len(acted)
            held = part.keys.get(raw) if part is not None else None
            if part is None or held is None or effect is None or effect.id not in held.begun:
                continue
            own = [position.offset for position in stood if position.topic == self.role.topic
                   and position.partition == part.partition]
            if effect.owed:
                held.acked.add(effect.id)
                held.begun[effect.id] = -1
                part.changed[raw] = None
                part.dirty[raw] = None
            elif own:
                held.begun[effect.id] = max(own)
                part.dirty[raw] = None
            elif not acted:
                # Nothing to do now (for example nobody offers the capability): asked again by `reconsider`.
                del held.begun[effect.id]

    def _is_wanted(self, part: _Part[S] | None, raw: bytes, effect: Effect | None) -> bool:
        """Whether what cannot be appended is still owed. (What may have been appended is repeated in any case.)"""
        if part is None or effect is None or self._parts.get(part.partition) is not part:
            return False
        held = part.keys.get(raw)
        return held is not None and effect.id in held.begun

    # --- the store -----------------------------------------------------------------------------

    async def _snapshot_if_due(self) -> None:
        now = asyncio.get_running_loop().time()
        due = now - self._last_snapshot >= self._options.snapshot_s
        for part in self._parts.values():
            if part.next_offset - part.marked >= self._options.snapshot_records or (due and part.changed):
                try:
                    await self._write_snapshot(part)
                except (BusError, StoreError) as error:
                    log.warning("%s: no snapshot: %s; a restart folds more of the log", self.role.name, error)
        if due:
            self._last_snapshot = now

    async def _write_snapshot(self, part: _Part[S]) -> None:
        if not part.changed or part.next_offset <= part.marked:
            return
        # A store that was lost, or went back to an old copy, must not get a new mark over what it lacks.
        there = await self._store.mark(self.role.name, part.partition)
        if part.stored and (there is None or there.next_offset < part.stored or not _is_whole(there)):
            await self._store.drop(self.role.name, part.partition)
            await self._rebuild(part)
        changed, part.changed = part.changed, {}
        version = self.role.view.version.to_bytes(2, "big")
        snapshots = {}
        for raw in changed:
            held = part.keys[raw]
            # Not yet derived (still catching up): what is pending is not known, so it is looked at again.
            pending = held.pending or raw in part.dirty or held.frozen_at is not None
            state = version + self._encoded(part, raw, held)
            snapshots[raw] = Snapshot(state, pending, tuple(sorted(held.acked)), held.frozen_at)
        mark = Mark(part.next_offset, part.id_before, 0, part.known.to_bytes(_COUNT_BYTES, "big") + part.carry)
        marked = part.next_offset
        try:
            written = await self._store.write(self.role.name, part.partition, mark, snapshots)
        except StoreError:
            part.changed = {**changed, **part.changed}
            raise
        part.marked = marked
        reach(f"{self.role.name}.after_snapshot")
        if self._consumer is not None:
            try:
                await self._consumer.commit({part.partition: marked})
            except BusError as error:
                log.debug("%s: the group's offset was not noted (only lag is computed from it): %s", self.role.name, error)
        if written:
            part.stored = marked
            self._forget_idle(part)
        else:
            # Another owner's mark is above. Should the store go back behind that, these are to be written again.
            part.changed = {**changed, **part.changed}

    def _encoded(self, part: _Part[S], raw: bytes, held: _Key[S]) -> bytes:
        """Encode a state. One that cannot be kept (a bug of the fold) ends its conversation, not this process."""
        view = self.role.view
        try:
            return view.encode(held.state)
        except Exception as error:
            log.exception("%s: the state of %r cannot be written", self.role.name, raw)
            record = Record(self.role.topic, part.partition, part.next_offset - 1, 0, raw, None, ())
            say = f"its state cannot be written: {type(error).__name__}: {error}"
            held.state = view.reject(view.initial(raw.decode()), record, "fold.failed", say, parks=True)
            part.dirty[raw] = None
            return view.encode(held.state)

    def _forget_idle(self, part: _Part[S]) -> None:
        """Drop idle states from memory, oldest first; the store has them."""
        excess = len(part.keys) - self._options.states_max
        for raw in list(part.keys) if excess > 0 else ():
            held = part.keys[raw]
            if excess > 0 and not (held.pending or held.begun or raw in part.changed or raw in part.dirty):
                del part.keys[raw]
                part.whole = False
                excess -= 1


def _is_whole(mark: Mark) -> bool:
    """Return whether the store had every key when the mark was written: one may have been lost just before."""
    return int.from_bytes(mark.carry[:_COUNT_BYTES], "big") == mark.snapshots
