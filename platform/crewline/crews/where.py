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
    from crewline.crews.models import CrewConfig

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
        raise UsageError("the Redis store cannot be used by this version yet", hint="leave `store` away: SQLite")


def where(
    config: CrewConfig | None = None, *, state: Path, bus: str | None = None, keys: Path | None = None,
    store: str | None = None,
) -> Where:
    """Return where a crew runs.

    Args:
        config: its crew file, if there is one.
        state: the folder of what nobody else says: log, keys, store.
        bus: `embedded:DIR` or `kafka://HOST:PORT[,…]`; None: the crew file's, else the log in `state`. Over a
            crew file with `kind: kafka`, an address moves the crew to other brokers, signing in the same way.
        keys: the keys folder; None: the crew file's `bus.keys`, else `keys` beside the embedded log, or in `state`.
        store: `sqlite:DIR` or `redis://…`; None: the crew file's, else SQLite in `state`.

    Raises: UsageError for an address that is none.
    """
    kafka, servers, named = _said(config)
    address = bus or servers or f"{EMBEDDED}{state}"
    if address.startswith(KAFKA):
        return Where(address, keys or named or state / "keys", _store(config, state, store), kafka or _plain())
    if not address.startswith(EMBEDDED) or address == EMBEDDED:
        raise UsageError(f"bus address {address!r}: expected embedded:DIR or kafka://HOST:PORT[,HOST:PORT]")
    return Where(address, keys or Path(address.removeprefix(EMBEDDED)) / "keys", _store(config, state, store))


def _said(config: CrewConfig | None) -> tuple[KafkaOptions | None, str | None, Path | None]:
    """Return what the crew file says of Kafka: how to get in, the brokers' address, the keys folder."""
    from crewline.crews.models_bus import KafkaBus

    said = config.bus if config is not None else None
    if not isinstance(said, KafkaBus):
        return None, None, None
    if said.sasl is not None or said.tls is not None:
        raise UsageError("`sasl` and `tls` cannot be used by this version yet", hint="say `plaintext: true`")
    return _plain(), KAFKA + said.bootstrap_servers, Path(said.keys) if said.keys is not None else None


def _plain() -> KafkaOptions:
    from crewline.bus.kafka.options import KafkaOptions

    return KafkaOptions()


def _store(config: CrewConfig | None, state: Path, store: str | None) -> str:
    memory = config.memory if config is not None else None
    if store is None and memory is not None and memory.store == "redis" and memory.url is not None:
        store = memory.url.reveal()
    address = store or f"{SQLITE}{state}"
    if not address.startswith((SQLITE, *REDIS)) or address == SQLITE:
        kind = address.partition(":")[0]  # the rest may hold a password
        raise UsageError(f"store address {kind!r}:…: expected sqlite:DIR or redis://HOST:PORT/N")
    return address
