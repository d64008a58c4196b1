"""Where spans go: in batches over HTTP, to the endpoint that OpenTelemetry's variables name."""

from __future__ import annotations

import asyncio
import logging
import threading

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor

CLOSE_S_MAX = 3.0


def over_http() -> SpanProcessor:
    """Return what sends spans by OTLP, from a thread of its own. An endpoint that is away loses spans, nothing else."""
    # A line for each batch that is lost, not for each attempt to send it.
    logging.getLogger("opentelemetry.exporter.otlp").setLevel(logging.ERROR)
    return BatchSpanProcessor(OTLPSpanExporter())


async def close(processor: SpanProcessor) -> None:
    """Send what is left, for `CLOSE_S_MAX` at most: whoever stops a process does not wait for an endpoint that is away."""
    # Its own deadline is 30 s and cannot be said otherwise. The thread is left behind: a daemon ends with its process.
    closing = threading.Thread(target=processor.shutdown, name="last spans", daemon=True)
    closing.start()
    await asyncio.to_thread(closing.join, CLOSE_S_MAX)
