"""Where a crew runs: its log, keys and store. What the caller says counts before what the crew file says."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from crewline.bus.opening import EMBEDDED, KAFKA, open_address
from crewline.errors import UsageError

if TYPE_CHECKING:
    from crewline_memory.base import MemoryStore

    from crewline.bus.base import Bus
    from crewline.bus.kafka.options import KafkaOptions
    from crewline.crews.models import Memory
    from crewline.crews.models_bus import EmbeddedBus, KafkaBus

SQLITE = "sqlite:"
REDIS = ("redis://", "rediss://")


@dataclass(frozen=True, slots=True)
class Where:
    """Addresses of log and store, and the keys folder. `kafka` is how to get in at Kafka's brokers.

    A Redis address may hold a password, so it is in no `repr`.
    """

    bus: str
    keys: Path
    store: str = field(repr=False)
    kafka: KafkaOptions | None = None

    @property
    def embedded(self) -> bool:
        """Whether the log is a file of this host, and its keys may be made at first start."""
        return self.bus.startswith(EMBEDDED)

    @property
    def store_kind(self) -> str:
        """Return `sqlite` or `redis`, for messages."""
        return "sqlite" if self.store.startswith(SQLITE) else "redis"

    async def open_bus(self, client_id: str) -> Bus:
        """Open the log. `client_id` is what Kafka's brokers know this process by. Raises: BusError, UsageError."""
        if self.kafka is None:
            return await open_address(self.bus)
        return await open_address(self.bus, replace(self.kafka, client_id=client_id))

    async def open_store(self, namespace: str) -> MemoryStore:
        """Open the store of a crew. Raises: StoreError, UsageError."""
        if self.store.startswith(SQLITE):
            from crewline_memory.sqlite import open_store

            return await open_store(Path(self.store.removeprefix(SQLITE)), namespace)
        from crewline_memory.redis import open_store as open_redis

        return await open_redis(self.store, namespace)


def where(
    *, state: Path, bus: str | None = None, keys: Path | None = None, store: str | None = None,
    said: EmbeddedBus | KafkaBus | None = None, memory: Memory | None = None,
) -> Where:
    """Return where a crew runs.

    Args:
        state: the folder of what nobody else says: log, keys, store.
        bus: `embedded:DIR` or `kafka://HOST:PORT[,…]`; None: the crew file's, else the log in `state`. Over a
            crew file with `kind: kafka`, an address moves the crew to other brokers, signing in the same way.
        keys: the keys folder; None: the crew file's `bus.keys`, else `keys` beside the embedded log, or in `state`.
        store: `sqlite:DIR` or `redis://…`; None: the crew file's, else SQLite in `state`.
        said, memory: what the crew file says under `bus` and `memory`.

    Raises: UsageError for an address that is none, or for a file or function of `said` that cannot be used.
    """
    from crewline.crews.models_bus import KafkaBus

    kafka = said if isinstance(said, KafkaBus) else None
    store = _store(memory, state, store)
    address = bus or (f"{KAFKA}{kafka.bootstrap_servers}" if kafka is not None else f"{EMBEDDED}{state}")
    if address.startswith(KAFKA):
        named = Path(kafka.keys) if kafka is not None and kafka.keys is not None else state / "keys"
        return Where(address, keys or named, store, _options(kafka))
    if not address.startswith(EMBEDDED) or address == EMBEDDED:
        raise UsageError(f"bus address {address!r}: expected embedded:DIR or kafka://HOST:PORT[,HOST:PORT]")
    return Where(address, keys or Path(address.removeprefix(EMBEDDED)) / "keys", store)


def _options(said: KafkaBus | None) -> KafkaOptions:
    from crewline.bus.kafka.options import KafkaOptions
    from crewline.crews.security import security_of

    return security_of(said) if said is not None else KafkaOptions()


def _store(memory: Memory | None, state: Path, store: str | None) -> str:
    if store is None and memory is not None and memory.store == "redis" and memory.url is not None:
        store = memory.url.reveal()
    address = store or f"{SQLITE}{state}"
    if not address.startswith((SQLITE, *REDIS)) or address == SQLITE:
        kind = address.partition(":")[0]  # the rest may hold a password
        raise UsageError(f"store address {kind!r}:…: expected sqlite:DIR or redis://HOST:PORT/N")
    return address
