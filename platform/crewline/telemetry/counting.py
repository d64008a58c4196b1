"""What engines fold, counted. The worker that owns a conversation counts it; other roles count their own troubles.

Only records that came after a partition was taken over are counted: those before it the owner before may
have counted. So a restart that reads the log again counts nothing twice; what other roles wrote while no
worker ran is not counted at all. Rates are what these numbers are for; the log has the exact ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

from crewline_tools.builtin import DELEGATE, HANDOFF
from prometheus_client import Counter, Histogram

from crewline import events as ev
from crewline.engine import Noted
from crewline.records import Entry
from crewline.roster import Roster
from crewline.telemetry.instruments import Instruments
from crewline.telemetry.spells import Kind, Spell

M = TypeVar("M", Counter, Histogram)
IN_CONVERSATIONS = ("worker", "guardrail")  # there a rejection is a record of its own, with a code
OTHER = "other"  # what is not in the crew file: models and outsiders make names up, and each would be a series
_EFFECTS: dict[Kind, str] = {
    "queue": "queue", "attempt": "model", "judgement": "judgement", "person": "person", "execution": "call",
    "delegation": "delegation",
}


class Counting:
    """The counters of one role of a crew."""

    def __init__(self, instruments: Instruments, roster: Roster, role: str) -> None:
        self._to = instruments
        self._crew = roster.topics.namespace
        self._role = role
        self._agents = frozenset(roster.agents)
        self._tools = frozenset({*roster.tools, DELEGATE, HANDOFF})
        self._series: dict[tuple[Any, ...], Any] = {}
        for metric in (instruments.appends_retried, instruments.store_errors, instruments.store_rebuilds):
            self._of(metric, role)  # at 0 from the start, so that the first one is a rise

    def _of(self, metric: M, *labels: str) -> M:
        """Return the series of this crew with these labels. (The client's own look-up takes some µs each time.)"""
        series: M | None = self._series.get((metric, labels))
        if series is None:
            series = self._series[metric, labels] = metric.labels(self._crew, *labels)
        return series

    def noted(self, what: Noted) -> None:
        to = self._to
        match what:
            case "append_failed":
                self._of(to.appends_retried, self._role).inc()
            case "store_failed":
                self._of(to.store_errors, self._role).inc()
            case "store_rebuilt":
                self._of(to.store_rebuilds, self._role).inc()
            case "record_rejected" if self._role not in IN_CONVERSATIONS:
                self._of(to.rejected, self._role, "record.invalid").inc()

    def count(self, spells: Sequence[Spell], entry: Entry) -> None:
        """Count a record of a conversation that stands, and what ended with it."""
        event = entry.event
        for spell in spells:
            self._count_spell(spell)
        if isinstance(event, ev.ModelReplied):
            self._count_usage(event)
        elif isinstance(event, ev.RecordRejected):
            self._of(self._to.rejected, self._role, event.code).inc()
            if event.parks:
                self._of(self._to.parked).inc()

    def _count_spell(self, spell: Spell) -> None:
        to = self._to
        if (effect := _EFFECTS.get(spell.kind)) is not None:
            self._of(to.effect_seconds, effect).observe(spell.seconds)
        match spell.kind:
            case "turn":
                self._of(to.turns, self._agent(spell.name), spell.outcome).inc()
                self._of(to.turn_seconds, spell.outcome).observe(spell.seconds)
            case "attempt":
                self._of(to.steps, self._agent(spell.name), spell.outcome).inc()
            case "judgement":
                self._of(to.verdicts, spell.outcome).inc()
            case "person":
                self._of(to.decisions, spell.outcome).inc()
            case "call":
                self._of(to.calls, self._tool(spell.name), spell.outcome).inc()
            case "execution" if spell.outcome == "unknown":
                self._of(to.unknown, self._tool(spell.name)).inc()

    def _count_usage(self, event: ev.ModelReplied) -> None:
        agent, usage = self._agent(event.agent), event.usage
        if usage is not None:
            # What an endpoint reports may be anything; a counter only rises.
            self._of(self._to.tokens, agent, "input").inc(max(0, usage.input_tokens or 0))
            self._of(self._to.tokens, agent, "output").inc(max(0, usage.output_tokens or 0))
        if event.cost_usd is not None:
            self._of(self._to.cost, agent).inc(max(0.0, event.cost_usd))

    def _agent(self, name: str) -> str:
        return name if name in self._agents else OTHER

    def _tool(self, name: str) -> str:
        return name if name in self._tools else OTHER
