"""Where a benchmark runs: the embedded log in its folder, or topics of its own on a Kafka."""

from __future__ import annotations

import argparse
import asyncio
import secrets
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from crewline.bus.opening import open_address
from crewline.client import Client
from crewline.crews.running import Crew, Running
from crewline.seal import make_keys

EMBEDDED, KAFKA = "embedded", "kafka://"

T = TypeVar("T")


@dataclass(frozen=True)
class Place:
    """One run's log, store, keys and namespace.

    `state` holds the keys, the witnesses, and the log and the store too where nothing else is said.
    """

    state: Path
    bus: str = EMBEDDED
    store: str | None = None
    namespace: str = "bench"

    @classmethod
    def new(cls, state: Path, name: str, *, bus: str = EMBEDDED, store: str | None = None) -> Place:
        """Return a place nobody has used: on Kafka and Redis others run too."""
        state.mkdir(parents=True, exist_ok=True)
        make_keys(state / "keys")
        return cls(state, bus, store, name if bus == EMBEDDED and store is None else f"{name}-{secrets.token_hex(4)}")

    @property
    def on_kafka(self) -> bool:
        return self.bus.startswith(KAFKA)

    @property
    def address(self) -> str:
        return self.bus if self.on_kafka else f"embedded:{self.state}"

    def run(self, main: Coroutine[Any, Any, T]) -> T:
        """Run `main` on the event loop that `crewline up` uses here."""
        if not self.on_kafka:
            return asyncio.run(main)
        from crewline.bus.kafka import run

        return run(main)

    def client(self) -> Client:
        return Client(self.address, self.namespace, keys=self.state / "keys")

    def up(self, crew: Crew, **options: Any) -> Running:
        """Return `crew` running here; its roster's namespace must be this one's."""
        assert crew.roster.topics.namespace == self.namespace
        return crew.up(state=self.state, bus=self.address, keys=self.state / "keys", store=self.store, **options)

    async def create_topics(self, crew: Crew) -> None:
        """Make the crew's topics now, so that a client can begin before any role runs."""
        async with await open_address(self.address) as bus:
            await bus.create_topics(crew.roster.topics.specs(crew.roster.pools, partitions=crew.partitions))

    async def remove_topics(self) -> None:
        """Leave a Kafka as it was, but for groups' offsets, which it forgets by itself."""
        if not self.on_kafka:
            return
        from aiokafka.admin import AIOKafkaAdminClient

        admin = AIOKafkaAdminClient(bootstrap_servers=self.bus.removeprefix(KAFKA))
        await admin.start()
        try:
            ours = [topic for topic in await admin.list_topics() if topic.startswith(f"{self.namespace}.")]
            if ours:
                await admin.delete_topics(ours)
        finally:
            await admin.close()

    def arguments(self) -> list[str]:
        """Return the command-line arguments by which another process finds this place: see `add_arguments`."""
        store = ["--store", self.store] if self.store else []
        return ["--state", str(self.state), "--bus", self.bus, "--namespace", self.namespace, *store]

    @classmethod
    def of(cls, options: argparse.Namespace) -> Place:
        return cls(options.state, options.bus, options.store, options.namespace)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what says where to run."""
    parser.add_argument("--state", type=Path, help="folder to work in (default: a temporary one)")
    parser.add_argument("--bus", default=EMBEDDED, help="embedded, or kafka://HOST:PORT[,…] (topics of its own, removed at the end)")
    parser.add_argument("--store", help="redis://HOST:PORT/N (default: SQLite in the folder)")
    parser.add_argument("--namespace", default="bench", help=argparse.SUPPRESS)


@asynccontextmanager
async def topics_of(place: Place, crew: Crew) -> AsyncIterator[None]:
    """Make the topics of `crew`, and remove them afterwards."""
    await place.create_topics(crew)
    try:
        yield
    finally:
        await place.remove_topics()
