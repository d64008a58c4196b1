"""Where spans go: in batches over HTTP, to the endpoint that OpenTelemetry's variables name."""

from __future__ import annotations

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor


def over_http() -> SpanProcessor:
    """Return what sends spans by OTLP, from a thread of its own. An endpoint that is away loses spans, nothing else."""
    return BatchSpanProcessor(OTLPSpanExporter())
