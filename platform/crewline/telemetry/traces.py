"""Spans of OpenTelemetry, drawn from spells: one trace a run, whichever processes worked on it.

Ids come from the run's and its parts' ids, times from the log (traceparent.py), so a span that two owners draw
is the same span. A part is drawn by the role that answers for it: turns, steps, people, delegations and calls by
the worker, judgements by the guardrail, executions by the tool pool.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from opentelemetry import trace as api
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import Decision
from opentelemetry.trace import SpanContext, SpanKind, Status, StatusCode, TraceFlags

from crewline import events as ev
from crewline.telemetry.spells import Kind, Spell
from crewline.traceparent import Context, parse, part_of, span_of, trace_of

DRAWN_BY: dict[str, frozenset[Kind]] = {
    "worker": frozenset({"turn", "step", "attempt", "person", "delegation", "call"}),
    "guardrail": frozenset({"judgement"}),
}
BY_POOL: frozenset[Kind] = frozenset({"execution"})
_NAMES: dict[Kind, str] = {"person": "wait for a person"}
_FAILED = frozenset({"failed", "error", "unknown", "late"})
_NS = 1_000_000  # in a millisecond


class _GivenIds(IdGenerator):
    """Gives the ids that were set just before."""

    trace = span = ""

    def generate_trace_id(self) -> int:
        return int(self.trace, 16)

    def generate_span_id(self) -> int:
        return int(self.span, 16)


class Tracer:
    """Draws the spans of one role of a crew.

    Args:
        crew: its namespace. role: `worker`, `guardrail` or `tools.POOL`.
        processor: where spans go; roles of one process share it.
    """

    def __init__(self, crew: str, role: str, processor: SpanProcessor) -> None:
        self._draws = DRAWN_BY.get(role, BY_POOL)
        self._ids = _GivenIds()
        resource = Resource.create({
            "service.name": f"{crew}.{role}", "service.namespace": "crewline", "service.instance.id": socket.gethostname(),
        })
        self._provider = TracerProvider(resource=resource, id_generator=self._ids, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("crewline")

    def draw(self, spells: Sequence[Spell], conversation: str, origin: str, event: ev.Event, *, reply_to: str = "") -> None:
        """Draw what this role answers for.

        Args:
            origin: the `traceparent` of the turn's intent, if somebody outside began the trace.
            event: the record that ended the spells.
            reply_to: the execution that delegated the turn, "" if nobody did.
        """
        for spell in spells:
            # Of attempts those that failed alone: one that succeeded is its step.
            if spell.kind not in self._draws or (spell.kind == "attempt" and spell.outcome == "replied"):
                continue
            attributes = {
                "crewline.run": spell.run, "crewline.conversation": conversation, "crewline.id": spell.id,
                "crewline.outcome": spell.outcome, **_attributes(spell, event),
            }
            if spell.code:
                attributes["crewline.code"] = spell.code
            self._draw(spell, parse(origin), reply_to, attributes)

    def _draw(self, spell: Spell, began: Context | None, reply_to: str, attributes: dict[str, Any]) -> None:
        self._ids.trace = began.trace if began is not None else trace_of(spell.run)
        self._ids.span = span_of(spell.id)
        if spell.parent:
            above = span_of(spell.parent)
        elif reply_to:
            above = span_of(part_of(reply_to))
        else:
            above = began.span if began is not None else ""
        span = self._tracer.start_span(
            f"{_NAMES.get(spell.kind, spell.kind)} {spell.name}",
            context=self._above(above, began),
            kind=SpanKind.CLIENT if spell.kind in ("step", "attempt") else SpanKind.INTERNAL,
            attributes=attributes,
            start_time=spell.begin_ms * _NS,
        )
        if spell.outcome in _FAILED:
            span.set_status(Status(StatusCode.ERROR, spell.code or spell.outcome))
        span.end(max(spell.begin_ms, spell.end_ms) * _NS)

    def _above(self, span: str, began: Context | None) -> Any:
        """Return the context of a span's parent, with the answer to whether the trace is kept at all."""
        if not span:
            return None
        trace = int(self._ids.trace, 16)
        kept = began.sampled if began is not None else self._keeps(trace)
        flags = TraceFlags(TraceFlags.SAMPLED if kept else TraceFlags.DEFAULT)
        return api.set_span_in_context(api.NonRecordingSpan(SpanContext(trace, int(span, 16), is_remote=True, trace_flags=flags)))

    def _keeps(self, trace: int) -> bool:
        """Return what the sampler says of a trace that begins here; by its id, so every process says the same."""
        return self._provider.sampler.should_sample(None, trace, "turn").decision is Decision.RECORD_AND_SAMPLE


def _attributes(spell: Spell, event: ev.Event) -> dict[str, Any]:
    """Return what OpenTelemetry's conventions for generative AI name. No text of anybody's is among it."""
    if spell.kind in ("turn", "step", "attempt"):
        found: dict[str, Any] = {"gen_ai.agent.name": spell.name}
        if isinstance(event, ev.ModelReplied) and spell.kind == "step":
            usage = event.usage or ev.Usage()
            found |= {
                "gen_ai.operation.name": "chat", "gen_ai.response.model": event.model,
                "gen_ai.usage.input_tokens": usage.input_tokens, "gen_ai.usage.output_tokens": usage.output_tokens,
            }
        elif isinstance(event, ev.TurnFinished) and spell.kind == "turn":
            spent = event.spent
            found |= {
                "gen_ai.operation.name": "invoke_agent", "crewline.steps": spent.steps, "crewline.calls": spent.tool_calls,
                "gen_ai.usage.input_tokens": spent.input_tokens, "gen_ai.usage.output_tokens": spent.output_tokens,
                "crewline.cost_usd": spent.cost_usd,
            }
        return {name: value for name, value in found.items() if value not in (None, "")}
    operation = {"gen_ai.operation.name": "execute_tool"} if spell.kind == "execution" else {}
    return {"gen_ai.tool.name": spell.name, **operation}
