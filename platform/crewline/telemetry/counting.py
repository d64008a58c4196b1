"""What engines fold, counted. The worker that owns a conversation counts it; other roles count their own troubles.

Only records that came after a partition was taken over are counted: those before it the owner before may
have counted. So a restart that reads the log again counts nothing twice; what other roles wrote while no
worker ran is not counted at all. Rates are what these numbers are for; the log has the exact ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from crewline_tools.builtin import DELEGATE, HANDOFF

from crewline import events as ev
from crewline.engine import Noted
from crewline.records import Entry
from crewline.roster import Roster
from crewline.telemetry.instruments import Instruments
from crewline.telemetry.spells import Kind, Spell

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
        for metric in (instruments.appends_retried, instruments.store_errors, instruments.store_rebuilds):
            metric.labels(self._crew, role)  # at 0 from the start, so that the first one is a rise

    def noted(self, what: Noted) -> None:
        to = self._to
        match what:
            case "append_failed":
                to.appends_retried.labels(self._crew, self._role).inc()
            case "store_failed":
                to.store_errors.labels(self._crew, self._role).inc()
            case "store_rebuilt":
                to.store_rebuilds.labels(self._crew, self._role).inc()
            case "record_rejected" if self._role.startswith("tools."):  # in conversations the worker says so, with a code
                to.rejected.labels(self._crew, self._role, "record.invalid").inc()

    def count(self, spells: Sequence[Spell], entry: Entry) -> None:
        """Count a record of a conversation that stands, and what ended with it."""
        event = entry.event
        for spell in spells:
            self._count_spell(spell)
        if isinstance(event, ev.ModelReplied):
            self._count_usage(event)
        elif isinstance(event, ev.RecordRejected):
            self._to.rejected.labels(self._crew, self._role, event.code).inc()
            if event.parks:
                self._to.parked.labels(self._crew).inc()

    def _count_spell(self, spell: Spell) -> None:
        to, crew = self._to, self._crew
        if (effect := _EFFECTS.get(spell.kind)) is not None:
            to.effect_seconds.labels(crew, effect).observe(spell.seconds)
        match spell.kind:
            case "turn":
                to.turns.labels(crew, self._agent(spell.name), spell.outcome).inc()
                to.turn_seconds.labels(crew, spell.outcome).observe(spell.seconds)
            case "attempt":
                to.steps.labels(crew, self._agent(spell.name), spell.outcome).inc()
            case "judgement":
                to.verdicts.labels(crew, spell.outcome).inc()
            case "person":
                to.decisions.labels(crew, spell.outcome).inc()
            case "call":
                to.calls.labels(crew, self._tool(spell.name), spell.outcome).inc()
            case "execution" if spell.outcome == "unknown":
                to.unknown.labels(crew, self._tool(spell.name)).inc()

    def _count_usage(self, event: ev.ModelReplied) -> None:
        agent, usage = self._agent(event.agent), event.usage
        if usage is not None:
            # What an endpoint reports may be anything; a counter only rises.
            self._to.tokens.labels(self._crew, agent, "input").inc(max(0, usage.input_tokens or 0))
            self._to.tokens.labels(self._crew, agent, "output").inc(max(0, usage.output_tokens or 0))
        if event.cost_usd is not None:
            self._to.cost.labels(self._crew, agent).inc(max(0.0, event.cost_usd))

    def _agent(self, name: str) -> str:
        return name if name in self._agents else OTHER

    def _tool(self, name: str) -> str:
        return name if name in self._tools else OTHER
