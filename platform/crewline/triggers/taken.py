"""How far outside topics were taken: from the store's marks, or, if those are lost, from `<ns>.triggers` itself."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping

from crewline_memory.base import MemoryStore

from crewline import events as ev
from crewline.bus.base import Bus
from crewline.errors import BusError, OffsetOutOfRange, RecordInvalid, StoreError, UnknownEvent
from crewline.records import Reader
from crewline.triggers.rules import TriggerRule

CHECK_S = 0.2
RETRY_S = 1.0


async def taken_before(bus: Bus, triggers: str, reader: Reader, rule: TriggerRule) -> Mapping[int, tuple[int, int]]:
    """Return (epoch, next offset) by outside partition, as the events of `rule` in `<ns>.triggers` say.

    Raises: BusError.
    """
    found: dict[int, tuple[int, int]] = {}
    prefix = f"{rule.name}:{rule.topic}:"
    begins, ends = await bus.offsets(triggers)
    for partition, begin in begins.items():
        offset = begin
        while offset < ends[partition]:
            try:
                batch = await bus.read(triggers, partition, offset)
            except OffsetOutOfRange:  # retention moved on meanwhile
                offset = (await bus.offsets(triggers))[0][partition]
                continue
            for record in batch.records:
                if not (ev.header(record.headers, "ce_id") or "").startswith(prefix):
                    continue
                try:
                    event = reader.check(record).event
                except (RecordInvalid, UnknownEvent):
                    continue
                if isinstance(event, ev.EventTaken):
                    at = (event.epoch, event.offset + 1)
                    found[event.partition] = max(found.get(event.partition, at), at)
            offset = batch.next_offset
    return found


class TakenUntil:
    """Says when everything an outside topic holds has been taken, by whichever processes take it.

    A window may close for silence only then: after a pause of the crew, what came meanwhile waits in the topic.
    """

    def __init__(
        self, rules: Mapping[str, TriggerRule], *, bus: Bus, store: MemoryStore, clock_ms: Callable[[], int]
    ) -> None:
        self._rules = rules
        self._bus = bus
        self._store = store
        self._clock_ms = clock_ms
        self._locks = {name: asyncio.Lock() for name in rules}
        self._until_ms = dict.fromkeys(rules, 0)

    async def __call__(self, trigger: str, due_ms: int) -> int:
        """Wait until the topic is taken to an end it had at or after `due_ms`; return when that was (Unix ms)."""
        async with self._locks[trigger]:
            # Many keys fall silent together: one look does for all that are due by then.
            while self._until_ms[trigger] < due_ms:
                self._until_ms[trigger] = await self._look(self._rules[trigger])
            return self._until_ms[trigger]

    async def _look(self, rule: TriggerRule) -> int:
        while True:
            try:
                now_ms = self._clock_ms()
                begins, ends = await self._bus.offsets(rule.topic)
                while not await self._is_taken(rule, begins, ends):  # noqa: ASYNC110 (other processes take it too)
                    await asyncio.sleep(CHECK_S)
                return now_ms
            except (BusError, StoreError):
                await asyncio.sleep(RETRY_S)

    async def _is_taken(self, rule: TriggerRule, begins: Mapping[int, int], ends: Mapping[int, int]) -> bool:
        for partition, end in ends.items():
            if end > begins[partition]:
                mark = await self._store.mark(rule.intake, partition)
                if mark is None:
                    return False
                if mark.next_offset < end:
                    # What is left may be no record: a producer's transaction leaves its marker at the end.
                    left = await self._bus.read(rule.topic, partition, max(mark.next_offset, begins[partition]), records_max=1)
                    if left.records:
                        return False
        return True
