"""Whoever watches an engine: one observer a role, which passes on to metrics, traces and logs what concerns them."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, Protocol

from crewline.bus.base import Bus
from crewline.conversation import Conversation
from crewline.engine import Effect, Engine, Noted
from crewline.records import Entry
from crewline.roster import Roster
from crewline.telemetry.spells import Spell, Spells, stood

if TYPE_CHECKING:
    from crewline.telemetry.page import MetricsPage  # at run time only where metrics are on: it is an extra

log = logging.getLogger("crewline.telemetry")


class Counter(Protocol):
    """What counts; see `counting.Counting`."""

    def noted(self, what: Noted) -> None: ...

    def count(self, spells: list[Spell], entry: Entry) -> None: ...


class Watch:
    """Observes the engine of one role.

    Args:
        role: `worker`, `guardrail` or `tools.POOL`.
        counter: counts, or None.
    """

    def __init__(self, role: str, *, counter: Counter | None = None) -> None:
        self._role = role
        self._counter = counter
        self._spells = Spells()

    def folded(self, before: Any, after: Any, entry: Entry, *, live: bool) -> None:
        try:
            if isinstance(after, Conversation):
                self._conversation(before, after, entry, live)
        except Exception:  # a bug of what only watches must not stop what works
            log.exception("%s: what happened at %s@%d was not counted", self._role, entry.record.topic, entry.offset)

    def _conversation(self, before: Conversation, after: Conversation, entry: Entry, live: bool) -> None:
        if self._role != "worker" or not stood(before, after):
            return
        spells = self._spells.read(before, after, entry)
        if live and self._counter is not None:
            self._counter.count(spells, entry)

    def noted(self, what: Noted) -> None:
        if self._counter is not None:
            self._counter.noted(what)

    def context(self, effect: Effect, state: Any) -> Context:
        return copy_context()


def watch(roster: Roster, bus: Bus, engines: Mapping[str, Engine[Any]], *, page: MetricsPage | None) -> None:
    """Have the engines of a crew observed. Call it before they run, or what comes first is not told.

    Args:
        engines: by role.
        page: shows what they count; None: nobody counts.
    """
    for role, engine in engines.items():
        engine.observer = Watch(role, counter=page.counting(roster, role) if page is not None else None)
    if page is not None:
        page.show(roster.topics.namespace, bus, engines)
