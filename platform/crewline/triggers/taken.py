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
CHECKS_A_GROUP = 15  # the group is asked every 3 s: a broker answers for all of its groups
RETRY_S = 1.0


def group_of(namespace: str, rule: TriggerRule) -> str:
    """Return the consumer group that reads a trigger's outside topic."""
    return f"{namespace}.triggers.{rule.name}"


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
        self, rules: Mapping[str, TriggerRule], *, namespace: str, bus_of: Callable[[str], Bus], store: MemoryStore,
        clock_ms: Callable[[], int],
    ) -> None:
        """`bus_of` gives the bus with which a trigger's topic is read."""
        self._rules = rules
        self._namespace = namespace
        self._bus_of = bus_of
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
                if self._until_ms[trigger] < due_ms:  # the clock went back
                    await asyncio.sleep(CHECK_S)
            return self._until_ms[trigger]

    async def _look(self, rule: TriggerRule) -> int:
        while True:
            try:
                now_ms = self._clock_ms()
                begins, ends = await self._bus_of(rule.name).offsets(rule.topic)
                checks = 0
                while not await self._is_taken(rule, begins, ends, ask_group=checks % CHECKS_A_GROUP == CHECKS_A_GROUP - 1):
                    checks += 1
                    await asyncio.sleep(CHECK_S)
                return now_ms
            except (BusError, StoreError):
                await asyncio.sleep(RETRY_S)

    async def _is_taken(
        self, rule: TriggerRule, begins: Mapping[int, int], ends: Mapping[int, int], *, ask_group: bool
    ) -> bool:
        open_ones = [partition for partition, end in ends.items() if end > begins[partition]]
        marks = {partition: await self._store.mark(rule.intake, partition) for partition in open_ones}
        taken = {partition: mark.next_offset for partition, mark in marks.items() if mark is not None}
        if ask_group and any(taken.get(partition, 0) < ends[partition] for partition in open_ones):
            taken = await self._with_committed(rule, taken)
        for partition in open_ones:
            if (offset := taken.get(partition, begins[partition])) < ends[partition]:
                # What is left may be no record: a producer's transaction leaves its marker at the end.
                bus = self._bus_of(rule.name)
                if (await bus.read(rule.topic, partition, max(offset, begins[partition]), records_max=1)).records:
                    return False
        return True

    async def _with_committed(self, rule: TriggerRule, taken: dict[int, int]) -> dict[int, int]:
        """Another process may take a partition and keep its marks in a store of its own; the group knows."""
        group = group_of(self._namespace, rule)
        for lag in await self._bus_of(rule.name).lags():
            if lag.group == group and lag.topic == rule.topic:
                taken[lag.partition] = max(taken.get(lag.partition, 0), lag.committed)
        return taken
