"""Whoever watches an engine: one observer a role, which passes on to metrics, traces and logs what concerns them."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from contextvars import Context, copy_context
from typing import Any, Protocol

from crewline_tools.pool_view import Execution, PoolState, find

from crewline import events as ev
from crewline.conversation import Conversation, Queued, Turn
from crewline.engine import Effect, Noted
from crewline.events import header
from crewline.records import Entry
from crewline.telemetry.fields import Fields, fields
from crewline.telemetry.spells import Spell, Spells, of_pool, stood
from crewline.traceparent import HEADER, from_outside, outside, parse

log = logging.getLogger("crewline.telemetry")

# An owner that dies takes the spans it had not sent with it. The next one draws them again: they are the same spans.
REDRAWN_MS = 120_000


class Counts(Protocol):
    """What counts; see `counting.Counting`."""

    def noted(self, what: Noted) -> None: ...

    def count(self, spells: Sequence[Spell], entry: Entry) -> None: ...


class Draws(Protocol):
    """What draws spans; see `traces.Tracer`."""

    def draw(
        self, spells: Sequence[Spell], conversation: str, origin: str, event: ev.Event, *, reply_to: str = ""
    ) -> None: ...


class Watch:
    """Observes the engine of one role.

    Args:
        role: `worker`, `guardrail` or `tools.POOL`.
        counts, draws: metrics and traces, or None.
        clock_ms: tells old records, which nobody draws again, from new ones.
    """

    def __init__(
        self, role: str, *, counts: Counts | None = None, draws: Draws | None = None,
        clock_ms: Callable[[], int] = lambda: int(time.time() * 1000),
    ) -> None:
        self._role = role
        self._counts = counts
        self._draws = draws
        self._clock_ms = clock_ms
        self._spells = Spells()
        self._complains = True

    def folded(self, before: Any, after: Any, entry: Entry, *, live: bool) -> None:
        if after is before or not (live or entry.at_ms > self._clock_ms() - REDRAWN_MS):
            return
        try:
            if isinstance(after, Conversation):
                self._conversation(before, after, entry, live)
            elif self._draws is not None:
                origin = from_outside(header(entry.record.headers, HEADER), entry.run, entry.id)
                self._draws.draw(of_pool(before, entry), entry.key, origin, entry.event)
        except Exception:  # a bug of what only watches must not stop what works, nor fill the log
            level = logging.ERROR if self._complains else logging.DEBUG
            self._complains = False
            where = f"{entry.record.topic} partition {entry.record.partition} offset {entry.offset}"
            log.log(level, "%s: what happened at %s is not told (said once)", self._role, where, exc_info=True)

    def _conversation(self, before: Conversation, after: Conversation, entry: Entry, live: bool) -> None:
        counts = self._counts if self._role == "worker" and live else None
        if (counts is None and self._draws is None) or not stood(before, after):
            return
        spells = self._spells.read(before, after, entry)
        if counts is not None:
            counts.count(spells, entry)
        if self._draws is not None and spells and (turn := before.turn or after.turn) is not None:
            to = turn.asked.reply_to
            reply_to = to.effect if to is not None and turn.asked.origin.kind != "trigger" else ""  # a trigger draws nothing
            self._draws.draw(spells, after.id, turn.trace, entry.event, reply_to=reply_to)

    def noted(self, what: Noted) -> None:
        if self._counts is not None:
            self._counts.noted(what)

    def context(self, effect: Effect, state: Any) -> Context:
        """Return a context in which lines of the log say what they are about, and in which records are written into
        the trace that somebody outside began, if there is one."""
        context = copy_context()
        part = _part_at_work(effect, state)
        run, trace = (part.run, part.trace) if part is not None else ("", "")
        context.run(fields.set, Fields(self._role, getattr(state, "id", "") or getattr(state, "key", ""), run))
        context.run(outside.set, parse(trace) if trace else None)
        return context


def _part_at_work(effect: Effect, state: Any) -> Turn | Queued | Execution | None:
    """Return the turn, the waiting intent or the execution that an effect belongs to."""
    if isinstance(state, Conversation):
        waiting = state.queue[0] if effect.kind == "start" and state.queue else None
        return state.turn if state.turn is not None else waiting
    return find(state, effect.ref) if isinstance(state, PoolState) else None
