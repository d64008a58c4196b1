"""What effects led to, on its way into the log: one append for all that a pass of the loop brings, the same
records again until they are acknowledged."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any

from crewline_memory.base import MemoryStore

from crewline.bus.base import Bus, Message, Position
from crewline.crashpoints import reach
from crewline.engine.base import Effect, EngineOptions, Role, S
from crewline.engine.ownership import Ownership, Part, tried_again
from crewline.errors import BusError, RecordTooLarge, UnknownTopic
from crewline.records import Reader

# Whose the records are (None: nobody's, a partition's), and the records.
Sent = Sequence[tuple[Part[Any] | None, bytes, Effect | None, Sequence[Message]]]


class Outbox(Ownership[S]):
    """The appends of one owner."""

    def __init__(
        self, role: Role[S], *, bus: Bus, store: MemoryStore, reader: Reader, options: EngineOptions
    ) -> None:
        super().__init__(role, bus=bus, store=store, reader=reader, options=options)
        self._outbox: list[tuple[Part[S], bytes, Effect, Sequence[Message]]] = []
        self._sending = False
        self._sends: set[asyncio.Future[Any]] = set()

    def _send_soon(self) -> None:
        """Send at the end of this pass of the loop: what ends in the same pass goes into one append."""
        if not self._sending:
            self._sending = True
            asyncio.get_running_loop().call_soon(self._send)

    def _send(self) -> None:
        self._sending = False
        if self._outbox:
            outbox, self._outbox = self._outbox, []
            self._append(outbox)

    def _append(self, outbox: Sent) -> None:
        """Append what effects led to; note where it stands when it is acknowledged. No task, unless it fails."""
        messages = [message for *_, acted in outbox for message in acted]
        if not messages:
            self._appended(outbox, ())
            return
        append = asyncio.ensure_future(self._bus.append(messages))
        self._sends.add(append)
        append.add_done_callback(lambda append: self._acknowledged(outbox, append))

    def _acknowledged(self, outbox: Sent, append: asyncio.Future[list[Position]]) -> None:
        self._sends.discard(append)
        if append.cancelled():
            return
        error = append.exception()
        if error is None:
            self._appended(outbox, append.result())
        else:
            self._spawn(self._append_again(outbox, error))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._sends.add(task)
        task.add_done_callback(self._sends.discard)

    async def _append_again(self, outbox: Sent, error: BaseException) -> None:
        """Append the same records again until they are acknowledged."""
        failures = 0
        while True:
            failures += 1
            if isinstance(error, UnknownTopic | RecordTooLarge):
                if len(outbox) > 1:  # nothing was written; only the one at fault may wait
                    for item in outbox:
                        self._append([item])
                    return
                self._note("append_failed")
                tried_again.error("%s: %s", self.role.name, error)
                await asyncio.sleep(self._backoff(failures))
                outbox = [item for item in outbox if self._is_wanted(*item[:3])]
            elif isinstance(error, BusError):
                self._note("append_failed")
                tried_again.warning("%s: append failed: %s; trying again", self.role.name, error)
                await asyncio.sleep(self._backoff(failures))
            else:
                raise error
            if not outbox:
                return
            try:
                positions = await self._bus.append([message for *_, acted in outbox for message in acted])
            except BusError as again:
                error = again
            else:
                self._appended(outbox, positions)
                return

    def _appended(self, outbox: Sent, positions: Sequence[Position]) -> None:
        reach(f"{self.role.name}.after_append")
        index = 0
        for part, raw, effect, acted in outbox:
            stood = positions[index : index + len(acted)]
            index += len(acted)
            held = part.keys.get(raw) if part is not None else None
            if part is None or held is None or effect is None or effect.id not in held.begun:
                continue
            if effect.owed:
                held.acked.add(effect.id)
                held.begun[effect.id] = -1
                part.changed[raw] = None
                part.dirty[raw] = None
                continue
            own = [position.offset for position in stood if position.topic == self.role.topic
                   and position.partition == part.partition]
            if own:
                held.begun[effect.id] = max(own)
                part.dirty[raw] = None
            elif not acted:
                # Nothing to do now (for example nobody offers the capability): asked again by `reconsider`.
                del held.begun[effect.id]

    def _is_wanted(self, part: Part[S] | None, raw: bytes, effect: Effect | None) -> bool:
        """Whether what cannot be appended is still owed. (What may have been appended is repeated in any case.)"""
        if part is None or effect is None or self._parts.get(part.partition) is not part:
            return False
        held = part.keys.get(raw)
        return held is not None and effect.id in held.begun
