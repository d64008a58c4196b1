"""What it means to own partitions: take them over from store and log, fold, and write them back.

The store is a cache of the log. Whatever it lacks, has wrong or cannot give is folded anew; a state is
used only if the mark beside it stands where this owner left it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic

from crewline_memory.base import Mark, MemoryStore, Snapshot

from crewline.bus.base import Batch, Bus, Consumer, Message, Record
from crewline.bus.repeated import OnceInAWhile
from crewline.crashpoints import reach
from crewline.engine.base import EngineOptions, Noted, Observer, Role, S
from crewline.errors import BusError, CrewlineError, OffsetOutOfRange, RecordInvalid, StoreError, UnknownEvent
from crewline.events import header
from crewline.records import Entry, Reader, held_key

log = logging.getLogger("crewline.engine")
tried_again = logging.getLogger("crewline.engine.tried_again")  # what an outage has every role say, again and again
tried_again.addFilter(OnceInAWhile(10.0))

# In a mark's carry, before the role's own: how many keys there must be. The store counts what it has.
_COUNT_BYTES = 8


@dataclass(slots=True)
class Key(Generic[S]):
    """One conversation as its owner holds it."""

    state: S
    pending: bool = False
    acked: set[str] = field(default_factory=set)
    frozen_at: int | None = None
    # Effects under way or appended: id -> offset of the appended record (-1: still under way).
    begun: dict[str, int] = field(default_factory=dict)
    tasks: dict[str, asyncio.Task[Sequence[Message]]] = field(default_factory=dict)
    failures: int = 0


@dataclass(slots=True)
class Part(Generic[S]):
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
    keys: OrderedDict[bytes, Key[S]] = field(default_factory=OrderedDict)
    changed: dict[bytes, None] = field(default_factory=dict)
    dirty: dict[bytes, None] = field(default_factory=dict)

    @property
    def caught_up(self) -> bool:
        return self.next_offset >= self.caught_up_at


class Ownership(Generic[S]):
    """The partitions of one owner, and their states."""

    def __init__(
        self, role: Role[S], *, bus: Bus, store: MemoryStore, reader: Reader, options: EngineOptions
    ) -> None:
        self.role = role
        self._bus = bus
        self._store = store
        self._reader = reader
        self._options = options
        self._parts: dict[int, Part[S]] = {}
        self._stopping = asyncio.Event()
        self._last_snapshot = 0.0
        self._store_away_until = 0.0
        self._consumer: Consumer | None = None
        self.folded = 0
        self.rejected = 0
        self.observer: Observer[S] | None = None

    def _note(self, what: Noted) -> None:
        if self.observer is not None:
            self.observer.noted(what)

    def _note_failed(self, error: CrewlineError) -> None:
        if isinstance(error, StoreError):
            self._note("store_failed")

    def positions(self) -> dict[int, int]:
        """Return the offset of the next record to fold, for each partition owned."""
        return {number: part.next_offset for number, part in self._parts.items()}

    # --- taking over -------------------------------------------------------------------------

    async def _load_all(self, partitions: Sequence[int]) -> Mapping[int, int]:
        begins, ends = await self._bus.offsets(self.role.topic)
        starts = {}
        for partition in partitions:
            part = await self._load(partition, begins[partition], ends[partition])
            self._parts[partition] = part
            starts[partition] = part.next_offset
        return starts

    async def _load(self, partition: int, begin: int, end: int) -> Part[S]:
        """Restart from the store's mark if it belongs to this log, else from the log's start."""
        mark = await self._store.mark(self.role.name, partition)
        if mark is not None and not await self._belongs(mark, partition, begin, end):
            log.warning("%s: the store's part for partition %d belongs to another log or lacks a key; "
                        "rebuilding it from the log", self.role.name, partition)
            self._note("store_rebuilt")
            mark = None
        if mark is None:
            await self._store.drop(self.role.name, partition)
            return Part(partition, begin, end, begin)
        stored = await self._store.pending(self.role.name, partition)
        if await self._store.mark(self.role.name, partition) != mark:
            return await self._load(partition, begin, end)  # the owner before us has just written: all of it, or nothing
        part: Part[S] = Part(
            partition, mark.next_offset, end, begin, mark.id_before, mark.carry[_COUNT_BYTES:], mark.next_offset,
            mark.next_offset, mark.snapshots, whole=False,
        )
        for raw, snapshot in stored.items():
            held = self._restore(part, raw, snapshot)
            if held is None:
                await self._store.drop(self.role.name, partition)
                return Part(partition, begin, end, begin)
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

    def _restore(self, part: Part[S], raw: bytes, snapshot: Snapshot) -> Key[S] | None:
        version = int.from_bytes(snapshot.state[:2], "big")
        if version != self.role.view.version:
            return None
        try:
            state = self.role.view.decode(snapshot.state[2:])
        except Exception as error:  # written by another version, or damaged: the log has it
            log.warning("%s: the snapshot of %r cannot be read: %s", self.role.name, raw, error)
            return None
        held = Key(state, snapshot.pending, set(snapshot.acked), snapshot.frozen_at)
        part.keys[raw] = held
        part.dirty[raw] = None
        return held

    async def _thaw(self, part: Part[S], raw: bytes, held: Key[S]) -> None:
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

    def _park_for_gap(self, part: Part[S], begin: int) -> None:
        log.error("%s: %s partition %d: records %d to %d are gone; its open conversations are parked (log.gap)",
                  self.role.name, self.role.topic, part.partition, part.next_offset, begin - 1)
        for raw, held in part.keys.items():
            missing = Record(self.role.topic, part.partition, part.next_offset, 0, raw, None, ())
            say = f"records {part.next_offset} to {begin - 1} of partition {part.partition} are gone from the log"
            held.state = self.role.view.reject(held.state, missing, "log.gap", say, parks=True)
            part.changed[raw] = None
        part.next_offset = begin
        part.id_before = ""

    # --- folding -----------------------------------------------------------------------------

    async def _take(self, batch: Batch) -> bool:
        """Fold a batch; return False, having folded nothing of it, if the engine is to stop first."""
        part = self._parts.get(batch.partition)
        if part is None:
            return True
        failures = 0
        while missing := _missing(part, batch):
            try:
                await self._bring(part, missing)
                break
            except (BusError, StoreError) as error:
                # The batch waits: the consumer does not hand it out twice, and no record may be left out.
                failures += 1
                self._note_failed(error)
                tried_again.warning("%s: %s; trying again", self.role.name, error)
                await self._pause(self._backoff(failures))
                if self._stopping.is_set():
                    return False
        before = part.next_offset
        for record in batch.records:
            if record.offset >= part.next_offset:
                self._fold_record(part, record)
        if part.next_offset > before:
            part.id_before = header(batch.records[-1].headers, "ce_id") or ""
        part.next_offset = max(part.next_offset, batch.next_offset)
        reach(f"{self.role.name}.after_fold")
        return True

    async def _bring(self, part: Part[S], keys: Sequence[bytes]) -> None:
        """Get states that are not in memory: from the store if it stands where this owner left it, else from the log.

        Another mark there is another owner's, or an old copy's: its states are not of this offset.
        """
        found = await self._store.snapshots(self.role.name, part.partition, keys)
        mark = await self._store.mark(self.role.name, part.partition)
        in_step = mark is not None and mark.next_offset == part.stored and _is_whole(mark)
        if not in_step or any(self._restore(part, raw, snapshot) is None for raw, snapshot in found.items()):
            await self._rebuild(part)

    async def _rebuild(self, part: Part[S]) -> None:
        """Fold from the log every key that is not in memory, and have all of them written again."""
        log.warning("%s: the store lacks part of partition %d; reading the log again", self.role.name, part.partition)
        self._note("store_rebuilt")
        keys: dict[bytes, Key[S]] = {}
        offset = part.begin
        while offset < part.next_offset:
            batch = await self._bus.read(self.role.topic, part.partition, offset)
            for record in batch.records:
                raw = held_key(record.key)
                if raw not in part.keys and record.offset < part.next_offset:
                    held = keys.get(raw)
                    if held is None:
                        held = keys[raw] = Key(self.role.view.initial(raw.decode()))
                    if held.frozen_at is None:
                        self._fold_one(part, held, record)
            offset = batch.next_offset
        part.keys.update(keys)
        part.dirty |= dict.fromkeys(keys)
        part.changed |= dict.fromkeys(part.keys)
        part.whole = True
        part.known = len(part.keys)
        part.marked = part.stored = 0

    def _fold_record(self, part: Part[S], record: Record) -> None:
        part.carry = self.role.observe(part.carry, record)
        raw = record.key
        held = part.keys.get(raw)
        if held is None:
            raw = held_key(raw)  # nearly always itself; a key that is in memory is one that can be held
            held = part.keys.get(raw)
        if held is None:
            held = part.keys[raw] = Key(self.role.view.initial(raw.decode()))
            part.known += 1
        else:
            part.keys.move_to_end(raw)
        if held.frozen_at is None:
            before, rejected = held.state, self.rejected
            entry = self._fold_one(part, held, record)
            if self.observer is not None:
                live = record.offset >= part.caught_up_at
                if entry is not None:
                    self.observer.folded(before, held.state, entry, live=live)
                elif live and self.rejected > rejected:
                    self.observer.noted("record_rejected")
        part.next_offset = record.offset + 1
        part.changed[raw] = None
        part.dirty[raw] = None
        self.folded += 1

    def _fold_one(self, part: Part[S], held: Key[S], record: Record) -> Entry | None:
        """Fold a record into its conversation; return its entry, or None if it could not be taken as one."""
        view = self.role.view
        try:
            entry = self._reader.read(record)
            held.state = view.fold(held.state, entry)
            return entry
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
        return None

    # --- the store ---------------------------------------------------------------------------

    async def _snapshot_if_due(self) -> None:
        now = asyncio.get_running_loop().time()
        if now < self._store_away_until:
            return
        due = now - self._last_snapshot >= self._options.snapshot_s
        for part in self._parts.values():
            if part.next_offset - part.marked >= self._options.snapshot_records or (due and part.changed):
                try:
                    await self._write_snapshot(part)
                except (BusError, StoreError) as error:
                    self._note_failed(error)
                    log.warning("%s: no snapshot: %s; a restart folds more of the log", self.role.name, error)
                    if isinstance(error, StoreError):  # away or full for every partition: not asked at every record
                        self._store_away_until = now + self._options.snapshot_s
                        return
        if due:
            self._last_snapshot = now

    async def _write_snapshot(self, part: Part[S]) -> None:
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
            written = await self._store.write(self.role.name, part.partition, mark, snapshots, after=part.stored)
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
            # Another owner's mark is above, or the store has just gone back: these are to be written again.
            part.changed = {**changed, **part.changed}

    def _encoded(self, part: Part[S], raw: bytes, held: Key[S]) -> bytes:
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

    def _forget_idle(self, part: Part[S]) -> None:
        """Drop idle states from memory, oldest first; the store has them."""
        excess = len(part.keys) - self._options.states_max
        for raw in list(part.keys) if excess > 0 else ():
            held = part.keys[raw]
            if excess > 0 and not (held.pending or held.begun or raw in part.changed or raw in part.dirty):
                del part.keys[raw]
                part.whole = False
                excess -= 1

    async def _pause(self, seconds: float) -> None:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return

    def _backoff(self, failures: int) -> float:
        return min(self._options.retry_s_max, self._options.retry_s_min * 2.0 ** min(failures, 16))


def _missing(part: Part[Any], batch: Batch) -> list[bytes]:
    """Return the keys of a batch that are not in memory, although the store may have them."""
    if part.whole:
        return []
    return [raw for raw in {held_key(record.key): None for record in batch.records} if raw not in part.keys]


def _is_whole(mark: Mark) -> bool:
    """Return whether the store had every key when the mark was written: one may have been lost just before."""
    return int.from_bytes(mark.carry[:_COUNT_BYTES], "big") == mark.snapshots
