"""All that one process tells: a metrics page, if it is asked for; traces, if OpenTelemetry's variables say where to;
and what lines of the log are about, if they are written for machines."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Self

from crewline.bus.base import Bus
from crewline.engine import Engine
from crewline.errors import UsageError
from crewline.roster import Roster
from crewline.telemetry.fields import structured
from crewline.telemetry.watching import Watch
from crewline.traceparent import wanted

if TYPE_CHECKING:  # at run time only where they are asked for: they belong to an extra
    from opentelemetry.sdk.trace import SpanProcessor

    from crewline.telemetry.page import MetricsPage


class Telemetry:
    """Use it as an async context manager around the crews of this process.

    Args:
        metrics: where the page is served: `:PORT` (this machine alone) or `HOST:PORT`; None: nowhere.
        spans: where spans go; None: by OTLP to where OpenTelemetry's variables say, nowhere if they say nothing.

    Raises: UsageError for an address that there is not, or without the extra `telemetry`.
    """

    def __init__(self, *, metrics: str | None = None, spans: SpanProcessor | None = None) -> None:
        self._metrics = metrics
        self._spans = spans
        self._stack = AsyncExitStack()
        self._page: MetricsPage | None = None

    @property
    def page(self) -> str | None:
        """The page's address, or None."""
        return str(self._page.address) if self._page is not None else None

    async def __aenter__(self) -> Self:
        if self._metrics is not None:
            _need("prometheus_client", "--metrics")
            from crewline.telemetry.page import MetricsPage, parse_address

            self._page = await self._stack.enter_async_context(MetricsPage(parse_address(self._metrics)))
        if self._spans is None and wanted():
            _need("opentelemetry.sdk", "OTEL_EXPORTER_OTLP_ENDPOINT")
            from crewline.telemetry.export import close, over_http

            self._spans = over_http()
            self._stack.push_async_callback(close, self._spans)
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._stack.aclose()

    def watch(self, roster: Roster, bus: Bus, engines: Mapping[str, Engine[Any]]) -> None:
        """Have the engines of a crew observed, by role. Call it before they run, or what comes first is not told."""
        page, crew = self._page, roster.topics.namespace
        if page is None and self._spans is None and not structured():
            return
        for role, engine in engines.items():
            draws = None
            if self._spans is not None:
                from crewline.telemetry.traces import Tracer

                draws = Tracer(crew, role, self._spans)
            engine.observer = Watch(role, counts=page.counting(roster, role) if page is not None else None, draws=draws)
        if page is not None:
            page.show(crew, bus, engines)


def _need(module: str, what: str) -> None:
    try:
        found = find_spec(module)
    except ModuleNotFoundError:  # its parent is not there
        found = None
    if found is None:
        raise UsageError(f"{what} needs packages that are not installed", hint="pip install 'crewline[telemetry]'")
