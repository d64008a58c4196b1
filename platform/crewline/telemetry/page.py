"""The metrics page: gauges read off engines and log when it is asked for, and the server that shows it."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import TimeoutError as FutureTimeout
from typing import Any, NamedTuple, Self, cast

from prometheus_client import CollectorRegistry, Metric, start_http_server
from prometheus_client.registry import Collector

from crewline.bus.base import Bus
from crewline.conversation import Conversation, status_of
from crewline.engine import Engine
from crewline.errors import BusError, UsageError
from crewline.roster import Roster
from crewline.telemetry.counting import Counting
from crewline.telemetry.instruments import Instruments

log = logging.getLogger("crewline.telemetry")

LOOPBACK = "127.0.0.1"
LOOK_S_MAX = 3.0  # Prometheus waits 10 s for a page
STATUSES = ("working", "needs you", "retrying")


class Address(NamedTuple):
    """Where the page is served."""

    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/metrics"


def parse_address(text: str) -> Address:
    """Return the address in `:PORT` (this machine alone), `HOST:PORT` or `[IPv6]:PORT`. Raises: UsageError."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65_535:
        raise UsageError(f"--metrics {text!r} is no address", hint="write :9464 (this machine alone) or HOST:PORT")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise UsageError(f"--metrics {text!r}: an IPv6 address stands in brackets", hint=f"write [{host}]:{port}")
    return Address(host or LOOPBACK, int(port))


class Source(NamedTuple):
    """A crew's engines in this process, and the log they read."""

    crew: str
    bus: Bus
    engines: Mapping[str, Engine[Any]]


class Gauges:
    """Reads what is so at this moment."""

    def __init__(self, instruments: Instruments) -> None:
        self._to = instruments
        self._known_resent: dict[str, int] = {}
        self.sources: list[Source] = []

    async def look(self) -> None:
        """Set every gauge anew. A log that does not answer leaves its lag out: no number is better than an old one."""
        to = self._to
        read = (to.open_turns, to.held, to.queued, to.parked_now, to.running, to.lag_records, to.lag_seconds, to.bus_up)
        for metric in read:
            metric.clear()
        for source in self.sources:
            self._turns(source)
            self._held(source)
            self._resent(source)
            for role, engine in source.engines.items():
                to.running.labels(source.crew, role).set(engine.in_flight())
        await asyncio.gather(*map(self._lags, self.sources))

    def _turns(self, source: Source) -> None:
        worker = source.engines.get("worker")
        if worker is None:
            return
        turns = dict.fromkeys(STATUSES, 0)
        queued = parked = 0
        for state in worker.states():
            assert isinstance(state, Conversation)
            queued += len(state.queue)
            if state.parked is not None:
                parked += 1
            elif state.turn is not None:
                turns[status_of(state)] += 1
        for status, number in turns.items():
            self._to.open_turns.labels(source.crew, status).set(number)
        self._to.queued.labels(source.crew).set(queued)
        self._to.parked_now.labels(source.crew).set(parked)

    def _held(self, source: Source) -> None:
        guardrail = source.engines.get("guardrail")
        if guardrail is None:
            return
        # It keeps every held call in mind, since each has a deadline; a worker may have put such a turn away.
        turns = [state.turn for state in guardrail.states() if state.turn is not None]
        held = sum(call.status == "held" for turn in turns for call in turn.calls)
        self._to.held.labels(source.crew).set(held)

    def _resent(self, source: Source) -> None:
        # The embedded log has no producer that could send again.
        resent = getattr(getattr(source.bus, "_producer", None), "resent", 0)
        counter = self._to.batches_resent.labels(source.crew)
        counter.inc(max(0, resent - self._known_resent.get(source.crew, 0)))
        self._known_resent[source.crew] = resent

    async def _lags(self, source: Source) -> None:
        """Ask the log for all roles at once: if it is away, they wait for it together."""
        answers = await asyncio.gather(*(self._lag(source, role, engine) for role, engine in source.engines.items()))
        self._to.bus_up.labels(source.crew).set(int(all(answers)))

    async def _lag(self, source: Source, role: str, engine: Engine[Any]) -> bool:
        """Set how far an engine is behind in the partitions it owns; return whether the log could be asked."""
        topic, group = engine.role.topic, f"{source.crew}.{role}"
        try:
            async with asyncio.timeout(LOOK_S_MAX / 2):
                _, ends = await source.bus.offsets(topic)
                for partition, position in engine.positions().items():
                    behind = max(0, ends.get(partition, position) - position)
                    age_s = await self._age_s(source.bus, topic, partition, position) if behind else 0.0
                    labels = (source.crew, group, topic, str(partition))
                    self._to.lag_records.labels(*labels).set(behind)
                    self._to.lag_seconds.labels(*labels).set(age_s)
        except (BusError, TimeoutError) as error:
            log.debug("the lag of %s is not known: %s", group, error)
            return False
        return True

    async def _age_s(self, bus: Bus, topic: str, partition: int, position: int) -> float:
        oldest = (await bus.read(topic, partition, position, records_max=1)).records
        return max(0.0, time.time() - oldest[0].timestamp_ms / 1000) if oldest else 0.0


class _Fresh(Collector):
    """The registry, after the gauges have been read: in the loop they belong to, not in the server's thread."""

    def __init__(self, registry: CollectorRegistry, gauges: Gauges, loop: asyncio.AbstractEventLoop) -> None:
        self._registry = registry
        self._gauges = gauges
        self._loop = loop
        self._lock = threading.Lock()  # two pages at once would clear each other's gauges

    def collect(self) -> Iterable[Metric]:
        with self._lock:
            self._look()
            return list(self._registry.collect())

    def restricted_registry(self, names: Iterable[str]) -> Any:
        """Return those metrics alone: a page may be asked for some (`?name[]=…`)."""
        with self._lock:
            self._look()
            return self._registry.restricted_registry(names)

    def _look(self) -> None:
        looking = asyncio.run_coroutine_threadsafe(self._gauges.look(), self._loop)
        try:
            looking.result(LOOK_S_MAX)
        except FutureTimeout:
            looking.cancel()
            log.warning("the process was too busy to say how it is within %g s", LOOK_S_MAX)


class MetricsPage:
    """Serves the metrics of this process, while the context is open.

    Raises: UsageError if the address cannot be had.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self.instruments = Instruments()
        self.gauges = Gauges(self.instruments)

    async def __aenter__(self) -> Self:
        fresh = _Fresh(self.instruments.registry, self.gauges, asyncio.get_running_loop())
        try:
            self._server, _ = start_http_server(self.address.port, self.address.host, cast(CollectorRegistry, fresh))
        except OSError as error:
            raise UsageError(
                f"metrics cannot be served at {self.address}: {error.strerror or error}", hint="name another: --metrics :PORT"
            ) from error
        self.address = Address(self.address.host, self._server.server_port)
        return self

    def counting(self, roster: Roster, role: str) -> Counting:
        """Return what counts for a role of a crew."""
        return Counting(self.instruments, roster, role)

    def show(self, crew: str, bus: Bus, engines: Mapping[str, Engine[Any]]) -> None:
        """Have the page show the gauges of a crew's engines; `engines` by role, as they are when it is asked for."""
        self.gauges.sources.append(Source(crew, bus, engines))

    async def __aexit__(self, *_: object) -> None:
        await asyncio.to_thread(self._server.shutdown)
        self._server.server_close()
