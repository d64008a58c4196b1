"""Trace context of records (W3C Trace Context), made from their ids: the same in every process, and on every replay.

A run is a trace. A span is a turn, a step, a call, a judgement, an execution: whatever has an id of its own. The
header of a record names the span that wrote it. Nothing has to be kept or handed on for that, but for one
thing: a trace that somebody outside began goes on, so its header is kept with the turn.
"""

from __future__ import annotations

import hashlib
import os
import re
from contextvars import ContextVar
from functools import lru_cache
from typing import NamedTuple

HEADER = "traceparent"
_HEADER = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})")
# The span of a record is the innermost part that its id names: `c1:t2:end` is written by turn 2 of c1.
_PART = re.compile(r"(.*:t\d+(?::s\d+(?::a\d+|:c\d+(?::[jx]\d+)?)?)?)(?::.*)?", re.DOTALL)


class Context(NamedTuple):
    """A trace, and the span in it, as lower-case hex digits (32 and 16). `sampled`: whoever began it keeps it."""

    trace: str
    span: str
    sampled: bool = True

    def __str__(self) -> str:
        return f"00-{self.trace}-{self.span}-{'01' if self.sampled else '00'}"


# What the turn at work is part of, if somebody outside began its trace: set by whoever runs an effect.
outside: ContextVar[Context | None] = ContextVar("outside", default=None)


def wanted() -> bool:
    """Whether this process writes trace context: OpenTelemetry's own variables say where traces go."""
    names = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
    off = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true" or os.environ.get("OTEL_TRACES_EXPORTER") == "none"
    return not off and any(os.environ.get(name) for name in names)


def parse(header: str | None) -> Context | None:
    """Return what a `traceparent` says, or None if it says nothing that W3C Trace Context allows."""
    found = _HEADER.fullmatch(header or "")
    return Context(found[1], found[2], bool(int(found[3], 16) & 1)) if found is not None else None


@lru_cache(maxsize=4_096)
def trace_of(run: str) -> str:
    """Return the trace of a run that nobody outside began."""
    return hashlib.sha256(f"trace\n{run}".encode()).hexdigest()[:32]


def span_of(part: str) -> str:
    """Return the span of a part of a run, by its id."""
    return hashlib.sha256(f"span\n{part}".encode()).hexdigest()[:16]


def part_of(record: str) -> str:
    """Return the id of the part of a run that wrote the record with this id."""
    found = _PART.fullmatch(record)
    return found[1] if found is not None else record


def context_of(run: str, record: str) -> Context:
    """Return the context of a record: in the trace that somebody outside began, or in the run's own."""
    began = outside.get()
    span = span_of(part_of(record))
    return Context(trace_of(run), span) if began is None else Context(began.trace, span, began.sampled)


def from_outside(header: str | None, run: str, intent: str) -> str:
    """Return an intent's header if somebody outside wrote it, "" if there is none or it is one of ours."""
    context = parse(header)
    if context is None or context[:2] == (trace_of(run), span_of(part_of(intent))):
        return ""
    return str(context)
